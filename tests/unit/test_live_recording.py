"""A recording that its owner steps is the recording that `record` makes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from stories import story

from tt.errors import UsageError
from tt.log import Trace
from tt.recording import LiveRecording, record, why
from tt.replay import Replay, verify
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource


def test_steps_of_any_length_make_the_same_trace(denali_demo: Path, tmp_path: Path) -> None:
    config = configure(denali_demo, epoch=1_700_000_000)
    whole = record(config, tmp_path / "whole.tt", entropy=bytes)
    live = LiveRecording(config, tmp_path / "steps.tt", LiveSource(), entropy=bytes)
    try:
        for goal in itertools.count(1000, 100_003):
            stop = live.step(goal)
            live.commit()
            if stop.reason not in ("tick", "pause"):
                break
        result = live.end(why(stop))
    finally:
        live.close()
    assert (result.reason, result.counts, result.digests) == (whole.reason, whole.counts, whole.digests)
    assert (result.end_tick, result.guest_ns) == (whole.end_tick, whole.guest_ns) and result.host_s > 0
    assert story(tmp_path / "steps.tt") == story(tmp_path / "whole.tt")


def test_one_that_is_closed_in_the_middle_is_whole_to_its_last_commit(
    denali_demo: Path, tmp_path: Path
) -> None:
    live = LiveRecording(configure(denali_demo, epoch=0), tmp_path / "cut.tt", LiveSource())
    assert live.step(200_000).tick == 200_000
    live.commit()
    live.step(300_000)
    live.close()
    with Trace.open(tmp_path / "cut.tt") as trace:
        assert not trace.sealed and trace.end_tick == 200_000
        replay = Replay(trace)
        replay.run_to(200_000)
        assert replay.tick == 200_000


def test_one_that_ends_where_its_owner_likes(denali_demo: Path, tmp_path: Path) -> None:
    live = LiveRecording(configure(denali_demo, epoch=0), tmp_path / "x.tt", LiveSource())
    live.step(123_456)
    assert live.end("enough").reason == "enough"
    live.close()
    with Trace.open(tmp_path / "x.tt") as trace:
        assert trace.end_tick == 123_456 and verify(trace).good
    with pytest.raises(UsageError, match="exists already"):
        LiveRecording(configure(denali_demo, epoch=0), tmp_path / "x.tt", LiveSource())
