"""Reading what is still in a history's spool, without moving it: a reader never writes.

While a disk is served, and after its server was killed, its newest writes lie beside the history in its
spool (`tt.chronus.store.spool`).  Here they are read where they are, as if they followed the others;
the disk's server moves them (`tt.chronus.store.packer`).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tt.chronus.store import spool
from tt.errors import BadInput
from tt.log import Trace
from tt.log.blobs import contents_digest
from tt.log.disk_log import DiskLog, Entry, Piece
from tt.log.disk_rows import LEVEL_SHIFT, ChangeKind, levels_of, runs
from tt.log.sectors import BLOCK_SECTORS, SECTOR, piece_sizes
from tt.vmm.disk import BLOCK

_Source = tuple[int, int]  # an open segment, and an offset in it


class MissingWrites(BadInput):
    """A write lies in the spool, but not the one before it."""


class SpooledLog(DiskLog):
    """The writes of a disk's history and, behind them, those in its spool, as it was when this was made.

    A record of the spool that is not whole ends it.  Raises `MissingWrites`.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._stored = trace.disk_log
        self._late: list[Entry] = []
        self._pieces: dict[int, list[Piece]] = {}  # by block, or by the key of a run of blocks
        self._sources: dict[bytes, _Source] = {}  # where contents lie that the trace may not have
        self._descriptors: list[int] = []
        self.first = self._stored.first
        self.count = self._stored.count
        try:
            self._take(spool.folder_of(trace.path))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the segments."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def entry(self, number: int) -> Entry:
        if number <= self._stored.count:
            return self._stored.entry(number)
        return self._late[number - self._stored.count - 1]

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        last = self.count if last is None else last
        if first <= self._stored.count:
            yield from self._stored.entries(first, min(last, self._stored.count))
        yield from self._between(first, last)

    def rhythm(self, disk: int, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        yield from self._stored.rhythm(disk, first, last)
        for entry in self._between(first, last):
            if entry.disk == disk:
                yield entry.number, entry.tick, entry.host_ns, entry.sectors

    def blocks_in(self, disk: int, first: int, last: int) -> Iterator[int]:
        yield from self._stored.blocks_in(disk, first, last)
        if not disk:
            yield from (block for block in self._pieces if first <= block <= last < 1 << LEVEL_SHIFT)

    def pieces(self, disk: int, block: int, number: int) -> list[Piece]:
        late = [] if disk else self._late_pieces(block, number)
        if late and late[0].size == BLOCK:
            return late
        return [*self._stored.pieces(disk, block, min(number, self._stored.count)), *late]

    def contents(self, key: bytes, size: int) -> bytes:
        """Return the `size` bytes known as `key`; raises `BadInput`."""
        source = self._sources.get(key)
        if source is None:
            return self._trace.blob(key, size)
        data = os.pread(source[0], size, source[1])
        if len(data) != size or contents_digest(data) != key:
            raise self._trace.damaged("a write in its spool is not what it was")
        return data

    # ---- inside

    def _between(self, first: int, last: int) -> list[Entry]:
        start = max(first - self._stored.count - 1, 0)
        return self._late[start : max(last - self._stored.count, 0)]

    def _late_pieces(self, block: int, number: int) -> list[Piece]:
        """Return what the spool's writes up to `number` did to a block, from the last that made all of it."""
        found: list[Piece] = []
        for key in levels_of(block):
            pieces = self._pieces.get(key, ())
            found += pieces[: bisect_right(pieces, number, key=lambda piece: piece.number)]
        found.sort(key=lambda piece: piece.number)
        whole = [at for at, piece in enumerate(found) if piece.size == BLOCK]
        return found[whole[-1] :] if whole else found

    def _take(self, folder: Path) -> None:
        for segment in _open_segments(folder, self.count, self._descriptors):
            for records, end in spool.batches(segment, spool.offset_of(segment, self.count + 1)):
                end -= sum(len(record.data) for record in records)
                for record in records:
                    if record.number > self.count + 1:
                        raise MissingWrites(f"{folder} is damaged: write {self.count + 1} is missing")
                    if record.number == self.count + 1:
                        self._add(record, segment, end)
                    end += len(record.data)

    def _add(self, record: spool.Record, segment: int, offset: int) -> None:
        self.count = number = record.number
        host_ns = record.host_ns
        if self._late:
            host_ns = max(host_ns, self._late[-1].host_ns)
        elif self._stored.count >= self.first:
            host_ns = max(host_ns, self._stored.entry(self._stored.count).host_ns)
        kind, lba, sectors = record.kind, record.lba, record.sectors
        self._late.append(Entry(number, number, host_ns, 0, kind, lba, sectors))
        if kind is not ChangeKind.DATA:
            for key, place in runs(lba, sectors):
                size = (place >> 4) * SECTOR
                self._pieces.setdefault(key, []).append(Piece(number, (place & 15) * SECTOR, size, b""))
            return
        at = 0
        for size in piece_sizes(lba, sectors):
            data = record.data[at : at + size]
            digest = contents_digest(data)
            self._sources[digest] = (segment, offset + at)
            sector = lba + at // SECTOR
            piece = Piece(number, sector % BLOCK_SECTORS * SECTOR, size, digest)
            self._pieces.setdefault(sector // BLOCK_SECTORS, []).append(piece)
            at += size


def _open_segments(folder: Path, count: int, descriptors: list[int]) -> Iterator[int]:
    """Open the segments that may hold writes after number `count`; `descriptors` are to be closed."""
    opened: list[int] = []
    for number in reversed(spool.segments(folder)):
        with suppress(FileNotFoundError):  # its writes are in the history by now
            descriptor = os.open(spool.segment_path(folder, number), os.O_RDONLY | os.O_CLOEXEC)
            descriptors.append(descriptor)
            opened.append(descriptor)
            first = spool.first_number(descriptor)
            if first is not None and first <= count + 1:
                break
    return reversed(opened)
