"""The shell: commands over a timeline, each a function that gives an answer; a terminal, and a batch."""

# Each adds its commands, in this order.
# isort: off
from tt.shell import moving, stopping, writers, looking, memory, disks  # noqa: F401
from tt.shell import recorded, marks, branches, housekeeping  # noqa: F401

# isort: on
from tt.shell.command import COMMANDS, Command
from tt.shell.session import Interrupted, Session

__all__ = ["COMMANDS", "Command", "Interrupted", "Session"]
