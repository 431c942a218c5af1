"""Opening databases, whatever their files are called, and SQLite's errors as clear lines."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tt.errors import BadInput
from tt.log.schema import MAX_VALUE, probe, tables_of
from tt.log.text import one_line

_WAL = 2  # byte 18 of the header


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes SQLite or Python say into a `BadInput` that names it."""
    try:
        yield
    except sqlite3.OperationalError as e:
        if is_busy(e):
            raise BadInput(f"{path} is in use by another program: try again when it is done") from None
        raise BadInput(f"{path} cannot be read: {one_line(e)}") from None
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror}") from None
    except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as e:
        raise BadInput(f"{path} is damaged: {one_line(e)}{_hint(path)}") from None


def is_busy(error: sqlite3.Error) -> bool:
    """Whether SQLite failed because another program uses the file."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # errors of the module itself have none
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def uri_of(path: Path, option: str) -> str:
    """Return what SQLite takes for the file `path`, and no other, with one parameter of its URIs.

    SQLite gives names like `:memory:` and `file:x?mode=ro` a meaning of their own.
    """
    return f"file:{quote(os.fsencode(path.absolute()))}?{option}"


def database(path: Path, option: str = "mode=rw") -> sqlite3.Connection:
    """Open the file `path`, without transactions of Python's own; `mode=rwc` makes the file.

    The connection may be handed from one thread to another, and not be used by two at once.
    """
    return sqlite3.connect(uri_of(path, option), uri=True, isolation_level=None, check_same_thread=False)


def _hint(path: Path) -> str:
    """Say so if the file is one half of a recording that was cut off."""
    with suppress(OSError, IndexError):
        with path.open("rb") as f:
            in_wal_mode = f.read(19)[18] == _WAL
        if in_wal_mode and not path.with_name(f"{path.name}-wal").exists():
            return f" (it was cut off while recording: copy {path.name}-wal along with it)"
    return ""


def connect(path: Path) -> sqlite3.Connection:
    """Open the trace at `path` read-only and check that its tables are a trace's; raises `BadInput`."""
    version = probe(path)
    with guard(path):
        _undo_half_commit(path)
        db = _open(path)
        try:
            _harden(db)
            _check_tables(path, db, version)
        except BaseException:
            db.close()
            raise
        return db


def _open(path: Path) -> sqlite3.Connection:
    """Open read-only, with the commits in a -wal beside the file, and without leaving files beside it."""
    with path.open("rb") as f:
        in_wal_mode = f.read(19)[18] == _WAL
    alone = not path.with_name(f"{path.name}-wal").exists()
    if in_wal_mode and alone:
        return database(path, "immutable=1")
    db = database(path, "mode=ro")
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        # On a read-only medium SQLite may be unable to read the -wal: then use the main file alone.
        db.close()
        if os.access(path.absolute().parent, os.W_OK):
            raise
        return database(path, "immutable=1")
    return db


def _undo_half_commit(path: Path) -> None:
    """Let SQLite undo a commit that was cut off while the file was being sealed; this writes to the file."""
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists() and journal.stat().st_size:
        with suppress(sqlite3.Error):
            db = database(path, "mode=rw")
            try:
                db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            finally:
                db.close()


def _harden(db: sqlite3.Connection) -> None:
    """Trust neither the schema nor the sizes in the file."""
    db.execute("PRAGMA busy_timeout = 5000")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA mmap_size = 0")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)


def _check_tables(path: Path, db: sqlite3.Connection, version: int) -> None:
    """Refuse a file with any table, view, index or trigger but a trace's own."""
    found = dict(db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL LIMIT 100").fetchall())
    tables = tables_of(version)
    for name in sorted(found.keys() | tables.keys(), key=str):
        if found.get(name) != tables.get(name):
            raise BadInput(f"{path} is damaged: its table {str(name)[:40]!r} is not one of a trace")
