"""A bench for devices: settable guest time, recorded wires, and the save/restore check."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hypothesis import strategies as st

from tt.events import Event
from tt.vmm.clock import Clock
from tt.vmm.line import Line
from tt.vmm.memory import PlainMemory
from tt.vmm.nondeterminism import Door


class Rig:
    """Guest time in ns (one tick is one ns), a door whose events are kept, and RAM."""

    def __init__(self, memory_size: int = 1 << 16) -> None:
        self.ns = 0
        self.clock = Clock(lambda: self.ns, period_ns=1)
        self.door = Door(lambda: self.ns)
        self.events: list[Event] = []
        self.door.subscribe(self.events.append)
        self.memory = PlainMemory(memory_size)
        self.edges: list[tuple[str, int, bool]] = []
        self.reads: list[int] = []

    def wire(self, name: str = "irq") -> Line:
        """Return a line whose changes are kept in `edges` with their time."""
        return Line(lambda level: self.edges.append((name, self.ns, level)))

    def levels(self, name: str = "irq") -> list[bool]:
        """Return the changes of one wire so far."""
        return [level for wire, _, level in self.edges if wire == name]

    def run(self, ns: int) -> None:
        """Let `ns` of guest time pass, firing each timer at its deadline."""
        end = self.ns + ns
        while (deadline := self.clock.next_deadline()) is not None and deadline <= end:
            self.ns = max(self.ns, deadline)
            for timer in self.clock.due():
                timer.fire()
        self.ns = end


@dataclass
class Op:
    """One thing a guest does: read, write, or let time pass (`value` ns)."""

    what: str
    offset: int = 0
    size: int = 1
    value: int = 0


class Target(Protocol):
    """What the check drives: registers, and a state to save."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...
    def save(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


@dataclass
class Session:
    """A device on its own rig."""

    rig: Rig
    target: Target
    extra: dict[str, Callable[[int], None]] = field(default_factory=dict)

    def do(self, op: Op) -> None:
        """Carry out one operation."""
        if op.what == "read":
            self.rig.reads.append(self.target.read(op.offset, op.size))
        elif op.what == "write":
            self.target.write(op.offset, op.size, op.value & (1 << 8 * op.size) - 1)
        elif op.what == "run":
            self.rig.run(op.value)
        else:
            self.extra[op.what](op.value)


def check_restore(build: Callable[[], Session], ops: Sequence[Op], cut: int) -> None:
    """Run `ops`; save at `cut`, restore into a fresh device, and compare what follows."""
    first = build()
    for op in ops[:cut]:
        first.do(op)
    text = json.dumps([first.rig.clock.save(), first.target.save()])
    clock_state, state = json.loads(text)
    second = build()
    second.rig.ns = first.rig.ns
    second.rig.memory.ram[:] = first.rig.memory.ram
    second.rig.clock.load(clock_state)
    second.target.load(state)
    second.rig.edges.clear()
    marks = len(first.rig.reads), len(first.rig.events), len(first.rig.edges)
    assert second.target.save() == state
    for op in ops[cut:]:
        first.do(op)
        second.do(op)
    assert second.rig.reads == first.rig.reads[marks[0] :]
    assert second.rig.events == first.rig.events[marks[1] :]
    assert second.rig.edges == first.rig.edges[marks[2] :]
    assert second.rig.memory.ram == first.rig.memory.ram
    assert second.target.save() == first.target.save()
    assert second.rig.clock.save() == first.rig.clock.save()


def traffic(
    offsets: Sequence[int],
    *,
    sizes: Sequence[int] = (1,),
    most_ns: int = 2_000_000,
    extra: Sequence[str] = (),
) -> st.SearchStrategy[list[Op]]:
    """Return random register traffic over `offsets`, with time passing in between."""
    values = st.integers(0, 0xFFFFFFFF) | st.integers(0, 255)
    choices: list[st.SearchStrategy[Op]] = [
        st.builds(Op, st.just("read"), st.sampled_from(offsets), st.sampled_from(sizes)),
        st.builds(Op, st.just("write"), st.sampled_from(offsets), st.sampled_from(sizes), values),
        st.builds(lambda ns: Op("run", value=ns), st.integers(0, 2000) | st.integers(0, most_ns)),
    ]
    if extra:
        choices.append(st.builds(lambda w, v: Op(w, value=v), st.sampled_from(extra), st.integers(0, 255)))
    return st.lists(st.one_of(choices), max_size=40)
