"""What every machine is: an engine, a clock, a door and a board, and the loop that runs them.

A machine knows nothing of traces.  Everything that it does between two ticks is
a function of its state and of what comes through the door, so recording and
replaying run exactly this code.
"""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tt.errors import BadInput, BadState, EngineError
from tt.events import Event, Kind, Role
from tt.vmm.clock import Clock
from tt.vmm.disk import SECTOR, OverlayDisk
from tt.vmm.engine import BREAK, CATCH, FOREVER, WATCH, Engine
from tt.vmm.messages import EthernetLink, EthernetReceive
from tt.vmm.nondeterminism import Door, Source
from tt.vmm.router import Router
from tt.vmm.state import Ns, misfit, unpack
from tt.vmm.wiring import store

SLICE_TICKS = 16_000_000
"""Most ticks that the engine runs before the machine looks for inputs and pauses again."""
NETWORK_SLICE_TICKS = 250_000
"""The same where frames may arrive at any time: about half a millisecond."""


_POLL_NS = 10_000_000  # the longest that a guest which polls its console may be taken for an idle one

_TRAPS = {BREAK: "break", WATCH: "watch", CATCH: "catch"}


@dataclass
class _Own:
    # What a saved machine has beside its CPU, clock and board.
    tick: Ns = 0
    halted: bool = False
    ended: str | None = None


@dataclass(frozen=True)
class Stop:
    """Why `Machine.run` came back.

    `reason` is `tick` (the tick asked for was reached), `power` (the machine
    ended by itself; `detail` says how), `pause` (the source of inputs wants
    attention), `idle` (the CPU waits for an interrupt, and wakes by itself after
    `wakes_in_ns` of guest time, or never: None), `break` (about to execute an
    instruction with a breakpoint), `watch` (an instruction touched watched bytes:
    `engine.hit`) or `catch` (`engine.caught`).  With these three, `is_arrival`
    says whether the state is that of the first arrival at the tick; at others
    something has happened there already.
    """

    reason: str
    tick: int
    detail: str = ""
    is_arrival: bool = True
    wakes_in_ns: int | None = None


