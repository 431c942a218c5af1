"""The pc machine: an x86-64 CPU on the board of a small PC, with no firmware."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from tt.errors import TTError
from tt.events import Event, Kind
from tt.vmm.boot.plan import BootPlan
from tt.vmm.config import NetConfig
from tt.vmm.disk import OverlayDisk
from tt.vmm.engine import HALT, SHUTDOWN
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Source
from tt.vmm.pc import firmware as left_behind
from tt.vmm.pc.board import Board
from tt.vmm.pc.cpuid import cpuid_table


class PcMachine(Machine):
    """A PC that starts where a boot loader would have left it.

    `epoch` is the wall clock at power-on, in seconds since 1970.  With
    `host_clock` (ns since 1970) the guest's clocks follow the host's, and each
    reading is an answer through the door.  With `discard` its disks take discards,
    with `firmware` devices and memory are as firmware leaves them.  `nets` are its network cards.
    """

    kind = "pc"

    def __init__(
        self,
        plan: BootPlan,
        mem_bytes: int,
        disks: Sequence[OverlayDisk],
        source: Source | None = None,
        *,
        epoch: int,
        period_ns: int = 4,
        host_clock: Callable[[], int] | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        discard: bool = False,
        firmware: bool = False,
        nets: Sequence[NetConfig] = (),
    ) -> None:
        super().__init__(mem_bytes, disks, source, period_ns=period_ns)
        engine = self.engine
        self._board = Board(
            self.clock,
            self.door,
            engine,
            list(disks),
            entropy,
            epoch,
            on_intr=engine.set_intr,
            on_power=self.end,
            host_clock=host_clock,
            discard=discard,
            firmware=firmware,
            nets=nets,
            on_memory_bus=engine.map_devices,
        )
        engine.port_read = self._board.read
        engine.port_write = self._board.write
        engine.memory_read = self._board.memory_bus.read
        engine.memory_write = self._board.memory_bus.write
        engine.acknowledge = self._acknowledge
        self._board.com1.on_poll = self.polled
        engine.set_cpuid(cpuid_table())
        if host_clock is not None:
            self._follow_host(host_clock)
        for addr, data in [*(left_behind.data_areas(epoch) if firmware else ()), *plan.segments]:
            engine.write(addr, data)
        start = plan.start
        engine.start(start.mode, start.rip, dict(start.registers), start.cr3, start.gdt_base, start.gdt_limit)

    @property
    def board(self) -> Board:
        """Return the devices."""
        return self._board

    def _acknowledge(self) -> int:
        vector: int = self._board.acknowledge()
        self.door.note(Kind.IRQ, value=vector)
        return vector

    def _attend(self) -> None:
        for timer in self.clock.due():
            timer.fire()
        if self.halted and self._board.intr and self.engine.interruptible:
            self.halted = False

    def _advance(self, stop: int) -> int:
        reason = self.engine.run(stop)
        if reason == HALT:
            self.halted = True
        elif reason == SHUTDOWN:
            self.end(self.engine.last_error or "triple fault")
        return reason

    def _hopeless(self) -> str | None:
        return None if self.engine.interruptible else "halted with interrupts off"

    def _wake_ns(self) -> int | None:
        return self._board.wakes_ns()

    @property
    def wants_input(self) -> bool:
        """Whether the guest listens to its console and has read all there was."""
        return self._board.wants_input

    def frame_room(self, card: int) -> int | None:
        """Return how many frames network card `card` has room for, None where nobody listens."""
        return self._board.frame_room(card)

    def frame_counters(self, card: int) -> dict[str, int]:
        """Return what network card `card` has counted, by name."""
        return self._board.frame_counters(card)

    def input(self, event: Event) -> None:
        """Take an input from the door: bytes typed into a console."""
        if event.kind is not Kind.INPUT:
            raise TTError(f"an input of kind {event.kind.name} reached a pc machine: the trace is damaged")
        self._board.console_input(event.unit, event.data)
