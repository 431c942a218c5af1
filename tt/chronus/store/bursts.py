"""Grouping writes into bursts: writes without a long pause between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from tt.chronus.store.write import Write
from tt.log.sectors import SECTOR

BURST_GAP_NS = 1_000_000_000
"""A pause of this length, in ns, ends a burst."""


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
    rhythm: Iterable[tuple[int, int, int]],
    write: Callable[[int], Write],
    gap_ns: int = BURST_GAP_NS,
    ends: Collection[int] = (),
) -> list[Burst]:
    """Group writes: `rhythm` gives (number, time in ns, sectors) of each, `write` one by its number.

    A burst ends before a pause of at least `gap_ns`, and at each of `ends`.  Pauses are of guest time where
    there is a machine, else of host time; a history that knows neither is one burst.
    """
    found: list[Burst] = []
    begin = end = count = sectors = before = 0

    def finish() -> None:
        size = sectors * SECTOR
        found.append(Burst(len(found) + 1, begin, end, count, size, write(begin), write(end)))

    for number, now, size in rhythm:
        if count and (now - before >= gap_ns or end in ends):
            finish()
            count = sectors = 0
        if not count:
            begin = number
        end, before = number, now
        count += 1
        sectors += size
    if count:
        finish()
    return found
