"""A recorder that dies at any instant leaves a trace that opens to its last commit."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tt.errors import BadInput, TTError
from tt.events import Event, Kind
from tt.log import Trace, TraceWriter

# Events are a function of their number, so that any prefix can be checked.
WRITER = """
import random, sys
from tt.events import Event, Kind
from tt.log import TraceWriter
chance = random.Random(7)
with TraceWriter(sys.argv[1], {"machine": {}}) as writer:
    print("created", flush=True)
    for commit in range(int(sys.argv[2])):
        for at in range(50):
            number = commit * 50 + at
            writer.add(Event(number * 10, Kind.IRQ, 0, number % 7))
        writer.add_digest(commit * 500 + 499, bytes([commit % 256]) * 16)
        writer.add_blob(chance.randbytes(20000))
        writer.commit(commit * 500 + 499)
        print(commit * 500 + 499, flush=True)
    print("sealing", flush=True)
    writer.seal(commit * 500 + 499, "done")
"""


def start(path: Path, commits: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(commits)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_up_to(path: Path, at_least: int) -> Trace:
    """Assert that the trace at `path` is whole, and holds at least what was committed."""
    with Trace.open(path) as trace:
        assert trace.end_tick >= at_least
        assert trace.verify_structure() == []
        events = list(trace.events())
        assert events == [Event(number * 10, Kind.IRQ, 0, number % 7) for number in range(len(events))]
        assert len(events) == (trace.end_tick + 1) // 10
        assert len(list(trace.digests())) == len(events) // 50
        return trace


@pytest.mark.parametrize("round_", range(10))
def test_kill_9(tmp_path: Path, round_: int) -> None:
    path = tmp_path / "x.tt"
    chance = random.Random(round_)
    writer = start(path, 1_000_000)
    assert writer.stdout
    assert writer.stdout.readline() == "created\n"
    committed = 0
    for _ in range(chance.randrange(40)):
        committed = int(writer.stdout.readline())
    time.sleep(chance.random() * 0.01)
    writer.kill()
    committed = max([committed, *(int(line) for line in writer.stdout.read().splitlines(keepends=True))])
    writer.wait()
    trace = check_up_to(path, committed)
    assert not trace.sealed
    copy = tmp_path / "copy" / "x.tt"
    copy.parent.mkdir()
    shutil.copy(path, copy)  # without its -wal
    try:
        with Trace.open(copy) as alone:
            assert alone.end_tick <= trace.end_tick
            list(alone.events())
    except BadInput as e:  # killed while a commit was moved into the file: then one half is not enough
        assert "copy x.tt-wal along with it" in str(e)
    assert [file.name for file in copy.parent.iterdir()] == ["x.tt"]


@pytest.mark.parametrize("wait_ms", [0, 1, 2, 4])
def test_kill_9_while_sealing(tmp_path: Path, wait_ms: int) -> None:
    path = tmp_path / "x.tt"
    writer = start(path, 5)
    assert writer.stdout
    while writer.stdout.readline() != "sealing\n":
        pass
    time.sleep(wait_ms / 1000)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    check_up_to(path, 2499)


def test_a_half_written_seal_is_undone(tmp_path: Path) -> None:
    """A hot journal beside the file is rolled back, though the trace is opened for reading."""
    path = tmp_path / "x.tt"
    with TraceWriter(path, {}) as writer:
        writer.seal(5, "done")
    code = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('pragma cache_size = 1')\n"
        "db.execute('begin')\n"
        "db.execute('update progress set end_tick = 99')\n"
        "db.executemany('insert into bookmarks values (?, 1, 1)', ((f'{n:0900}',) for n in range(100)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -signal.SIGKILL
    assert (tmp_path / "x.tt-journal").stat().st_size
    with Trace.open(path) as trace:
        assert (trace.end_tick, trace.bookmarks) == (5, {})


def test_born_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed before its constructor returns, a writer leaves no file of that name, or one that opens."""
    for round_ in range(8):
        path = tmp_path / f"{round_}.tt"
        writer = start(path, 1)
        time.sleep(0.05 * round_)
        writer.kill()
        writer.communicate()
        if path.exists():
            Trace.open(path).close()


def fill(path: Path) -> tuple[int, str]:
    """Write until the disk is full; return the last committed tick and what was said."""
    chance = random.Random(1)
    committed = 0
    with pytest.raises(TTError) as said, TraceWriter(path, {}) as writer:
        pages = getattr(fill, "max_pages", None)
        if pages:
            writer._db.execute(f"PRAGMA max_page_count = {pages}")
        for commit in range(10_000):
            for at in range(50):
                number = commit * 50 + at
                writer.add(Event(number * 10, Kind.IRQ, 0, number % 7))
            writer.add_digest(commit * 500 + 499, b"d" * 16)
            writer.add_blob(chance.randbytes(20000))
            writer.commit(commit * 500 + 499)
            committed = commit * 500 + 499
    return committed, str(said.value)


def check_full(path: Path, committed: int, said: str) -> None:
    assert committed > 1000
    assert said.startswith(f"cannot write {path}: ")
    assert said.endswith(f"it is safe up to tick {committed:,}")
    assert "\n" not in said
    trace = check_up_to(path, committed)
    assert (trace.sealed, trace.end_tick) == (False, committed)


def test_full_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "max_pages", 100, raising=False)
    check_full(tmp_path / "x.tt", *fill(tmp_path / "x.tt"))


def test_file_size_limit(tmp_path: Path) -> None:
    with file_size_limit(1 << 20):
        committed, said = fill(tmp_path / "x.tt")
    check_full(tmp_path / "x.tt", committed, said)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file beyond `size`, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        committed, said = fill(disk / "x.tt")
        check_full(disk / "x.tt", committed, said)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_room_even_to_begin(tmp_path: Path) -> None:
    with file_size_limit(4096), pytest.raises(TTError, match="cannot write"):
        TraceWriter(tmp_path / "x.tt", {})
    assert list(tmp_path.iterdir()) == []
