"""Two recordings of one headless run are the same, whatever the host is up to; so is a replay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from adversary_rig import child, debian_config, demo_config
from stories import story

from tt.log import Trace
from tt.recording import record
from tt.replay import Replay
from tt.vmm.config import MachineConfig


def recorded(guest: Path, out: Path, hash_seed: str, **task: object) -> Path:
    """Record in a process of its own."""
    process = child(hash_seed=hash_seed, guest=guest, out=out, **task)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return out


@contextmanager
def busy_host() -> Iterator[None]:
    """Keep more processes busy than there are likely to be cores for."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


@pytest.mark.slow  # test_cli_record.py compares two recordings every day
def test_demo_recordings_are_equal(demo: Path, tmp_path: Path) -> None:
    first = story(recorded(demo, tmp_path / "0.tt", "0"))
    assert len(first[2]) == 1 and len(first[3]) > 400  # type: ignore[arg-type]
    for seed in ("1", "random"):
        assert story(recorded(demo, tmp_path / f"{seed}.tt", seed)) == first
    # Coming up for air at other moments changes nothing but when it commits.
    assert story(recorded(demo, tmp_path / "air.tt", "0", air_s=0.001)) == first
    with busy_host():
        assert story(recorded(demo, tmp_path / "busy.tt", "2")) == first


@pytest.mark.slow
def test_debian_recordings_are_equal(debian: Path, tmp_path: Path) -> None:
    first = story(recorded(debian, tmp_path / "0.tt", "0"))
    assert len(first[2]) >= 4 and len(first[3]) > 1000  # type: ignore[arg-type]
    assert story(recorded(debian, tmp_path / "1.tt", "1", air_s=0.01)) == first
    with busy_host():
        assert story(recorded(debian, tmp_path / "2.tt", "random")) == first


def replays(config: MachineConfig, path: Path, **options: int) -> Replay:
    """Record, and replay with every check on."""
    record(config, path, **options)
    with Trace.open(path) as trace:
        replay = Replay(trace)
        replay.finish()
        assert replay.tick == trace.end_tick
        assert replay.checker.checked == trace.event_count
        assert replay.digests_checked == len(list(trace.digests()))
        return replay


def test_demo_with_the_hosts_clock(demo: Path, tmp_path: Path) -> None:
    assert replays(demo_config(demo, clock="host"), tmp_path / "x.tt").checker.checked > 500


def test_busy_guest_with_the_hosts_clock(busy: Path, tmp_path: Path) -> None:
    replay = replays(demo_config(busy, clock="host"), tmp_path / "x.tt", max_ticks=5_000_000)
    assert replay.checker.checked > 1000


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_debian_replays(debian: Path, tmp_path: Path, clock: str) -> None:
    replay = replays(debian_config(debian, clock=clock), tmp_path / "x.tt", max_ticks=1_600_000_000)
    assert replay.digests_checked >= 4


def test_a_subscriber_changes_nothing(demo: Path, tmp_path: Path) -> None:
    seen: list[object] = []
    spies: dict[str, Callable[..., object]] = {
        "on_event": seen.append,
        "on_start": lambda machine: seen.append(machine.digest()),
    }
    record(demo_config(demo), tmp_path / "a.tt", **spies)  # type: ignore[arg-type]
    record(demo_config(demo), tmp_path / "b.tt")
    assert story(tmp_path / "a.tt") == story(tmp_path / "b.tt") and seen
