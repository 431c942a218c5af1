"""Stop anywhere, save, run on, go back, forget all translated code, run again: always the same state."""

from __future__ import annotations

import bisect
import random
from pathlib import Path

import pytest
from adversary_rig import build, debian_config, demo_config, watched

from tt.events import Event
from tt.vmm import running
from tt.vmm.config import MachineConfig


def straight(config: MachineConfig, stops: list[int]) -> tuple[list[bytes], list[Event]]:
    """Run once through, without ever going back; return the digests at the stops, and all events."""
    machine = build(config)
    events = watched(machine)
    digests = []
    for stop in stops:
        running.run(machine, stop)
        assert machine.tick == stop
        digests.append(machine.digest())
    return digests, events


def cycle(config: MachineConfig, stops: list[int], seed: int, overshoot: int, twins: bool) -> None:
    """Go through `stops` with a detour at each, and compare every state with the straight run's.

    With `twins` the state saved in one machine goes on in another, back and forth.
    """
    expected, story = straight(config, stops)
    ticks = [event.tick for event in story]
    chance = random.Random(seed)
    machine, other = build(config), build(config)
    events, other_events = watched(machine), watched(other)
    for number, (stop, digest) in enumerate(zip(stops, expected, strict=True)):
        running.run(machine, stop)
        assert (machine.tick, machine.digest()) == (stop, digest), (
            f"cycle {number} of seed {seed}: at the stop"
        )
        saved = machine.snapshot()
        running.run(machine, min(stop + chance.randrange(1, overshoot), stops[-1]))
        if twins and chance.random() < 0.3:
            machine, other = other, machine
            events, other_events = other_events, events
        machine.restore(saved)
        machine.engine.forget_code()
        assert (machine.tick, machine.digest()) == (stop, digest), f"cycle {number} of seed {seed}: put back"
        # What happens after a detour is what happened without one.
        del events[:]
        until = min(stop + chance.randrange(1, overshoot), stops[-1])
        running.run(machine, until)
        reached = machine.tick
        low, high = bisect.bisect_left(ticks, stop), bisect.bisect_left(ticks, reached)
        happened = [event for event in events if event.tick < reached]
        # At the tick of the stop itself, some of the events may lie before it.
        assert happened == story[high - len(happened) : high], f"cycle {number} of seed {seed}: events"
        assert high - len(happened) <= bisect.bisect_right(ticks, stop) and high - len(happened) >= low
        if number + 1 < len(stops) and machine.tick > stops[number + 1]:
            machine.restore(saved)
            machine.engine.forget_code()


def stops_of(seed: int, count: int, end: int, least: int = 0) -> list[int]:
    """Return `count` ticks below `end`, many of them close to one another."""
    chance = random.Random(seed)
    ticks = {chance.randrange(least, end) for _ in range(count // 2)}
    while len(ticks) < count:  # the other half right beside those, where a block is cut anew
        ticks.add(min(end - 1, chance.choice(tuple(sorted(ticks)[-200:])) + chance.randrange(1, 40)))
    return sorted(ticks)


@pytest.mark.parametrize("seed", range(2))
def test_demo(demo: Path, seed: int) -> None:
    cycle(demo_config(demo), stops_of(seed, 60, 22_000_000), seed, 1_000_000, twins=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_demo_2000(demo: Path, seed: int) -> None:
    cycle(demo_config(demo), stops_of(100 + seed, 500, 22_000_000), seed, 300_000, twins=True)


@pytest.mark.slow
def test_debian_200(debian: Path) -> None:
    cycle(
        debian_config(debian, mem_bytes=160 << 20), stops_of(7, 200, 1_200_000_000), 7, 3_000_000, twins=False
    )


def test_the_end_is_the_same_without_stops(demo: Path) -> None:
    machine, stopping = build(demo_config(demo)), build(demo_config(demo))
    whole, pieces = watched(machine), watched(stopping)
    running.run(machine)
    chance = random.Random(5)
    while (
        running.run(stopping, stopping.tick + chance.choice((1, 7, 1000, 50_000, 400_000))).reason == "tick"
    ):
        if chance.random() < 0.05:
            stopping.engine.forget_code()
    assert whole == pieces
    assert (machine.ended, machine.tick, machine.digest()) == (
        stopping.ended,
        stopping.tick,
        stopping.digest(),
    )
