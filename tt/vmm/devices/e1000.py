"""An Intel 82540EM network card: what QEMU, VirtualBox and most hobby kernels know as "e1000".

Source: PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (Intel
317453-006): chapter 3 (receive and transmit), 13 (registers), 14 (reset).  Registers lie in memory (BAR 0)
and behind a pair of ports, address and data (BAR 2, section 13.1.3).

Interrupts are raised at once: the delays that RDTR, RADV, TIDV, TADV and ITR ask for are upper bounds.
Checksums of frames that arrive are the driver's (each descriptor says so: IXSM).  The card does not
answer to flow control, and has no flash memory and no wake-up.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Annotated, Any

from tt.vmm.devices import e1000_registers as r
from tt.vmm.devices.e1000_boards import Eeprom, EepromState, Phy, PhyState
from tt.vmm.devices.e1000_send import MOST_BYTES, Sender, SendState
from tt.vmm.line import Line
from tt.vmm.memory import Memory
from tt.vmm.messages import SHORTEST_FRAME, EthernetSend
from tt.vmm.router import Port
from tt.vmm.state import U32, AtMost, misfit, pack, unpack

VENDOR, DEVICE, REVISION, PCI_CLASS = 0x8086, 0x100E, 3, 0x02_00_00
SUBSYSTEM_VENDOR, SUBSYSTEM = 0x8086, 0x001E
MEMORY_SIZE, PORTS_SIZE = 0x20000, 0x40
_DESCRIPTOR = 16
_MIN_FRAME, _MAX_FRAME, _MAX_LONG_FRAME = 60, 1518, 16384
_DD, _EOP, _IXSM, _VP = 1 << 0, 1 << 1, 1 << 2, 1 << 3


@dataclass(slots=True)
class Register:
    """A register that holds something other than after a reset."""

    offset: U32 = 0
    value: U32 = 0


@dataclass(slots=True)
class State:
    """The registers, and what lies behind them."""

    registers: Annotated[list[Register], AtMost(1024)] = field(default_factory=list)
    icr: U32 = 0
    mask: U32 = 0
    link: bool = True
    port_address: U32 = 0
    eeprom: EepromState = field(default_factory=EepromState)
    phy: PhyState = field(default_factory=PhyState)
    sending: SendState = field(default_factory=SendState)


class E1000:
    """The card: `mac` is its address, what the guest sends goes to `port`, `irq` is its INTA# line."""

    def __init__(self, name: str, memory: Memory, irq: Line, port: Port, mac: bytes) -> None:
        self.name = name
        self._memory = memory
        self._irq = irq
        self._port = port
        self._mac = mac
        self._link = True
        self._eeprom = Eeprom(mac)
        self._phy = Phy()
        self._sender = Sender(memory.read, self._transmit)
        self._icr = self._mask = self.port_address = 0
        self._registers: dict[int, int] = {}
        self._reset()

    # ---- the cable's side

    @property
    def room(self) -> int | None:
        """How many receive descriptors are free, None if the receiver is off or the cable is unplugged."""
        if not self._link or not self._registers.get(r.RCTL, 0) & r.RCTL_EN:
            return None
        count = self._ring(r.RDLEN)
        return (self._registers.get(r.RDT, 0) - self._registers.get(r.RDH, 0)) % count if count else 0

    @property
    def counters(self) -> dict[str, int]:
        """Some of the card's own statistics, since the driver read them last."""
        names = {"received": r.GPRC, "sent": r.GPTC, "dropped": r.MPC}
        return {name: self._registers.get(at, 0) for name, at in names.items()}

    def receive(self, frame: bytes) -> None:
        """Take a frame from the cable (section 3.2)."""
        control = self._registers.get(r.RCTL, 0)
        if not self._link or not control & r.RCTL_EN or len(frame) < SHORTEST_FRAME:
            return
        frame = frame.ljust(_MIN_FRAME, b"\0")  # nothing shorter is on a cable
        self._count_received(frame, good=False)
        tagged = frame[12:14] == self._registers.get(r.VET, 0).to_bytes(4, "big")[2:]
        longest = _MAX_LONG_FRAME if control & r.RCTL_LPE else _MAX_FRAME + (4 if tagged else 0)
        if len(frame) + 4 > longest:
            self._add(r.ROC, 1)
        elif self._is_for_us(frame, control, tagged):
            self._store(frame, control, tagged)

    def link(self, up: bool) -> None:
        """Plug the cable in, or pull it out."""
        if up != self._link:
            self._link = up
            self._cause(r.LSC)

    # ---- registers in memory; all are 32 bits wide

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset`."""
        at = offset & ~3
        value = self._read(at) if at < MEMORY_SIZE else 0
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Store a register; writes of parts of one do nothing (section 13.2)."""
        if size == 4 and not offset & 3:
            self._write(offset, value & 0xFFFFFFFF)

    # ---- state

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        initial = self._initial()
        kept = [
            Register(at, value)
            for at, value in sorted(self._registers.items())
            if value != initial.get(at, 0)
        ]
        return pack(
            State(
                kept,
                self._icr,
                self._mask,
                self._link,
                self.port_address,
                self._eeprom.state,
                self._phy.state,
                self._sender.state,
            )
        )

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        s = unpack(State, state, self.name)
        registers = self._initial()
        last = -1
        for each in s.registers:
            mask = _writable(each.offset)
            if each.offset <= last or mask is None or each.value & ~mask:
                raise misfit(f"{self.name}.registers", f"{each.offset:#x} cannot hold {each.value:#x}")
            if each.value == registers.get(each.offset, 0):
                raise misfit(f"{self.name}.registers", f"{each.offset:#x} is as after a reset: left out")
            last = each.offset
            registers[each.offset] = each.value
        if (s.icr | s.mask) & ~r.CAUSES or s.port_address >= MEMORY_SIZE:
            raise misfit(self.name, "interrupts or an address that do not exist")
        if len(s.sending.packet) > MOST_BYTES:
            raise misfit(f"{self.name}.sending.packet", f"{len(s.sending.packet)} bytes")
        self._registers = registers
        self._icr, self._mask, self._link = s.icr, s.mask, s.link
        self.port_address = s.port_address
        self._eeprom.state, self._phy.state, self._sender.state = s.eeprom, s.phy, s.sending
        self._irq.level = bool(self._icr & self._mask)

    # ---- inside: registers

    def _initial(self) -> dict[int, int]:
        address = {
            r.RAL: int.from_bytes(self._mac[:4], "little"),
            r.RAH: int.from_bytes(self._mac[4:], "little") | r.RAH_AV,
        }
        return r.AT_RESET | address

    def _reset(self) -> None:
        self._registers = self._initial()
        self._icr = self._mask = 0
        self._sender.state = SendState()
        self._irq.set(False)

    def _read(self, at: int) -> int:
        match at:
            case r.STATUS:
                return 0x80080781 | (r.STATUS_LU if self._has_link else 0)
            case r.EECD:
                return self._eeprom.read_eecd()
            case r.EERD:
                return self._eeprom.state.eerd
            case r.MDIC:
                return self._phy.state.mdic
            case r.ICR:
                causes, self._icr = self._icr, 0
                self._update()
                return causes
            case r.IMS:
                return self._mask
        value = self._registers.get(at, 0)
        if r.FIRST_STATISTIC <= at <= r.LAST_STATISTIC:
            self._registers.pop(at, None)
        return value

    def _write(self, at: int, value: int) -> None:
        match at:
            case r.CTRL:
                if value & r.CTRL_RST:
                    self._reset()
                    return
                before = self._has_link
                if value & r.CTRL_PHY_RST:
                    self._phy.reset()
                self._registers[at] = value & ~(r.CTRL_RST | r.CTRL_PHY_RST)
                if self._has_link != before:
                    self._cause(r.LSC)
            case r.EECD:
                self._eeprom.write_eecd(value)
            case r.EERD:
                self._eeprom.write_eerd(value)
            case r.MDIC:
                if self._phy.mdic(value, self._has_link):
                    self._cause(r.MDAC)
            case r.ICR:
                self._icr &= ~value
                self._update()
            case r.ICS:
                self._cause(value & r.CAUSES)
            case r.IMS:
                self._mask |= value & r.CAUSES
                self._update()
            case r.IMC:
                self._mask &= ~value
                self._update()
            case _:
                mask = r.PLAIN.get(at)
                if mask is not None:
                    self._registers[at] = value & mask
                    if at in (r.TDT, r.TCTL):
                        self._send_all()

    @property
    def _has_link(self) -> bool:
        return self._link and bool(self._registers.get(r.CTRL, 0) & r.CTRL_SLU)

    def _cause(self, causes: int) -> None:
        self._icr |= causes
        self._update()

    def _update(self) -> None:
        self._irq.set(bool(self._icr & self._mask))

    def _ring(self, length: int) -> int:
        return self._registers.get(length, 0) // _DESCRIPTOR

    def _at(self, low: int, high: int, index: int) -> int:
        base = self._registers.get(high, 0) << 32 | self._registers.get(low, 0)
        return base + _DESCRIPTOR * index

    def _add(self, at: int, number: int) -> None:
        """Count; a counter stops at its highest value (section 13.7)."""
        self._registers[at] = min(0xFFFFFFFF, self._registers.get(at, 0) + number)

    def _add_bytes(self, low: int, number: int) -> None:
        total = self._registers.get(low, 0) | self._registers.get(low + 4, 0) << 32
        total = min((1 << 64) - 1, total + number)
        self._registers[low], self._registers[low + 4] = total & 0xFFFFFFFF, total >> 32

    # ---- inside: receiving

    def _is_for_us(self, frame: bytes, control: int, tagged: bool) -> bool:
        """Section 3.2.1: does the card take a frame?"""
        if tagged and control & r.RCTL_VFE:
            vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
            if not self._registers.get(r.VFTA + 4 * (vlan >> 5), 0) >> (vlan & 31) & 1:
                return False
        to = frame[:6]
        if to == b"\xff" * 6:
            return bool(control & (r.RCTL_BAM | r.RCTL_MPE))
        if to[0] & 1:
            if control & r.RCTL_MPE:
                return True
        elif control & r.RCTL_UPE:
            return True
        for i in range(16):
            high = self._registers.get(r.RAH + 8 * i, 0)
            if high & r.RAH_AV:
                low = self._registers.get(r.RAL + 8 * i, 0)
                if to == low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little"):
                    return True
        if not to[0] & 1:
            return False
        shift = (4, 3, 2, 0)[control >> 12 & 3]
        hashed = (to[4] | to[5] << 8) >> shift & 0xFFF
        return bool(self._registers.get(r.MTA + 4 * (hashed >> 5), 0) >> (hashed & 31) & 1)

    def _store(self, frame: bytes, control: int, tagged: bool) -> None:
        """Write a frame into receive buffers, or count it as missed and leave them all as they are."""
        status, special = _IXSM, 0
        whole = frame
        if tagged and self._registers.get(r.CTRL, 0) & r.CTRL_VME:
            status, special = status | _VP, int.from_bytes(frame[14:16], "big")
            frame = frame[:12] + frame[16:]
        if not control & r.RCTL_SECRC:
            frame += zlib.crc32(whole).to_bytes(4, "little")
        size = 2048 >> (control >> 16 & 3)
        if control & r.RCTL_BSEX and control >> 16 & 3:
            size *= 16
        count, head, tail = self._ring(r.RDLEN), self._registers.get(r.RDH, 0), self._registers.get(r.RDT, 0)
        needed = -(-len(frame) // size)
        if not count or head >= count or needed > (tail - head) % count:
            self._add(r.MPC, 1)
            self._add(r.RNBC, 1)
            self._cause(r.RXO)
            return
        try:
            for number in range(needed):
                piece = frame[number * size : (number + 1) * size]
                at = self._at(r.RDBAL, r.RDBAH, head)
                (address,) = struct.unpack("<Q", self._memory.read(at, 8))
                self._memory.write(address, piece)
                bits = status | _DD | (_EOP if number == needed - 1 else 0)
                self._memory.write(at + 8, struct.pack("<HHBBH", len(piece), 0, bits, 0, special))
                head = (head + 1) % count
        except IndexError:
            self._registers[r.RCTL] = control & ~r.RCTL_EN  # a bus error: the receiver stops
            return
        self._registers[r.RDH] = head
        self._count_received(whole, good=True)
        causes = r.RXT0
        if (tail - head) % count <= count >> (control >> 8 & 3) + 1:
            causes |= r.RXDMT0
        self._cause(causes)

    def _count_received(self, frame: bytes, good: bool) -> None:
        size = len(frame) + 4
        if not good:
            self._add(r.TPR, 1)
            self._add_bytes(r.TORL, size)
            return
        self._add(r.GPRC, 1)
        self._add_bytes(r.GORCL, size)
        self._add(r.PRC64 + 4 * _bracket(size), 1)
        if frame[:6] == b"\xff" * 6:
            self._add(r.BPRC, 1)
        elif frame[0] & 1:
            self._add(r.MPRC, 1)

    # ---- inside: sending

    def _send_all(self) -> None:
        """Carry out the descriptors from TDH to TDT (section 3.3)."""
        control = self._registers.get(r.TCTL, 0)
        count = self._ring(r.TDLEN)
        head, tail = self._registers.get(r.TDH, 0), self._registers.get(r.TDT, 0)
        if not control & r.TCTL_EN or not count or head >= count or tail >= count or head == tail:
            return
        causes = r.TXQE
        vlan = bool(self._registers.get(r.CTRL, 0) & r.CTRL_VME)
        try:
            while head != tail:
                at = self._at(r.TDBAL, r.TDBAH, head)
                raw = self._memory.read(at, _DESCRIPTOR)
                if self._sender.take(raw, vlan, self._registers.get(r.VET, 0) & 0xFFFF):
                    self._memory.write(at + 12, bytes([raw[12] & 0xF0 | _DD]))
                    causes |= r.TXDW
                head = (head + 1) % count
        except IndexError:
            self._registers[r.TCTL] = control & ~r.TCTL_EN  # a bus error: the transmitter stops
            self._sender.state.packet = bytearray()
        self._registers[r.TDH] = head
        self._cause(causes)

    def _transmit(self, frame: bytes, short: bool) -> None:
        if short and self._registers.get(r.TCTL, 0) & r.TCTL_PSP:
            frame = frame.ljust(_MIN_FRAME, b"\0")
        size = len(frame) + 4
        self._add(r.TPT, 1)
        self._add_bytes(r.TOTL, size)
        if not self._has_link:
            return
        self._add(r.GPTC, 1)
        self._add_bytes(r.GOTCL, size)
        self._add(r.PTC64 + 4 * _bracket(size), 1)
        if frame[:6] == b"\xff" * 6:
            self._add(r.BPTC, 1)
        elif frame[0] & 1:
            self._add(r.MPTC, 1)
        self._port.send(EthernetSend(frame))


class E1000Ports:
    """The same registers behind two ports: an address at offset 0, data at offset 4 (section 13.1.3)."""

    def __init__(self, card: E1000) -> None:
        self._card = card

    def read(self, offset: int, size: int) -> int:
        """Return the address, or the register that it names."""
        if size != 4 or offset not in (0, 4):
            return 0
        return self._card.port_address if offset == 0 else self._card.read(self._card.port_address, 4)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the address, or into the register that it names."""
        if size != 4:
            return
        if offset == 0:
            self._card.port_address = value & MEMORY_SIZE - 4
        elif offset == 4:
            self._card.write(self._card.port_address, 4, value)


def _writable(at: int) -> int | None:
    """Return the bits that register `at` can hold, None where nothing is kept."""
    if r.FIRST_STATISTIC <= at <= r.LAST_STATISTIC and not at & 3:
        return 0xFFFFFFFF
    if at == r.CTRL:
        return ~(r.CTRL_RST | r.CTRL_PHY_RST) & 0xFFFFFFFF
    return r.PLAIN.get(at)


def _bracket(size: int) -> int:
    """Return which of the six counters by size a frame of `size` bytes, CRC and all, belongs to."""
    return next((i for i, most in enumerate((64, 127, 255, 511, 1023)) if size <= most), 5)
