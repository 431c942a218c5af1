"""Stops in both directions over the Denali demo, against what single steps show.

The oracle executes a stretch one instruction at a time, and works out by itself
where each stop must be: from RIP, and from the decoded operands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from travel_rig import Oracle, backward, follow, forward, ticks

from tt.errors import UsageError
from tt.events import Kind
from tt.log import Trace
from tt.travel import Timeline
from tt.travel.code import fetch
from tt.travel.stops import Arrival, Breakpoint, Catchpoint, StopPoint, Watchpoint

FIRST, LAST = 13_249_000, 13_254_000  # the guest prints, gets events, and a disk write lies in between


@pytest.fixture(scope="module")
def trace(demo_trace: Path) -> Iterator[Trace]:
    with Trace.open(demo_trace) as opened:
        yield opened


@pytest.fixture
def timeline(trace: Trace) -> Timeline:
    return Timeline(trace, spacing_ticks=2_000_000)


@pytest.fixture(scope="module")
def oracle(trace: Trace) -> Oracle:
    return follow(Timeline(trace, checkpoints=False), FIRST, LAST)


def interesting(oracle: Oracle, least: int, most: int) -> list[int]:
    """Return addresses of code that is passed between `least` and `most` times."""
    return [a for a in sorted(set(oracle.rips.values())) if least <= len(oracle.at(a)) <= most]


# ---- breakpoints


@pytest.mark.parametrize("often", [(1, 3), (10, 40), (100, 1000)])
def test_breakpoints_are_where_single_steps_are(
    timeline: Timeline, oracle: Oracle, often: tuple[int, int]
) -> None:
    chance = random.Random(sum(often))
    for addr in chance.sample(interesting(oracle, *often), 2):
        timeline.stops.clear()
        timeline.stops.add(Breakpoint(addr))
        there, back = forward(timeline, FIRST, LAST), backward(timeline, FIRST, LAST)
        assert ticks(there) == oracle.at(addr) == ticks(back)
        assert {a.reason for a in there + back} == {"break"}


def test_several_kinds_together_and_the_digests_stay(timeline: Timeline, oracle: Oracle) -> None:
    chance = random.Random(3)
    addrs = chance.sample(interesting(oracle, 3, 30), 3)
    cell = next(
        a for t in sorted(oracle.accesses) for a, _n, kind in oracle.accesses[t] if kind == "w" and a > 0x2000
    )
    for addr in addrs:
        timeline.stops.add(Breakpoint(addr))
    timeline.stops.add(Watchpoint(cell, 8))
    timeline.stops.add(Catchpoint("interrupt"))
    events = {e.tick for e in timeline.trace.events(FIRST + 1, LAST, {Kind.BATCH})}
    by_hand = events.union(*(oracle.at(addr) for addr in addrs), oracle.touching(cell, 8, "w"))
    there, back = forward(timeline, FIRST, LAST), backward(timeline, FIRST, LAST)
    assert ticks(there) == ticks(back)
    assert set(ticks(there)) >= by_hand
    assert all(a.by == "device" or a.by == "interrupt" for a in there if a.tick not in by_hand)
    for tick, digest in oracle.digests.items():
        timeline.seek(tick)
        assert timeline.digest() == digest
        timeline.proceed()
        timeline.reverse_proceed()


def test_every_arrival_is_the_first_arrival(timeline: Timeline, trace: Trace, oracle: Oracle) -> None:
    """A breakpoint on a handler's first instruction: one stands before the event that leads there."""
    handler = int.from_bytes(timeline_at(timeline, LAST).machine.engine.read(0x1030, 8), "little")
    timeline.stops.add(Breakpoint(handler))
    there = forward(timeline, 0, trace.end_tick)
    batches = [e.tick for e in trace.events(kinds={Kind.BATCH})]
    assert len(there) > 5 and set(ticks(there)) <= set(batches)
    assert all("entered from here" in a.detail for a in there)
    cold = Timeline(trace, checkpoints=False)
    for arrival in there[:3] + there[-3:]:
        timeline.seek(arrival.tick - 1)
        assert timeline.proceed().tick == arrival.tick
        cold.seek(arrival.tick)
        assert timeline.digest() == cold.digest()
    assert ticks(backward(timeline, 0, trace.end_tick - 1)) == ticks(there)


