"""Stops and steps in a Linux guest, with page faults, system calls and interrupts in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from travel_rig import backward, follow, forward, ticks

from tt.errors import UsageError
from tt.events import Kind
from tt.log import Trace
from tt.travel import Timeline
from tt.travel.code import here
from tt.travel.stops import Breakpoint, Catchpoint, Watchpoint

pytestmark = pytest.mark.slow
STRETCH = 2_500


@pytest.fixture(scope="module")
def trace(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    from tt.recording import record
    from tt.vmm.configure import configure

    path = tmp_path_factory.mktemp("traces") / "debian.tt"
    entropy = random.Random(1).randbytes  # the same recording each time
    record(configure(debian_image, epoch=1_700_000_000), path, entropy=entropy)
    with Trace.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def timeline(trace: Trace) -> Timeline:
    return Timeline(trace)


@pytest.fixture(scope="module")
def ready(trace: Trace) -> int:
    """The tick at which everything runs, shortly before the shell waits for somebody to type."""
    return next(e.tick for e in trace.events(kinds={Kind.CONSOLE}) if b"BusyBox" in e.data)


@pytest.fixture(autouse=True)
def no_stops(timeline: Timeline) -> Iterator[None]:
    yield
    timeline.stops.clear()


EVENTS = {
    "page fault": Catchpoint("exception", number_wanted=14),
    "system call": Catchpoint("syscall"),
    "interrupt": Catchpoint("interrupt"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_stretch_around(timeline: Timeline, ready: int, event: str) -> None:
    chance = random.Random(event)
    timeline.seek(ready)
    timeline.stops.add(EVENTS[event])
    assert timeline.reverse_proceed().reason == "catch"
    last = timeline.tick
    timeline.reverse_step()
    assert timeline.proceed().tick == last
    timeline.stops.clear()
    first = timeline.tick - STRETCH + min(STRETCH // 2, ready - 1 - timeline.tick)
    oracle = follow(timeline, first, first + STRETCH, 250)
    for addr in chance.sample(sorted(set(oracle.rips.values())), 8):
        timeline.stops.clear()
        timeline.stops.add(Breakpoint(addr))
        there = forward(timeline, oracle.first, oracle.last)
        assert ticks(there) == ticks(backward(timeline, oracle.first, oracle.last))
        assert [a.tick for a in there if "entered from" not in a.detail] == oracle.at(addr)
    cells = sorted({a for accesses in oracle.accesses.values() for a, _n, _k in accesses})
    for cell in chance.sample(cells, 6):
        timeline.stops.clear()
        timeline.seek(oracle.last)
        physical = timeline.machine.engine.translate(cell)
        timeline.stops.add(Watchpoint(cell, 1, True, True))
        there = forward(timeline, oracle.first, oracle.last)
        back = backward(timeline, oracle.first, oracle.last)
        assert [(a.tick, a.old, a.new, a.by) for a in there] == [(a.tick, a.old, a.new, a.by) for a in back]
        found = [a.tick for a in there if a.by == "instruction"]
        wrong = {t: oracle.texts[t] for t in set(found) ^ set(oracle.touching(cell, 1, "rw"))}
        assert not wrong, hex(cell)
        if physical is not None:
            timeline.stops.clear()
            timeline.stops.add(Watchpoint(physical, 1, True, True, True))
            assert set(ticks(forward(timeline, oracle.first, oracle.last))) >= set(ticks(there))
    for tick, digest in oracle.digests.items():
        timeline.seek(tick)
        assert timeline.digest() == digest


def test_what_the_disk_put_into_memory(timeline: Timeline, debian_image: Path, ready: int) -> None:
    """The page cache holds the file system's superblock, and no instruction has put it there."""
    timeline.seek(ready)
    with debian_image.open("rb") as f:
        uuid = f.read(4096)[1024 + 104 : 1024 + 120]
    ram = timeline.machine.engine.read(0, timeline.machine.engine.size)
    places, at = [], ram.find(uuid)
    while at >= 0:
        places.append(at)
        at = ram.find(uuid, at + 1)
    assert places
    writes = {}
    for place in places:
        timeline.seek(ready)
        writes[place] = timeline.last_write(place, 16, physical=True)
    by_device = {
        place: write for place, write in writes.items() if write is not None and write.by == "device"
    }
    assert by_device
    for place, write in by_device.items():
        assert write.new == uuid
        timeline.seek(write.tick)
        assert timeline.machine.engine.read(place, 16) == uuid
        timeline.seek(write.tick - 1)
        assert timeline.machine.engine.read(place, 16) == write.old != uuid
        code = here(timeline)
        assert code is not None and code.text.startswith("out"), (
            "the store happens while the guest tells the disk"
        )


def test_interrupts_and_console(timeline: Timeline, trace: Trace, ready: int) -> None:
    lines = [e.tick for e in trace.events(kinds={Kind.IRQ}) if e.value == 0x30 and e.tick < ready]
    timeline.seek(ready - 1)
    timeline.stops.add(Catchpoint("interrupt", line=0))
    assert [timeline.reverse_proceed().tick for _ in range(5)] == lines[-1:-6:-1]
    timeline.stops.clear()
    timeline.stops.add(Catchpoint("console", pattern=r"Linux version \S+"))
    timeline.seek(0)
    assert "Linux version" in timeline.proceed().detail


def test_out_of_a_function_and_back(timeline: Timeline, ready: int) -> None:
    """finish, then reverse_next, is at the call; reverse_finish too; next comes back."""
    chance = random.Random(5)
    checked = 0
    while checked < 8:
        start = chance.randrange(ready - 200_000_000, ready - 50_000_000)
        timeline.seek(start)
        try:
            back = timeline.finish().tick
            timeline.seek(start)
            call = timeline.reverse_finish().tick
        except UsageError:
            continue
        code = here(timeline)
        if back - call > 2_000_000 or code is None or not code.is_call:
            continue
        assert call < start < back
        assert timeline.next().tick == back
        assert timeline.reverse_next().tick == call
        checked += 1
