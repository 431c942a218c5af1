"""The asynchronous disks of a Denali machine: one 4 KB block a request, one instruction each.

A request takes effect at its completion, in the order of the requests to that
disk: a write's bytes are taken from guest RAM when it is started, a read's are
put there when it completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tt.vmm.clock import Clock
from tt.vmm.denali.registers import PAGE, REFUSED, is_buffer
from tt.vmm.disk import BLOCK, SECTOR, Disk
from tt.vmm.memory import Memory

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


@dataclass
class Request:
    """One request in flight; `data` is the block to write, as hex, and None for a read."""

    number: int
    unit: int
    block: int
    addr: int
    data: str | None
    deadline_ns: int


class DiskQueue:
    """All disks of one machine, and the requests to them."""

    def __init__(self, drives: Sequence[Drive], memory: Memory, clock: Clock) -> None:
        self._drives = list(drives)
        self._memory = memory
        self._clock = clock
        self._in_flight: list[Request] = []  # in the order they were started
        self._done: list[int] = []  # what disk_done will answer, oldest first
        self._last_number = 0

    def info(self, unit: int) -> int:
        """Return the size of a disk in whole blocks, with READ_ONLY, or REFUSED if there is none."""
        if unit >= len(self._drives):
            return REFUSED
        drive = self._drives[unit]
        return self._blocks(drive) | (READ_ONLY if drive.read_only else 0)

    def start(self, write: bool, unit: int, block: int, addr: int) -> int:
        """Start a request for one block; return its number (1, 2, 3 ...), or REFUSED.

        `addr` is the guest-physical page.  A write to a read-only disk is
        taken, and fails at its completion.
        """
        if unit >= len(self._drives) or len(self._in_flight) + len(self._done) >= OUTSTANDING_LIMIT:
            return REFUSED
        if block >= self._blocks(self._drives[unit]):
            return REFUSED
        if addr % PAGE or not is_buffer(addr, PAGE, self._memory.size):
            return REFUSED
        queue = [r for r in self._in_flight if r.unit == unit]
        deadline_ns = self._clock.now() + LATENCY_NS + QUEUED_NS * len(queue)
        if queue:  # a disk works in order: no request overtakes the one before it
            deadline_ns = max(deadline_ns, queue[-1].deadline_ns)
        data = self._memory.read(addr, PAGE).hex() if write else None
        self._last_number += 1
        self._in_flight.append(Request(self._last_number, unit, block, addr, data, deadline_ns))
        return self._last_number

    def complete(self, now_ns: int) -> bool:
        """Carry out the requests whose time has come; return whether there were any."""
        due = [r for r in self._in_flight if r.deadline_ns <= now_ns]
        if not due:
            return False
        self._in_flight = [r for r in self._in_flight if r.deadline_ns > now_ns]
        for request in sorted(due, key=lambda r: (r.deadline_ns, r.number)):
            self._done.append(request.number if self._carry_out(request) else request.number | FAILED)
        return True

    def done(self) -> int:
        """Return, and forget, the oldest completed request; 0 if there is none."""
        return self._done.pop(0) if self._done else 0

    def next_deadline_ns(self) -> int | None:
        """Return the guest time of the next completion, None if nothing is in flight."""
        return min((r.deadline_ns for r in self._in_flight), default=None)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; what is on the disks is not part of it."""
        return {
            "in_flight": [asdict(r) for r in self._in_flight],
            "done": list(self._done),
            "last_number": self._last_number,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self._in_flight = [Request(**r) for r in state["in_flight"]]
        self._done = list(state["done"])
        self._last_number = state["last_number"]

    def _carry_out(self, request: Request) -> bool:
        drive = self._drives[request.unit]
        lba = request.block * SECTORS_PER_BLOCK
        if request.data is None:
            self._memory.write(request.addr, drive.disk.read(lba, SECTORS_PER_BLOCK))
            return True
        if drive.read_only:
            return False
        drive.disk.write(lba, bytes.fromhex(request.data))
        return True

    @staticmethod
    def _blocks(drive: Drive) -> int:
        return drive.disk.sectors // SECTORS_PER_BLOCK