def timeline_at(timeline: Timeline, tick: int) -> Timeline:
    timeline.seek(tick)
    return timeline


def test_a_breakpoint_where_one_stands_is_left(timeline: Timeline, oracle: Oracle) -> None:
    addr = interesting(oracle, 10, 40)[0]
    timeline.stops.add(Breakpoint(addr))
    first, second = oracle.at(addr)[:2]
    timeline.seek(first)
    assert timeline.proceed().tick == second
    assert timeline.reverse_proceed().tick == first


# ---- conditions, counts


def test_conditions_and_ignore_counts(timeline: Timeline, oracle: Oracle) -> None:
    addr = interesting(oracle, 10, 40)[0]
    stops = oracle.at(addr)
    point = Breakpoint(addr, condition=lambda here: here.tick != stops[1], ignore=2)
    timeline.stops.add(point)
    timeline.seek(FIRST)
    assert timeline.proceed().tick == stops[3]  # the first and the third are ignored
    assert (point.hits, point.ignore) == (3, 0)
    point.ignore = 1
    assert timeline.reverse_proceed().tick == stops[0]  # the third ignored, the second refused
    assert (point.hits, point.ignore) == (5, 0)


def test_a_condition_that_hardly_ever_holds(timeline: Timeline, oracle: Oracle, trace: Trace) -> None:
    addr = interesting(oracle, 100, 1000)[0]
    asked = []

    def condition(here: Timeline) -> bool:
        asked.append(here.tick)
        return here.tick == oracle.at(addr)[0]

    timeline.stops.add(Breakpoint(addr, condition=condition))
    timeline.seek(LAST)
    assert timeline.reverse_proceed().tick == oracle.at(addr)[0]
    assert len(asked) < 10 * len(oracle.at(addr))


def test_a_condition_that_raises_stops_and_says_so(timeline: Timeline, oracle: Oracle) -> None:
    addr = interesting(oracle, 10, 40)[0]
    timeline.stops.add(Breakpoint(addr, condition=lambda here: here.read(1 << 50, 8) == b""))
    timeline.stops.add(Breakpoint(addr, condition=lambda here: here.nothing))  # type: ignore[attr-defined]
    timeline.seek(FIRST)
    arrival = timeline.proceed()
    assert arrival.tick == oracle.at(addr)[0]
    assert "its condition fails here" in arrival.detail
    assert len(arrival.points) == 2


def test_a_condition_may_not_travel(timeline: Timeline, oracle: Oracle) -> None:
    addr = interesting(oracle, 10, 40)[0]

    def condition(here: Timeline) -> bool:
        here.step(5)
        return True

    timeline.stops.add(Breakpoint(addr, condition=condition))
    timeline.seek(FIRST)
    before = timeline.digest()
    with pytest.raises(UsageError, match="breakpoint 1 moved the timeline"):
        timeline.proceed()
    assert (timeline.tick, timeline.digest()) == (FIRST, before)


def test_a_temporary_one_and_a_disabled_one(timeline: Timeline, oracle: Oracle) -> None:
    addr = interesting(oracle, 10, 40)[0]
    timeline.stops.add(Breakpoint(addr, temporary=True))
    timeline.stops.add(Breakpoint(addr, enabled=False))
    timeline.seek(FIRST)
    arrival = timeline.proceed()
    assert arrival.tick == oracle.at(addr)[0] and arrival.point is not None and arrival.point.number == 1
    assert [point.number for point in timeline.stops] == [2]
    assert timeline.proceed().reason == "end"


# ---- watchpoints


def watched_cells(oracle: Oracle, kinds: str) -> list[int]:
    cells: dict[int, int] = {}
    for accesses in oracle.accesses.values():
        for addr, _size, kind in accesses:
            if kind in kinds:
                cells[addr] = cells.get(addr, 0) + 1
    return [addr for addr, count in sorted(cells.items()) if 2 <= count <= 500]


