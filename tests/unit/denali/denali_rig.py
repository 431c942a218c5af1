"""A Denali machine without a CPU: the board, and a tick that the test turns by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tt.events import Event, Kind
from tt.vmm.clock import Clock
from tt.vmm.denali.board import DenaliBoard
from tt.vmm.denali.disk import Drive
from tt.vmm.denali.registers import REGISTER_PAGE, Call, Register
from tt.vmm.memory import PlainMemory
from tt.vmm.nondeterminism import Door, Source

ROOT = Path(__file__).parents[3]
KIT = ROOT / "guests" / "denali"
MANUAL = ROOT / "docs" / "denali-machine.md"
RAM = 1 << 20
QUANTUM = 1000
PERIOD_NS = 4
EPOCH = 1_000_000_000


class RamDisk:
    """A disk of zeros."""

    def __init__(self, blocks: int, odd_sectors: int = 0) -> None:
        self.sectors = blocks * 8 + odd_sectors
        self.data = bytearray(self.sectors * 512)
        self.writes: list[int] = []

    def read(self, lba: int, count: int) -> bytes:
        assert 0 <= lba <= self.sectors - count
        return bytes(self.data[lba * 512 : (lba + count) * 512])

    def write(self, lba: int, data: bytes) -> None:
        assert 0 <= lba <= self.sectors - len(data) // 512
        self.writes.append(lba)
        self.data[lba * 512 : lba * 512 + len(data)] = data

    def flush(self) -> None:
        pass


class Rig:
    """A fake engine and run loop around a real board."""

    def __init__(self, *drives: Drive, source: Source | None = None, **options: Any) -> None:
        self.tick = 0
        self.drives = drives
        self.rax: int | None = None
        self.events: list[Event] = []
        self.memory = PlainMemory(RAM)
        self.clock = Clock(lambda: self.tick, PERIOD_NS)
        self.door = Door(lambda: self.tick, source)
        self.door.subscribe(self.events.append)
        self.board = DenaliBoard(
            self.clock,
            self.memory,
            self.door,
            drives,
            set_rax=self._set_rax,
            **{"epoch": EPOCH, "quantum_ticks": QUANTUM, **options},
        )

    def _set_rax(self, value: int) -> None:
        self.rax = value

    def __getitem__(self, register: Register) -> int:
        return int.from_bytes(self.memory.read(REGISTER_PAGE + register, 8), "little")

    def __setitem__(self, register: Register, value: int) -> None:
        self.memory.write(REGISTER_PAGE + register, value.to_bytes(8, "little"))

    @property
    def now_ns(self) -> int:
        return self.clock.now()

    def take_events(self, on: bool = True) -> None:
        """Be a guest with (or without) an event handler."""
        self[Register.EVENT_HANDLER] = 0x5000
        self[Register.ENABLED] = int(on)

    def call(self, number: int, rdi: int = 0, rsi: int = 0, rdx: int = 0) -> int | None:
        return self.board.virtual_instruction(number, rdi, rsi, rdx)

    def compute(self) -> int:
        """Run to the end of the quantum; return what is delivered there."""
        self.tick = max(self.board.next_hand_over_tick, -(-self.tick // QUANTUM) * QUANTUM)
        return self._deliver(self.board.hand_over())

    def idle(self, timeout_ns: int) -> tuple[int | None, int]:
        """Idle as the run loop does; return RAX and the mask delivered."""
        self.rax = None
        assert self.call(Call.IDLE_WITH_TIMEOUT, timeout_ns) is None
        return self.sleep()

    def sleep(self) -> tuple[int | None, int]:
        mask = 0
        while self.board.idling:
            wake_ns = self.board.next_wake_ns()
            assert wake_ns is not None, "nothing can end this idle"
            self.clock.idle_ns += max(0, wake_ns - self.now_ns)
            mask = self._deliver(self.board.hand_over())
        return self.rax, mask

    def _deliver(self, mask: int) -> int:
        if mask:  # as the engine's upcall does
            self[Register.EVENT_MASK] = mask
            self[Register.ENABLED] = 0
        return mask

    def kinds(self) -> list[tuple[Kind, int]]:
        return [(e.kind, e.value) for e in self.events]
