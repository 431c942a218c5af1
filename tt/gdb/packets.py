"""The frames of gdb's remote protocol: checksums, escapes, and taking bytes apart.

    $payload#cc     cc: the sum of the payload's bytes as sent, modulo 256, two hex digits
    +  -            the last packet arrived well, or did not (not in no-ack mode)
    0x03            interrupt, outside of packets

In a payload `}` escapes: the next byte is XORed with 0x20; so `#`, `$`, `}` and
(in answers) `*` can be sent.  Source: the gdb manual, appendix E, "Overview".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_PACKET = 0x10000
"""The longest payload taken or sent, in bytes as sent; gdb is told so (PacketSize)."""

_ESCAPE = 0x7D
_ESCAPED = frozenset(b"#$}*")
_RAW, _PAYLOAD, _FIRST_DIGIT, _SECOND_DIGIT = range(4)


@dataclass(frozen=True)
class Packet:
    """A packet that came; `good` is false if its checksum was wrong or it was too long."""

    payload: bytes
    good: bool = True


@dataclass(frozen=True)
class Ack:
    """The other side took our last packet, or (`good` false) wants it again."""

    good: bool


@dataclass(frozen=True)
class Interrupt:
    """The other side wants the guest to stop."""


Item = Packet | Ack | Interrupt


def checksum(data: bytes | bytearray) -> int:
    """Return the sum of the bytes modulo 256."""
    return sum(data) & 0xFF


def escape(data: bytes) -> bytes:
    """Return `data` as it goes into a payload."""
    if not _ESCAPED.intersection(data):
        return data
    return b"".join(bytes((_ESCAPE, b ^ 0x20)) if b in _ESCAPED else bytes((b,)) for b in data)


def unescape(data: bytes) -> bytes:
    """Return what a payload says; an escape at its very end stands for nothing."""
    if _ESCAPE not in data:
        return data
    parts = bytearray()
    source = iter(data)
    for byte in source:
        if byte == _ESCAPE:
            following = next(source, None)
            if following is not None:
                parts.append(following ^ 0x20)
        else:
            parts.append(byte)
    return bytes(parts)


def frame(payload: bytes) -> bytes:
    """Return the packet that carries `payload`, whose bytes are escaped where they must be already."""
    return b"$%b#%02x" % (payload, checksum(payload))


class Decoder:
    """Takes a stream of bytes apart, however it is cut into pieces.

    Bytes outside of packets that mean nothing are passed over, as the protocol
    wants it.  Memory is bounded: of a payload longer than `MAX_PACKET` the rest is
    dropped.
    """

    def __init__(self) -> None:
        self._state = _RAW
        self._payload = bytearray()
        self._too_long = False
        self._digit = 0

    def feed(self, data: bytes) -> Iterator[Item]:
        """Yield what is complete with `data`; all of it is taken only when the iterator is exhausted."""
        for byte in data:
            if self._state == _RAW:
                if byte == 0x24:  # $
                    self._begin()
                elif byte in b"+-":
                    yield Ack(byte == 0x2B)
                elif byte == 3:
                    yield Interrupt()
            elif self._state == _PAYLOAD:
                if byte == 0x23:  # #
                    self._state = _FIRST_DIGIT
                elif byte == 0x24:  # the packet before was cut off
                    self._begin()
                elif len(self._payload) < MAX_PACKET:
                    self._payload.append(byte)
                else:
                    self._too_long = True
            elif self._state == _FIRST_DIGIT:
                self._digit = _hex_digit(byte)
                self._state = _SECOND_DIGIT
            else:
                self._state = _RAW
                low = _hex_digit(byte)
                right = self._digit >= 0 and low >= 0 and self._digit << 4 | low == checksum(self._payload)
                yield Packet(bytes(self._payload), right and not self._too_long)

    def _begin(self) -> None:
        self._state = _PAYLOAD
        self._payload.clear()
        self._too_long = False


class BadPacket(Exception):
    """A packet does not say what its kind of packet must say."""


def _hex_digit(byte: int) -> int:
    """Return the value of a hex digit, -1 for any other byte."""
    return b"0123456789abcdef".find(bytes((byte,)).lower())


def parse_hex(text: bytes, most: int = 1 << 64) -> int:
    """Return the number that hex digits mean; raises `BadPacket` for anything else, or `most` and above."""
    if not text or len(text) > 32 or any(_hex_digit(byte) < 0 for byte in text):
        raise BadPacket(f"{text[:32]!r} is no hexadecimal number")
    value = int(text, 16)
    if value >= most:
        raise BadPacket(f"{value:#x} is too large")
    return value


def parse_pair(text: bytes) -> tuple[int, int]:
    """Return ADDR and SIZE of `ADDR,SIZE`; raises `BadPacket`."""
    addr, comma, size = text.partition(b",")
    if not comma:
        raise BadPacket(f"{text[:32]!r} is not ADDR,SIZE")
    return parse_hex(addr), parse_hex(size)


def parse_bytes(text: bytes) -> bytes:
    """Return the bytes that pairs of hex digits mean; raises `BadPacket`."""
    if len(text) % 2 or any(_hex_digit(byte) < 0 for byte in text):
        raise BadPacket(f"{text[:32]!r} is not bytes in hexadecimal")
    return bytes.fromhex(text.decode("ascii"))


def parse_text(text: bytes) -> str:
    """Return the text that is sent as bytes in hexadecimal; raises `BadPacket`."""
    try:
        return parse_bytes(text).decode()
    except UnicodeDecodeError:
        raise BadPacket(f"{text[:32]!r} is not a text in UTF-8") from None
