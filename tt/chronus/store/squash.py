"""Forgetting old history: instants before a given one are deleted, and their room is freed."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from tt.chronus.store import spool
from tt.chronus.store.history import History
from tt.chronus.store.images import META_KEY, ImageSpan, image_spans, span_around
from tt.chronus.store.packer import recover
from tt.errors import BadInput, TTError, UsageError
from tt.log import Trace
from tt.log.blobs import HASH_SIZE
from tt.log.connection import database
from tt.log.disk_rows import FANOUT_BITS, LEVEL_SHIFT, LEVELS, WHOLE, ChangeKind
from tt.log.disk_writer import DISK_ONLY, DiskWriter
from tt.log.schema import row_crc
from tt.log.sectors import BLOCK_SECTORS, SECTOR

_RUN_BLOCKS = 256  # blocks of one write of a copied state
_INDEX = (1 << LEVEL_SHIFT) - 1


@dataclass(frozen=True)
class Squashed:
    """What squashing did: `writes` forgotten, and the size of the file before and after, in bytes."""

    path: Path
    first: int
    writes: int
    size_before: int
    size_after: int


def squash(path: Path, before: int) -> Squashed:
    """Forget the instants before `before` of the disk's history at `path`, in place.

    Instants keep their numbers; an imported image is kept or forgotten whole.  If it is killed, the history
    is either unchanged or completely squashed. Raises `UsageError` for a recording of a machine, which needs
    all its writes, and where there is no such instant; `BadInput` where it is being served.
    """
    recover(path)
    with Trace.open(path) as trace:
        if trace.meta.get("machine") != DISK_ONLY:
            raise UsageError(
                f"{path} is a recording of a machine, which cannot be replayed without all its disk writes: "
                "give -o OUT.tt for the disk's history alone"
            )
        if span := span_around(image_spans(trace), before):
            before = max(span.before, trace.squashed_before)  # an image stays whole
        forgotten = before - trace.squashed_before
        if not 0 <= forgotten <= trace.disk_write_count - trace.squashed_before:
            raise UsageError(f"there is no instant w{before}: {path} has up to w{trace.disk_write_count}")
        pieces = [hashes for _name, _size, hashes in trace.rows("files", "name, size, hashes")]
    size_before = path.stat().st_size
    lock = spool.Lock(path)
    try:
        db = database(path)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            _forget(db, before)
            _drop_unused(db, pieces)
            columns = ("squashed_before", json.dumps(before))
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (*columns, row_crc("meta", *columns)))
            db.execute("COMMIT")
            db.execute("VACUUM")
        finally:
            db.close()
    except sqlite3.Error as e:
        raise TTError(f"cannot write {path}: {e}") from None
    finally:
        lock.release()
    return Squashed(path, before, forgotten, size_before, path.stat().st_size)


def copy_from(history: History, before: int, out: Path, overwrite: bool = False) -> Squashed:
    """Write the history of one disk from instant `before` on to a new file, without a machine.

    There, what had been written by `before` comes as an imported image does, at once.  Raises as
    `DiskWriter` does.
    """
    meta = {"id": os.urandom(16).hex(), "period_ns": 1, "config": _disk_config(history)}
    history.check(before)
    if amid := history.inside_image(before):
        before = max(amid.before, history.first)
    with DiskWriter.create(out, meta, overwrite=overwrite) as writer:
        begin = history.write(before).host_ns or 0 if before > history.first else 0
        blocks = sorted(history.changed_blocks(history.first, before))
        for first, count in _runs(blocks):
            data = b"".join(history.blocks(first, count, before))
            writer.add(0, ChangeKind.DATA, first * BLOCK_SECTORS, len(data) // SECTOR, data, begin)
        writer.bookmark("squashed")
        spans = [ImageSpan("squashed", 1, writer.count)] if writer.count else []
        more = writer.count - before
        spans += [
            ImageSpan(name, first + more, last + more)
            for name, first, last in history.images
            if first > before
        ]
        writer.note(META_KEY, spans)
        for write in history.writes(before + 1):
            data = b""
            if write.kind is ChangeKind.DATA:
                data = history.at(write.number).read(write.lba, write.sectors)
            writer.add(0, write.kind, write.lba, write.sectors, data, write.host_ns or begin)
        writer.seal("squashed")
    return Squashed(out, 0, before - history.first, history.trace.path.stat().st_size, out.stat().st_size)


def _forget(db: sqlite3.Connection, before: int) -> None:
    """Take out what only older instants than `before` need."""
    db.execute("DELETE FROM disk_writes WHERE number <= ?", (before,))
    db.execute("DELETE FROM bookmarks WHERE tick < ?", (before,))
    db.execute(
        "DELETE FROM disk_blocks WHERE number < ? AND EXISTS ("
        "SELECT 1 FROM disk_blocks AS newer WHERE newer.disk = disk_blocks.disk "
        "AND newer.block = disk_blocks.block AND newer.number > disk_blocks.number "
        "AND newer.number <= ? AND newer.place = ?)",
        (before, before, WHOLE),
    )
    # Blocks that a later run of zeros covers.
    runs = db.execute(
        "SELECT disk, block, number FROM disk_blocks WHERE block >= ? AND number <= ?",
        (1 << LEVEL_SHIFT, before),
    ).fetchall()
    for disk, key, number in runs:
        level, index = key >> LEVEL_SHIFT, key & _INDEX
        for lower in range(min(level, LEVELS)):
            shift = FANOUT_BITS * (level - lower)
            low = lower << LEVEL_SHIFT | index << shift
            high = lower << LEVEL_SHIFT | ((index + 1) << shift) - 1
            db.execute(
                "DELETE FROM disk_blocks WHERE disk = ? AND block BETWEEN ? AND ? AND number < ?",
                (disk, low, high, number),
            )


def _drop_unused(db: sqlite3.Connection, pieces_of_files: list[bytes]) -> None:
    """Take out the contents that nothing refers to any more."""
    db.execute("CREATE TEMP TABLE used (hash BLOB PRIMARY KEY) WITHOUT ROWID")
    db.execute("INSERT OR IGNORE INTO used SELECT hash FROM disk_blocks WHERE length(hash) > 0")
    for hashes in pieces_of_files:
        keys = (hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE))
        db.executemany("INSERT OR IGNORE INTO used VALUES (?)", ((key,) for key in keys))
    db.execute("DELETE FROM blobs WHERE hash NOT IN (SELECT hash FROM used)")


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Join neighbours: (first block, blocks), of at most `_RUN_BLOCKS`."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and block == sum(found[-1]) and found[-1][1] < _RUN_BLOCKS:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


def _disk_config(history: History) -> dict[str, object]:
    plain: dict[str, object] = dict(history.trace.meta["config"])
    disks = plain["disks"]
    if not isinstance(disks, list):
        raise BadInput(f"{history.name} is damaged: it does not say which disks it had")
    plain |= {"machine": DISK_ONLY, "mem_bytes": 0, "period_ns": 1, "boot_kind": "", "cmdline": ""}
    return plain | {"disks": [disks[history.disk]], "description": ["a disk's history"]}
