"""Symbols and backtraces of the Denali demo guest, by the ELF file in its trace."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

from tt.log import Trace
from tt.replay import Replay
from tt.symbols import for_timeline, unwind, walk

STACKS = 500
UPCALLS = {"event_upcall", "exception_upcall"}


class Place:
    """A replay that stands somewhere, as far as symbols need one."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.replay = Replay(trace)
        self.registers = self.replay.machine.engine.registers
        self.read = self.replay.machine.engine.read_virtual

    @property
    def tick(self) -> int:
        return self.replay.tick


def test_one_table_for_a_trace(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        place = Place(trace)
        table = for_timeline(place)
        assert for_timeline(place) is table
        assert table.describe(place.registers()["rip"]) == "_start"
        assert "main" in table.names("ma")


def test_backtraces_lead_to_the_start(demo_trace: Path) -> None:
    """The demo keeps no frame pointers; its debug information tells where callers are."""
    chance, upcalls = random.Random(7), 0
    with Trace.open(demo_trace) as trace:
        place = Place(trace)
        for tick in sorted(chance.randrange(trace.end_tick) for _ in range(STACKS)):
            place.replay.run_to(tick)
            stack = walk(place.registers(), place.read, for_timeline(place))
            names = [frame.name.split("+")[0] for frame in stack.frames]
            assert stack.complete, (tick, stack)
            assert names[-1] == "_start", (tick, names)
            for inner, frame in pairwise(stack.frames):
                assert frame.how == ("upcall frame" if inner.name.split("+")[0] in UPCALLS else "dwarf")
            upcalls += not UPCALLS.isdisjoint(names)
            assert stack.frames == unwind(place.registers(), place.read, for_timeline(place))
        assert upcalls
