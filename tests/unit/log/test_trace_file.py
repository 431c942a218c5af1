"""Whole traces: written, read back, read while they are written."""

from __future__ import annotations

import io
import sqlite3
import struct
from pathlib import Path

import pytest
from boot_stream import COMMIT_TICKS, TICKS, boot_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_chunks import events_of

from tt.errors import BadInput, TTError, UsageError
from tt.events import Event, Kind
from tt.log import ConsoleCoalescer, Trace, TraceWriter, contents_digest
from tt.log.schema import VERSION

META = {"machine": {"kind": "pc", "mem": 1 << 28}, "period_ns": 4}


def logged(events: list[Event]) -> list[Event]:
    """Return events as a trace gives them back."""
    return [e._replace(data=contents_digest(e.data)) if e.kind is Kind.DISK_WRITE else e for e in events]


def whole(events: list[Event]) -> list[Event]:
    """Make the disk writes ones that a disk could see."""
    limit = (1 << 63) - 1
    return [
        e._replace(data=e.data * 512, unit=min(e.unit, limit), value=min(e.value, limit))
        if e.kind is Kind.DISK_WRITE
        else e
        for e in events
    ]


@settings(max_examples=40, deadline=None)
@given(events=events_of().map(whole), cuts=st.sets(st.integers(0, 60)), sealed=st.booleans())
def test_any_events_round_trip(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], cuts: set[int], sealed: bool
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.tt"
    with TraceWriter(path, META) as writer:
        for at, event in enumerate(events):
            writer.add(event)
            if at in cuts:
                writer.commit(event.tick)
        if sealed:
            writer.seal(events[-1].tick, "power off", {"ticks": 1})
        else:
            writer.commit(events[-1].tick)
    with Trace.open(path) as trace:
        assert list(trace.events()) == logged(events)
        assert trace.event_count == len(events)
        assert [trace.event(number) for number in range(len(events))] == logged(events)
        writes = [event for event in events if event.kind is Kind.DISK_WRITE]
        assert [(w.tick, w.disk, w.lba, w.data()) for w in trace.disk_writes()] == [
            (e.tick, e.unit, e.value, e.data) for e in writes
        ]
        assert trace.end_tick == events[-1].tick
        assert (trace.sealed, trace.reason) == ((True, "power off") if sealed else (False, ""))
        assert trace.verify_structure() == []
        middle = events[len(events) // 2].tick
        assert list(trace.events(middle, middle)) == [e for e in logged(events) if e.tick == middle]
        assert list(trace.events(middle, kinds={Kind.IRQ})) == [
            e for e in events if e.tick >= middle and e.kind is Kind.IRQ
        ]
    assert [file.name for file in path.parent.iterdir()] == ["x.tt"]


def test_everything_else_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    kernel = bytes(range(256)) * 1000
    with TraceWriter(path, META) as writer:
        key = writer.add_blob(b"page" * 1024)
        assert writer.add_blob(b"page" * 1024) == key
        assert writer.add_file("kernel", kernel) == len(kernel)
        assert writer.add_file("initrd", io.BytesIO(kernel * 2)) == 2 * len(kernel)
        writer.add_file("empty", b"")
        writer.bookmark("here", 7)
        writer.add_digest(3, b"a" * 16)
        writer.add_digest(9, b"b" * 16)
        writer.add_digest(9, b"b" * 16)
        writer.bookmark("here", 8)
        writer.seal(10, "halted", {"host_s": 1.5})
    with Trace.open(path) as trace:
        assert trace.meta == META
        assert trace.summary == {"host_s": 1.5}
        assert trace.blob(key) == b"page" * 1024
        assert trace.files == {"empty": 0, "initrd": 2 * len(kernel), "kernel": len(kernel)}
        assert trace.file("kernel") == kernel
        assert trace.file("initrd") == kernel * 2
        assert trace.file("empty") == b""
        assert trace.bookmarks == {"here": 8}
        assert list(trace.digests()) == [(3, b"a" * 16), (9, b"b" * 16)]
        assert trace.verify_structure() == []
        with pytest.raises(BadInput, match="no file named disk"):
            trace.file("disk")
        with pytest.raises(BadInput, match="missing"):
            trace.blob(bytes(16))


def test_the_same_block_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    block = bytes(range(256)) * 16
    with TraceWriter(path, {}) as writer:
        for tick in range(50):
            writer.add(Event(tick, Kind.DISK_WRITE, 0, tick * 8, block * 4))
        writer.seal(50, "")
    with Trace.open(path) as trace:
        assert list(trace.sql("select count(*) from blobs").rows) == [(1,)]


def test_a_boot_takes_a_tenth_of_a_byte_per_1000_ticks(tmp_path: Path) -> None:
    path = tmp_path / "boot.tt"
    coalescer = ConsoleCoalescer()
    commits = range(COMMIT_TICKS, TICKS, COMMIT_TICKS)
    with TraceWriter(path, META) as writer:
        next_commit = iter(commits)
        due = next(next_commit)
        for event in boot_stream():
            while event.tick > due:
                for run in coalescer.expire(due):
                    writer.add(run)
                writer.commit(due)
                due = next(next_commit, TICKS)
            for run in coalescer.add(event):
                writer.add(run)
        for run in coalescer.flush():
            writer.add(run)
        writer.seal(TICKS, "")
    with Trace.open(path) as trace:
        assert trace.event_log_size * 1000 / TICKS < 0.1
        assert b"".join(data for _tick, _unit, data in trace.console()) == b"".join(
            event.data for event in boot_stream() if event.kind is Kind.CONSOLE
        )


def test_many_events_between_commits_become_several_chunks(tmp_path: Path) -> None:
    events = [Event(at, Kind.CLOCK, 0, at * at) for at in range(150_000)]
    big = [Event(200_000 + at, Kind.INPUT, 0, 0, bytes([at]) * (1 << 20)) for at in range(20)]
    with TraceWriter(tmp_path / "x.tt", {}) as writer:
        for event in events + big:
            writer.add(event)
        writer.seal(300_000, "")
    with Trace.open(tmp_path / "x.tt") as trace:
        assert list(trace.events()) == events + big
        assert trace.event(149_999).value == 149_999**2


def test_many_disk_writes_between_commits_do_not_fill_memory(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.tt", {}) as writer:
        for tick in range(100):
            writer.add(Event(tick, Kind.DISK_WRITE, 0, tick * 1000, struct.pack("<Q", tick) * 32768))
            assert writer.buffered < 10 << 20
        writer.commit(100)
    with Trace.open(tmp_path / "x.tt") as trace:
        assert [write.tick for write in trace.disk_writes()] == list(range(100))
        assert trace.verify_structure() == []


def test_reading_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    with TraceWriter(path, META) as writer:
        writer.add(Event(5, Kind.IRQ, 0, 32))
        with Trace.open(path) as trace:
            assert (trace.end_tick, trace.sealed, list(trace.events())) == (0, False, [])
        writer.commit(10)
        with Trace.open(path) as early:
            assert list(early.events()) == [Event(5, Kind.IRQ, 0, 32)]
            writer.add(Event(15, Kind.IRQ, 0, 33))
            writer.commit(20)
            assert list(early.events()) == [Event(5, Kind.IRQ, 0, 32)]
            with Trace.open(path) as late:
                assert late.end_tick == 20
                assert late.event_count == 2
            writer.seal(30, "done")
        with Trace.open(path) as trace:
            assert trace.sealed
            assert trace.event_count == 2


def test_what_was_not_committed_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    with TraceWriter(path, META) as writer:
        writer.add(Event(5, Kind.IRQ))
        writer.commit(7)
        writer.add(Event(8, Kind.IRQ))
        writer.add_digest(8, b"x")
        writer.bookmark("b", 8)
    with Trace.open(path) as trace:
        assert (trace.end_tick, trace.sealed, trace.event_count, trace.bookmarks) == (7, False, 1, {})
        assert trace.verify_structure() == []


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        TraceWriter(path, {})
    assert path.read_text() == "precious"
    TraceWriter(path, {}, overwrite=True).close()
    assert Trace.open(path).meta == {}


def test_a_stale_log_of_another_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    (tmp_path / "x.tt-wal").write_bytes(b"stale" * 1000)
    with TraceWriter(path, META) as writer:
        writer.seal(1, "")
    assert Trace.open(path).end_tick == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        TraceWriter(tmp_path / "no" / "x.tt", {})


def test_odd_names(tmp_path: Path) -> None:
    for name in ("a b?c#d%20.tt", "ü.tt", "-x.tt"):
        with TraceWriter(tmp_path / name, META) as writer:
            writer.seal(1, "")
        with Trace.open(tmp_path / name) as trace:
            assert trace.meta == META
            assert list(trace.sql("select count(*) from events").rows) == [(0,)]


def test_mistakes_of_the_recorder_are_told(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.tt", {}) as writer:
        with pytest.raises(ValueError, match="disk write"):
            writer.add(Event(1, Kind.DISK_WRITE, 0, 0, b"odd"))
        with pytest.raises(ValueError, match="bytes of data"):
            writer.add(Event(1, Kind.INPUT, 0, 0, bytes((1 << 20) + 1)))
        with pytest.raises(ValueError, match="add_file"):
            writer.add_blob(bytes((64 << 20) + 1))
        writer.add_digest(5, b"x")
        with pytest.raises(ValueError, match="after one at 5"):
            writer.add_digest(5, b"y")
        writer.add(Event(9, Kind.IRQ))
        with pytest.raises(ValueError, match="commit at tick 8"):
            writer.commit(8)
        writer.seal(10, "")
    with pytest.raises(TTError, match="it is closed"):
        writer.commit(11)


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    with TraceWriter(path, {}) as writer:
        assert path.read_bytes()[68:72] == b"ttvm"
        writer.seal(1, "")
    header = path.read_bytes()[:100]
    assert header[:16] == b"SQLite format 3\0"
    assert (header[60:64], header[68:72]) == (struct.pack(">I", VERSION), b"ttvm")
    assert header[18] == 1


def test_guest_time(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    with TraceWriter(path, META) as writer:
        writer.add(Event(100, Kind.WAKE, 0, 1000))  # guest time goes from 400 to 1400 at tick 100
        writer.add(Event(150, Kind.CONSOLE, 0, 0, b"x"))
        writer.add(Event(200, Kind.WAKE, 0, 50))
        writer.bookmark("boot", 120)
        writer.seal(300, "")
    with Trace.open(path) as trace:
        assert [trace.tick_at_ns(ns) for ns in (0, 1, 400, 401, 1400, 1401, 1800, 1850)] == [
            0, 1, 100, 100, 100, 101, 200, 200,
        ]  # fmt: skip
        assert [trace.ns_at_tick(tick) for tick in (0, 99, 100, 150, 200)] == [0, 396, 1400, 1600, 1850]
        assert [ns for ns, _event in trace.timed_events({Kind.CONSOLE})] == [1600]
        assert trace.resolve("50%") == 150
        assert trace.resolve("@boot") == 120
        assert trace.resolve("#1") == 150
        assert trace.resolve("-20", current=50) == 30
        assert trace.resolve("1800ns") == 200
        for wrong in ("#3", "301", "-51", "@nowhere", "1s"):
            with pytest.raises(UsageError):
                trace.resolve(wrong, current=50)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tt"
    with pytest.raises(BadInput, match="does not exist"):
        Trace.open(path)
    with pytest.raises(BadInput, match="not a regular file"):
        Trace.open(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match="not a tt trace"):
        Trace.open(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("create table t (x)")
    with pytest.raises(BadInput, match="not a tt trace"):
        Trace.open(path)


@pytest.mark.parametrize(
    ("version", "complaint"), [(VERSION + 1, f"newer than {VERSION}"), (0, "no format version")]
)
def test_other_versions_are_refused(tmp_path: Path, version: int, complaint: str) -> None:
    path = tmp_path / "x.tt"
    with TraceWriter(path, {}) as writer:
        writer.seal(1, "")
    data = bytearray(path.read_bytes())
    data[60:64] = struct.pack(">I", version)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=complaint):
        Trace.open(path)
