"""Writing a trace: events are gathered in memory and reach the file a commit at a time.

The life of a file, and what a `kill -9`, a full disk or a power cut leaves:

    state      on disk                      when it stops here
    born       .x.tt.new, then renamed      no x.tt, or a whole but empty one
    recording  x.tt, x.tt-wal, x.tt-shm     opens to the last commit, unsealed
    sealing    the same, and x.tt-journal   opens to the last commit, sealed or not
    closed     x.tt alone                   nothing more can happen to it

SQLite runs in WAL mode with full synchronisation, so that a commit is one
sequential write and one fsync, and readers never hold up the recorder.  After
each commit the log is also moved into the main file, so that a copy of x.tt
taken without its -wal lags little behind.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tt.errors import BadInput, TTError, UsageError
from tt.events import FRAMES, Event, Kind
from tt.log import chunks
from tt.log.blobs import MAX_BLOB, contents_digest
from tt.log.checkpoints import CheckpointWriter
from tt.log.connection import database
from tt.log.disk_rows import BlobStore, ChangeKind, NewWrite, put_writes
from tt.log.frames import MAX_FRAME, FrameWriter, reference
from tt.log.schema import MAGIC, MAX_DIGEST, PIECE, TABLES, VERSION, Column, row_crc
from tt.log.sectors import SECTOR

_BUFFERED_BYTES = 8 << 20  # contents of disk writes kept in memory before they go to SQLite
_SIDE_FILES = ("-wal", "-shm", "-journal")


class TraceWriter:
    """The writing end of one trace.

    `path` must not exist, unless `overwrite`.  `meta` maps names to plain
    JSON-able data; checkpoints are thinned to `checkpoint_bytes` of packed pages.
    Raises `UsageError` when the file exists, `TTError` when it
    cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Mapping[str, Any],
        overwrite: bool = False,
        checkpoint_bytes: int = 1 << 62,
    ) -> None:
        self.path = Path(path)
        self._events: list[Event] = []
        self._written: list[
            tuple[int, int, bytes, Event]
        ] = []  # disk writes not yet in SQLite: event number, host ns
        self._last_host_ns = 0
        self._written_bytes = 0
        self._digests: list[tuple[int, bytes]] = []
        self._last_digest: tuple[int, bytes] = (-1, b"")
        self._event_count = 0  # handed to SQLite so far
        self._disk_write_count = 0
        self._digest_count = 0
        self._last_tick = 0
        self._end_tick = 0
        self._open = False
        if self.path.exists() and not overwrite:
            raise UsageError(f"{self.path} exists already: choose another name, or remove it first")
        if not self.path.absolute().parent.is_dir():
            raise BadInput(f"cannot write {self.path}: the folder {self.path.parent} does not exist")
        with self._guard():
            self._create(meta)
            self._db = database(self.path)
            self._open = True
            self._db.execute("PRAGMA busy_timeout = 10000")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA wal_autocheckpoint = 0")  # commit() does it
            self._db.execute("BEGIN IMMEDIATE")
            self._put_progress(0, sealed=False, reason="", summary={})
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")
            self._blobs = BlobStore(self._db)
            self._frames = FrameWriter(self._insert)
            self._checkpoints = CheckpointWriter(self._db, self._insert, most_bytes=checkpoint_bytes)

    # What is recorded

    def add(self, event: Event, host_ns: int = 0) -> None:
        """Log an event.  Ticks must not go backwards; DISK_WRITE and frames carry the contents in `data`.

        `host_ns` is the host's time of a disk write or a frame, in ns since 1970.
        """
        if event.kind is Kind.DISK_WRITE:
            if len(event.data) % SECTOR or max(event.value, event.unit, event.tick) > chunks.MAX_TICK:
                raise ValueError(f"a disk write of {len(event.data)} bytes at lba {event.value}")
            number = self._event_count + len(self._events)
            self._last_host_ns = max(self._last_host_ns, host_ns)
            digest = contents_digest(event.data)
            self._written.append((number, self._last_host_ns, digest, event))
            self._written_bytes += len(event.data)
            event = event._replace(data=digest)
            if self._written_bytes > _BUFFERED_BYTES:
                with self._guard():
                    self._put_disk_writes()
        elif event.kind in FRAMES:
            if len(event.data) > MAX_FRAME:
                raise ValueError(f"a frame of {len(event.data)} bytes (at most {MAX_FRAME})")
            stored = self._frames.put(event.data, host_ns)
            event = Event(event.tick, event.kind, event.unit, event.value, stored)
            if self._frames.full:
                with self._guard():
                    self._frames.flush()
        elif len(event.data) > chunks.MAX_DATA:
            raise ValueError(f"an event with {len(event.data)} bytes of data (at most {chunks.MAX_DATA})")
        self._events.append(event)

    def add_digest(self, tick: int, digest: bytes) -> None:
        """Log the digest of the machine's state at `tick` (rising; the same one twice is stored once)."""
        if (tick, digest) == self._last_digest:
            return
        if tick <= self._last_digest[0] or len(digest) > MAX_DIGEST:
            last = self._last_digest[0]
            raise ValueError(f"digest of {len(digest)} bytes at tick {tick} after one at {last}")
        self._last_digest = (tick, digest)
        self._digests.append((tick, digest))

    def add_blob(self, data: bytes) -> bytes:
        """Store at most 64 MiB, once by content; return the 16 bytes to find them by.

        Safe from the next commit on.
        """
        if len(data) > MAX_BLOB:
            raise ValueError(f"a blob of {len(data)} bytes: use add_file")
        with self._guard():
            return self._blobs.put(data)

    def add_file(self, name: str, contents: bytes | BinaryIO) -> int:
        """Store named bytes of any size (or a file open for reading); return their size."""
        hashes = bytearray()
        size = 0
        with self._guard():
            for piece in _pieces(contents):
                hashes += self._blobs.put(piece)
                size += len(piece)
            self._insert("files", name, size, bytes(hashes))
        return size

    def add_checkpoint(
        self,
        tick: int,
        state: dict[str, Any],
        digest: bytes,
        pages: bytes,
        contents: bytes,
        cost: int | None = None,
    ) -> None:
        """Store the machine at `tick`, after all other checkpoints; see `tt.log.checkpoints`."""
        with self._guard():
            self._checkpoints.add(tick, state, digest, pages, contents, cost)

    def bookmark(self, name: str, tick: int) -> None:
        """Give `tick` a name; a name given again moves."""
        with self._guard():
            self._db.execute("DELETE FROM bookmarks WHERE name = ?", (name,))
            self._insert("bookmarks", name, tick)

    # What becomes safe

    @property
    def end_tick(self) -> int:
        """The tick up to which the recording is safe."""
        return self._end_tick

    @property
    def buffered(self) -> int:
        """Roughly how many bytes wait in memory for the next commit."""
        return self._written_bytes + 128 * len(self._events)

    def commit(self, tick: int) -> None:
        """Make everything so far, up to `tick`, safe; returns once it is on the disk."""
        with self._guard():
            self._commit(tick, sealed=False, reason="", summary={})
            self._db.execute("BEGIN IMMEDIATE")

    def seal(self, end_tick: int, reason: str, summary: Mapping[str, Any] | None = None) -> None:
        """Commit, mark the trace as complete, and close it."""
        with self._guard():
            self._commit(end_tick, sealed=True, reason=reason, summary=summary or {})
        self._close()

    def close(self) -> None:
        """Close the file, leaving the trace unsealed and ending at its last commit."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # How

    def _create(self, meta: Mapping[str, Any]) -> None:
        """Make the file with its tables and `meta` under another name, so that it never exists half-made."""
        born = self.path.with_name(f".{self.path.name}.new")
        for leftover in (born, *_side_files(born)):
            leftover.unlink(missing_ok=True)
        try:
            self._db = database(born, "mode=rwc")
            try:
                self._db.execute(f"PRAGMA application_id = {struct.unpack('>i', MAGIC)[0]}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.execute("PRAGMA synchronous = OFF")
                for create in TABLES.values():
                    self._db.execute(create)
                for key, value in meta.items():
                    self._insert("meta", key, json.dumps(value))
                self._put_progress(0, sealed=False, reason="", summary={})
            finally:
                self._db.close()
            _sync(born)
            # A stale -wal beside a new file of the same name would be read into it.
            for stale in _side_files(self.path):
                stale.unlink(missing_ok=True)
            born.replace(self.path)
            _sync(self.path.absolute().parent)
        except BaseException:
            for leftover in (born, *_side_files(born)):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
            raise

    def _commit(self, tick: int, sealed: bool, reason: str, summary: Mapping[str, Any]) -> None:
        last_event = self._events[-1].tick if self._events else self._last_tick
        if tick < max(last_event, self._end_tick):
            done = self._end_tick
            raise ValueError(f"commit at tick {tick} of events up to {last_event}, after one at {done}")
        self._put_disk_writes()
        self._frames.flush()
        self._put_events()
        for digest in self._digests:
            self._insert("digests", *digest)
        self._digest_count += len(self._digests)
        self._digests.clear()
        self._put_progress(tick, sealed, reason, summary)
        self._db.execute("COMMIT")
        self._end_tick = tick
        with suppress(sqlite3.Error):  # the commit is safe in the -wal
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _put_events(self) -> None:
        for batch in _batches(self._events):
            raw_size, packed = chunks.encode(batch)
            first, last = batch[0].tick, batch[-1].tick
            if first < self._last_tick:
                raise ValueError(f"event at tick {first} after one at tick {self._last_tick}")
            self._insert("chunks", self._event_count, len(batch), first, last, raw_size, packed)
            self._event_count += len(batch)
            self._last_tick = last
        self._events.clear()

    def _put_disk_writes(self) -> None:
        first = self._disk_write_count + 1
        put_writes(
            self._db,
            self._blobs,
            (
                NewWrite(
                    count, number, event.tick, host_ns, event.unit, ChangeKind.DATA, event.value,
                    len(event.data) // SECTOR, event.data, digest,
                )
                for count, (number, host_ns, digest, event) in enumerate(self._written, first)
            ),
        )  # fmt: skip
        self._disk_write_count += len(self._written)
        self._written.clear()
        self._written_bytes = 0

    def _put_progress(self, tick: int, sealed: bool, reason: str, summary: Mapping[str, Any]) -> None:
        counts = (self._event_count, self._disk_write_count, self._digest_count)
        self._db.execute("DELETE FROM progress")
        self._insert("progress", 1, tick, *counts, int(sealed), reason, json.dumps(summary))

    def _insert(self, table: str, *columns: Column) -> None:
        marks = ",".join("?" * (len(columns) + 1))
        self._db.execute(f"INSERT INTO {table} VALUES ({marks})", (*columns, row_crc(table, *columns)))

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Ends with x.tt alone.  Where that fails (a full disk, a reader), the -wal stays and is read.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass
        finally:
            with suppress(sqlite3.Error):
                self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what SQLite and the system say into one clear line, and close the file at its last commit."""
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            was_open = self._open
            self._close()
            kept = f"; it is safe up to tick {self._end_tick:,}" if was_open else ""
            if isinstance(e, sqlite3.ProgrammingError):
                raise TTError(f"cannot write {self.path}: it is closed") from None
            raise TTError(f"cannot write {self.path}: {e}{kept}") from None


def _batches(events: list[Event]) -> Iterator[list[Event]]:
    """Cut `events` so that each chunk stays within its bounds."""
    start = data = 0
    for at, event in enumerate(events):
        # 41 bytes: a kind and four varints at their longest.
        cost = 41 + (reference(event.data).size if event.kind in FRAMES else len(event.data))
        if at - start == chunks.MAX_EVENTS or data + cost > chunks.MAX_RAW:
            yield events[start:at]
            start, data = at, 0
        data += cost
    if start < len(events):
        yield events[start:]


def _pieces(contents: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(contents, (bytes, bytearray, memoryview)):
        for at in range(0, len(contents), PIECE):
            yield bytes(contents[at : at + PIECE])
        return
    while piece := contents.read(PIECE):
        # Only the last piece may be short, and a pipe may give less than asked.
        while len(piece) < PIECE and (more := contents.read(PIECE - len(piece))):
            piece += more
        yield piece


def _side_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in _SIDE_FILES]


def _sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
