"""PC16550D UART: one serial port with 16 byte FIFOs.

Source: National Semiconductor PC16550D data sheet (June 1995).  A byte is sent
the moment it is written, so the transmitter is always empty; received bytes
wait in a queue of any length behind the FIFO, which refills as the guest reads,
so that nothing typed or pasted is lost.  OUT2 does not gate the interrupt.

A guest need not use the interrupt: it may look at LSR again and again.  How often it
did since it last sent or received something is counted, outside of the state, so
that typed input can be held back until the guest looks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from tt.events import Kind
from tt.vmm.clock import Clock
from tt.vmm.line import Line
from tt.vmm.nondeterminism import Door
from tt.vmm.state import U8, U16, AtMost, misfit, pack, unpack

_CLOCK_HZ = 1_843_200
_SECOND_NS = 1_000_000_000
_FIFO = 16
_TRIGGER = (1, 4, 8, 14)
_BYTES = [bytes((value,)) for value in range(256)]

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
_RDI, _THRI, _RLSI, _MSI = 1, 2, 4, 8  # IER
_DLAB = 0x80  # LCR
_LOOP = 0x10  # MCR
_DR, _OE, _EMPTY = 0x01, 0x02, 0x60  # LSR; THRE and TEMT together
_LISTENS = 3  # reads of LSR without a byte sent in between that show a guest looking for input
_INSISTS = 1000  # such reads after which `on_poll` is called, each time
_CONNECTED = 0xB0  # MSR: CTS, DSR and DCD, as from a terminal that is on


@dataclass(slots=True)
class State:
    """Registers, FIFO, and what is queued behind it."""

    ier: Annotated[int, range(16)] = 0
    fcr: U8 = 0
    lcr: U8 = 0
    mcr: Annotated[int, range(32)] = 0
    scr: U8 = 0
    divisor: U16 = 12  # 9600 baud
    overrun: bool = False
    delta: Annotated[int, range(16)] = 0  # MSR: which inputs changed
    thre: bool = False  # the transmitter-empty interrupt is pending
    timeout: bool = False  # bytes below the trigger level have waited long enough
    fifo: Annotated[bytearray, AtMost(_FIFO)] = field(default_factory=bytearray)
    queue: bytearray = field(default_factory=bytearray)


class Uart16550:
    """The UART: eight registers, interrupts on `irq`.

    `transmit` is given what the guest sends.  `unit` is that of the door's
    note when the receive timeout fires (`Kind.TIMER`).
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        door: Door,
        irq: Line,
        transmit: Callable[[bytes], object],
        unit: int = 2,
    ) -> None:
        self.name = name
        self.state = State()
        self._clock = clock
        self._door = door
        self._irq = irq
        self._transmit = transmit
        self._unit = unit
        self._timer = clock.timer(name, self._fire)
        self._polls = 0
        self.on_poll: Callable[[], None] = lambda: None
        """Called during an instruction that looks for input, after many others that looked in vain."""

    @property
    def wants_input(self) -> bool:
        """Whether the guest waits for input: it listens, or polls, and has read everything."""
        s = self.state
        return (bool(s.ier & _RDI) or self._polls >= _LISTENS) and not s.fifo and not s.queue

    def receive(self, data: bytes) -> None:
        """Take bytes from outside; what does not fit the FIFO waits behind it.

        As on a wire, what the guest was not ready for is lost when it resets its FIFO.
        """
        self._polls = 0
        self.state.queue += data
        self._refill()
        self._received()

    def read(self, offset: int, size: int) -> int:
        """Return register `offset`, with the side effects of reading it."""
        s = self.state
        if offset == LSR:
            if not s.fifo and not s.mcr & _LOOP:
                self._poll()
            if not s.overrun:
                return _EMPTY | _DR if s.fifo else _EMPTY
            s.overrun = False
            self._update()
            return _EMPTY | _OE | (_DR if s.fifo else 0)
        if offset == DATA:
            return s.divisor & 0xFF if s.lcr & _DLAB else self._read_data()
        if offset == IIR:
            return self._identify()
        if offset == IER:
            return s.divisor >> 8 if s.lcr & _DLAB else s.ier
        if offset == LCR:
            return s.lcr
        if offset == MCR:
            return s.mcr
        if offset == MSR:
            value = self._modem() | s.delta
            s.delta = 0
            self._update()
            return value
        return s.scr

    def write(self, offset: int, size: int, value: int) -> None:
        """Store into register `offset`; offset 0 sends, offset 2 controls the FIFOs."""
        s = self.state
        value &= 0xFF
        if offset == DATA:
            if s.lcr & _DLAB:
                s.divisor = s.divisor & 0xFF00 | value
            else:
                self._send(value)
        elif offset == IER:
            if s.lcr & _DLAB:
                s.divisor = s.divisor & 0xFF | value << 8
            else:
                self._enable(value & 15)
        elif offset == IIR:
            self._control_fifo(value)
        elif offset == LCR:
            s.lcr = value
        elif offset == MCR:
            self._control_modem(value & 0x1F)
        elif offset == SCR:
            s.scr = value

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; the clock saves the timer."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the clock restores the timer."""
        loaded = unpack(State, state, self.name)
        if loaded.fcr & ~0xC9 or (loaded.fcr and not loaded.fcr & 1):
            raise misfit(f"{self.name}.fcr", f"{loaded.fcr:#x} has bits that cannot be set")
        self.state = loaded
        self._irq.level = self._interrupting()
        self._polls = 0

    # Sending.

    def _send(self, value: int) -> None:
        s = self.state
        if s.mcr & _LOOP:
            if len(s.fifo) < self._depth():
                s.fifo.append(value)
            else:
                s.overrun = True
            self._received()
        else:
            self._polls = 0
            self._transmit(_BYTES[value])
        if s.thre and s.ier & _THRI:
            s.thre = False  # the write takes the interrupt back, the empty transmitter raises it anew
            self._update()
        s.thre = True
        if s.ier & _THRI:
            self._update()

    def _enable(self, value: int) -> None:
        s = self.state
        if value & _THRI and not s.ier & _THRI:
            s.thre = True
        s.ier = value
        self._update()

    # Receiving.

    def _depth(self) -> int:
        return _FIFO if self.state.fcr & 1 else 1

    def _trigger(self) -> int:
        fcr = self.state.fcr
        return _TRIGGER[fcr >> 6] if fcr & 1 else 1

    def _poll(self) -> None:
        self._polls += 1
        if self._polls % _INSISTS == 0:
            self.on_poll()

    def _read_data(self) -> int:
        s = self.state
        if not s.fifo:
            return 0
        self._polls = 0
        value = s.fifo.pop(0)
        self._refill()
        self._received()
        return value

    def _refill(self) -> None:
        s = self.state
        room = self._depth() - len(s.fifo)
        if room > 0 and s.queue and not s.mcr & _LOOP:
            s.fifo += s.queue[:room]
            del s.queue[:room]

    def _received(self) -> None:
        # A byte came or went: the timeout of four characters begins again.
        s = self.state
        s.timeout = False
        if 0 < len(s.fifo) < self._trigger():
            self._timer.arm(self._clock.now() + 4 * self._character_ns())
        else:
            self._timer.disarm()
        self._update()

    def _character_ns(self) -> int:
        lcr = self.state.lcr
        bits = 1 + 5 + (lcr & 3) + (1 if lcr & 8 else 0) + (2 if lcr & 4 else 1)
        return bits * 16 * (self.state.divisor or 0x10000) * _SECOND_NS // _CLOCK_HZ

    def _fire(self) -> None:
        self._door.note(Kind.TIMER, self._unit, self._clock.now())
        self.state.timeout = True
        self._update()

    def _control_fifo(self, value: int) -> None:
        s = self.state
        if (value ^ s.fcr) & 1 or value & 3 == 3:
            s.fifo.clear()  # reset, or a change of mode
        s.fcr = value & 0xC9 if value & 1 else 0
        self._refill()
        self._received()

    # Modem control and interrupts.

    def _modem(self) -> int:
        mcr = self.state.mcr
        if not mcr & _LOOP:
            return _CONNECTED
        # Looped back: CTS is RTS, DSR is DTR, RI is OUT1, DCD is OUT2.
        return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _control_modem(self, value: int) -> None:
        s = self.state
        before = self._modem()
        s.mcr = value
        after = self._modem()
        changed = before ^ after
        # RI counts only when it goes away; the others on any change.
        s.delta |= changed >> 4 & 0x0B | (changed & before) >> 4 & 0x04
        self._refill()
        self._received()

    def _identify(self) -> int:
        s = self.state
        mode = 0xC0 if s.fcr & 1 else 0
        if s.ier & _RLSI and s.overrun:
            return mode | 0x06
        if s.ier & _RDI and len(s.fifo) >= self._trigger():
            return mode | 0x04
        if s.ier & _RDI and s.timeout:
            return mode | 0x0C
        if s.ier & _THRI and s.thre:
            s.thre = False
            self._update()
            return mode | 0x02
        if s.ier & _MSI and s.delta:
            return mode
        return mode | 0x01

    def _interrupting(self) -> bool:
        s = self.state
        ier = s.ier
        return bool(
            (ier & _THRI and s.thre)
            or (ier & _RDI and (s.timeout or len(s.fifo) >= self._trigger()))
            or (ier & _RLSI and s.overrun)
            or (ier & _MSI and s.delta)
        )

    def _update(self) -> None:
        self._irq.set(self._interrupting())
