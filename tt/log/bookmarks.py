"""Bookmarks in a finished trace: the one thing that is ever added to it afterwards.

Each is one short transaction on the file itself.  A recorder holds the file's
write lock while it runs, so a running recording is never disturbed: there, and
where the file cannot be written, `remember` keeps the bookmark in memory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from tt.errors import BadInput, UsageError
from tt.log.connection import connect, database, guard, is_busy
from tt.log.reader import Trace
from tt.log.schema import row_crc

MAX_NAME = 200  # characters
_PATIENCE_MS = 2000


def check_name(name: str) -> str:
    """Return a bookmark's name, without an @ in front of it; raises `UsageError` for a bad one."""
    bare = name.removeprefix("@")
    if not bare or len(bare) > MAX_NAME or not bare.isprintable() or any(c.isspace() for c in bare):
        raise UsageError(f"{name[:40]!r} is not a name for a bookmark: give a word, such as before-crash")
    return bare


def set_bookmark(path: str | os.PathLike[str], name: str, tick: int) -> None:
    """Give `tick` a name in the trace at `path`; a name given again moves.

    Raises `UsageError` for an impossible name or tick, `BadInput` with one line
    where the file cannot be written, or is being recorded.
    """
    name = check_name(name)

    def change(db: sqlite3.Connection) -> None:
        ((end_tick,),) = db.execute("SELECT end_tick FROM progress").fetchall()
        if not 0 <= tick <= int(end_tick):
            raise UsageError(f"tick {tick:,} is not in the recording: it has 0 to {end_tick:,}")
        db.execute("DELETE FROM bookmarks WHERE name = ?", (name,))
        db.execute("INSERT INTO bookmarks VALUES (?, ?, ?)", (name, tick, row_crc("bookmarks", name, tick)))

    _change(Path(path), change)


def delete_bookmark(path: str | os.PathLike[str], name: str) -> bool:
    """Take a name out of the trace at `path`; false if it was not there.  Raises as `set_bookmark` does."""
    name = check_name(name)
    found = False

    def change(db: sqlite3.Connection) -> None:
        nonlocal found
        found = db.execute("DELETE FROM bookmarks WHERE name = ?", (name,)).rowcount > 0

    _change(Path(path), change)
    return found


def remember(trace: Trace, name: str, tick: int) -> str:
    """Give `tick` a name in an open trace, and in its file if that can be.

    Returns "" or, in a line, why the name lives only as long as `trace` is open.
    Raises `UsageError` for an impossible name or tick.
    """
    name = check_name(name)
    if not 0 <= tick <= trace.end_tick:
        raise UsageError(f"tick {tick:,} is not in the recording: it has 0 to {trace.end_tick:,}")
    names = trace.bookmarks
    kept = _kept_only_here(lambda: set_bookmark(trace.path, name, tick))
    names[name] = tick
    return kept


def forget(trace: Trace, name: str) -> str:
    """Take a name out of an open trace and its file; see `remember`."""
    name = check_name(name)
    names = trace.bookmarks
    if name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise UsageError(f"there is no bookmark {name!r}: the trace has {known}")
    kept = _kept_only_here(lambda: delete_bookmark(trace.path, name))
    del names[name]
    return kept


def _kept_only_here(change: Callable[[], object]) -> str:
    try:
        change()
    except BadInput as e:
        return f"{e}; this holds for this session only"
    return ""


def _change(path: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    """Open the file for one transaction; raises `BadInput` where that cannot be."""
    connect(path).close()  # a trace's tables and nothing else: no trigger would run
    if not os.access(path, os.W_OK):
        raise BadInput(f"{path} cannot be written: make it writable to keep bookmarks in it")
    with guard(path):
        db = database(path)
        try:
            db.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            try:
                db.execute("BEGIN IMMEDIATE")
                change(db)
                db.execute("COMMIT")
            except sqlite3.OperationalError as e:
                raise BadInput(_why(path, e)) from None
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        finally:
            db.close()


def _why(path: Path, error: sqlite3.OperationalError) -> str:
    if is_busy(error):
        return f"{path} is being written by another program (a recording?): try again when it is done"
    return f"{path} cannot be written ({error}): make it and its folder writable to keep bookmarks in it"
