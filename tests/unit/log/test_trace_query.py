"""SQL over a trace: packed events as tables, and reading only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.errors import TTError, UsageError
from tt.events import Event, Kind
from tt.log import Trace, TraceWriter


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    with TraceWriter(tmp_path / "x.tt", {"machine": {"kind": "pc"}}) as writer:
        for at in range(10):
            writer.add(Event(at * 10, Kind.TIMER, 0, at * 40))
            writer.add(Event(at * 10 + 1, Kind.IRQ, 0, 0x30))
        writer.add(Event(100, Kind.CONSOLE, 0, 0, b"Debian "))
        writer.add(Event(105, Kind.IRQ, 0, 0x34))
        writer.add(Event(106, Kind.CONSOLE, 0, 0, b"login:\r\n"))
        writer.add(Event(107, Kind.BATCH, 0, 1 << 63))
        writer.add(Event(110, Kind.DISK_WRITE, 1, 64, b"x" * 8192))
        writer.add_digest(120, b"d" * 16)
        writer.bookmark("here", 5)
        writer.seal(120, "")
    with Trace.open(tmp_path / "x.tt") as trace:
        yield trace


def ask(trace: Trace, query: str) -> list[tuple[object, ...]]:
    return list(trace.sql(query).rows)


def test_events_are_a_table(trace: Trace) -> None:
    answer = trace.sql("select kind, count(*) as n from events group by kind order by kind")
    assert answer.columns == ["kind", "n"]
    assert list(answer.rows) == [("batch", 1), ("console", 2), ("disk_write", 1), ("irq", 11), ("timer", 10)]
    assert ask(trace, "select number, tick, kind, unit, value, data from events where number = 3") == [
        (3, 11, "irq", 0, 0x30, b"")
    ]
    assert ask(trace, "select value from events where kind = 'batch'") == [(-(1 << 63),)]


def test_console_is_a_table_of_lines(trace: Trace) -> None:
    assert ask(trace, "select tick, unit, text from console where text like '%login%'") == [
        (100, 0, "Debian login:")
    ]


def test_rows_and_events_join(trace: Trace) -> None:
    query = "select e.tick, w.lba, w.sectors from events e join disk_writes w on w.event = e.number"
    assert ask(trace, query) == [(110, 64, 16)]
    assert ask(trace, "select name from bookmarks") == [("here",)]
    assert ask(trace, "with e as (select * from events) select count(*) from e") == [(24 + 1,)]


def test_a_table_is_filled_only_when_named(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the events were unpacked")

    monkeypatch.setattr(Trace, "numbered_events", never)
    assert ask(trace, "select count(*) from digests where 'events' <> ''") == [(1,)]
    with pytest.raises(AssertionError):
        ask(trace, "select 1 from digests where exists (select * from EVENTS)")


def test_two_answers_at_a_time(trace: Trace) -> None:
    first = trace.sql("select tick from events order by tick").rows
    assert next(first) == (0,)
    assert ask(trace, "select count(*) from console") == [(1,)]
    assert next(first) == (1,)


@pytest.mark.parametrize(
    "query",
    [
        "delete from meta",
        "insert into temp.events values (1, 1, 'x', 0, 0, x'')",
        "drop table temp.events",
        "create temp table t (x)",
        "attach 'other.db' as other",
        "detach main",
        "pragma query_only = 0",
        "pragma table_info(meta)",
        "vacuum into 'copy.db'",
        "begin",
        "reindex",
        "analyze",
        "select load_extension('x')",
        "update meta set value = 1 returning *",
    ],
)
def test_nothing_but_reading(trace: Trace, query: str) -> None:
    before = trace.path.read_bytes()
    with pytest.raises(UsageError):
        ask(trace, query)
    assert trace.path.read_bytes() == before
    assert ask(trace, "select count(*) from events") == [(25,)]
    assert [file.name for file in trace.path.parent.iterdir()] == ["x.tt"]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("selct 1", "syntax error"),
        ("", "incomplete"),
        ("-- nothing", "incomplete|wrong"),
        ("select 1; select 2", "one statement"),
        ("select * from nowhere", "no such table: nowhere"),
        ("select nobody from events", "no such column: nobody"),
        ("select ?", "wrong"),
        ("select '\0'", "wrong"),
        ("select \ud800", "wrong"),
    ],
)
def test_wrong_queries(trace: Trace, query: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as said:
        ask(trace, query)
    assert "\n" not in str(said.value)


def test_explain(trace: Trace) -> None:
    assert ask(trace, "explain query plan select * from events")


@pytest.mark.parametrize("when", ["count(*)", "x"])
def test_endless_queries_end(trace: Trace, when: str) -> None:
    query = (
        f"with recursive c(x) as (select 1 union all select x + 1 from c) select {when} from c where x < 0"
    )
    with pytest.raises(TTError, match="more than 0.2 s"):
        list(trace.sql(query, timeout_s=0.2).rows)
    assert ask(trace, "select 1") == [(1,)]


def test_too_many_events_are_refused(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.log.query.MAX_ROWS", 10)
    with pytest.raises(UsageError, match="too many events"):
        ask(trace, "select * from events")
    monkeypatch.undo()
    assert ask(trace, "select count(*) from events") == [(25,)]


def test_the_tables_are_listed(trace: Trace) -> None:
    tables = trace.sql_tables()
    assert list(tables["events"]) == ["number", "tick", "kind", "unit", "value", "data"]
    assert tables["console"] == {"tick": "INTEGER", "unit": "INTEGER", "text": "TEXT"}
    assert {"meta", "disk_writes", "digests", "bookmarks", "blobs", "chunks", "files"} <= set(tables)
    ask(trace, "select 1")
    assert trace.sql_tables() == tables
