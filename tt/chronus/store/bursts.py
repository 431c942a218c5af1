"""Grouping writes into bursts: what was written in one go, with a pause after it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tt.log.sectors import SECTOR

if TYPE_CHECKING:
    from tt.chronus.store.history import History, Write

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


def bursts(
    history: History, first: int, last: int, gap_ns: int = BURST_GAP_NS, ends: Collection[int] = ()
) -> list[Burst]:
    """Group the writes of a history from number `first` to `last`.

    A burst ends before a pause of at least `gap_ns`, and at each of `ends`.  Pauses are of guest time where
    there is a machine, else of host time; a history that knows neither is one burst.
    """
    found: list[Burst] = []
    begin = end = count = sectors = before = 0
    for number, now, size in history.rhythm(first, last):
        if count and (now - before >= gap_ns or end in ends):
            found.append(_burst(history, len(found) + 1, begin, end, count, sectors))
            count = sectors = 0
        if not count:
            begin = number
        end, before = number, now
        count += 1
        sectors += size
    if count:
        found.append(_burst(history, len(found) + 1, begin, end, count, sectors))
    return found


def _burst(history: History, index: int, first: int, last: int, count: int, sectors: int) -> Burst:
    return Burst(index, first, last, count, sectors * SECTOR, history.write(first), history.write(last))
