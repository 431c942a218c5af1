"""SQL over a trace, with the packed events as plain tables.

    events(number, tick, kind, unit, value, data)    kind is 'irq', 'disk_write', ...
    console(tick, unit, text)                        a row a line; tick of its first byte
    frames(number, event, tick, ns, host_ns, card, direction, size, data)    direction is 'in' or 'out'

beside the trace's own tables (tt/log/schema.py).  The three are temporary tables,
filled only when a query first names them.  A value of 2**63 and more appears as
SQLite's signed integer, that is minus 2**64.

A query can read and nothing else: it runs on a read-only connection, and an
authorizer refuses writes, ATTACH and PRAGMA before anything runs.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tt.errors import BadInput, TTError, UsageError
from tt.log.connection import connect
from tt.log.text import one_line

if TYPE_CHECKING:
    from tt.log.reader import Trace

MAX_ROWS = 50_000_000  # of a filled table; about 2 GB of temporary file
_CHECK_EVERY = 100_000  # SQLite instructions between looks at the clock

_TEMPORARY = {
    "events": "number INTEGER PRIMARY KEY, tick INTEGER, kind TEXT, unit INTEGER, value INTEGER, data BLOB",
    "console": "tick INTEGER, unit INTEGER, text TEXT",
    "frames": "number INTEGER PRIMARY KEY, event INTEGER, tick INTEGER, ns INTEGER, host_ns INTEGER, "
    "card INTEGER, direction TEXT, size INTEGER, data BLOB",
}
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}


class Rows(NamedTuple):
    """The answer to a query: names of its columns, and its rows, which can be taken once."""

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]


class Tables:
    """A second, guarded connection to a trace, on which queries run."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._db = connect(trace.path)
        self._named: set[str] = set()
        self._empty = set(_TEMPORARY)
        for name, columns in _TEMPORARY.items():
            self._db.execute(f"CREATE TEMP TABLE {name} ({columns})")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def schema(self) -> dict[str, dict[str, str]]:
        """Return the columns, and their types, of every table that a query can name."""
        from sqlite_utils import Database

        self._db.set_authorizer(None)
        db = Database(self._db, execute_plugins=False)
        plain = {
            name: dict(column.split()[:2] for column in columns.split(", "))
            for name, columns in _TEMPORARY.items()
        }
        own = {name: {c.name: c.type for c in db.table(name).columns} for name in db.table_names()}
        return plain | own

    def run(self, query: str, timeout_s: float | None = None) -> Rows:
        """Run one query, for at most `timeout_s`.

        Raises `UsageError` when it is wrong or does more than read, `TTError`
        when it takes too long, `BadInput` when the trace is damaged.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._limit(deadline)
        try:
            for name in sorted(self._tables_of(query) & self._empty):
                self._fill(name, deadline)
            self._db.set_authorizer(self._authorize)
            cursor = self._db.execute(query)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as e:
            raise self._explain(e, timeout_s) from None
        return Rows([column[0] for column in cursor.description or ()], self._rows(cursor, timeout_s))

    def _rows(self, cursor: sqlite3.Cursor, timeout_s: float | None) -> Iterator[tuple[Any, ...]]:
        try:
            # Through map: `yield from cursor`, abandoned, closes the cursor, maybe after the database.
            yield from map(tuple, cursor)
        except sqlite3.Error as e:
            raise self._explain(e, timeout_s) from None

    def _limit(self, deadline: float | None) -> None:
        late = None if deadline is None else lambda: time.monotonic() > deadline
        self._db.set_progress_handler(late, _CHECK_EVERY)

    def _tables_of(self, query: str) -> set[str]:
        """Return the tables a query names, having refused one that does more than read."""
        self._named.clear()
        self._db.set_authorizer(self._authorize)
        explained = query.lstrip().lower().startswith("explain")
        self._db.execute(query if explained else f"EXPLAIN {query}").close()
        return set(self._named)

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, inner: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ and first is not None:
            self._named.add(first)
        return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY

    def _fill(self, name: str, deadline: float | None) -> None:
        self._db.set_authorizer(None)
        filling: dict[str, Callable[[], Iterable[tuple[Any, ...]]]] = {
            "events": self._event_rows,
            "console": self._trace.console_lines,
            "frames": self._frame_rows,
        }
        rows = filling[name]()
        marks = ",".join("?" * len(_TEMPORARY[name].split(", ")))
        self._db.execute("BEGIN")
        try:
            self._db.executemany(f"INSERT INTO temp.{name} VALUES ({marks})", self._bounded(rows, deadline))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._empty.discard(name)

    def _event_rows(self) -> Iterator[tuple[Any, ...]]:
        for number, event in self._trace.numbered_events():
            tick, kind, unit, value, data = event
            yield number, tick, kind.name.lower(), _signed(unit), _signed(value), data

    def _frame_rows(self) -> Iterator[tuple[Any, ...]]:
        for f in self._trace.frames():
            direction = "in" if f.incoming else "out"
            yield f.number, f.event, f.tick, f.ns, f.host_ns, f.card, direction, len(f.data), f.data

    def _bounded(self, rows: Iterable[tuple[Any, ...]], deadline: float | None) -> Iterator[tuple[Any, ...]]:
        for at, row in enumerate(rows):
            if at >= MAX_ROWS:
                raise UsageError(f"{self._trace.path} has too many events for SQL: use tt events --from --to")
            if at % 4096 == 0 and deadline is not None and time.monotonic() > deadline:
                raise TTError(f"the query on {self._trace.path} took too long: give it more with --timeout")
            yield row

    def _explain(self, error: Exception, timeout_s: float | None) -> TTError:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_INTERRUPT:
            return TTError(f"the query took more than {timeout_s} s: give it more with --timeout")
        if code == sqlite3.SQLITE_AUTH:
            return UsageError("a query can only read: write a SELECT")
        if code is not None and code & 0xFF in _DAMAGE:
            return BadInput(f"{self._trace.path} is damaged: {one_line(error)}")
        return UsageError(f"the query is wrong: {one_line(error)}")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
