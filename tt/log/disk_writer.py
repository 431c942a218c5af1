"""Adding to the history of a disk that has no machine: what `chronus serve` and `chronus import` write."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tt.errors import BadInput, TTError
from tt.log.bookmarks import check_name
from tt.log.connection import database
from tt.log.disk_rows import BlobStore, ChangeKind, NewWrite, put_writes
from tt.log.reader import Trace
from tt.log.schema import row_crc
from tt.log.writer import TraceWriter

_BUFFERED_BYTES = 4 << 20

DISK_ONLY = "disk"
"""The `machine` of a trace that holds the history of a disk and no machine."""


class DiskWriter:
    """The writing end of a disk's history, from where it ends now.

    A commit is durable when it returns; killed at any instant the history ends at its last commit.
    Raises `BadInput` where `path` is not the history of a disk, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with Trace.open(path) as trace:
            if trace.meta.get("machine") != DISK_ONLY or trace.version < 3:
                raise BadInput(
                    f"{path} is a recording of a machine: its history has ended, and is not added to"
                )
            self.count = trace.disk_write_count
            self._host_ns = (
                trace.disk_log.entry(self.count).host_ns if self.count > trace.squashed_before else 0
            )
        self._uncommitted = False
        self._waiting: list[NewWrite] = []  # not in SQLite yet
        self._waiting_bytes = 0
        with self._guard():
            self._db = database(self.path)
            self._db.execute("PRAGMA busy_timeout = 10000")
            self._db.execute("PRAGMA trusted_schema = OFF")
            self._db.execute("PRAGMA cell_size_check = ON")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
            self._db.execute("PRAGMA cache_size = -65536")
            self._blobs = BlobStore(self._db)

    @classmethod
    def create(cls, path: str | os.PathLike[str], meta: Mapping[str, Any], overwrite: bool = False) -> Self:
        """Make a history with nothing in it yet; `meta` must hold the description of its disk."""
        TraceWriter(path, {**meta, "machine": DISK_ONLY}, overwrite=overwrite).seal(0, "nothing written yet")
        return cls(path)

    def add(self, disk: int, kind: ChangeKind, lba: int, sectors: int, data: bytes, host_ns: int) -> int:
        """Log a write of `data` (`sectors` of 512 bytes; empty unless DATA) at `host_ns`; return its number.

        The host's clock may step back; the history's does not.
        """
        self.count += 1
        self._host_ns = max(self._host_ns, host_ns)
        self._waiting.append(
            NewWrite(self.count, -1, self.count, self._host_ns, disk, kind, lba, sectors, data)
        )
        self._waiting_bytes += len(data) + 100
        if self._waiting_bytes > _BUFFERED_BYTES:
            with self._guard():
                self._put_waiting()
        return self.count

    def bookmark(self, name: str) -> None:
        """Give the newest instant a name; a name given again moves."""
        name = check_name(name)
        with self._guard():
            self._begin()
            self._db.execute("DELETE FROM bookmarks WHERE name = ?", (name,))
            columns = (name, self.count)
            self._db.execute(
                "INSERT INTO bookmarks VALUES (?, ?, ?)", (*columns, row_crc("bookmarks", *columns))
            )

    def note(self, key: str, value: Any) -> None:
        """Keep plain JSON-able data in the trace's `meta`, in the place of what was there under that name."""
        with self._guard():
            self._begin()
            columns = (key, json.dumps(value))
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (*columns, row_crc("meta", *columns))
            )

    def commit(self, sealed: bool = False, reason: str = "") -> None:
        """Make everything so far safe."""
        with self._guard():
            self._put_waiting()
            if not self._uncommitted and not sealed:
                return
            self._begin()
            columns = (1, self.count, 0, self.count, 0, int(sealed), reason, json.dumps({}))
            self._db.execute("DELETE FROM progress")
            self._db.execute(
                "INSERT INTO progress VALUES (?,?,?,?,?,?,?,?,?)", (*columns, row_crc("progress", *columns))
            )
            self._db.execute("COMMIT")
            self._uncommitted = False
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def seal(self, reason: str) -> None:
        """Commit, and leave the history as one file; it can be added to again."""
        self.commit(sealed=True, reason=reason)
        self.close()

    def close(self) -> None:
        """Let go of the file; what was not committed is lost."""
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Where that fails (a reader), the -wal stays and is read.
            self._db.execute("PRAGMA busy_timeout = 200")
            self._db.execute("PRAGMA journal_mode = DELETE")
        with suppress(sqlite3.Error):
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _put_waiting(self) -> None:
        if self._waiting:
            self._begin()
            put_writes(self._db, self._blobs, self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0

    def _begin(self) -> None:
        if not self._uncommitted:
            self._db.execute("BEGIN IMMEDIATE")
            self._uncommitted = True

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise TTError(f"cannot write {self.path}: {e}") from None
