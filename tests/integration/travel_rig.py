"""What must be found in a stretch of a recording, worked out by single steps; and searches through it."""

from __future__ import annotations

from dataclasses import dataclass, field

from capstone import CS_AC_READ, CS_AC_WRITE, x86_const

from tt.travel import Timeline
from tt.travel.addresses import CpuBefore, memory_address
from tt.travel.code import here
from tt.travel.stops import Arrival

_NO_ACCESS = ("lea ", "nop", "prefetch", "invlpg", "clflush")
_PUSHES = {x86_const.X86_INS_PUSH, x86_const.X86_INS_CALL, x86_const.X86_INS_PUSHFQ}
_POPS = {x86_const.X86_INS_POP, x86_const.X86_INS_RET, x86_const.X86_INS_POPFQ}


@dataclass
class Oracle:
    """What happens from tick `first` to `last`: `rips[t]` at tick t, `accesses[t]` by what retires as t."""

    first: int
    last: int
    rips: dict[int, int] = field(default_factory=dict)
    accesses: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)

    def at(self, addr: int) -> list[int]:
        """Return the ticks at which the CPU stands at `addr`."""
        return [tick for tick, rip in self.rips.items() if rip == addr and self.first < tick <= self.last]

    def touching(self, addr: int, size: int, kinds: str) -> list[int]:
        """Return the ticks of the instructions that read ("r") or write ("w") there."""
        return [
            tick
            for tick, accesses in self.accesses.items()
            if any(a < addr + size and addr < a + n and kind in kinds for a, n, kind in accesses)
        ]


def follow(timeline: Timeline, first: int, last: int, digest_every: int = 1000) -> Oracle:
    """Execute a stretch one instruction at a time."""
    found = Oracle(first, last)
    timeline.seek(first)
    for tick in range(first, last + 1):
        registers = timeline.registers()
        found.rips[tick] = registers["rip"]
        if tick % digest_every == 0:
            found.digests[tick] = timeline.digest()
        code = here(timeline)
        accesses = found.accesses.setdefault(tick + 1, [])
        found.texts[tick + 1] = code.text if code is not None else "?"
        done = code is not None and code.is_repeated and registers["rcx"] == 0  # a step that only moves on
        if code is not None and not done and not code.text.startswith(_NO_ACCESS):
            for operand in code.raw.operands:
                if operand.type == x86_const.X86_OP_MEM:
                    addr = memory_address(code, operand, CpuBefore(timeline.machine.engine))
                    kinds = {CS_AC_READ: "r", CS_AC_WRITE: "w"}
                    accesses += [(addr, operand.size, kinds[k]) for k in kinds if operand.access & k]
            if code.raw.id in _PUSHES:
                accesses.append((registers["rsp"] - 8, 8, "w"))
            if code.raw.id in _POPS:
                accesses.append((registers["rsp"], 8, "r"))
            if code.raw.id == x86_const.X86_INS_LEAVE:
                accesses.append((registers["rbp"], 8, "r"))
            if code.raw.id == x86_const.X86_INS_IRETQ:
                accesses.append((registers["rsp"], 40, "r"))
        timeline.step()
    return found


def forward(timeline: Timeline, first: int, last: int) -> list[Arrival]:
    """Return the stops after `first`, up to `last`."""
    timeline.seek(first)
    found = []
    while (arrival := timeline.proceed()).reason != "end" and arrival.tick <= last:
        assert arrival.tick == timeline.tick
        found.append(arrival)
    return found


def backward(timeline: Timeline, first: int, last: int) -> list[Arrival]:
    """Return the same stops, found from behind, in rising order."""
    timeline.seek(last + 1)
    found = []
    while (arrival := timeline.reverse_proceed()).reason != "start" and arrival.tick > first:
        assert arrival.tick == timeline.tick
        found.append(arrival)
    return found[::-1]


def ticks(arrivals: list[Arrival]) -> list[int]:
    return [arrival.tick for arrival in arrivals]
