"""The log of a trace's disk writes, and the way from a block to the writes that made it.

Writes are numbered from 1, over all disks of a trace, in the order they happened.  What they
did to a 4 KB block are *pieces*:

    write 7   lba 6, 12 sectors   ->   block 0 sectors 6-7, block 1 sectors 0-7, block 2 sectors 0-1
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tt.log.blobs import HASH_SIZE
from tt.log.sectors import BLOCK_SECTORS, SECTOR, piece_sizes

if TYPE_CHECKING:
    from tt.log.reader import DiskWrite, Trace


class ChangeKind(IntEnum):
    """What a write did.  The numbers are part of the trace format."""

    DATA = 0
    ZEROES = 1  # the sectors became zeros, and no bytes were sent for it
    DISCARD = 2  # the contents are no longer needed: they read as zeros from here on


class Entry(NamedTuple):
    """One write: `sectors` of 512 bytes from `lba`.

    `host_ns` is when it was logged, in ns since 1970; 0 where the trace does not know.
    """

    number: int
    tick: int
    host_ns: int
    disk: int
    kind: ChangeKind
    lba: int
    sectors: int


class Piece(NamedTuple):
    """What write `number` did to one block: `size` bytes at `offset` became the contents `key`.

    An empty `key` stands for zeros.
    """

    number: int
    offset: int
    size: int
    key: bytes


class DiskLog:
    """The writes of a trace as it was when it was opened, found by number and by block."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._entries: list[Entry] = []
        self._writes: list[DiskWrite] = []
        self._blocks: dict[tuple[int, int], list[Piece]] = {}
        for number, write in enumerate(trace.disk_writes(), 1):
            self._entries.append(
                Entry(number, write.tick, 0, write.disk, ChangeKind.DATA, write.lba, write.sectors)
            )
            self._writes.append(write)
            lba = write.lba
            for at, size in enumerate(piece_sizes(write.lba, write.sectors)):
                key = write.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE]
                piece = Piece(number, lba % BLOCK_SECTORS * SECTOR, size, key)
                self._blocks.setdefault((write.disk, lba // BLOCK_SECTORS), []).append(piece)
                lba += size // SECTOR

    @property
    def count(self) -> int:
        """How many writes there are: they are numbered 1 to `count`."""
        return len(self._entries)

    def entry(self, number: int) -> Entry:
        """Return write `number`."""
        return self._entries[number - 1]

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        """Yield the writes from `first` to `last`, both among them."""
        yield from self._entries[first - 1 : last]

    def pieces(self, disk: int, block: int, number: int) -> list[Piece]:
        """Return what makes a block as it is after write `number`, oldest first.

        The first of them covers the whole block; where none does, the base lies under all of them.
        """
        pieces = self._blocks.get((disk, block), [])
        end = bisect_right(pieces, number, key=lambda piece: piece.number)
        start = end - 1
        while start > 0 and pieces[start].size < BLOCK_SECTORS * SECTOR:
            start -= 1
        return pieces[max(start, 0) : end]

    def first_at(self, column: str, value: int) -> int:
        """Return how many writes have a smaller `column` ("tick" or "host_ns") than `value`."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if getattr(self.entry(middle + 1), column) < value:
                low = middle + 1
            else:
                high = middle
        return low