@pytest.mark.parametrize("kinds", ["w", "r", "rw"])
@pytest.mark.parametrize("physical", [False, True])
def test_watchpoints_are_where_the_operands_say(
    timeline: Timeline, oracle: Oracle, kinds: str, physical: bool
) -> None:
    chance = random.Random(11)
    cells = watched_cells(oracle, kinds)
    for cell in chance.sample(cells, min(4, len(cells))):
        addr, size = cell + chance.choice([0, 1]), chance.choice([1, 4, 8])
        timeline.stops.clear()
        timeline.stops.add(Watchpoint(addr, size, "r" in kinds, "w" in kinds, physical))
        there, back = forward(timeline, FIRST, LAST), backward(timeline, FIRST, LAST)
        assert [(a.tick, a.old, a.new) for a in there] == [(a.tick, a.old, a.new) for a in back]
        expected = oracle.touching(addr, size, kinds)
        assert [a.tick for a in there if a.by == "instruction"] == expected
        for arrival in there[:20]:
            timeline.seek(arrival.tick)
            assert timeline.read(addr, size) == arrival.new
            timeline.seek(arrival.tick - 1)
            assert timeline.read(addr, size) == arrival.old


def test_bytes_across_a_page_border(timeline: Timeline, oracle: Oracle) -> None:
    borders = [
        (a, n, t)
        for t, accesses in oracle.accesses.items()
        for a, n, k in accesses
        if k == "w" and (a + n) % 4096 == 0
    ]
    below = sorted({a for ac in oracle.accesses.values() for a, _n, k in ac if k == "w" and a % 4096 < 64})
    places = {a + n for a, n, _t in borders} | {a & ~4095 for a in below}
    places.discard(0x1000)  # virtual instructions write the registers there
    assert places
    for border in sorted(places)[:2]:
        timeline.stops.clear()
        timeline.stops.add(Watchpoint(border - 64, 128))
        assert [a.tick for a in forward(timeline, FIRST, LAST) if a.by == "instruction"] == oracle.touching(
            border - 64, 128, "w"
        )


def test_what_a_device_writes(timeline: Timeline, trace: Trace) -> None:
    """The machine clears the timer register when the timer has expired; no instruction does that."""
    timers = [e.tick for e in trace.events(kinds={Kind.TIMER})]
    timeline.stops.add(Watchpoint(0x1040, 8, physical=True))
    there = forward(timeline, 0, trace.end_tick)
    assert [a.tick - 1 for a in there if a.by == "device"] == timers
    assert all(a.new == bytes(8) for a in there if a.by == "device")
    assert any(a.by == "instruction" for a in there)
    assert ticks(backward(timeline, 0, trace.end_tick - 1)) == ticks(there)


def test_an_address_where_nothing_is_mapped(timeline: Timeline) -> None:
    timeline.seek(LAST)
    timeline.stops.add(Watchpoint(1 << 46, 8))
    timeline.stops.add(Watchpoint((1 << 64) - 8, 8, reads=True))
    assert timeline.proceed().reason == "end"
    assert timeline.reverse_proceed() == Arrival("start", 0, detail="the start of the recording")


# ---- catchpoints


def catch_by_hand(trace: Trace, kind: Kind, wanted: Callable[[Any], bool]) -> list[int]:
    return sorted({e.tick for e in trace.events(1, kinds={kind}) if wanted(e)})


@pytest.mark.parametrize(
    ("point", "kind", "wanted"),
    [
        (Catchpoint("interrupt"), Kind.BATCH, lambda e: True),
        (Catchpoint("interrupt", number_wanted=1), Kind.BATCH, lambda e: e.value & 2),
        (Catchpoint("device", device="timer"), Kind.TIMER, lambda e: True),
        (Catchpoint("device", device="console1"), Kind.CONSOLE, lambda e: False),
        (Catchpoint("disk-write"), Kind.DISK_WRITE, lambda e: True),
        (Catchpoint("disk-write", lba=12), Kind.DISK_WRITE, lambda e: e.value <= 12 < e.value + 8),
        (Catchpoint("disk-write", disk=1), Kind.DISK_WRITE, lambda e: False),
        (Catchpoint("power"), Kind.POWER, lambda e: True),
        (
            Catchpoint("console", pattern="[0-9]+ ?%?\\n"),
            Kind.CONSOLE,
            lambda e: e.data[-2:-1].isdigit() and e.data[-1:] == b"\n",
        ),
    ],
    ids=lambda v: v.describe() if isinstance(v, StopPoint) else None,
)
def test_events_are_caught(
    timeline: Timeline, trace: Trace, point: Catchpoint, kind: Kind, wanted: Callable[[Any], bool]
) -> None:
    timeline.stops.clear()
    timeline.stops.add(point)
    expected = catch_by_hand(trace, kind, wanted)
    there = forward(timeline, 0, trace.end_tick)
    assert ticks(there) == expected
    assert {a.reason for a in there} <= {"catch"}
    timeline.seek(trace.end_tick)
    back = []
    while (arrival := timeline.reverse_proceed()).reason != "start":
        back.append(arrival.tick)
    assert back[::-1] == [tick for tick in expected if tick < trace.end_tick]


