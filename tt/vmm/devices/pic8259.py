"""Intel 8259A interrupt controllers, two of them, with the edge/level registers of a PC.

Source: Intel 8259A data sheet (231468-003), and the ELCR of the 82371 (PIIX)
data sheet.  Left out: special fully nested mode, buffered mode, and the CALL
instructions of MCS-80 mode (the vector base is used in their place).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from tt.vmm.line import Line
from tt.vmm.state import U8, pack, unpack

CASCADE = 2  # the master's input that the slave drives
_SPURIOUS = 7


@dataclass(slots=True)
class ChipState:
    """One 8259A; masks have bit n for input n."""

    lines: U8 = 0  # levels at the inputs
    edges: U8 = 0  # edges caught and still high
    imr: U8 = 0
    isr: U8 = 0
    elcr: U8 = 0  # inputs that are level-triggered
    ltim: bool = False  # ICW1: all inputs are level-triggered
    base: U8 = 0  # ICW2: vector of input 0
    icw3: U8 = 0
    icw4: U8 = 0
    expects: Annotated[int, range(5)] = 0  # the ICW that the next write to offset 1 is; 0 for OCW1
    single: bool = False
    wants_icw4: bool = False
    lowest: Annotated[int, range(8)] = 7  # input of the lowest priority
    rotate_aeoi: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False


class Chip:
    """One 8259A: command register at offset 0, data register at offset 1."""

    def __init__(self, elcr_mask: int, output: Line) -> None:
        self.state = ChipState()
        self.output = output
        self.elcr_mask = elcr_mask

    def set_line(self, index: int, level: bool) -> None:
        """Take a new level at input `index`."""
        s = self.state
        bit = 1 << index
        if level:
            if not s.lines & bit:
                s.edges |= bit
            s.lines |= bit
        else:
            # An input must stay high until it is acknowledged; one that falls before is
            # forgotten, and a CPU that already saw INT gets the spurious vector.
            s.lines &= ~bit
            s.edges &= ~bit
        self.update()

    def requests(self) -> int:
        """Return the IRR: inputs asking for service."""
        s = self.state
        return s.edges | (s.lines & (0xFF if s.ltim else s.elcr))

    def pending(self) -> int | None:
        """Return the input to serve next, or None when nothing may interrupt."""
        s = self.state
        asking = (s.edges | (s.lines & (0xFF if s.ltim else s.elcr))) & ~s.imr
        if not asking or s.expects:
            return None
        serving = s.isr & ~s.imr if s.special_mask else s.isr
        if s.lowest == 7 and not serving:  # nearly always: the lowest number goes first
            return (asking & -asking).bit_length() - 1
        for rank in range(1, 9):
            index = (s.lowest + rank) & 7
            bit = 1 << index
            if serving & bit:
                return None
            if asking & bit:
                return index
        return None

    def update(self) -> None:
        """Drive INT from the state."""
        self.output.set(self.pending() is not None)

    def accept(self) -> int | None:
        """Move the input to serve next from IRR to ISR and return it (INTA), or None if spurious."""
        index = self.pending()
        if index is None:
            return None
        s = self.state
        s.edges &= ~(1 << index)
        if s.icw4 & 2:  # automatic EOI
            if s.rotate_aeoi:
                s.lowest = index
        else:
            s.isr |= 1 << index
        # INT falls with INTA and rises again for the next request: the master needs the edge.
        self.output.set(False)
        self.update()
        return index

    def read(self, offset: int, size: int) -> int:
        """Return IRR or ISR (offset 0), IMR (offset 1), or in poll mode what is to be served."""
        s = self.state
        if s.poll:
            s.poll = False
            index = self.accept()
            return 0 if index is None else 0x80 | index
        if offset:
            return s.imr
        return s.isr if s.read_isr else self.requests()

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command word: ICW1, OCW2, OCW3 (offset 0), ICW2-4, OCW1 (offset 1)."""
        value &= 0xFF
        if offset:
            self._write_data(value)
        elif value & 0x10:
            self._begin_init(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self.update()

    def _begin_init(self, icw1: int) -> None:
        s = self.state
        self.state = ChipState(
            lines=s.lines,
            elcr=s.elcr,
            ltim=bool(icw1 & 8),
            base=s.base,
            icw3=s.icw3,
            single=bool(icw1 & 2),
            wants_icw4=bool(icw1 & 1),
            expects=2,
        )

    def _write_data(self, value: int) -> None:
        s = self.state
        if s.expects == 0:
            s.imr = value
        elif s.expects == 2:
            s.base = value & 0xF8
            s.expects = 3 if not s.single else 4 if s.wants_icw4 else 0
        elif s.expects == 3:
            s.icw3 = value
            s.expects = 4 if s.wants_icw4 else 0
        else:
            s.icw4 = value & 0x1F
            s.expects = 0

    def _ocw3(self, value: int) -> None:
        s = self.state
        if value & 0x40:
            s.special_mask = bool(value & 0x20)
        if value & 0x04:
            s.poll = True
        elif value & 0x02:
            s.read_isr = bool(value & 1)

    def _ocw2(self, value: int) -> None:
        s = self.state
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        if not eoi and not specific:
            s.rotate_aeoi = bool(rotate)
            return
        index: int | None = value & 7
        if not specific:
            serving = s.isr & ~s.imr if s.special_mask else s.isr
            ranked = ((s.lowest + rank) & 7 for rank in range(1, 9))
            index = next((i for i in ranked if serving >> i & 1), None)
        if index is None:
            return
        if eoi:
            s.isr &= ~(1 << index)
        if rotate:
            s.lowest = index


class Elcr:
    """The edge/level control registers: one byte for each chip."""

    def __init__(self, master: Chip, slave: Chip) -> None:
        self._chips = (master, slave)

    def read(self, offset: int, size: int) -> int:
        """Return which inputs are level-triggered."""
        return self._chips[offset].state.elcr

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose which inputs are level-triggered; system inputs stay edge-triggered."""
        chip = self._chips[offset]
        chip.state.elcr = value & chip.elcr_mask
        chip.update()


@dataclass(slots=True)
class State:
    """Both chips and their output."""

    master: ChipState = field(default_factory=ChipState)
    slave: ChipState = field(default_factory=ChipState)
    intr: bool = False


class Pic8259:
    """The cascaded pair of a PC: sixteen inputs, one INTR.

    `master`, `slave` and `elcr` are its three blocks of registers, two bytes
    each; `intr` is the line into the CPU.
    """

    name = "pic"

    def __init__(self, intr: Line) -> None:
        self._intr = intr
        self.master = Chip(0xF8, intr)
        self.slave = Chip(0xDE, Line(lambda level: self.master.set_line(CASCADE, level)))
        self.elcr = Elcr(self.master, self.slave)
        self._lines = [Line(self._input(irq)) for irq in range(16)]

    def line(self, irq: int) -> Line:
        """Return the input of interrupt request `irq` (0-15, not the cascade)."""
        if irq == CASCADE:
            raise ValueError("IRQ 2 is the cascade: the slave drives it")
        return self._lines[irq]

    def acknowledge(self) -> int:
        """Run the INTA cycle: return the vector (0-255) and put its input in service.

        With nothing to serve, the answer is the spurious vector, input 7 of the
        chip that was asked, and no ISR bit is set there (8259A data sheet,
        "Edge and level triggered modes").
        """
        index = self.master.accept()
        if index is None:
            return self.master.state.base | _SPURIOUS
        if index != CASCADE:
            return self.master.state.base | index
        index = self.slave.accept()
        return self.slave.state.base | (_SPURIOUS if index is None else index)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(State(self.master.state, self.slave.state, self._intr.level))

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back, levels of the lines included; their listeners are not called."""
        s = unpack(State, state, self.name)
        self.master.state, self.slave.state = s.master, s.slave
        self._intr.level = s.intr
        self.slave.output.level = bool(s.master.lines >> CASCADE & 1)
        levels = s.master.lines | s.slave.lines << 8
        for irq, line in enumerate(self._lines):
            line.level = bool(levels >> irq & 1)

    def _input(self, irq: int) -> Callable[[bool], None]:
        chip, index = (self.slave, irq - 8) if irq > 7 else (self.master, irq)
        return lambda level: chip.set_line(index, level)
