"""Disk writes as rows of a trace: the log of them (`disk_writes`) and its index by block (`disk_blocks`).

A row of the index says that write `number` touched `block`, with `place` = first sector + 16 * sectors
of it.  A discard may cover a whole disk, so whole runs of blocks are one row: the key of a run is

    level << 48 | index      level 0: one block of 4 KB, level 1: 256 of them, level 2: 65,536 ...

and a range is the fewest aligned runs that make it up.  Whoever looks a block up looks at each level.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from enum import IntEnum

from tt.log.blobs import HASH_SIZE, contents_digest, pack
from tt.log.schema import row_crc
from tt.log.sectors import BLOCK_SECTORS, SECTOR, piece_sizes

LEVELS = 4
FANOUT_BITS = 8
LEVEL_SHIFT = 48
WHOLE = BLOCK_SECTORS << 4
MAX_LBA = 1 << 50
_REMEMBERED = 1 << 16  # hashes known to be stored: what is written again is mostly what was written lately


class ChangeKind(IntEnum):
    """What a write did.  The numbers are part of the trace format."""

    DATA = 0
    ZEROES = 1  # the sectors became zeros, and no bytes were sent for it
    DISCARD = 2  # the contents are no longer needed: they read as zeros from here on


class BlobStore:
    """Puts contents into the table `blobs`, once each."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[bytes, None] = {}

    def put(self, data: bytes, key: bytes | None = None) -> bytes:
        """Store `data` if it is not there; return its hash, which may be given as `key`."""
        if key is None:
            key = contents_digest(data)
        if key not in self._known:
            packed = pack(data)
            crc = row_crc("blobs", key, len(data), packed)
            # Packing in vain what was written long ago costs less than to look for everything first.
            self._db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)", (key, len(data), packed, crc))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = None
        return key


def put_write(
    db: sqlite3.Connection,
    put_blob: Callable[[bytes, bytes | None], bytes],
    number: int,
    event: int,
    tick: int,
    host_ns: int,
    disk: int,
    kind: ChangeKind,
    lba: int,
    sectors: int,
    data: bytes = b"",
    digest: bytes | None = None,
) -> None:
    """Store one write with its rows of the index.

    `data` is `sectors` * 512 bytes, empty unless DATA; `digest` its hash, where that is known.
    """
    hashes = b""
    rows = []
    if kind is ChangeKind.DATA:
        keys = []
        at = 0
        for size in piece_sizes(lba, sectors):
            whole = size == len(data)
            key = put_blob(data if whole else data[at : at + size], digest if whole else None)
            sector = lba + at // SECTOR
            place = sector % BLOCK_SECTORS | size // SECTOR << 4
            rows.append((disk, sector // BLOCK_SECTORS, number, place, key))
            keys.append(key)
            at += size
        hashes = b"".join(keys)
    else:
        rows = [(disk, key, number, place, b"") for key, place in runs(lba, sectors)]
    columns = (number, event, tick, host_ns, disk, int(kind), lba, sectors, hashes)
    db.execute(
        "INSERT INTO disk_writes VALUES (?,?,?,?,?,?,?,?,?,?)", (*columns, row_crc("disk_writes", *columns))
    )
    db.executemany(
        "INSERT INTO disk_blocks VALUES (?,?,?,?,?,?)", [(*row, row_crc("disk_blocks", *row)) for row in rows]
    )


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


__all__ = ["HASH_SIZE", "LEVEL_SHIFT", "BlobStore", "ChangeKind", "levels_of", "put_write", "runs"]
