"""Disk writes as rows of a trace: the log of them (`disk_writes`) and its index by block (`disk_blocks`).

A row of the index says that write `number` touched `block`, with `place` = first sector + 16 * sectors
of it.  A discard may cover a whole disk, so whole runs of blocks are one row: the key of a run is

    level << 48 | index      level 0: one block of 4 KB, level 1: 256 of them, level 2: 65,536 ...

and a range is the fewest aligned runs that make it up.  A block is looked up at each level.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from tt.log.blobs import HASH_SIZE, contents_digest, pack
from tt.log.sectors import BLOCK_SECTORS, SECTOR, piece_sizes

LEVELS = 4
FANOUT_BITS = 8
LEVEL_SHIFT = 48
WHOLE = BLOCK_SECTORS << 4
MAX_LBA = 1 << 50
# What `row_crc` takes the checksum of, up to the bytes of the last column.
_I, _B, _WRITES, _BLOCKS = b"i", b"b", b"disk_writes", b"disk_blocks"
_WRITE = struct.Struct("<11s" + "cq" * 8 + "cQ").pack
_BLOCK = struct.Struct("<11s" + "cq" * 4 + "cQ").pack
_BLOB = struct.Struct(f"<5scQ{HASH_SIZE}scqcQ").pack
_REMEMBERED = 1 << 16  # hashes known to be stored: what is written again is mostly what was written lately


class ChangeKind(IntEnum):
    """What a write did.  The numbers are part of the trace format."""

    DATA = 0
    ZEROES = 1  # the sectors became zeros, and no bytes were sent for it
    DISCARD = 2  # the contents are no longer needed: they read as zeros from here on


class NewWrite(NamedTuple):
    """A write to be stored: a row of `disk_writes`, but that `data` is not hashed yet.

    `data` is `sectors` * 512 bytes, empty unless DATA; `digest` its hash, where that is known.
    """

    number: int
    event: int
    tick: int
    host_ns: int
    disk: int
    kind: ChangeKind
    lba: int
    sectors: int
    data: bytes = b""
    digest: bytes | None = None


class BlobStore:
    """Puts contents into the table `blobs`, once each."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[bytes, None] = {}

    def put(self, data: bytes, key: bytes | None = None) -> bytes:
        """Store `data` if it is not there; return its hash, which may be given as `key`."""
        if key is None:
            key = contents_digest(data)
        self.put_many([(key, data)])
        return key

    def put_many(self, contents: Iterable[tuple[bytes, bytes]]) -> None:
        """Store what is not there, (hash, data) each."""
        known = self._known
        if len(known) >= _REMEMBERED:
            known.clear()
        rows = []
        for key, data in contents:
            if key not in known:
                known[key] = None
                packed = pack(data)
                size = len(data)
                crc = crc32(packed, crc32(_BLOB(b"blobs", _B, HASH_SIZE, key, _I, size, _B, len(packed))))
                rows.append((key, size, packed, crc))
        # Compressing what the trace holds already is rare, and cheaper than looking every block up first.
        self._db.executemany("INSERT OR IGNORE INTO blobs VALUES (?,?,?,?)", rows)


def put_writes(db: sqlite3.Connection, blobs: BlobStore, writes: Iterable[NewWrite]) -> None:
    """Store writes with their contents and their rows of the index.

    The rows are those of `tt.log.schema`; their checksums are computed in few calls, because a guest
    or the client of a disk waits meanwhile.
    """
    contents: list[tuple[bytes, bytes]] = []
    write_rows = []
    block_rows = []
    for number, event, tick, host_ns, disk, kind, lba, sectors, data, digest in writes:
        hashes = b""
        if kind is ChangeKind.DATA:
            if sectors <= BLOCK_SECTORS - lba % BLOCK_SECTORS:  # in one block: by far the most
                pieces = [(lba, sectors, data, digest)] if sectors else []
            else:
                pieces = []
                at = 0
                for size in piece_sizes(lba, sectors):
                    pieces.append((lba + at // SECTOR, size // SECTOR, data[at : at + size], None))
                    at += size
            keys = []
            for sector, count, piece, known in pieces:
                key = known or contents_digest(piece)
                keys.append(key)
                contents.append((key, piece))
                block, place = sector // BLOCK_SECTORS, sector % BLOCK_SECTORS | count << 4
                crc = crc32(_BLOCK(_BLOCKS, _I, disk, _I, block, _I, number, _I, place, _B, HASH_SIZE) + key)
                block_rows.append((disk, block, number, place, key, crc))
            hashes = b"".join(keys)
        else:
            for block, place in runs(lba, sectors):
                crc = crc32(_BLOCK(_BLOCKS, _I, disk, _I, block, _I, number, _I, place, _B, 0))
                block_rows.append((disk, block, number, place, b"", crc))
        columns = (number, event, tick, host_ns, disk, int(kind), lba, sectors, hashes)
        head = _WRITE(
            _WRITES, _I, number, _I, event, _I, tick, _I, host_ns, _I, disk, _I, kind, _I, lba, _I, sectors,
            _B, len(hashes),
        )  # fmt: skip
        write_rows.append((*columns, crc32(hashes, crc32(head))))
    blobs.put_many(contents)
    db.executemany("INSERT INTO disk_writes VALUES (?,?,?,?,?,?,?,?,?,?)", write_rows)
    db.executemany("INSERT INTO disk_blocks VALUES (?,?,?,?,?,?)", block_rows)


def runs(lba: int, sectors: int) -> Iterator[tuple[int, int]]:
    """Yield (key, place) of the fewest rows that cover a range of sectors."""
    end = lba + sectors
    while lba < end and (lba % BLOCK_SECTORS or end - lba < BLOCK_SECTORS):
        within = lba % BLOCK_SECTORS
        count = min(BLOCK_SECTORS - within, end - lba)
        yield lba // BLOCK_SECTORS, within | count << 4
        lba += count
    block, last = lba // BLOCK_SECTORS, end // BLOCK_SECTORS
    while block < last:
        level = 0
        while level + 1 < LEVELS:
            span = 1 << FANOUT_BITS * (level + 1)
            if block % span or block + span > last:
                break
            level += 1
        yield level << LEVEL_SHIFT | block >> FANOUT_BITS * level, WHOLE
        block += 1 << FANOUT_BITS * level
    if end % BLOCK_SECTORS and end > lba:
        yield last, (end % BLOCK_SECTORS) << 4


def levels_of(block: int) -> list[int]:
    """Return the keys under which a block may be found, from its own to the longest run."""
    return [level << LEVEL_SHIFT | block >> FANOUT_BITS * level for level in range(LEVELS)]
