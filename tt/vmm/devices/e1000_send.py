"""The transmitter of an 8254x: from descriptors to frames.

Source: Intel 317453-006, sections 3.3 (transmit descriptors), 3.4 (segmentation) and 3.5 (checksums).

    legacy    u64 address, u16 length, u8 CSO, u8 command, u8 status, u8 CSS, u16 special
    context   u8 IPCSS, u8 IPCSO, u16 IPCSE, u8 TUCSS, u8 TUCSO, u16 TUCSE,
              u32 length (20 bits), type, command; u8 status, u8 HDRLEN, u16 MSS
    data      u64 address, u32 length (20 bits), type, command; u8 status, u8 POPTS, u16 special
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tt.vmm.state import U8, U16, U32

_EOP, _IC, _RS, _DEXT, _VLE, _TSE = 1 << 0, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 2
_CONTEXT, _DATA = 0, 1
_TCP, _IP = 1, 2
_IXSM, _TXSM = 1, 2
MOST_BYTES = 1 << 18
"""The longest packet before it is cut into segments; drivers use 64 KB."""
_LONGEST_FRAME = 16384  # section 13.4.33: long packets
_MIN_FRAME = 60


@dataclass(slots=True)
class Context:
    """What the last context descriptor said."""

    ipcss: U8 = 0
    ipcso: U8 = 0
    ipcse: U16 = 0
    tucss: U8 = 0
    tucso: U8 = 0
    tucse: U16 = 0
    length: U32 = 0
    command: U8 = 0
    header: U8 = 0
    mss: U16 = 0


@dataclass(slots=True)
class SendState:
    """A packet under way, and the contexts: one for segmentation, one for checksums alone."""

    packet: bytearray = field(default_factory=bytearray)
    options: U8 = 0
    segmented: bool = False
    legacy_checksum: bool = False
    cso: U8 = 0
    css: U8 = 0
    tag: U16 | None = None
    too_long: bool = False
    plain: Context = field(default_factory=Context)
    tse: Context = field(default_factory=Context)


class Sender:
    """Puts packets together from descriptors; `send(frame)` is given each frame, `pad`ded if asked for."""

    def __init__(self, read: Callable[[int, int], bytes], send: Callable[[bytes, bool], None]) -> None:
        self.state = SendState()
        self._read = read
        self._send = send

    def take(self, raw: bytes, vlan: bool, vlan_type: int) -> bool:
        """Take a descriptor of 16 bytes; return whether its status is to be written back.

        With `vlan` tags of the type `vlan_type` are put in where a descriptor says so.  Raises
        `IndexError` for a buffer outside memory.
        """
        s = self.state
        address, low, high = struct.unpack("<QII", raw)
        command = low >> 24
        if command & _DEXT:
            kind = low >> 20 & 15
            if kind == _CONTEXT:
                self._context(raw, command)
                return bool(command & _RS)
            if kind != _DATA:
                return bool(command & _RS)  # no such type: it sends nothing
            size, options = low & 0xFFFFF, high >> 8 & 0xFF
            if not s.packet:
                s.options, s.segmented, s.legacy_checksum = options, bool(command & _TSE), False
        else:
            size = low & 0xFFFF
            if not s.packet:
                s.options, s.segmented = 0, False
            if command & _IC:
                s.legacy_checksum, s.cso, s.css = True, low >> 16 & 0xFF, high >> 8 & 0xFF
        if len(s.packet) + size > MOST_BYTES:
            s.too_long = True
        elif size:
            s.packet += self._read(address, size)
        if command & _EOP:
            s.tag = high >> 16 if command & _VLE and vlan else None
            if not s.too_long:
                self._finish(vlan_type)
            s.packet, s.too_long, s.legacy_checksum = bytearray(), False, False
            s.tag = None
        return bool(command & _RS)

    def _context(self, raw: bytes, command: int) -> None:
        ipcss, ipcso, ipcse, tucss, tucso, tucse, low, high = struct.unpack("<BBHBBHII", raw)
        context = Context(
            ipcss, ipcso, ipcse, tucss, tucso, tucse, low & 0xFFFFF, command, high >> 8 & 0xFF, high >> 16
        )
        if command & _TSE:
            self.state.tse = context
        else:
            self.state.plain = context

    def _finish(self, vlan_type: int) -> None:
        s = self.state
        if s.segmented:
            for segment in self._segments():
                self._out(segment, vlan_type)
            return
        packet = s.packet
        if s.legacy_checksum:
            _checksum(packet, s.css, s.cso, 0)
        if s.options & _TXSM:
            _checksum(packet, s.plain.tucss, s.plain.tucso, s.plain.tucse)
        if s.options & _IXSM:
            _checksum(packet, s.plain.ipcss, s.plain.ipcso, s.plain.ipcse)
        self._out(packet, vlan_type)

    def _segments(self) -> list[bytearray]:
        """Cut a packet into frames, each with its own IP and TCP header (section 3.4)."""
        s, c = self.state, self.state.tse
        header, payload = s.packet[: c.header], s.packet[c.header :][: c.length]
        if not c.mss or not c.header or len(header) < c.header or -(-len(payload) // c.mss) > 1024:
            return []
        found = []
        pieces = [payload[at : at + c.mss] for at in range(0, len(payload), c.mss)] or [payload]
        for number, piece in enumerate(pieces):
            frame = header + piece
            ip, tcp = c.ipcss, c.tucss
            if c.command & _IP:
                _put(frame, ip + 2, len(frame) - ip)
                _put(frame, ip + 4, (_get(header, ip + 4) + number) & 0xFFFF)
            else:
                _put(frame, ip + 4, len(frame) - ip - 40)  # IPv6: payload length
            above = len(frame) - tcp
            if c.command & _TCP:
                sequence = (_get(header, tcp + 4) << 16 | _get(header, tcp + 6)) + number * c.mss
                _put(frame, tcp + 4, sequence >> 16 & 0xFFFF)
                _put(frame, tcp + 6, sequence & 0xFFFF)
                if number < len(pieces) - 1 and tcp + 13 < len(frame):
                    frame[tcp + 13] &= ~0x09 & 0xFF  # FIN and PSH belong to the last
            else:
                _put(frame, tcp + 4, above)
            if s.options & _TXSM:
                # The driver has left the sum of the pseudo header there, without its length.
                total = _get(frame, c.tucso) + above
                _put(frame, c.tucso, (total & 0xFFFF) + (total >> 16))
                _checksum(frame, tcp, c.tucso, c.tucse)
            if s.options & _IXSM:
                _put(frame, c.ipcso, 0)
                _checksum(frame, ip, c.ipcso, c.ipcse)
            found.append(frame)
        return found

    def _out(self, packet: bytearray, vlan_type: int) -> None:
        tag = self.state.tag
        if tag is not None and len(packet) >= 12:
            packet = packet[:12] + vlan_type.to_bytes(2, "big") + tag.to_bytes(2, "big") + packet[12:]
        if 14 <= len(packet) <= _LONGEST_FRAME:
            self._send(bytes(packet), len(packet) < _MIN_FRAME)


def _get(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _put(data: bytearray, at: int, value: int) -> None:
    if at + 2 <= len(data):
        data[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


def _checksum(data: bytearray, start: int, at: int, end: int) -> None:
    """Store the Internet checksum (RFC 1071) of the bytes from `start` to `end` (0: all) at `at`."""
    last = end + 1 if end else len(data)
    covered = data[start:last]
    if at + 2 > len(data):
        return
    if len(covered) & 1:
        covered.append(0)
    total = sum(struct.unpack(f">{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    _put(data, at, ~total & 0xFFFF)
