"""Grouping writes into bursts: what was written in one go, with a pause after it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tt.chronus.history import Write

BURST_GAP_NS = 1_000_000_000
"""A pause of this long ends a burst: twice as often as Linux commits its journal at its quickest."""


@dataclass(frozen=True)
class Burst:
    """The writes from `first` to `last` (both among them), of `size` bytes in all; `index` counts from 1."""

    index: int
    first: int
    last: int
    count: int
    size: int
    begin: Write
    end: Write

    @property
    def before(self) -> int:
        """The instant before the burst."""
        return self.first - 1

    @property
    def after(self) -> int:
        """The instant after it."""
        return self.last


def bursts(writes: Iterable[Write], gap_ns: int = BURST_GAP_NS, ends: Collection[int] = ()) -> list[Burst]:
    """Group `writes`, in order: a burst ends before a pause of at least `gap_ns`, and at each of `ends`.

    Pauses are of guest time where the guest's clock is known, else of host time; a
    history with neither is one burst.
    """
    found: list[Burst] = []
    begin: Write | None = None
    end: Write | None = None
    count = size = 0
    for write in writes:
        if begin is not None and end is not None and (_pause(end, write) >= gap_ns or end.number in ends):
            found.append(Burst(len(found) + 1, begin.number, end.number, count, size, begin, end))
            begin, count, size = None, 0, 0
        begin = begin or write
        end = write
        count += 1
        size += write.size
    if begin is not None and end is not None:
        found.append(Burst(len(found) + 1, begin.number, end.number, count, size, begin, end))
    return found


def _pause(one: Write, two: Write) -> int:
    if one.guest_ns is not None and two.guest_ns is not None:
        return two.guest_ns - one.guest_ns
    if one.host_ns is not None and two.host_ns is not None:
        return two.host_ns - one.host_ns
    return 0