class Machine(abc.ABC):
    """A whole virtual machine.

    `mem_bytes` of RAM, guest time of `period_ns` nanoseconds a tick.  Answers
    and inputs come from `source`.  `disks` are the guest's disks in order.
    """

    kind = ""
    retires_first = False
    """Whether an instruction that does something outside counts as retired when that is told to the door."""

    def __init__(
        self,
        mem_bytes: int,
        disks: Sequence[OverlayDisk],
        source: Source | None = None,
        *,
        period_ns: int = 4,
        denali: bool = False,
    ) -> None:
        self.engine = Engine(mem_bytes, denali=denali)
        self.engine.period_ns = period_ns
        self.clock = Clock(lambda: self.engine.tick, period_ns)
        self.clock.on_change = self._deadline_moved
        self.door = Door(lambda: self.engine.tick, source, self.clock)
        self.door.on_after = self._deadline_moved  # a running CPU stops after the current instruction
        self.disks = list(disks)
        self.halted = False
        self.ended: str | None = None
        self.slice_ticks = SLICE_TICKS
        self._polling_until: int | None = None  # guest ns; till then the guest is taken for an idle one

    # ---- what the two architectures do differently

    @property
    @abc.abstractmethod
    def board(self) -> Any:
        """Return the devices: `save()`, `load(state)`."""

    @property
    def router(self) -> Router:
        """Where the devices' messages go: one may interpose on "disk0", "console0", ..."""
        router: Router = self.board.router
        return router

    @abc.abstractmethod
    def _advance(self, stop: int) -> int:
        """Execute to tick `stop` at the latest, or until something happens; return the engine's reason."""

    @abc.abstractmethod
    def _attend(self) -> None:
        """Do what is due now: timers, inputs, hand-over; may wake a halted CPU."""

    @abc.abstractmethod
    def _wake_ns(self) -> int | None:
        """Return the guest ns at which an idle machine wakes by itself, or None: never."""

    @abc.abstractmethod
    def input(self, event: Event) -> None:
        """Take an input from the door."""

    @property
    @abc.abstractmethod
    def wants_input(self) -> bool:
        """Whether the guest listens to its console and has read all there was."""

    def frame_room(self, card: int) -> int | None:
        """Return how many frames network card `card` has room for, None where nobody listens."""
        return None

    def frame_counters(self, card: int) -> dict[str, int]:
        """Return what network card `card` has counted, by name; nothing where it counts nothing."""
        return {}

    def _hopeless(self) -> str | None:
        """Return why a halted machine can never wake, if so."""
        return None

    # ---- running

    @property
    def tick(self) -> int:
        """Instructions retired since power-on."""
        return self.engine.tick

    @property
    def now_ns(self) -> int:
        """Guest time in ns since power-on."""
        return self.clock.now()

    def run(self, until: int = FOREVER, *, pausing: bool = True) -> Stop:
        """Run to tick `until`, before any event of that tick, or to whatever ends the run first.

        It never sleeps, and never decides that time passes: where the guest idles it
        returns, and its owner calls `let_pass` (`tt.vmm.running` does).  With `pausing`
        False the source is not asked whether it wants a pause.
        """
        while True:
            tick = self.engine.tick
            if tick >= until:
                return Stop("tick", tick)
            if pausing and self.ended is None and self.door.wants_pause():
                return Stop("pause", tick)
            if self.ended is None:
                put_off = self.door.has_later
                for event in self.door.take_inputs():
                    if event.kind.role is Role.EDIT:
                        self._apply(event)
                    elif event.kind in (Kind.ROUTE, Kind.PARENT_LATER):
                        self.router.take(event)
                    elif event.kind is Kind.FRAME_IN:
                        self.router.deliver(f"ethernet{event.unit}", EthernetReceive(event.data))
                    elif event.kind is Kind.LINK:
                        self.router.deliver(f"ethernet{event.unit}", EthernetLink(bool(event.value)))
                    else:
                        self.input(event)
                if put_off:
                    self._deadline_moved()
                # After the inputs: an edit may give a halted CPU its interrupts back.
                self.ended = self._hopeless() if self.halted else None
                if self.ended is not None:
                    self.door.note(Kind.POWER, data=self.ended.encode())
            if self.ended is not None:
                return Stop("power", tick, self.ended)
            self._attend()
            if self.halted:
                wake_ns = self._wake_ns()
                left_ns = None if wake_ns is None else max(0, wake_ns - self.clock.now())
                return Stop("idle", tick, is_arrival=False, wakes_in_ns=self.door.within(left_ns))
            if self._polling_until is not None:
                self._deadline_moved()
                left_ns = self._polling_until - self.clock.now()
                # What was just typed reaches it first, at the next tick.
                typed = self.door.next_input() == tick + 1
                if left_ns > 0 and not typed and self.door.source.polled(tick):
                    return Stop("idle", tick, is_arrival=False, wakes_in_ns=self.door.within(left_ns))
                self._polling_until = None
            if self.ended is None:
                stop = min(until, tick + self.slice_ticks)
                due = self.door.next_input()
                if due is not None:
                    stop = min(stop, due)
                if stop > tick:
                    trap = _TRAPS.get(self._advance(stop))
                    if trap is not None:
                        now = self.engine.tick
                        return Stop(trap, now, "", now > tick and now != self.engine.entered_at)

    def edit(self, kind: Kind, unit: int, value: int, data: bytes) -> None:
        """Change the machine by hand, and tell the door: see the EDIT kinds in `tt.events`.

        To be called where `run` would take inputs: on arrival at a tick.  Raises
        `BadInput` where there is no such register, memory or disk, having changed nothing.
        """
        event = Event(self.engine.tick, kind, unit, value, data)
        self._check_edit(event)
        self.door.note(kind, unit, value, data)
        self._apply(event)

    def _check_edit(self, event: Event) -> None:
        where = f"the edit at tick {event.tick:,} cannot be made"
        if event.kind is Kind.EDIT_MEMORY:
            size, end = self.engine.size, event.value + len(event.data)
            if end > size:
                raise BadInput(f"{where}: {event.value:#x} to {end:#x} is outside RAM ({size:#x} bytes)")
        elif event.kind is Kind.EDIT_DISK:
            if event.unit >= len(self.disks):
                raise BadInput(f"{where}: there is no disk {event.unit}, the machine has {len(self.disks)}")
            sectors, rest = divmod(len(event.data), SECTOR)
            if rest or event.value + sectors > self.disks[event.unit].sectors:
                raise BadInput(
                    f"{where}: {len(event.data)} bytes at lba {event.value} are not whole sectors of disk "
                    f"{event.unit} ({self.disks[event.unit].sectors} sectors of {SECTOR} bytes)"
                )
        else:
            name = event.data.decode("ascii", "replace")
            try:  # setting a register to its own value shows whether it can be set
                self.engine.set_register(name, self.engine.registers()[name])
            except (KeyError, EngineError) as e:
                why = e if isinstance(e, EngineError) else f"there is no register {name[:20]!r}"
                raise BadInput(f"{where}: {why}") from None

    def _apply(self, event: Event) -> None:
        """Make the edit that an event describes."""
        self._check_edit(event)
        if event.kind is Kind.EDIT_REGISTER:
            self.engine.set_register(event.data.decode(), event.value)
        elif event.kind is Kind.EDIT_MEMORY:
            self.engine.write(event.value, event.data)
            self.engine.flush_tlb()  # it may have been a page table
        else:
            # Told as any other write too, so that the disk writes of a trace are all of them.
            store(self.door, self.disks[event.unit], event.unit, event.value, event.data)

    def polled(self) -> None:
        """Be told by a console that the running instruction looked for input, one time too many."""
        if self.ended is None and self.door.source.polled(self.engine.tick):
            now, wake = self.clock.now(), self._wake_ns()
            most = _POLL_NS if wake is None else max(1, min(_POLL_NS, wake - now))
            self._polling_until = now + most
            self.engine.limit = self.engine.tick

    def let_pass(self, ns: int) -> None:
        """Let `ns` of guest time pass for an idle guest, and tell the door; `run` goes on from there."""
        if ns:
            self.door.note(Kind.WAKE, value=ns)
            self.clock.idle_ns += ns
            self.engine.idle_ns = self.clock.idle_ns
            self.door.look_again()
            self._deadline_moved()  # the same guest time is fewer ticks away now

    def end(self, how: str) -> None:
        """End the machine: it stops after the current instruction."""
        if self.ended is None:
            self.ended = how
            self.door.note(Kind.POWER, data=how.encode())
            self.engine.limit = self.engine.tick

    def _follow_host(self, host_clock: Callable[[], int]) -> None:
        """Answer the time-stamp counter from a host clock (ns), each reading through the door."""

        def read() -> int:
            data = self.door.ask(Kind.CLOCK, lambda: host_clock().to_bytes(8, "little"), unit=1)
            return int.from_bytes(data, "little")

        self.engine.host_tsc = True
        self.engine.tsc = read

    def _deadline_moved(self) -> None:
        if self.ended is None:
            deadline = self.clock.next_deadline()
            limit = FOREVER if deadline is None else self.clock.ticks_until(deadline)
            later = self.door.next_later()
            self.engine.limit = min(limit, FOREVER) if later is None else min(limit, later)

    # ---- state

    def save(self) -> dict[str, Any]:
        """Return the whole state but RAM and disks: plain data, and `cpu` as bytes."""
        return {
            "tick": self.engine.tick,
            "cpu": self.engine.save(),
            "halted": self.halted,
            "ended": self.ended,
            "clock": self.clock.save(),
            "board": self.board.save(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; RAM and disks are restored beside it.

        Raises `BadState` for anything but a state that this machine could have saved; it is
        to be given a sound one then, for a part may have been put back already.
        """
        parts = {"tick", "cpu", "halted", "ended", "clock", "board"}
        if not isinstance(state, dict) or set(state) != parts:
            odd = sorted(map(str, set(state) ^ parts)) if isinstance(state, dict) else ["it is no table"]
            raise misfit("the machine", "missing or unknown: " + ", ".join(odd))
        own = unpack(_Own, {name: state[name] for name in ("tick", "halted", "ended")}, "the machine")
        if not isinstance(state["cpu"], bytes):
            raise misfit("the machine.cpu", "bytes were expected")
        try:
            self.engine.load(state["cpu"])
        except EngineError as e:
            raise BadState(str(e)) from None
        self.engine.tick = own.tick
        self.halted = own.halted
        self._polling_until = None
        self.ended = own.ended
        self.board.load(state["board"])
        self.clock.load(state["clock"])
        self.engine.idle_ns = self.clock.idle_ns
        self.door.look_again()
        self._deadline_moved()

    def snapshot(self) -> dict[str, Any]:
        """Return a full copy of the machine in memory: state, RAM, disks."""
        return {
            "state": self.save(),
            "ram": self.engine.read(0, self.engine.size),
            "disks": [disk.snapshot() for disk in self.disks],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot of this machine."""
        self.engine.restore_ram(snapshot["ram"])
        for disk, saved in zip(self.disks, snapshot["disks"], strict=True):
            disk.restore(saved)
        self.load(snapshot["state"])

    def digest_parts(self) -> dict[str, bytes]:
        """Return 16-byte digests of the parts of the state: `cpu`, `ram`, `board`, `disks`."""
        state = self.save()
        del state["cpu"]
        plain = json.dumps(state, sort_keys=True, separators=(",", ":")).encode()
        return {
            "cpu": _hash(self.engine.architectural_state() + self.engine.own_state()),
            "ram": self.engine.ram_digest(),
            "board": _hash(plain),
            "disks": _hash(b"".join(disk.digest() for disk in self.disks)),
        }

    def digest(self) -> bytes:
        """Return the 16-byte digest of the whole state: CPU, all RAM, every device, the disks."""
        return _hash(b"".join(self.digest_parts().values()))


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
