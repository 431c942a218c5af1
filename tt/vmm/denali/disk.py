"""The asynchronous disks of a Denali machine: one 4 KB block a request, one instruction each.

A request takes effect at its completion, in the order of the requests to that
disk: a write's bytes are taken from guest RAM when it is started, a read's are
put there when it completes.  When its time has come a request becomes a message to
the party that answers for the disk (`tt.vmm.router`); where the answer comes later,
the request completes at the first hand-over after it, and those behind it on that disk wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from tt.vmm.clock import Clock
from tt.vmm.denali.registers import PAGE, REFUSED, is_buffer
from tt.vmm.disk import BLOCK, SECTOR, Disk
from tt.vmm.memory import Memory
from tt.vmm.messages import Answer, DiskRead, DiskWrite, Message
from tt.vmm.router import Port
from tt.vmm.state import U32, U64, Ns, misfit, optional, pack, unpack
from tt.vmm.wiring import size_of

SECTORS_PER_BLOCK = BLOCK // SECTOR
OUTSTANDING_LIMIT = 64
"""Most requests started and not yet reported by `disk_done`."""

LATENCY_NS = 200_000
"""Guest ns from start to completion of a request to a disk that has nothing else to do."""

QUEUED_NS = 20_000
"""Guest ns more for each request in flight on that disk at the start."""

FAILED = 1 << 63
"""`disk_done`: the request failed."""

READ_ONLY = 1 << 63
"""`disk_info`: the disk cannot be written."""


class Drive(NamedTuple):
    """A disk as it is attached: several machines may share one that is `read_only`."""

    disk: Disk
    read_only: bool = False


class Slot(NamedTuple):
    """A disk as the queue sees it: where its messages go."""

    port: Port
    read_only: bool = False


@dataclass
class Request:
    """One request in flight; `data` is the block to write, and None for a read.

    `asked` says that its message was sent, `answered` that the answer is there, to be
    carried out at the next hand-over: `answer`, or None where it failed.
    """

    number: U64 = 0
    unit: U32 = 0
    block: U64 = 0
    addr: U64 = 0
    data: bytes | None = None
    deadline_ns: Ns = 0
    asked: bool = optional(False)
    answered: bool = optional(False)
    answer: bytes | None = optional(None)


@dataclass
class State:
    """Requests in flight in the order of their start, what `disk_done` will answer, the last number given."""

    in_flight: list[Request] = field(default_factory=list)
    done: list[U64] = field(default_factory=list)
    last_number: Annotated[int, range(1 << 63)] = 0


class DiskQueue:
    """All disks of one machine, and the requests to them."""

    def __init__(self, slots: Sequence[Slot], memory: Memory, clock: Clock) -> None:
        self._slots = list(slots)
        self._memory = memory
        self._clock = clock
        self._in_flight: list[Request] = []  # in the order they were started
        self._done: list[int] = []  # what disk_done will answer, oldest first
        self._last_number = 0
        self._completing = False
        for slot in self._slots:
            slot.port.completed = self._answered

    def info(self, unit: int) -> int:
        """Return the size of a disk in whole blocks, with READ_ONLY, or REFUSED if there is none."""
        if unit >= len(self._slots):
            return REFUSED
        slot = self._slots[unit]
        return self._blocks(slot) | (READ_ONLY if slot.read_only else 0)

    def start(self, write: bool, unit: int, block: int, addr: int) -> int:
        """Start a request for one block; return its number (1, 2, 3 ...), or REFUSED.

        `addr` is the guest-physical page.  A write to a read-only disk is
        taken, and fails at its completion.
        """
        if unit >= len(self._slots) or len(self._in_flight) + len(self._done) >= OUTSTANDING_LIMIT:
            return REFUSED
        if block >= self._blocks(self._slots[unit]):
            return REFUSED
        if addr % PAGE or not is_buffer(addr, PAGE, self._memory.size):
            return REFUSED
        queue = [r for r in self._in_flight if r.unit == unit]
        deadline_ns = self._clock.now() + LATENCY_NS + QUEUED_NS * len(queue)
        if queue:  # a disk works in order: no request overtakes the one before it
            deadline_ns = max(deadline_ns, queue[-1].deadline_ns)
        data = self._memory.read(addr, PAGE) if write else None
        self._last_number += 1
        self._in_flight.append(Request(self._last_number, unit, block, addr, data, deadline_ns))
        return self._last_number

    def complete(self, now_ns: int) -> bool:
        """Carry out the requests whose time has come; return whether there were any."""
        before = len(self._done)
        for request in [r for r in self._in_flight if r.answered]:
            self._carry_out(request)
        due = [r for r in self._in_flight if r.deadline_ns <= now_ns]
        self._completing = True
        try:
            for request in sorted(due, key=lambda r: (r.deadline_ns, r.number)):
                if not any(r.asked for r in self._in_flight if r.unit == request.unit):
                    self._ask(request)
        finally:
            self._completing = False
        return len(self._done) > before

    def done(self) -> int:
        """Return, and forget, the oldest completed request; 0 if there is none."""
        return self._done.pop(0) if self._done else 0

    def next_deadline_ns(self) -> int | None:
        """Return the guest time of the next completion, None if none comes by itself."""
        if any(r.answered for r in self._in_flight):
            return self._clock.now()
        waiting = {r.unit for r in self._in_flight if r.asked}
        return min((r.deadline_ns for r in self._in_flight if r.unit not in waiting), default=None)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; what is on the disks is not part of it."""
        return pack(State(self._in_flight, self._done, self._last_number))

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        saved = unpack(State, state, "disks")
        for at, request in enumerate(saved.in_flight):
            if what := self._oddity(request, saved):
                raise misfit(f"disks.in_flight[{at}]", what)
        numbers = [r.number for r in saved.in_flight] + [number & ~FAILED for number in saved.done]
        if len(set(numbers)) != len(numbers) or len(numbers) > OUTSTANDING_LIMIT:
            raise misfit("disks", "too many requests, or one of them twice")
        if any(not 0 < number <= saved.last_number for number in numbers):
            raise misfit("disks.last_number", "a request has a number that was not given out yet")
        if [r.number for r in saved.in_flight] != sorted(r.number for r in saved.in_flight):
            raise misfit("disks.in_flight", "the requests are out of order")
        self._in_flight, self._done, self._last_number = saved.in_flight, saved.done, saved.last_number

    def _oddity(self, request: Request, saved: State) -> str:
        """Return why a request cannot be one of this machine, if so."""
        if request.unit >= len(self._slots):
            return f"there is no disk {request.unit}"
        if request.addr % PAGE or not is_buffer(request.addr, PAGE, self._memory.size):
            return f"its page cannot be at {request.addr:#x}"
        if request.data is not None and len(request.data) != PAGE:
            return "it does not write one block"
        if request.answered and not request.asked:
            return "it is answered and was never sent"
        size = PAGE if request.data is None else 0
        if request.answer is not None and (not request.answered or len(request.answer) != size):
            return "its answer has the wrong length"
        if request.asked and sum(r.asked for r in saved.in_flight if r.unit == request.unit) > 1:
            return "a disk has one request at a parent at most"
        return ""

    def _ask(self, request: Request) -> None:
        slot = self._slots[request.unit]
        lba = request.block * SECTORS_PER_BLOCK
        request.asked = True
        if request.data is None:
            slot.port.send(DiskRead(lba, SECTORS_PER_BLOCK), request.number)
        elif slot.read_only:
            request.answered = True
            self._carry_out(request)
        else:
            slot.port.send(DiskWrite(lba, request.data), request.number)

    def _answered(self, token: int, message: Message, answer: Answer) -> None:
        for request in self._in_flight:
            if request.number == token:
                request.answered = True
                request.answer = answer
                if self._completing:
                    self._carry_out(request)
                return

    def _carry_out(self, request: Request) -> None:
        """Let the guest have the answer of a request."""
        self._in_flight.remove(request)
        failed = request.answer is None
        if request.data is None and request.answer is not None:
            self._memory.write(request.addr, request.answer)
        self._done.append(request.number | (FAILED if failed else 0))

    @staticmethod
    def _blocks(slot: Slot) -> int:
        return size_of(slot.port) // SECTORS_PER_BLOCK
