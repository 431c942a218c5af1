"""The log of a trace's disk writes, found by number, by time and by block.

Writes are numbered from 1, over all disks of a trace, in the order they happened.  What they
did to a 4 KB block are *pieces*:

    write 7   lba 6, 12 sectors   ->   block 0 sectors 6-7, block 1 sectors 0-7, block 2 sectors 0-1
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tt.log.blobs import HASH_SIZE
from tt.log.connection import guard
from tt.log.disk_rows import LEVEL_SHIFT, MAX_LBA, ChangeKind, levels_of
from tt.log.schema import row_crc
from tt.log.sectors import BLOCK_SECTORS, SECTOR, piece_sizes

if TYPE_CHECKING:
    from tt.log.reader import DiskWrite, Trace

_BLOCK = BLOCK_SECTORS * SECTOR
_COLUMNS = "number, event, tick, host_ns, disk, kind, lba, sectors, hashes, crc"

_TOUCHED = (
    "SELECT number, place, hash, crc FROM disk_blocks "
    "WHERE disk = ? AND block = ? AND number <= ? ORDER BY number DESC"
)


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


class DiskLog(ABC):
    """The writes of a trace as it was when it was opened or last refreshed."""

    first: int = 1
    """The first write that is still known: those before it were squashed (`squashed`)."""
    count: int = 0
    """The number of the last write, 0 where there is none."""

    @abstractmethod
    def entry(self, number: int) -> Entry:
        """Return write `number`."""

    @abstractmethod
    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        """Yield the writes from `first` to `last`, both among them."""

    @abstractmethod
    def rhythm(self, disk: int, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, tick, host_ns, sectors) of the writes to a disk from `first` to `last`, quickly.

        Checksums are not looked at: it is for grouping, and each write is checked when it is read.
        """

    @abstractmethod
    def blocks_in(self, disk: int, first: int, last: int) -> Iterator[int]:
        """Yield the blocks from `first` to `last` that any write of data, or of parts of one, touched."""

    @abstractmethod
    def pieces(self, disk: int, block: int, number: int) -> list[Piece]:
        """Return what makes a block as it is after write `number`, oldest first.

        The first of them covers the whole block; where none does, the base lies under all of them.
        """

    def touched(self, disk: int, block: int) -> bool:
        """Whether a block was ever written to."""
        return bool(self.pieces(disk, block, self.count))

    def first_at(self, column: str, value: int) -> int:
        """Return the number of the last write whose `column` ("tick" or "host_ns") is below `value`."""
        low, high = self.first - 1, self.count
        while low < high:
            middle = (low + high) // 2
            if getattr(self.entry(middle + 1), column) < value:
                low = middle + 1
            else:
                high = middle
        return low


def open_log(trace: Trace, db: sqlite3.Connection) -> DiskLog:
    """Return the log of a trace: from its index, or for an old format from all its writes."""
    return StoredDiskLog(trace, db) if trace.version >= 3 else OldDiskLog(trace)


