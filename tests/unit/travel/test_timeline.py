"""The timeline over a recording of the Denali demo: every place is the same however it was reached."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.errors import UsageError
from tt.log import Trace
from tt.travel import Timeline
from tt.travel.stops import Breakpoint

HEARTBEAT = 100_000


@pytest.fixture(scope="module")
def trace(demo_trace: Path) -> Iterator[Trace]:
    with Trace.open(demo_trace) as opened:
        yield opened


@pytest.fixture
def timeline(trace: Trace) -> Timeline:
    return Timeline(trace, spacing_ticks=2_000_000)


def cold(trace: Trace, tick: int) -> bytes:
    straight = Timeline(trace, checkpoints=False)
    straight.seek(tick)
    return straight.digest()


def test_seeks_reach_the_same_states_in_any_order(trace: Trace, timeline: Timeline) -> None:
    chance = random.Random(7)
    places = {tick: cold(trace, tick) for tick in [0, *(chance.randrange(trace.end_tick) for _ in range(6))]}
    for _ in range(40):
        tick = chance.choice(list(places))
        timeline.seek(tick)
        assert timeline.tick == tick
        if chance.random() < 0.4:
            timeline.reverse_step(chance.choice([1, 7, 30_000]))
            timeline.step(chance.choice([1, 7, 30_000]))
            timeline.seek(tick)
        assert timeline.digest() == places[tick]


def test_a_small_budget_thins_and_changes_nothing(trace: Trace) -> None:
    thin = Timeline(trace, spacing_ticks=500_000, memory_budget=3 << 20)
    thin.seek(trace.end_tick)
    assert 3 <= len(thin.checkpoint_ticks) < trace.end_tick // 500_000
    for tick in (20_000_000, 3_000_000, 11_111_111):
        thin.seek(tick)
        assert thin.digest() == cold(trace, tick)


def test_reverse_step_by_step(timeline: Timeline) -> None:
    timeline.seek(15_000_000)
    rips = []
    for _ in range(50):
        rips.append(timeline.registers()["rip"])
        timeline.step()
    for rip in reversed(rips):
        timeline.reverse_step()
        assert timeline.registers()["rip"] == rip
    assert timeline.tick == 15_000_000


def test_a_breakpoint_both_ways(timeline: Timeline) -> None:
    timeline.seek(2_000)
    entry = timeline.registers()["rip"]
    timeline.stops.add(Breakpoint(entry))
    timeline.seek(1_000)
    hits = []
    for _ in range(3):
        stop = timeline.proceed()
        if stop.reason != "break":
            break
        hits.append(stop.tick)
    assert hits and all(timeline_rip == entry for timeline_rip in [timeline.registers()["rip"]])
    back = []
    while timeline.reverse_proceed().reason == "break" and timeline.tick >= hits[0]:
        assert timeline.registers()["rip"] == entry
        back.append(timeline.tick)
    assert back[-1] == hits[0] or hits[0] in back or len(hits) == 1


def test_who_wrote_this(trace: Trace, timeline: Timeline) -> None:
    """The virtual registers' deadline of the timer is written by the guest again and again."""
    timeline.seek(trace.end_tick - 10)
    seen = []
    while (write := timeline.last_write(0x1040, 8, physical=True)) is not None and len(seen) < 5:
        assert write.tick == timeline.tick
        assert write.old != write.new or write.new == bytes(8)
        assert timeline.machine.engine.read(0x1040, 8) == write.new
        seen.append(write)
    ticks = [write.tick for write in seen]
    assert len(seen) == 5 and ticks == sorted(ticks, reverse=True)


def test_run_until(timeline: Timeline) -> None:
    assert timeline.run_until(lambda here: here.machine.clock.idle_ns > 0, every_ticks=HEARTBEAT)
    assert timeline.machine.clock.idle_ns > 0
    timeline.step(-HEARTBEAT)
    assert timeline.machine.clock.idle_ns == 0


def test_outside_is_refused(trace: Trace, timeline: Timeline) -> None:
    with pytest.raises(UsageError, match="not in the recording"):
        timeline.seek(trace.end_tick + 1)


def test_positions_as_they_are_typed(timeline: Timeline) -> None:
    timeline.seek("50%")
    assert timeline.tick == timeline.end_tick // 2
    timeline.seek("-1_000")
    assert timeline.tick == timeline.end_tick // 2 - 1000
    timeline.seek("end")
    assert timeline.tick == timeline.end_tick
    with pytest.raises(UsageError, match="past the end"):
        timeline.seek("+1")
    assert timeline.tick == timeline.end_tick


def test_physical_memory_lies_behind_virtual(timeline: Timeline) -> None:
    timeline.seek(5_000_000)
    rip = timeline.registers()["rip"]
    physical = timeline.translate(rip)
    assert physical is not None
    assert timeline.read_physical(physical, 8) == timeline.read(rip, 8)
    with pytest.raises(IndexError):
        timeline.read_physical(1 << 50, 1)
