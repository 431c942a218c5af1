"""Giving a finished trace checkpoints, or other ones than it has.

They are gathered in a file beside it and move into the trace in one transaction,
so that the trace at every instant is either unchanged or complete.  A trace of
format version 1 is of version 2 afterwards.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tt.errors import BadInput, TTError
from tt.log.checkpoints import CheckpointWriter
from tt.log.connection import connect, database, uri_of
from tt.log.schema import TABLES, Column, probe, row_crc

_TABLES = ("checkpoints", "page_packs")
_FIRST_WITH_CHECKPOINTS = 2  # format version


class CheckpointIndex:
    """Checkpoints for the trace at `path`, added in order and then installed.

    Raises `BadInput` where the trace's folder cannot be written.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self._gathered = path.with_name(f".{path.name}.index")
        self._remove()
        try:
            self._db = database(self._gathered, "mode=rwc")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute("PRAGMA journal_mode = OFF")
            for table in _TABLES:
                self._db.execute(TABLES[table])
        except sqlite3.Error as e:
            raise BadInput(f"cannot write beside {path}: {e}") from None
        self._writer = CheckpointWriter(self._db, self._insert, most_bytes=most_bytes)

    def add(
        self,
        tick: int,
        state: dict[str, Any],
        digest: bytes,
        pages: bytes,
        contents: bytes,
        cost: int | None = None,
    ) -> None:
        """Add a checkpoint after all others: see `CheckpointWriter.add`."""
        try:
            self._writer.add(tick, state, digest, pages, contents, cost)
        except sqlite3.Error as e:
            raise TTError(f"cannot write beside {self.path}: {e}") from None

    def install(self) -> int:
        """Put what was added into the trace, in place of what it has; return how many checkpoints.

        No other program may have the trace open.  Raises `TTError`, having changed nothing, where that fails.
        """
        count = int(self._db.execute("SELECT count(*) FROM checkpoints").fetchone()[0])
        self._db.close()
        version = probe(self.path)
        connect(self.path).close()  # raises if the file is not a trace: nothing else may be written to
        db = database(self.path)
        try:
            db.execute("ATTACH ? AS gathered", (uri_of(self._gathered, "mode=ro"),))
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                db.execute(f"DROP TABLE IF EXISTS main.{table}")
                db.execute(TABLES[table])
                db.execute(f"INSERT INTO main.{table} SELECT * FROM gathered.{table}")
            db.execute(f"PRAGMA main.user_version = {max(version, _FIRST_WITH_CHECKPOINTS)}")
            db.execute("COMMIT")
        except sqlite3.Error as e:
            raise TTError(f"cannot write {self.path}: {e}; it is as it was") from None
        finally:
            db.close()
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._db.close()
        self._remove()

    # ---- inside

    def _insert(self, table: str, *columns: Column) -> None:
        marks = ", ".join("?" * (len(columns) + 1))
        self._db.execute(f"INSERT INTO {table} VALUES ({marks})", (*columns, row_crc(table, *columns)))

    def _remove(self) -> None:
        with suppress(OSError):
            self._gathered.unlink(missing_ok=True)
