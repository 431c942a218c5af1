"""The shell's commands, a module each kind: every one is a function that gives an answer."""

# Each adds its commands, in this order.
# isort: off
from tt.shell.commands import moving, stopping, writers, looking, memory, disks  # noqa: F401
from tt.shell.commands import recorded, network, marks, branches, housekeeping  # noqa: F401
