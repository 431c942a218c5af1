"""`tt index`: checkpoints for traces that have none, whatever happens on the way."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from cli_rig import ROOT

from tt.cli.main import main
from tt.errors import Divergence, UsageError
from tt.log import Trace
from tt.log.schema import row_crc
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.indexing import add_checkpoints

TRACES = ROOT / "traces"


@pytest.mark.parametrize("name", ["denali-demo-v1.tt", "denali-demo-v2.tt"])
def test_every_place_stays_the_same(tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(TRACES / name, tmp_path))
    with Trace.open(path) as trace:
        ticks = [trace.end_tick * k // 7 for k in range(1, 7)]
        timeline = Timeline(trace, checkpoints=False)
        digests = []
        for tick in ticks:
            timeline.seek(tick)
            digests.append(timeline.digest())
    count = add_checkpoints(path, every_ticks=1_000_000)
    assert count == 11
    with Trace.open(path) as trace:
        assert trace.version == 2 and len(trace.checkpoints) == count
        assert trace.verify_structure() == []
        assert verify(trace).good
        timeline = Timeline(trace)
        for tick, digest in reversed(list(zip(ticks, digests, strict=True))):
            timeline.seek(tick)
            assert timeline.digest() == digest
    assert list(tmp_path.iterdir()) == [path]


def test_a_trace_that_was_cut_off_is_left_alone(tmp_path: Path) -> None:
    path = Path(shutil.copy(TRACES / "denali-cut-v1.tt", tmp_path))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="cut off"):
        add_checkpoints(path)
    assert path.read_bytes() == before


def test_a_divergence_changes_nothing(tmp_path: Path) -> None:
    path = Path(shutil.copy(TRACES / "denali-demo-v1.tt", tmp_path))
    with sqlite3.connect(path) as db:
        ((tick, digest),) = db.execute("SELECT tick, digest FROM digests").fetchall()
        other = bytes(16) + digest[16:]
        db.execute("UPDATE digests SET digest = ?, crc = ?", (other, row_crc("digests", tick, other)))
    db.close()
    before = path.read_bytes()
    with pytest.raises(Divergence, match="digest differs in cpu"):
        add_checkpoints(path, every_ticks=1_000_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copy(TRACES / "denali-demo-v1.tt", tmp_path))
    assert main(["index", str(path), "--every", "2_000_000"]) == 0
    assert "5 checkpoints" in capsys.readouterr().out
    assert main(["index", str(path), "--every", "soon"]) == 2
    assert main(["index", str(tmp_path / "none.tt")]) == 3
