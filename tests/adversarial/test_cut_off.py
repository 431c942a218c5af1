"""Recordings cut off by kill -9 or a full disk: the trace opens, and replays to its last commit."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from adversary_rig import child, demo_config

from tt.errors import BadInput, TTError
from tt.log import Trace
from tt.recording import record
from tt.replay import Replay


def replays_to_its_last_commit(path: Path) -> int:
    """Open and replay a cut-off trace, all checks on; return its last tick."""
    with Trace.open(path) as trace:
        assert trace.verify_structure() == []
        assert not trace.sealed
        if trace.end_tick == 0 and not trace.files:
            with pytest.raises(BadInput, match="cut off at its very start"):
                Replay(trace)
            return 0
        replay = Replay(trace)
        replay.run_to(trace.end_tick)
        replay.finish()
        assert replay.tick == trace.end_tick
        # Nothing that was logged went unchecked (events at the last tick itself lie ahead).
        ahead = sum(1 for _ in trace.events(first_tick=trace.end_tick))
        assert replay.checker.checked >= trace.event_count - ahead
        return trace.end_tick


def has_committed(path: Path) -> bool:
    try:
        with Trace.open(path) as trace:
            return trace.end_tick > 0
    except BadInput:
        return False


def kill_recording(
    guest: Path, path: Path, wait_s: float, air_s: float, *, committed: bool = False
) -> int | None:
    """Kill a recording so long after its trace appeared or first committed; return its last tick."""
    process = child(guest=guest, out=path, air_s=air_s)
    assert process.stdout and process.stderr
    try:
        assert process.stdout.readline() == b"started\n", process.stderr.read().decode()
        while not (has_committed(path) if committed else path.exists()) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait_s)
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        process.kill()
        process.communicate()
    return replays_to_its_last_commit(path) if path.exists() else None


def test_killed(busy: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    for i in range(3):
        assert kill_recording(busy, tmp_path / f"{i}.tt", chance.uniform(0, 0.1), 0.02, committed=True)


@pytest.mark.slow
def test_killed_25_times(busy: Path, tmp_path: Path) -> None:
    chance = random.Random(50)
    ends = []
    for number in range(25):
        path = tmp_path / f"{number}.tt"
        ends.append(
            kill_recording(busy, path, chance.uniform(0, 0.5) ** 2, chance.choice((0.005, 0.02, 0.1)))
        )
        shutil.rmtree(path, ignore_errors=True)
    assert sum(1 for end in ends if end) > 10, ends


@pytest.mark.slow
def test_debian_killed(debian: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    for number in range(5):
        end = kill_recording(debian, tmp_path / f"{number}.tt", 0.8 + 0.6 * number * chance.random(), 0.1)
        assert end is None or end >= 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Yield a folder on a disk of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def says_one_line(error: TTError, path: Path) -> None:
    """Check the error of a recording that ran out of room."""
    assert error.exit_code == 3
    assert str(error).startswith(f"cannot write {path}: ") and "\n" not in str(error)


@pytest.mark.parametrize("size", ["1m", "3m"])
def test_disk_full(busy: Path, tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.vmm.live.COMMIT_EVERY_S", 0.01)
    with small_disk(tmp_path / "disk", size) as folder:
        path = folder / "x.tt"
        with pytest.raises(TTError) as caught:
            record(demo_config(busy), path, max_ticks=2_000_000_000)
        says_one_line(caught.value, path)
        assert replays_to_its_last_commit(path) > 0


def test_disk_full_in_a_process(busy: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as folder:
        process = child(guest=busy, out=folder / "x.tt", air_s=0.01)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 3
        assert errors.startswith(b"tt: cannot write ") and errors.count(b"\n") == 1
        assert replays_to_its_last_commit(folder / "x.tt") > 0


def test_no_room_for_the_guest_itself(demo: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as folder:
        with pytest.raises(TTError) as caught:
            record(demo_config(demo), folder / "x.tt")
        says_one_line(caught.value, folder / "x.tt")


def test_file_size_limit(busy: Path, tmp_path: Path) -> None:
    process = child(guest=busy, out=tmp_path / "x.tt", air_s=0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert errors.startswith(b"tt: cannot write ") and errors.count(b"\n") == 1
    assert replays_to_its_last_commit(tmp_path / "x.tt") > 0