def test_caught_events_with_a_condition_and_a_breakpoint(timeline: Timeline, trace: Trace) -> None:
    writes = catch_by_hand(trace, Kind.DISK_WRITE, lambda e: True)
    timeline.stops.add(Catchpoint("disk-write", condition=lambda here: here.tick in writes[::2]))
    alone = ticks(forward(timeline, 0, trace.end_tick))
    timeline.stops.add(Breakpoint(1))  # nowhere: now the machine must run
    assert ticks(forward(timeline, 0, trace.end_tick)) == alone == writes[::2]
    assert ticks(backward(timeline, writes[0] - 1, writes[-2])) == writes[:-1:2]


def test_exceptions_are_caught_before_they_happen(timeline: Timeline, trace: Trace) -> None:
    timeline.stops.add(Catchpoint("exception"))
    there = forward(timeline, 0, 5_000)
    names = {a.detail.partition(": ")[2] for a in there}
    assert names == {
        "exception 0 (divide error)",
        "exception 6 (invalid opcode)",
        "exception 14 (page fault)",
    }
    for arrival in there[:10]:
        timeline.seek(arrival.tick)
        rip = timeline.registers()["rip"]
        timeline.step()
        code = fetch(timeline, rip)
        assert code is None or timeline.registers()["rip"] not in (code.following, code.target)
    timeline.seek(there[-1].tick + 1)
    assert timeline.reverse_proceed().tick == there[-1].tick


# ---- the ends, interruption


def test_the_ends(timeline: Timeline, trace: Trace) -> None:
    assert timeline.reverse_proceed() == Arrival("start", 0, detail="the start of the recording")
    timeline.stops.add(Breakpoint(timeline.registers()["rip"]))
    assert timeline.reverse_proceed().reason == "start"
    assert timeline.proceed() == Arrival("end", trace.end_tick, detail="the end of the recording")
    assert timeline.proceed().reason == "end" and timeline.tick == trace.end_tick


@pytest.mark.parametrize("direction", ["proceed", "reverse_proceed", "last_write"])
def test_whoever_interrupts_finds_everything_as_it_was(timeline: Timeline, direction: str) -> None:
    timeline.seek(LAST)
    before = timeline.digest()
    point = Breakpoint(timeline.registers()["rip"], condition=lambda here: False)
    timeline.stops.add(point)
    told = []

    def progress(tick: int) -> None:
        told.append(tick)
        if len(told) == 3:
            raise KeyboardInterrupt

    timeline.progress = progress
    with pytest.raises(KeyboardInterrupt):
        timeline.last_write(0x1000, physical=True) if direction == "last_write" else getattr(
            timeline, direction
        )()
    assert timeline.progress is progress
    timeline.progress = None
    assert (timeline.tick, timeline.digest(), point.hits) == (LAST, before, 0)
    timeline.stops.clear()
    timeline.seek(LAST + 1000)  # nothing is left set
    assert timeline.tick == LAST + 1000


def test_ctrl_c(timeline: Timeline) -> None:
    import os
    import signal

    handler = signal.getsignal(signal.SIGINT)
    timeline.stops.add(Breakpoint(1))
    told = []

    def progress(tick: int) -> None:
        told.append(tick)
        if len(told) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        assert len(told) < 30

    timeline.progress = progress
    timeline.seek(1000)
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        timeline.proceed()
    assert timeline.tick == 1000
    assert signal.getsignal(signal.SIGINT) is handler
