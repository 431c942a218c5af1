"""What devices say to the world: one small set of messages for each class of device.

After µDenali (Whitaker et al., NSDI'04, section 3; IEEE Computer, May 2005, figure 4):
a disk, a console, a network card or a timer sends messages, and whoever answers them is the
device's implementation.  A message answered with `None` has failed.

=============== ======================================= ==========================
message         meaning                                 answer
=============== ======================================= ==========================
DiskRead        read `sectors` sectors from `lba`       the sectors
DiskWrite       store whole sectors at `lba`            b""
DiskFlush       make every write so far durable         b""
DiskDiscard     `sectors` sectors read as zeros now     b""
DiskSize        how many sectors are there?             uint64, little-endian
ConsoleWrite    the guest printed `data`                b""
ConsoleInput    somebody typed `data` for the guest     b""
EthernetSend    the guest sent `frame`                  b""
EthernetReceive `frame` came for the guest              b""
EthernetLink    the cable was plugged in or pulled out  b""
TimerExpired    guest time has reached `at_ns`          b"": tell the guest
=============== ======================================= ==========================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tt.errors import BadInput

SECTOR = 512
SHORTEST_FRAME, LONGEST_FRAME = 14, 65_550
"""Bytes of a frame: an Ethernet header, with a VLAN tag and the longest IP packet behind it at most."""
_U64 = struct.Struct("<Q")
_TWO = struct.Struct("<QQ")

Answer = bytes | None
"""What a message is answered with; None: it failed."""

CLASSES = ("disk", "console", "timer", "ethernet")
"""The classes of device.  Events name a device by 16 times its number plus the place of its class here."""


@dataclass(frozen=True, slots=True)
class DiskRead:
    """Read `sectors` sectors of 512 bytes from sector `lba` on."""

    lba: int
    sectors: int


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """Store `data`, whole sectors, from sector `lba` on."""

    lba: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DiskFlush:
    """Make every write so far durable."""


@dataclass(frozen=True, slots=True)
class DiskDiscard:
    """Make `sectors` sectors from `lba` on read as zeros."""

    lba: int
    sectors: int


@dataclass(frozen=True, slots=True)
class DiskSize:
    """Ask how many sectors the disk has.  It has to be answered at once."""


@dataclass(frozen=True, slots=True)
class ConsoleWrite:
    """The guest printed `data`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ConsoleInput:
    """Somebody typed `data`: this message goes to the guest."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EthernetSend:
    """The guest sent a frame: from the destination's address on, without the checksum at its end."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class EthernetReceive:
    """A frame came for the guest: this message goes to the guest."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class EthernetLink:
    """The cable is plugged in, or pulled out: this message goes to the guest."""

    up: bool


@dataclass(frozen=True, slots=True)
class TimerExpired:
    """Guest time has reached `at_ns`, for which the guest had set its timer."""

    at_ns: int


Message = (
    DiskRead
    | DiskWrite
    | DiskFlush
    | DiskDiscard
    | DiskSize
    | ConsoleWrite
    | ConsoleInput
    | EthernetSend
    | EthernetReceive
    | EthernetLink
    | TimerExpired
)


def unit_of(device: str) -> int:
    """Return the number that stands for a device ("disk0", "console0") in events."""
    name = device.rstrip("0123456789")
    return 16 * int(device[len(name) :]) + CLASSES.index(name)


def fit(message: Message, answer: Answer) -> Answer:
    """Return an answer as a device may take it: one of the wrong length is a failure."""
    if answer is None:
        return None
    if isinstance(message, DiskRead):
        return answer if len(answer) == message.sectors * SECTOR else None
    if isinstance(message, DiskSize):
        return answer if len(answer) == 8 else None
    return b""


def encode(message: Message) -> bytes:
    """Return a message as bytes: see docs/trace-format.md."""
    match message:
        case DiskRead(lba, sectors):
            return b"\1" + _TWO.pack(lba, sectors)
        case DiskWrite(lba, data):
            return b"\2" + _U64.pack(lba) + data
        case DiskFlush():
            return b"\3"
        case DiskDiscard(lba, sectors):
            return b"\4" + _TWO.pack(lba, sectors)
        case DiskSize():
            return b"\5"
        case ConsoleWrite(data):
            return b"\6" + data
        case ConsoleInput(data):
            return b"\7" + data
        case TimerExpired(at_ns):
            return b"\x08" + _U64.pack(at_ns)
        case EthernetSend(frame):
            return b"\x09" + frame
        case EthernetReceive(frame):
            return b"\x0a" + frame
        case EthernetLink(up):
            return b"\x0b" + bytes([up])


def decode(raw: bytes) -> Message:
    """Return the message that `encode` gave `raw` for; raises `BadInput` for other bytes."""
    code, rest = raw[:1], raw[1:]
    if code == b"\1" and len(rest) == _TWO.size:
        return DiskRead(*_TWO.unpack(rest))
    if code == b"\2" and len(rest) >= 8 and len(rest) % SECTOR == 8:
        return DiskWrite(_U64.unpack_from(rest)[0], rest[8:])
    if code == b"\3" and not rest:
        return DiskFlush()
    if code == b"\4" and len(rest) == _TWO.size:
        return DiskDiscard(*_TWO.unpack(rest))
    if code == b"\5" and not rest:
        return DiskSize()
    if code == b"\6":
        return ConsoleWrite(rest)
    if code == b"\7":
        return ConsoleInput(rest)
    if code == b"\x08" and len(rest) == 8:
        return TimerExpired(_U64.unpack(rest)[0])
    if code == b"\x09":
        return EthernetSend(rest)
    if code == b"\x0a":
        return EthernetReceive(rest)
    if code == b"\x0b" and rest in (b"\0", b"\1"):
        return EthernetLink(rest == b"\1")
    raise BadInput(f"a message of a device cannot be read ({raw[:20].hex()}): the trace is damaged")