class StoredDiskLog(DiskLog):
    """The log of a trace with an index: nothing is read before it is asked for."""

    def __init__(self, trace: Trace, db: sqlite3.Connection) -> None:
        self._trace = trace
        self._db = db
        self.count = trace.disk_write_count
        self.first = trace.squashed_before + 1
        query = "SELECT 1 FROM disk_blocks WHERE disk = ? AND block >= ? LIMIT 1"
        with guard(trace.path):
            self._has_runs = any(
                db.execute(query, (disk, 1 << LEVEL_SHIFT)).fetchone() for disk in _disks(db)
            )

    def entry(self, number: int) -> Entry:
        with guard(self._trace.path):
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM disk_writes WHERE number = ?", (number,)
            ).fetchone()
        if row is None:
            raise self._trace.damaged(f"disk write {number} is missing")
        return self._checked(row)

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        first, last = max(first, self.first), self.count if last is None else min(last, self.count)
        query = f"SELECT {_COLUMNS} FROM disk_writes WHERE number BETWEEN ? AND ? ORDER BY number"
        expected = first
        with guard(self._trace.path):
            for row in self._db.execute(query, (first, last)):
                entry = self._checked(row)
                if entry.number != expected:
                    raise self._trace.damaged(f"disk write {expected} is missing")
                expected += 1
                yield entry
        if expected <= last:
            raise self._trace.damaged(f"disk write {expected} is missing")

    def rhythm(self, disk: int, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        query = (
            "SELECT number, tick, host_ns, sectors FROM disk_writes "
            "WHERE number BETWEEN ? AND ? AND disk = ? ORDER BY number"
        )
        with guard(self._trace.path):
            yield from self._db.execute(query, (max(first, self.first), min(last, self.count), disk))

    def blocks_in(self, disk: int, first: int, last: int) -> Iterator[int]:
        query = "SELECT DISTINCT block FROM disk_blocks WHERE disk = ? AND block BETWEEN ? AND ?"
        with guard(self._trace.path):
            for (block,) in self._db.execute(query, (disk, first, min(last, (1 << LEVEL_SHIFT) - 1))):
                yield block

    def pieces(self, disk: int, block: int, number: int) -> list[Piece]:
        found: list[Piece] = []
        with guard(self._trace.path):
            for row in self._db.execute(_TOUCHED, (disk, block, number)):
                found.append(self._piece(disk, block, row))
                if found[-1].size == _BLOCK:
                    break
            if self._has_runs:
                self._add_runs(found, disk, block, number)
        found.reverse()
        return found

    # ---- inside

    def _add_runs(self, found: list[Piece], disk: int, block: int, number: int) -> None:
        """Put in what long runs of zeros did to a block: all of it, so what is older goes."""
        newest = 0
        for key in levels_of(block)[1:]:
            row = self._db.execute(_TOUCHED, (disk, key, number)).fetchone()
            if row is not None:
                newest = max(newest, self._piece(disk, key, row).number)
        if newest:
            while found and found[-1].number < newest:
                found.pop()
            if not found or found[-1].size < _BLOCK:
                found.append(Piece(newest, 0, _BLOCK, b""))

    def _piece(self, disk: int, key: int, row: tuple[Any, ...]) -> Piece:
        number, place, digest, crc = row
        if not isinstance(digest, bytes) or row_crc("disk_blocks", disk, key, number, place, digest) != crc:
            raise self._trace.damaged(f"the index of block {key} of disk {disk} has a wrong checksum")
        first, count = place & 15, place >> 4
        if first + count > BLOCK_SECTORS or not count or len(digest) not in (0, HASH_SIZE):
            raise self._trace.damaged(f"the index of block {key} of disk {disk} makes no sense")
        return Piece(number, first * SECTOR, count * SECTOR, digest)

    def _checked(self, row: tuple[Any, ...]) -> Entry:
        *columns, crc = row
        if not isinstance(columns[8], bytes) or row_crc("disk_writes", *columns) != crc:
            raise self._trace.damaged("a row of disk_writes has a wrong checksum")
        number, _event, tick, host_ns, disk, kind, lba, sectors, _hashes = columns
        if lba < 0 or sectors < 0 or lba + sectors > MAX_LBA:
            raise self._trace.damaged(f"disk write {number} has an impossible disk, address or size")
        return Entry(number, tick, host_ns, disk, ChangeKind(kind), lba, sectors)


def _disks(db: sqlite3.Connection) -> Iterator[int]:
    """Yield the disks of an index, without reading all of it."""
    disk = -1
    while (
        disk := db.execute("SELECT min(disk) FROM disk_blocks WHERE disk > ?", (disk,)).fetchone()[0]
    ) is not None:
        yield disk


class OldDiskLog(DiskLog):
    """The log of a trace of before format 3, which had no index: all of it in memory."""

    def __init__(self, trace: Trace) -> None:
        self._entries: list[Entry] = []
        self._blocks: dict[tuple[int, int], list[Piece]] = {}
        for write in trace.disk_writes():
            self._add(write)
        self.count = len(self._entries)

    def entry(self, number: int) -> Entry:
        return self._entries[number - 1]

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        yield from self._entries[max(first, 1) - 1 : last]

    def rhythm(self, disk: int, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        for entry in self.entries(first, last):
            if entry.disk == disk:
                yield entry.number, entry.tick, entry.host_ns, entry.sectors

    def blocks_in(self, disk: int, first: int, last: int) -> Iterator[int]:
        yield from (block for of, block in self._blocks if of == disk and first <= block <= last)

    def pieces(self, disk: int, block: int, number: int) -> list[Piece]:
        pieces = self._blocks.get((disk, block), [])
        end = bisect_right(pieces, number, key=lambda piece: piece.number)
        start = end - 1
        while start > 0 and pieces[start].size < _BLOCK:
            start -= 1
        return pieces[max(start, 0) : end]

    def _add(self, write: DiskWrite) -> None:
        number = len(self._entries) + 1
        self._entries.append(Entry(number, write.tick, 0, write.disk, write.kind, write.lba, write.sectors))
        lba = write.lba
        for at, size in enumerate(piece_sizes(write.lba, write.sectors)):
            key = write.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE]
            piece = Piece(number, lba % BLOCK_SECTORS * SECTOR, size, key)
            self._blocks.setdefault((write.disk, lba // BLOCK_SECTORS), []).append(piece)
            lba += size // SECTOR
