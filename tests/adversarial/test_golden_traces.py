"""Traces of every format version there ever was: they open, say what they said, and replay to the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from adversary_rig import ROOT

from tt.log import Trace
from tt.log.schema import VERSION, probe
from tt.replay import Replay, config_of, verify

GOLDEN = sorted((ROOT / "traces").glob("*.tt"))


@pytest.fixture
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    """Return a copy: a reader may leave files beside what it opens."""
    return Trace.open(Path(shutil.copy(request.param, tmp_path)))


def test_each_version_has_its_traces() -> None:
    assert {probe(path) for path in GOLDEN} == set(range(1, VERSION + 1))
    for path in GOLDEN:
        assert path.stat().st_size < 400_000


@pytest.mark.parametrize("trace", GOLDEN, indirect=True, ids=lambda path: path.stem)
def test_it_replays(trace: Trace) -> None:
    assert trace.verify_structure() == []
    replay = Replay(trace)
    replay.finish()
    assert replay.tick == trace.end_tick
    assert replay.checker.checked == trace.event_count
    assert replay.digests_checked == len(list(trace.digests()))
    assert verify(trace).good


@pytest.mark.parametrize("path", [path for path in GOLDEN if "demo" in path.stem], ids=lambda path: path.stem)
def test_the_demo_says_what_it_said(path: Path) -> None:
    with Trace.open(path) as trace:
        lines = [text for _tick, _unit, text in trace.console_lines()]
        assert trace.sealed and trace.reason == "terminated with status 0"
        assert len(list(trace.digests())) == 1
    assert lines[0].startswith("Denali demo: 16 MiB of memory")
    assert "echo: golden" in lines and "primes: 78498 below 1000000" in lines
    assert lines[-1].startswith("done: ") and lines[-1].endswith(" 0 checks failed")


@pytest.mark.parametrize(("name", "firmware"), [("pc-reset-state-v4", False), ("pc-firmware-v4", True)])
def test_a_pc_is_the_one_that_was_recorded(name: str, firmware: bool) -> None:
    """What its devices were like at power-on is part of the machine's description."""
    with Trace.open(ROOT / "traces" / f"{name}.tt") as trace:
        replay = Replay(trace)
        assert config_of(trace).firmware is firmware
        board = replay.machine.board
        assert board.read(0x64, 1) == (0x14 if firmware else 0xFF)
        assert (board.pit.state.channels[0].mode == 3) is firmware
