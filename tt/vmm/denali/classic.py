"""A network card as of old, for a Denali machine: registers behind two ports, rings of descriptors in RAM.

It is there for the comparison that Denali's paper makes (Whitaker et al., OSDI'02, section
5.3.3): Linux's driver for the PCnet makes 10 accesses to receive a frame and 12 to send one.
It is that card as far as the driver sees it while frames come and go.
Source: AMD Am79C970A PCnet-PCI II data sheet, publication 19436, CSR0 to CSR3 and CSR112, and
its 32-bit software structures (SWSTYLE 2); no chained buffers, no address filter, no loopback.

    port 0x10 RDP: the register that RAP names    0x14 RAP    0x18 reset, by reading
    initialization block, 28 bytes:
        u16 mode, u16 ring lengths (bits 7-4 receive, 15-12 send: 2 to the power),
        u8 address[6], u16 0, u8 filter[8], u32 receive ring, u32 send ring
    descriptor, 16 bytes:
        u32 buffer, u16 -size, u16 status (OWN, ERR, ..., STP, ENP), u32 message, u32 the driver's
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any

from tt.vmm.denali.registers import REFUSED, is_buffer
from tt.vmm.memory import Memory
from tt.vmm.messages import SHORTEST_FRAME as SHORTEST
from tt.vmm.messages import EthernetSend
from tt.vmm.router import Port
from tt.vmm.state import U16, U32, U64, AtMost, misfit, pack, unpack

RDP, RAP, RESET = 0x10, 0x14, 0x18
LONGEST = 1518
"""Bytes of the longest frame, a VLAN tag counted, the checksum not."""

MOST_WAITING = 512
"""Most frames that wait for a hand-over."""

_CHECKSUM = 4  # bytes of a frame's checksum, which MCNT counts
_MISSED_FRAMES = 112  # the number of the register


class Csr0(IntEnum):
    """Bits of the register 0: what happened, and what is to be done.  Whole numbers: flags are slow."""

    INIT = 0x0001
    STRT = 0x0002
    STOP = 0x0004
    TDMD = 0x0008
    TXON = 0x0010
    RXON = 0x0020
    IENA = 0x0040
    INTR = 0x0080
    IDON = 0x0100
    TINT = 0x0200
    RINT = 0x0400
    MERR = 0x0800
    MISS = 0x1000
    ERR = 0x8000


_CLEARED_BY_ONES = 0x7F00
_CAUSES = Csr0.IDON | Csr0.TINT | Csr0.RINT | Csr0.MERR | Csr0.MISS
_ERRORS = Csr0.MERR | Csr0.MISS

# Of a descriptor's status, and of its message.
_OWN, _ERR, _BUFF, _STP, _ENP = 0x8000, 0x4000, 0x0400, 0x0200, 0x0100
_TX_BUFF, _TX_NO_CARRIER = 1 << 31, 1 << 27
_DESCRIPTOR = struct.Struct("<IHHI4x")
_INIT_BLOCK = struct.Struct("<HH6s2x8sII")


@dataclass
class State:
    """What the card has; ring lengths are the exponents, 0 to 9."""

    link: bool = True
    link_news: bool = False
    news: bool = False
    initialized: bool = False
    rap: U16 = 0
    csr0: U16 = int(Csr0.STOP)
    csr1: U16 = 0
    csr2: U16 = 0
    csr3: U16 = 0
    receive_ring: U32 = 0
    receive_length: Annotated[int, range(10)] = 0
    receive_at: Annotated[int, range(512)] = 0
    send_ring: U32 = 0
    send_length: Annotated[int, range(10)] = 0
    send_at: Annotated[int, range(512)] = 0
    waiting: Annotated[list[bytes], AtMost(MOST_WAITING)] = field(default_factory=list)
    missed: U64 = 0  # frames for which there was no descriptor
    received: U64 = 0
    sent: U64 = 0
    dropped: U64 = 0


class ClassicCard:
    """A card of the model `classic`: what the guest sends goes to `port`."""

    longest = LONGEST
    model_number = 1

    def __init__(self, port: Port, memory: Memory) -> None:
        self._s = State()
        self._port = port
        self._memory = memory
        self._waiting: deque[bytes] = deque()

    # ---- virtual instructions

    def read_port(self, port: int) -> int:
        """Return the 16 bits of a port, or REFUSED."""
        match port:
            case 0x10:
                return self._read_register(self._s.rap)
            case 0x14:
                return self._s.rap
            case 0x18:
                self._stop()
                self._s.rap = 0
                return 0
            case _:
                return REFUSED

    def write_port(self, port: int, value: int) -> int:
        """Write the lowest 16 bits of `value` to a port; return 0, or REFUSED."""
        value &= 0xFFFF
        match port:
            case 0x10:
                self._write_register(self._s.rap, value)
            case 0x14:
                self._s.rap = value
            case _:
                return REFUSED
        return 0

    # ---- from outside, and at hand-overs: see `tt.vmm.denali.ethernet.Card`

    def arrive(self, frame: bytes) -> None:
        """Keep a frame for the next hand-over, or drop it."""
        fits = SHORTEST <= len(frame) <= LONGEST and len(self._waiting) < MOST_WAITING
        if fits and self._s.link and self._s.csr0 & Csr0.RXON:
            self._waiting.append(frame)
        else:
            self._s.dropped += 1

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it out; the guest learns of it at the next hand-over."""
        self._s.link_news |= up != self._s.link
        self._s.link = up

    @property
    def room(self) -> int | None:
        """How many frames more there are descriptors for, one after the other."""
        s = self._s
        if not s.link or not s.csr0 & Csr0.RXON:
            return None
        entries, count = 1 << s.receive_length, 0
        if not is_buffer(s.receive_ring, entries * _DESCRIPTOR.size, self._memory.size):
            return None
        ring = self._memory.read(s.receive_ring, entries * _DESCRIPTOR.size)
        while count < entries:
            at = (s.receive_at + count) % entries * _DESCRIPTOR.size
            if not ring[at + 7] & _OWN >> 8:
                break
            count += 1
        return max(0, count - len(self._waiting))

    @property
    def due(self) -> bool:
        """Whether frames wait, the link has changed, or the card interrupts."""
        return bool(self._waiting) or self._s.link_news or self._interrupts

    def hand_over(self) -> bool:
        """Put the frames that wait into the guest's memory; return whether there is news for the guest."""
        while self._waiting:
            self._store(self._waiting.popleft())
        tell = self._interrupts or self._s.link_news
        if self._interrupts:
            self._s.news = False
        self._s.link_news = False
        return tell

    @property
    def link(self) -> bool:
        """Whether the cable is plugged in."""
        return self._s.link

    @property
    def received(self) -> int:
        """Frames put into the guest's memory."""
        return self._s.received

    @property
    def sent(self) -> int:
        """Frames that went out."""
        return self._s.sent

    @property
    def dropped(self) -> int:
        """Frames lost in either direction."""
        return self._s.dropped

    # ---- state

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        self._s.waiting = list(self._waiting)
        return pack(self._s)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        where = self._port.name
        saved = unpack(State, state, where)
        if saved.receive_at >= 1 << saved.receive_length or saved.send_at >= 1 << saved.send_length:
            raise misfit(where, "it is past the end of a ring")
        if any(not SHORTEST <= len(frame) <= LONGEST for frame in saved.waiting):
            raise misfit(f"{where}.waiting", "a frame has a length that none has")
        known = _CAUSES | Csr0.IENA | Csr0.RXON | Csr0.TXON | Csr0.STOP | Csr0.STRT | Csr0.INIT
        running = bool(saved.csr0 & Csr0.RXON)
        if saved.csr0 & ~known or (running and not saved.initialized) or (saved.waiting and not running):
            raise misfit(f"{where}.csr0", f"{saved.csr0:#x} cannot be")
        self._s = saved
        self._waiting = deque(saved.waiting)

    # ---- registers

    def _read_register(self, number: int) -> int:
        s = self._s
        match number:
            case 0:
                errors = Csr0.ERR if s.csr0 & _ERRORS else 0
                return s.csr0 | errors | (Csr0.INTR if s.csr0 & _CAUSES & ~s.csr3 else 0)
            case 1:
                return s.csr1
            case 2:
                return s.csr2
            case 3:
                return s.csr3
            case 112:
                return s.missed & 0xFFFF
            case _:
                return 0

    def _write_register(self, number: int, value: int) -> None:
        match number:
            case 0:
                self._command(value)
            case 1:
                self._s.csr1 = value
            case 2:
                self._s.csr2 = value
            case 3:
                self._s.csr3 = value

    def _command(self, value: int) -> None:
        s = self._s
        if value & Csr0.STOP:
            self._stop()
            return
        s.csr0 &= ~(value & _CLEARED_BY_ONES)
        if value & Csr0.IENA and not s.csr0 & Csr0.IENA:
            s.news = True  # what is set already interrupts from now on
        s.csr0 = s.csr0 & ~Csr0.IENA | value & Csr0.IENA
        if value & Csr0.INIT and not s.csr0 & Csr0.INIT:
            self._initialize()
        if value & Csr0.STRT and s.initialized:
            s.csr0 = s.csr0 & ~Csr0.STOP | Csr0.STRT | Csr0.RXON | Csr0.TXON
        if value & Csr0.TDMD and s.csr0 & Csr0.TXON:
            self._send_all()

    def _stop(self) -> None:
        s = self._s
        s.csr0 = int(Csr0.STOP)
        s.initialized = False
        s.dropped += len(self._waiting)
        self._waiting.clear()

    def _initialize(self) -> None:
        s = self._s
        block = s.csr1 | s.csr2 << 16
        if block % 4 or block + _INIT_BLOCK.size > self._memory.size:
            self._set(Csr0.MERR)
            return
        _mode, lengths, _address, _filter, s.receive_ring, s.send_ring = _INIT_BLOCK.unpack(
            self._memory.read(block, _INIT_BLOCK.size)
        )
        s.receive_length, s.send_length = min(lengths >> 4 & 15, 9), min(lengths >> 12, 9)
        s.receive_at = s.send_at = 0
        s.initialized = True
        s.csr0 = s.csr0 & ~Csr0.STOP | Csr0.INIT
        self._set(Csr0.IDON)

    def _set(self, cause: Csr0) -> None:
        self._s.csr0 |= cause
        self._s.news = True

    @property
    def _interrupts(self) -> bool:
        """Whether the card has something to tell that it has not told yet."""
        s = self._s
        return bool(s.news and s.csr0 & Csr0.IENA and s.csr0 & _CAUSES & ~s.csr3)

    # ---- frames

    def _store(self, frame: bytes) -> None:
        """Put a frame where the next receive descriptor says."""
        s = self._s
        at = s.receive_ring + s.receive_at * _DESCRIPTOR.size
        if not self._is_mine(at):
            s.dropped += 1
            return
        addr, room, status, _message = _DESCRIPTOR.unpack(self._memory.read(at, _DESCRIPTOR.size))
        if not status & _OWN:
            s.dropped += 1
            s.missed += 1
            self._set(Csr0.MISS)
            return
        size = len(frame)
        if -room & 0xFFF < size and room & 0xFFF:
            status, size = status | _ERR | _BUFF, 0
        elif not self._is_mine(addr, size):
            s.dropped += 1
            return
        if size:
            self._memory.write(addr, frame)
            s.received += 1
        else:
            s.dropped += 1
        mark = struct.pack("<HI", status & ~_OWN | _STP | _ENP, size + _CHECKSUM if size else 0)
        self._memory.write(at + 6, mark)
        s.receive_at = (s.receive_at + 1) % (1 << s.receive_length)
        self._set(Csr0.RINT)

    def _send_all(self) -> None:
        """Send what the ring has, from where the last time ended."""
        s = self._s
        for _ in range(1 << s.send_length):  # a ring that lies over itself has an end, too
            at = s.send_ring + s.send_at * _DESCRIPTOR.size
            if not self._is_mine(at):
                return
            addr, length, status, _message = _DESCRIPTOR.unpack(self._memory.read(at, _DESCRIPTOR.size))
            if not status & _OWN:
                return
            size, trouble = -length & 0xFFF, 0
            if status & (_STP | _ENP) != _STP | _ENP or not SHORTEST <= size <= LONGEST:
                trouble = _TX_BUFF
            elif not self._is_mine(addr, size):
                return
            elif not s.link:
                trouble = _TX_NO_CARRIER
            frame = b"" if trouble else self._memory.read(addr, size)
            mark = struct.pack("<HI", status & ~_OWN | (_ERR if trouble else 0), trouble)
            self._memory.write(at + 6, mark)
            s.send_at = (s.send_at + 1) % (1 << s.send_length)
            self._set(Csr0.TINT)
            if trouble:
                s.dropped += 1
            else:
                s.sent += 1
                self._port.send(EthernetSend(frame))

    def _is_mine(self, addr: int, size: int = _DESCRIPTOR.size) -> bool:
        """Tell whether the card may use memory; where it may not, the driver learns of it."""
        if is_buffer(addr, size, self._memory.size):
            return True
        self._set(Csr0.MERR)
        return False
