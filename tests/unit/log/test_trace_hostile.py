"""Damaged and hostile traces: one clear line, and never a wrong answer."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.errors import BadInput, TTError
from tt.events import Event, Kind
from tt.log import Trace, TraceWriter, contents_digest
from tt.log.schema import row_crc


def make(path: Path) -> None:
    """Write a small trace that uses every table."""
    with TraceWriter(path, {"machine": {"kind": "pc"}, "period_ns": 4}) as writer:
        writer.add_file("kernel", bytes(range(256)) * 300)
        for at in range(300):
            writer.add(Event(at * 100, Kind.TIMER, 0, at * 400))
            writer.add(Event(at * 100 + 7, Kind.CONSOLE, 0, 0, b"line %d\n" % at))
            if at % 50 == 0:
                writer.add(Event(at * 100 + 9, Kind.DISK_WRITE, 0, at, at.to_bytes(2, "big") * 2560))
                writer.add_digest(at * 100 + 10, bytes([at % 256]) * 16)
                writer.commit(at * 100 + 10)
        writer.bookmark("here", 5)
        writer.seal(30_000, "power off", {"a": 1})


def walk(path: Path) -> dict[str, str]:
    """Read everything there is in a trace; return a hash of each thing (short, for error messages)."""
    with Trace.open(path) as trace:
        things: dict[str, Any] = {
            "meta": trace.meta,
            "end": (trace.end_tick, trace.sealed, trace.reason, trace.summary),
            "events": list(trace.events()),
            "one": trace.event(trace.event_count // 2),
            "digests": list(trace.digests()),
            "writes": [(write.tick, write.lba, write.data()) for write in trace.disk_writes()],
            "bookmarks": trace.bookmarks,
            "files": {name: trace.file(name) for name in trace.files},
        }
    return {name: contents_digest(repr(thing).encode()).hex() for name, thing in things.items()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "x.tt"
    make(path)
    return path


@pytest.fixture(scope="module")
def contents(sound: Path) -> dict[str, str]:
    return walk(sound)


def damage(data: bytes, what: st.DataObject) -> bytes:
    """Return `data` with a few bits, bytes or pages other than they were, or cut short."""
    changed = bytearray(data)
    how = what.draw(st.sampled_from(["bits", "bits", "bits", "cut", "bytes", "zeros", "swap"]))
    if how == "cut":
        return data[: what.draw(st.integers(0, len(data) - 1))]
    if how == "bits":
        for at in what.draw(st.lists(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=4)):
            changed[at // 8] ^= 1 << at % 8
    elif how == "swap":
        pages = st.integers(0, len(data) // 4096 - 1)
        a, b = what.draw(pages) * 4096, what.draw(pages) * 4096
        changed[a : a + 4096], changed[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]
    else:
        at = what.draw(st.integers(0, len(data) - 1))
        size = what.draw(st.sampled_from([1, 2, 4, 8, 100, 5000]))
        new = bytes(size) if how == "zeros" else what.draw(st.binary(min_size=size, max_size=size))
        changed[at : at + size] = new[: len(data) - at]
    return bytes(changed)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=st.data())
def test_damage_is_told_or_harmless(
    sound: Path, contents: dict[str, str], tmp_path: Path, what: st.DataObject
) -> None:
    path = tmp_path / "x.tt"
    path.write_bytes(damage(sound.read_bytes(), what))
    try:
        found = walk(path)
    except BadInput as e:
        assert "\n" not in str(e)
        assert str(path) in str(e)
    else:
        assert found == contents
    try:
        with Trace.open(path) as trace:
            for problem in trace.verify_structure():
                assert "\n" not in problem
            for query in (
                "select * from events",
                "select * from console",
                "select * from digests, bookmarks",
            ):
                list(trace.sql(query, timeout_s=20).rows)
    except TTError as e:
        assert "\n" not in str(e)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=st.data())
def test_a_damaged_log_gives_an_earlier_commit(tmp_path: Path, what: st.DataObject) -> None:
    live, copy = tmp_path / "live.tt", tmp_path / "x.tt"
    expected = [Event(at, Kind.IRQ, 0, at) for at in range(10)]
    with TraceWriter(live, {}, overwrite=True) as writer:
        writer._db.execute("COMMIT")
        writer._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        writer._db.execute("BEGIN")
        reader = sqlite3.connect(live, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM progress").fetchall()  # holds the commits in the -wal
        for event in expected:
            writer.add(event)
            writer.commit(event.tick)
        shutil.copy(live, copy)
        wal = Path(f"{live}-wal").read_bytes()
        reader.close()
    Path(f"{copy}-wal").write_bytes(damage(wal, what))
    Path(f"{copy}-shm").unlink(missing_ok=True)
    try:
        with Trace.open(copy) as trace:
            found = list(trace.events())
    except BadInput:
        return
    assert found == expected[: len(found)]


def edited(sound: Path, path: Path, edit: Callable[[sqlite3.Connection], object]) -> Path:
    """Return a copy of a trace that somebody changed with SQLite."""
    shutil.copy(sound, path)
    connection = sqlite3.connect(path, isolation_level=None)
    edit(connection)
    connection.close()
    return path


HOSTILE_SQL = {
    "view": "CREATE VIEW v AS SELECT 1",
    "trigger": "CREATE TRIGGER g AFTER INSERT ON meta BEGIN SELECT 1; END",
    "index": "CREATE INDEX i ON digests (digest)",
    "table": "CREATE TABLE t (x)",
    "missing": "DROP TABLE digests",
    "virtual": "CREATE VIRTUAL TABLE f USING fts5 (x)",
    "column": "ALTER TABLE digests ADD COLUMN x",
    "lost event": "DELETE FROM chunks WHERE number = 0",
    "lost digest": "DELETE FROM digests WHERE tick = 5010",
    "lost write": "DELETE FROM disk_writes WHERE tick = 5009",
    "lost blob": "DELETE FROM blobs",
    "no progress": "DELETE FROM progress",
    "two": "INSERT INTO progress SELECT 2, 0, 0, 0, 0, 1, '', '{}', 0",
    "text tick": "UPDATE digests SET tick = CAST(tick AS TEXT), digest = 7",
    "null": "UPDATE meta SET key = NULL",
    "huge": "UPDATE chunks SET raw_size = 1 << 60",
    "negative": "UPDATE chunks SET count = -1",
    "absurd": "UPDATE disk_writes SET sectors = 1 << 62",
    "real": "UPDATE chunks SET first_tick = 1.5",
}


@pytest.mark.parametrize("how", HOSTILE_SQL)
def test_edited_tables_are_refused(sound: Path, tmp_path: Path, how: str) -> None:
    def edit(connection: sqlite3.Connection) -> None:
        try:
            connection.execute(HOSTILE_SQL[how])
        except sqlite3.OperationalError as e:
            pytest.skip(str(e))

    path = edited(sound, tmp_path / "x.tt", edit)
    with pytest.raises(BadInput) as said:
        walk(path)
    assert "\n" not in str(said.value)


def put(connection: sqlite3.Connection, table: str, *columns: Any) -> None:
    marks = ",".join("?" * (len(columns) + 1))
    connection.execute(
        f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*columns, row_crc(table, *columns))
    )


def bomb(connection: sqlite3.Connection, stated: int) -> None:
    connection.execute("DELETE FROM chunks")
    packed = zstandard.compress(bytes(400 << 20))
    put(connection, "chunks", 0, 60_000, 0, 0, stated, packed)
    put(connection, "progress", 1, 30_000, 60_000, 0, 0, 1, "", "{}")


# Somebody who knows the format, and gets the checksums right.
FORGERIES: dict[str, Callable[[sqlite3.Connection], object]] = {
    "bomb": lambda db: bomb(db, 400 << 20),
    "modest bomb": lambda db: bomb(db, 1 << 20),
    "deep meta": lambda db: put(db, "meta", "machine", "[" * 100_000 + "]" * 100_000),
    "nested meta": lambda db: put(db, "meta", "machine", '{"a":' * 200 + "1" + "}" * 200),
    "not json": lambda db: put(db, "meta", "machine", "{"),
    "long number": lambda db: put(db, "meta", "machine", "9" * 10_000),
    "bytes as json": lambda db: put(db, "meta", "machine", b"\xff\xfe\xff"),
    "list summary": lambda db: put(db, "progress", 1, 30_000, 606, 6, 6, 1, "", "[]"),
    "no period": lambda db: put(db, "meta", "period_ns", "0"),
    "huge file": lambda db: put(db, "files", "kernel", 1 << 62, b"x" * 16),
    "negative file": lambda db: put(db, "files", "kernel", -5, b""),
    "bookmark before the start": lambda db: put(db, "bookmarks", "x", -5),
    "many events": lambda db: put(db, "progress", 1, 30_000, 1 << 62, 6, 6, 1, "", "{}"),
    "long disk write": lambda db: put(db, "disk_writes", 1, 2, 9, 0, 0, 0, 0, 1 << 62, b""),
    "blob of another": lambda db: put(db, "blobs", bytes(16), 3, b"abc"),
}


@pytest.mark.parametrize("how", FORGERIES)
def test_forgeries_are_refused_or_bounded(sound: Path, tmp_path: Path, how: str) -> None:
    path = edited(sound, tmp_path / "x.tt", FORGERIES[how])
    with pytest.raises(BadInput) as said, Trace.open(path) as trace:
        assert trace.ns_at_tick(5) == 20
        if problems := trace.verify_structure():
            raise BadInput(problems[0])
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 500


def test_a_column_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    make(path)
    edited_path = edited(
        path, tmp_path / "y.tt", lambda db: db.execute("UPDATE meta SET value = zeroblob(200 << 20)")
    )
    with pytest.raises(BadInput, match="too big"):
        Trace.open(edited_path)


def test_values_are_only_ever_data(sound: Path, tmp_path: Path) -> None:
    """Names that would be commands elsewhere come back as they are."""
    name = "'; DROP TABLE meta; -- \x1b[2J $(reboot)"

    def edit(connection: sqlite3.Connection) -> None:
        put(connection, "meta", name, json.dumps(name))
        put(connection, "bookmarks", name, 1)

    with Trace.open(edited(sound, tmp_path / "x.tt", edit)) as trace:
        assert trace.meta[name] == name
        assert trace.resolve(f"@{name}") == 1
        assert trace.verify_structure() == []
