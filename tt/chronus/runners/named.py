"""The runners by their names, as `--runner` gives them."""

from __future__ import annotations

from tt.chronus.runners.qemu import QemuRunner
from tt.chronus.runners.runner import Runner
from tt.chronus.runners.tt_machine import TtRunner
from tt.errors import UsageError


def runner(name: str) -> Runner:
    """Return a runner by its name; raises `UsageError` for an unknown name."""
    if name == "tt":
        return TtRunner()
    if name.partition(":")[0] == "qemu":
        return QemuRunner.named(name)
    raise UsageError(f"there is no runner {name!r}: there are tt and qemu")
