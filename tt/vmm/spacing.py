"""How far a machine has run, told as host time, so that all ways from one kept place to the next take alike.

A million instructions of a tight loop take half a millisecond, of a kernel that
patches itself a hundred.  What makes the difference are events that the engine
counts anyway; the time of each was measured, and need not be right for any one
host: places are where a person waits about equally long, wherever he goes.
"""

from __future__ import annotations

from tt.vmm.engine import FOREVER
from tt.vmm.machine import Machine

DISTANCE_NS = 20_000_000
"""From one kept place to the next: half of it is what going somewhere takes, on average."""
TICKS_PER_PAGE = 2_000  # storing a page takes as long as running these
_LOOK_TICKS = 1_000_000  # how often to look
_TICK_PS, _FILL_NS, _BLOCK_NS, _REVIVED_NS, _EXIT_NS = 2_500, 450, 15_000, 1_500, 5_000


def host_ns(machine: Machine) -> int:
    """Return roughly how long the machine has been running in all, in ns; only differences mean something."""
    counted = machine.engine.statistics
    return (
        machine.tick * _TICK_PS // 1000
        + counted["tlb_fills"] * _FILL_NS
        + counted["blocks_made"] * _BLOCK_NS
        + counted["blocks_revived"] * _REVIVED_NS
        + counted["io_exits"] * _EXIT_NS
    )


class Spacing:
    """Says at which ticks to keep a place: each `ticks`, or if that is None, `DISTANCE_NS` of the host apart.

    It begins at the machine's tick.  0 ticks are never.
    """

    def __init__(self, machine: Machine, ticks: int | None = None) -> None:
        self._machine = machine
        self._ticks = ticks
        self.kept()

    next: int
    """The tick to stop at next, and to ask whether it is `due`."""

    @property
    def cost(self) -> int:
        """How far the machine has run since this began, in ns of the host or in ticks."""
        return self._machine.tick if self._ticks is not None else host_ns(self._machine)

    def due(self) -> bool:
        """Whether to keep a place here; else `next` has moved on.  It is at `next` that one asks."""
        if self._ticks is not None or host_ns(self._machine) - self._last >= self._distance:
            return True
        self.next = self._machine.tick + _LOOK_TICKS
        return False

    def put_off(self) -> None:
        """No place can be kept here: ask again a little later."""
        self.next = self._machine.tick + min(self._ticks or _LOOK_TICKS, _LOOK_TICKS)

    def kept(self, pages: int = 0) -> None:
        """A place was kept here; `pages` of RAM were stored for it."""
        tick = self._machine.tick
        if self._ticks is not None:
            self.next = tick + max(self._ticks, pages * TICKS_PER_PAGE) if self._ticks else FOREVER
            return
        self._last = host_ns(self._machine)
        self._distance = max(DISTANCE_NS, pages * TICKS_PER_PAGE * _TICK_PS // 1000)
        self.next = tick + _LOOK_TICKS
