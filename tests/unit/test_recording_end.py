"""How recordings end: at a place that a replay finds too, with a digest, every event compared."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tt.errors import Divergence
from tt.events import Event, Kind
from tt.log import Trace
from tt.recording import Recording, record
from tt.replay import Replay, verify
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource


class Slowly(LiveSource):
    """Lets at most a millisecond of an idle guest's time pass at once."""

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        passed = super().idle(tick, most_ns)
        return None if passed is None else min(passed, 1_000_000)


def record_until(guest: Path, path: Path, last: int) -> Recording:
    """Record, and ask for the end when `last` events have happened."""
    source = LiveSource()
    seen = 0

    def count(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            source.stop("it was enough")

    return record(configure(guest, epoch=1), path, source, on_event=count)


def agrees(path: Path) -> str:
    """Verify a recording in all its parts; return what its last digest is of."""
    with Trace.open(path) as trace:
        verdict = verify(trace)
        assert verdict.good, verdict
        assert verdict.events == trace.event_count
        assert verdict.digests == trace.digest_count >= 1
        replay = Replay(trace)
        replay.finish()
        assert replay.machine.now_ns == trace.summary["guest_ns"]
        assert replay.tick == trace.end_tick
        return trace.end_state


def test_ended_at_any_moment_all_of_it_is_compared(denali_demo: Path, tmp_path: Path) -> None:
    chance = random.Random(8)
    states = set()
    for last in [1, 2, *(chance.randrange(3, 500) for _ in range(10))]:
        recording = record_until(denali_demo, tmp_path / f"{last}.tt", last)
        assert recording.reason == "it was enough"
        states.add(agrees(tmp_path / f"{last}.tt"))
    assert states == {"idle", "arrival"}


@pytest.mark.parametrize("ticks", [1, 2_677, 9_021_426, 9_021_427, 10_000_000])
def test_a_number_of_ticks(denali_demo: Path, tmp_path: Path, ticks: int) -> None:
    record(configure(denali_demo, epoch=1), tmp_path / "x.tt", max_ticks=ticks)
    assert agrees(tmp_path / "x.tt") == "arrival"


def test_a_machine_that_ends_by_itself(demo_trace: Path) -> None:
    assert agrees(demo_trace) == "power"


def test_an_idle_time_that_the_record_does_not_have(denali_demo: Path, tmp_path: Path) -> None:
    """The events of the last tick count: a replay that lets more time pass there is caught."""
    path = tmp_path / "x.tt"
    source = Slowly()
    record(
        configure(denali_demo, epoch=1),
        path,
        source,
        on_event=lambda event: (
            source.stop() if event.kind is Kind.WAKE and event.value == 1_000_000 else None
        ),
    )
    assert agrees(path) == "idle"
    with Trace.open(path) as trace:
        replay = Replay(trace)
        replay.run_to(trace.end_tick)
        let_pass = replay.machine.let_pass
        replay.machine.let_pass = lambda ns: let_pass(ns + 1)  # type: ignore[method-assign]
        with pytest.raises(Divergence):
            replay.finish()
