"""Bookmarks set in a trace that is finished, cut off, being recorded, or not to be written."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from tt.errors import BadInput, UsageError
from tt.events import Event, Kind
from tt.log import Trace, TraceWriter
from tt.log import bookmarks as marks
from tt.log.bookmarks import delete_bookmark, forget, remember, set_bookmark
from tt.log.connection import database


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "x.tt"
    with TraceWriter(path, {"a": 1}) as writer:
        writer.add(Event(5, Kind.INPUT, 0, 0, b"k"))
        writer.bookmark("old", 5)
        writer.seal(1000, "done")
    return path


def names(path: Path) -> dict[str, int]:
    with Trace.open(path) as trace:
        assert trace.verify_structure() == []
        return dict(trace.bookmarks)


def test_set_move_and_delete(sealed: Path) -> None:
    set_bookmark(sealed, "@crash", 700)
    set_bookmark(sealed, "crash", 800)
    set_bookmark(sealed, "end-of-it", 1000)
    assert names(sealed) == {"old": 5, "crash": 800, "end-of-it": 1000}
    assert delete_bookmark(sealed, "old")
    assert not delete_bookmark(sealed, "old")
    assert names(sealed) == {"crash": 800, "end-of-it": 1000}
    with Trace.open(sealed) as trace:
        assert trace.resolve("@crash") == 800 and trace.sealed and trace.reason == "done"
    assert [path.name for path in sealed.parent.iterdir()] == ["x.tt"]


@pytest.mark.parametrize("name", ["", "@", "two words", "a\nb", "\x1b[2J", "x" * 300])
def test_names_that_are_none(sealed: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name for a bookmark"):
        set_bookmark(sealed, name, 1)
    with Trace.open(sealed) as trace, pytest.raises(UsageError):
        remember(trace, name, 1)


@pytest.mark.parametrize("tick", [-1, 1001, 1 << 70])
def test_ticks_that_are_not_there(sealed: Path, tick: int) -> None:
    with pytest.raises(UsageError, match="not in the recording"):
        set_bookmark(sealed, "x", tick)
    assert names(sealed) == {"old": 5}


def test_an_open_trace_sees_them(sealed: Path) -> None:
    with Trace.open(sealed) as trace:
        assert remember(trace, "here", 10) == ""
        assert trace.bookmarks == {"old": 5, "here": 10}
        assert forget(trace, "old") == ""
        with pytest.raises(UsageError, match="the trace has here"):
            forget(trace, "old")
    assert names(sealed) == {"here": 10}


def test_a_running_recording_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "_PATIENCE_MS", 50)
    path = tmp_path / "run.tt"
    with TraceWriter(path, {}) as writer:
        writer.add(Event(5, Kind.INPUT, 0, 0, b"k"))
        writer.commit(100)
        with Trace.open(path) as trace:
            kept = remember(trace, "here", 10)
            assert "is being written" in kept and "this session only" in kept
            assert trace.bookmarks == {"here": 10}
        with pytest.raises(BadInput, match="is being written"):
            set_bookmark(path, "here", 10)
        writer.add_file("f", b"x" * 200_000)
        writer.add(Event(105, Kind.DISK_WRITE, 0, 0, bytes(512)))
        writer.commit(200)
        writer.seal(300, "done")
    assert names(path) == {}


def test_a_recording_that_was_cut_off_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "run.tt"
    writer = TraceWriter(path, {})
    writer.add(Event(5, Kind.INPUT, 0, 0, b"k"))
    writer.commit(100)
    cut = tmp_path / "cut.tt"
    shutil.copy(path, cut)
    if (wal := path.with_name("run.tt-wal")).exists():
        shutil.copy(wal, cut.with_name("cut.tt-wal"))
    writer.close()
    with Trace.open(cut) as trace:
        assert not trace.sealed
        assert remember(trace, "here", 10) == ""
    assert names(cut) == {"here": 10}


def test_a_file_that_cannot_be_written(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks.os, "access", lambda path, mode: False)  # chmod does not stop root
    with Trace.open(sealed) as trace:
        kept = remember(trace, "here", 10)
        assert "cannot be written" in kept and "\n" not in kept
        assert trace.resolve("@here") == 10
        assert "cannot be written" in forget(trace, "here")
    assert names(sealed) == {"old": 5}


def test_sqlite_saying_no_is_a_line(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "database", lambda path: database(path, "immutable=1&mode=ro"))
    with pytest.raises(BadInput, match="cannot be written"):
        set_bookmark(sealed, "x", 1)


def test_many_at_once(sealed: Path) -> None:
    failed = []

    def work(number: int) -> None:
        try:
            for tick in range(5):
                set_bookmark(sealed, f"t{number}", tick)
        except BadInput as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(sealed) == {"old": 5, **{f"t{number}": 4 for number in range(4)}}


def test_a_file_with_a_trigger_is_refused(sealed: Path) -> None:
    db = sqlite3.connect(sealed)
    db.execute("CREATE TRIGGER g AFTER INSERT ON bookmarks BEGIN DELETE FROM meta; END")
    db.close()
    with pytest.raises(BadInput, match="not one of a trace"):
        set_bookmark(sealed, "x", 1)


def test_no_trace_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tt", tmp_path):
        with pytest.raises(BadInput):
            set_bookmark(path, "x", 1)
