"""The board of a Denali machine: virtual instructions, pending events, and the hand-over of control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from tt.errors import UsageError
from tt.events import Kind
from tt.vmm.clock import Clock
from tt.vmm.config import NetConfig
from tt.vmm.denali.console import Console
from tt.vmm.denali.disk import DiskQueue, Drive, Slot
from tt.vmm.denali.ethernet import Cards
from tt.vmm.denali.image import GuestImage
from tt.vmm.denali.registers import (
    MAGIC,
    PAGE,
    REGISTER_PAGE,
    Call,
    EventBit,
    Register,
    RegisterPage,
)
from tt.vmm.memory import Memory
from tt.vmm.messages import Answer, ConsoleInput, ConsoleWrite, Message, TimerExpired
from tt.vmm.nondeterminism import Door
from tt.vmm.router import Router
from tt.vmm.state import U64, Ns, misfit, unpack
from tt.vmm.wiring import wire_console, wire_disk, wire_timer

QUANTUM_TICKS = 250_000
"""Default length of a quantum: 1 ms of guest time at 4 ns a tick."""

NEVER_NS = 1 << 62
"""Guest times from here on (146 years) never come: a timer or an idle that long has no end."""


class PowerOn(NamedTuple):
    """CPU registers at power-on; all others are zero."""

    rip: int
    rsp: int


@dataclass
class State:
    """What a saved board has beside its devices; see `DenaliBoard`."""

    next_hand_over_tick: Ns = 0
    pending: Annotated[int, range(16)] = 0
    idling: bool = False
    idle_until_ns: Ns | None = None
    terminated: U64 | None = None


class DenaliBoard:
    """Everything of a Denali machine but its CPU.

    The engine calls `virtual_instruction` for the numbers it does not handle
    itself; the run loop calls `hand_over` at `next_hand_over_tick` and, while
    the guest idles, at `next_wake_ns` and at each input.  `set_rax` writes the
    CPU's RAX: the answer of an idle that has ended.

    `epoch` is the wall clock at power-on, in seconds since 1970; with
    `host_clock` (ns since 1970) it follows the host's, and each reading is an
    answer through the door.  `nets` are its network cards.  `router` lets one interpose on the
    devices "disk0", "disk1", ..., "console0", "timer0" and "ethernet0", "ethernet1", ...
    """

    name = "denali"

    def __init__(
        self,
        clock: Clock,
        memory: Memory,
        door: Door,
        drives: Sequence[Drive] = (),
        *,
        set_rax: Callable[[int], None],
        epoch: int,
        quantum_ticks: int = QUANTUM_TICKS,
        host_clock: Callable[[], int] | None = None,
        nets: Sequence[NetConfig] = (),
    ) -> None:
        if memory.size % PAGE or memory.size <= REGISTER_PAGE + PAGE:
            raise UsageError(
                f"a Denali machine cannot have {memory.size} bytes of RAM: give whole 4 KB pages"
            )
        if quantum_ticks < 1:
            raise UsageError(f"a quantum of {quantum_ticks} ticks makes no sense: give at least 1")
        self.router = Router(door)
        port = wire_console(self.router, door, 0, lambda data: self.console.typed(data))
        self._console = port
        self.console = Console(memory, lambda data: port.send(ConsoleWrite(data)))
        self.disks = DiskQueue(
            [
                Slot(wire_disk(self.router, door, drive.disk, unit), drive.read_only)
                for unit, drive in enumerate(drives)
            ],
            memory,
            clock,
        )
        self.cards = Cards(nets, self.router, door, memory)
        self._timer = wire_timer(self.router, 0)
        self._timer.completed = self._timer_answered
        self.registers = RegisterPage(memory)
        self.quantum_ticks = quantum_ticks
        self.next_hand_over_tick = quantum_ticks  # where the quantum ends
        self.pending = 0
        self.idling = False
        self.idle_until_ns: int | None = None  # while idling: when it ends at the latest, None = no timeout
        self.terminated: int | None = None  # the status, once the guest has ended itself
        self._clock = clock
        self._memory = memory
        self._door = door
        self._set_rax = set_rax
        self._epoch_ns = epoch * 1_000_000_000
        self._host_clock = host_clock

    # ---- power-on -------------------------------------------------------------

    def start(self, image: GuestImage) -> PowerOn:
        """Load a guest into zeroed RAM, fill in the register page, and return where the CPU starts.

        Raises `BadInput` if the guest does not fit.
        """
        image.place(self._memory)
        registers = self.registers
        registers[Register.MAGIC] = MAGIC
        registers[Register.CPU_HZ] = 1_000_000_000 // self._clock.period_ns
        registers[Register.MEM_BYTES] = self._memory.size
        registers[Register.QUANTUM_TICKS] = self.quantum_ticks
        # The door has no subscribers yet, so power-on must not ask it anything: not even the host's time.
        now_ns = self._clock.now()
        self._refresh(now_ns, self._epoch_ns + now_ns)
        return PowerOn(rip=image.entry, rsp=self._memory.size)

    # ---- called by the engine -------------------------------------------------

    def virtual_instruction(self, number: int, rdi: int, rsi: int, rdx: int) -> int | None:
        """Carry out a virtual instruction; return what to put into RAX, None to leave it alone.

        Arguments are unsigned 64-bit.  After it, `terminated` or `idling` may
        say that the guest is not to go on.
        """
        match number:
            case Call.TERMINATE:
                self.terminated = rdi
                return None
            case Call.IDLE_WITH_TIMEOUT:
                until_ns = self._clock.now() + rdi
                self.idling = True
                self.idle_until_ns = until_ns if until_ns < NEVER_NS else None
                return None
            case Call.CONSOLE_WRITE:
                return self.console.write(rdi, rsi)
            case Call.CONSOLE_READ:
                return self.console.read(rdi, rsi)
            case Call.DISK_INFO:
                return self.disks.info(rdi)
            case Call.DISK_READ | Call.DISK_WRITE:
                return self.disks.start(number == Call.DISK_WRITE, rdi, rsi, rdx)
            case Call.DISK_DONE:
                return self.disks.done()
            case _:
                return self.cards.call(number, rdi, rsi, rdx)

    # ---- called by the run loop -----------------------------------------------

    def typed(self, data: bytes) -> None:
        """Take typed bytes; the guest learns of them at the next hand-over."""
        self._console.send(ConsoleInput(data))

    def raise_event(self, bits: int) -> None:
        """Make events pending."""
        self.pending |= int(bits)

    @property
    def wants_input(self) -> bool:
        """Whether the guest has read all that was typed."""
        return self.console.empty

    def next_wake_ns(self) -> int | None:
        """Return the guest time at which an idling guest has to be handed control.

        That is now if an event is pending, and None if only an input can end
        the idle.  It may be in the past (a timer register set too late).
        """
        if self.pending or self.console.arrived or self.cards.due:
            return self._clock.now()
        times = (self.idle_until_ns, self._timer_ns(), self.disks.next_deadline_ns())
        return min((t for t in times if t is not None), default=None)

    def hand_over(self) -> int:
        """Do what is due before the guest runs on; return the mask of events to deliver, 0 for none.

        The caller makes the engine deliver the mask.  An idle that is over is
        ended: RAX is set (before delivery, so that the event frame has it) and
        `idling` cleared.  If `idling` is still set afterwards, the guest must
        not run on yet.
        """
        now_ns = self._clock.now()
        if self.disks.complete(now_ns):
            self.raise_event(EventBit.DISK)
        timer_ns = self._timer_ns()
        if timer_ns is not None and timer_ns <= now_ns:
            self.registers[Register.TIMER_NS] = 0
            self._door.note(Kind.TIMER, 0, timer_ns)
            self._timer.send(TimerExpired(timer_ns))
        if self.console.hand_over():
            self.raise_event(EventBit.INPUT)
        if self.cards.hand_over():
            self.raise_event(EventBit.NETWORK)

        if self.idling and not self.pending and (self.idle_until_ns is None or now_ns < self.idle_until_ns):
            return 0
        mask = self.pending
        deliver = bool(mask) and self._deliverable()
        if deliver or self.idling:  # an idle with events off takes them itself
            self.pending = 0
            if mask:
                self._door.note(Kind.BATCH, 0, mask)
        if self.idling:
            self.idling = False
            self.idle_until_ns = None
            self._set_rax(mask)
        self._refresh(now_ns, self._wall_ns(now_ns))
        tick = self._clock.ticks_until(now_ns)
        self.next_hand_over_tick = tick - tick % self.quantum_ticks + self.quantum_ticks
        return mask if deliver else 0

    # ---- state ----------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; RAM (the register page too) and disks are saved by others."""
        saved: dict[str, Any] = {
            "next_hand_over_tick": self.next_hand_over_tick,
            "pending": self.pending,
            "idling": self.idling,
            "idle_until_ns": self.idle_until_ns,
            "terminated": self.terminated,
            "console": self.console.save(),
            "disks": self.disks.save(),
        }
        if self.cards:
            saved["cards"] = self.cards.save()
        routes = self.router.save()
        return saved | {"router": routes} if routes else saved

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState` when this board could not have saved it."""
        parts = {"console", "disks"} | ({"cards"} if self.cards else set())
        if not isinstance(state, dict) or not parts <= set(state):
            raise misfit("the board", f"a table with {', '.join(sorted(parts))} was expected")
        own = {name: value for name, value in state.items() if name not in parts | {"router"}}
        saved = unpack(State, own, "the board")
        if saved.idle_until_ns is not None and not saved.idling:
            raise misfit("the board.idle_until_ns", "the guest does not idle")
        self.next_hand_over_tick = saved.next_hand_over_tick
        self.pending = saved.pending
        self.idling = saved.idling
        self.idle_until_ns = saved.idle_until_ns
        self.terminated = saved.terminated
        self.console.load(state["console"])
        self.disks.load(state["disks"])
        if self.cards:
            self.cards.load(state["cards"])
        if "router" in state:
            self.router.load(state["router"])
        else:
            self.router.start_over()

    # ---- inside ---------------------------------------------------------------

    def _timer_answered(self, token: int, message: Message, answer: Answer) -> None:
        if answer is not None:
            self.raise_event(EventBit.TIMER)

    def _timer_ns(self) -> int | None:
        timer_ns = self.registers[Register.TIMER_NS]
        return timer_ns if 0 < timer_ns < NEVER_NS else None

    def _deliverable(self) -> bool:
        registers = self.registers
        return (
            registers[Register.ENABLED] != 0
            and registers[Register.EVENT_HANDLER] != 0
            and registers[Register.EXCEPTION_ACTIVE] == 0
        )

    def _refresh(self, now_ns: int, wall_ns: int) -> None:
        """Show the guest what the machine knows now."""
        self.registers[Register.TIME_NS] = now_ns
        self.registers[Register.PENDING] = self.pending
        self.registers[Register.WALL_NS] = wall_ns % 2**64

    def _wall_ns(self, now_ns: int) -> int:
        if self._host_clock is None:
            return self._epoch_ns + now_ns
        host_clock = self._host_clock
        return int.from_bytes(
            self._door.ask(Kind.CLOCK, lambda: host_clock().to_bytes(8, "little")), "little"
        )
