"""The Denali machine: an x86-64 CPU with a software TLB on the Denali board."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tt.errors import TTError
from tt.events import Event, Kind
from tt.vmm.config import NetConfig
from tt.vmm.denali.board import QUANTUM_TICKS, DenaliBoard
from tt.vmm.denali.disk import Drive
from tt.vmm.denali.image import GuestImage
from tt.vmm.disk import OverlayDisk
from tt.vmm.engine import DOUBLE_FAULT, FOREVER, HALT, Engine
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Source

VENDOR = b"Denali by tt"
"""What `cpuid` leaf 0 says, in EBX, EDX, ECX."""

_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))

# FPU, TSC, CMPXCHG8B, CMOV; CMPXCHG16B, POPCNT.  No SSE: upcalls would have to save its registers.
_FEATURES_EDX = 1 << 0 | 1 << 4 | 1 << 8 | 1 << 15
_FEATURES_ECX = 1 << 13 | 1 << 23
_LONG_MODE_EDX = 1 << 29


class DenaliMachine(Machine):
    """A Denali machine at power-on, its guest loaded.

    `epoch` is the wall clock at power-on, in seconds since 1970.  With
    `host_clock` (ns since 1970) the guest's clocks follow the host's, and each
    reading is an answer through the door.  The disks whose numbers are in
    `read_only` cannot be written.  `nets` are its network cards.
    """

    kind = "denali"
    retires_first = True

    def __init__(
        self,
        image: GuestImage,
        mem_bytes: int,
        disks: Sequence[OverlayDisk],
        source: Source | None = None,
        *,
        epoch: int,
        period_ns: int = 4,
        quantum_ticks: int = QUANTUM_TICKS,
        host_clock: Callable[[], int] | None = None,
        read_only: Collection[int] = (),
        nets: Sequence[NetConfig] = (),
    ) -> None:
        super().__init__(mem_bytes, disks, source, period_ns=period_ns, denali=True)
        engine: Engine = self.engine
        self._board = DenaliBoard(
            self.clock,
            engine,
            self.door,
            [Drive(disk, number in read_only) for number, disk in enumerate(disks)],
            set_rax=lambda value: engine.set_register("rax", value),
            epoch=epoch,
            quantum_ticks=quantum_ticks,
            host_clock=host_clock,
            nets=nets,
        )
        engine.virtual_instruction = self._virtual_instruction
        engine.set_cpuid(_cpuid_table())
        if host_clock is not None:
            self._follow_host(host_clock)
        start = self._board.start(image)
        engine.start("long64", start.rip, {**dict.fromkeys(_GENERAL, 0), "rsp": start.rsp})

    @property
    def board(self) -> DenaliBoard:
        """Return the devices."""
        return self._board

    def _virtual_instruction(self, number: int, rdi: int, rsi: int, rdx: int) -> int | None:
        result = self._board.virtual_instruction(number, rdi, rsi, rdx)
        if self._board.terminated is not None:
            self.end(f"terminated with status {self._board.terminated}")
        elif self._board.idling:
            self.engine.limit = self.engine.tick  # stop before the next instruction
        return result

    def _attend(self) -> None:
        board = self._board
        if board.idling or self.engine.tick >= board.next_hand_over_tick:
            mask = board.hand_over()
            if mask:
                self.engine.upcall(mask)
            self.halted = board.idling

    def _advance(self, stop: int) -> int:
        engine = self.engine
        engine.limit = FOREVER
        reason = engine.run(min(stop, self._board.next_hand_over_tick))
        self.halted = self._board.idling
        if reason == DOUBLE_FAULT:
            self.end(engine.last_error)
        elif reason == HALT:
            self.end("the guest executed hlt, which a Denali guest must not")
        return reason

    def _wake_ns(self) -> int | None:
        return self._board.next_wake_ns()

    @property
    def wants_input(self) -> bool:
        """Whether the guest has read all that was typed."""
        return self._board.wants_input

    def frame_room(self, card: int) -> int | None:
        """Return how many frames network card `card` has room for, None where nobody listens."""
        return self._board.cards.room(card)

    def frame_counters(self, card: int) -> dict[str, int]:
        """Return how many frames network card `card` received, sent and dropped."""
        return self._board.cards.counters(card)

    def input(self, event: Event) -> None:
        """Take an input from the door: bytes typed into the console."""
        if event.kind is not Kind.INPUT:
            raise TTError(
                f"an input of kind {event.kind.name} reached a denali machine: the trace is damaged"
            )
        self._board.typed(event.data)


def _cpuid_table() -> list[tuple[int, int | None, int, int, int, int]]:
    """Return leaf, subleaf, EAX, EBX, ECX, EDX."""
    ebx, edx, ecx = (int.from_bytes(VENDOR[i : i + 4], "little") for i in (0, 4, 8))
    return [
        (0, None, 1, ebx, ecx, edx),
        (1, None, 0, 0, _FEATURES_ECX, _FEATURES_EDX),
        (0x80000000, None, 0x80000001, 0, 0, 0),
        (0x80000001, None, 0, 0, 0, _LONG_MODE_EDX),
    ]
