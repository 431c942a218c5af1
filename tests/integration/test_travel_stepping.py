"""next, finish and their reverse twins over the Denali demo, against call depths counted by single steps;
and following a value backwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tt.log import Trace
from tt.travel import Timeline
from tt.travel.code import here
from tt.travel.returns import find_return, successors
from tt.travel.sources import Input, Origin
from tt.travel.stepping import advance, step
from tt.travel.stops import Breakpoint, Watchpoint
from tt.travel.writes import Write

FIRST, LAST = 13_249_600, 13_253_000  # loops, calls, prints, and events that interrupt them


@dataclass
class Depths:
    """How deep in calls and handlers each tick is, and which ticks are in a function called since FIRST."""

    depth: dict[int, int] = field(default_factory=dict)
    called: dict[int, bool] = field(default_factory=dict)
    rips: dict[int, int] = field(default_factory=dict)
    interrupted: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def trace(demo_trace: Path) -> Iterator[Trace]:
    with Trace.open(demo_trace) as opened:
        yield opened


@pytest.fixture
def timeline(trace: Trace) -> Timeline:
    return Timeline(trace, spacing_ticks=2_000_000)


@pytest.fixture(scope="module")
def depths(trace: Trace) -> Depths:
    found = Depths()
    timeline = Timeline(trace, checkpoints=False)
    timeline.seek(FIRST)
    depth, entries = 0, {0: False}  # whether each depth was entered by a call
    for tick in range(FIRST, LAST):
        found.depth[tick], found.called[tick] = depth, entries.get(depth, False)
        found.rips[tick] = timeline.registers()["rip"]
        code = here(timeline)
        assert code is not None
        expected = {code.following} if code.text == "vmcall" else successors(timeline, code)
        timeline.step()
        rip = timeline.registers()["rip"]
        is_expected = expected is None or rip in expected
        if is_expected and code.is_call:
            depth += 1
            entries[depth] = True
        elif is_expected and code.is_return:
            depth -= 1
        elif not is_expected and code.text == "vmcall":
            depth -= 1  # a handler returns by a virtual instruction
        elif not is_expected:
            found.interrupted.append(tick)
            depth += 1
            entries[depth] = False
    return found


def sample(depths: Depths, number: int) -> list[int]:
    """Return ticks to start from, the interesting ones among them."""
    chance = random.Random(number)
    edges = [t for t in depths.depth if depths.depth.get(t + 1, 0) != depths.depth[t]]
    near = [t for tick in depths.interrupted for t in range(tick - 1, tick + 3)]
    starts = chance.sample(edges, number) + chance.sample(sorted(depths.depth), number) + near
    return [t for t in starts if FIRST + 100 < t < LAST - 700]


def test_next_is_the_next_tick_as_deep(timeline: Timeline, depths: Depths) -> None:
    checked = 0
    for tick in sample(depths, 60):
        repeats = depths.rips[tick] == depths.rips[tick + 1]  # a REP, over which one goes at once
        expected = next(
            (
                t
                for t in range(tick + 1, LAST)
                if depths.depth[t] <= depths.depth[tick]
                and not (repeats and depths.rips[t] == depths.rips[tick])
            ),
            None,
        )
        if expected is not None and (expected - 1 in depths.interrupted or tick in depths.interrupted):
            expected = None if depths.depth[tick] > depths.depth[expected] else expected
        if expected is not None:
            timeline.seek(tick)
            arrival = timeline.next()
            if tick in depths.interrupted:  # the instruction itself comes after its interruption
                expected = next(t for t in range(expected + 1, LAST) if depths.depth[t] <= depths.depth[tick])
            assert (arrival.reason, arrival.tick) == ("step", expected), tick
            checked += 1
    assert checked > 60


def test_reverse_next_is_the_last_tick_as_deep(timeline: Timeline, depths: Depths) -> None:
    checked = 0
    for tick in sample(depths, 40):
        before = [t for t in range(FIRST, tick) if depths.depth[t] <= depths.depth[tick]]
        while len(before) > 1 and depths.rips[before[-2]] == depths.rips[before[-1]] != depths.rips[tick]:
            before.pop()  # a REP, to its first step
        if before and tick - before[-1] < 5000 and before[-1] not in depths.interrupted:
            timeline.seek(tick)
            arrival = timeline.reverse_next()
            assert (arrival.reason, arrival.tick) == ("step", before[-1]), tick
            checked += 1
    assert checked > 40


def test_finish_both_ways(timeline: Timeline, depths: Depths) -> None:
    checked = 0
    for tick in sample(depths, 60):
        after = next((t for t in range(tick, LAST) if depths.depth[t] < depths.depth[tick]), None)
        before = [t for t in range(FIRST, tick) if depths.depth[t] < depths.depth[tick]]
        if after is None or not before or not depths.called[tick]:
            continue
        timeline.seek(tick)
        assert find_return(timeline) is not None, hex(timeline.registers()["rip"])
        arrival = timeline.finish()
        assert (arrival.reason, arrival.tick, timeline.tick) == ("step", after, after), tick
        timeline.seek(tick)
        assert timeline.reverse_finish().tick == before[-1], tick
        code = here(timeline)
        assert code is not None and code.is_call
        assert timeline.next().tick == after
        checked += 1
    assert checked > 20


def test_a_stop_on_the_way_ends_a_step(timeline: Timeline, depths: Depths) -> None:
    call = next(
        t
        for t in range(FIRST + 100, LAST)
        if depths.depth[t + 1] > depths.depth[t] and depths.called[t] and depths.called[t + 1]
    )
    inside = call + 2
    number = timeline.stops.add(Breakpoint(depths.rips[inside]))
    timeline.seek(call)
    arrival = timeline.next()
    assert (arrival.reason, arrival.tick) == ("break", inside)
    timeline.finish()
    assert timeline.reverse_finish().tick in (inside, call)
    timeline.stops.remove(number)
    timeline.seek(call)
    cell = timeline.registers()["rsp"] - 8
    timeline.stops.add(Watchpoint(cell))
    arrival = step(timeline)
    assert (arrival.reason, arrival.tick) == ("watch", call + 1)
    assert step(timeline, 0).reason == "step"


def test_advance(timeline: Timeline, depths: Depths) -> None:
    timeline.seek(FIRST)
    target = depths.rips[FIRST + 500]
    first = next(t for t in range(FIRST + 1, LAST) if depths.rips[t] == target)
    assert advance(timeline, target).tick == first


def test_at_the_ends(timeline: Timeline, trace: Trace) -> None:
    assert timeline.reverse_next().reason == "start"
    timeline.seek(trace.end_tick)
    assert timeline.next().reason == "end"
    timeline.seek(trace.end_tick - 1)
    timeline.next()
    assert timeline.tick == trace.end_tick


# ---- where a value came from


def test_a_value_is_followed_back(timeline: Timeline) -> None:
    """From a saved register to the register, to what set it, each link checked against the states."""
    timeline.seek(LAST)
    found: Write | Origin | None = timeline.last_write(timeline.registers()["rsp"], 8)
    links = 0
    while found is not None and links < 8:
        if isinstance(found, Write):
            assert timeline.tick == found.tick
            source = timeline.source_of(found)
            assert timeline.tick == found.tick
        else:
            source = found
            assert timeline.tick == found.tick + 1
        for wanted in source.inputs:
            timeline.seek(source.tick)
            if wanted.kind == "memory":
                assert int.from_bytes(timeline.read(wanted.addr, wanted.size), "little") == wanted.value
        if isinstance(found, Write) and source.how == "copied" and source.inputs[0].value is not None:
            assert source.inputs[0].value == int.from_bytes(found.new, "little")
        links += 1
        found = timeline.origin_of(source) if source.inputs else None
    assert links > 1


def test_what_a_device_wrote_has_no_inputs(timeline: Timeline) -> None:
    timeline.seek(22_091_300)
    write = timeline.last_write(0x1040, 8, physical=True)
    assert write is not None and write.by == "device"
    source = timeline.source_of(write)
    assert (source.how, source.inputs) == ("device", ())
    assert timeline.origin_of(source) is None


def test_words() -> None:
    assert str(Input("register", 5, "rax")) == "rax = 0x5"
    assert str(Input("memory", None, addr=0x10, size=4)) == "4 bytes at 0x10 = ?"
    source = Origin(9, 0x1000, "push 7", "copied", (Input("immediate", 7),))
    assert str(source) == "copied from 0x7 by push 7 (0x1000) at tick 9"
