"""Capture files that Wireshark and tshark read.

Source: PCAP Next Generation (pcapng) Capture File Format, draft-ietf-opsawg-pcapng, sections 4.1
(section header), 4.2 (interface description) and 4.3 (enhanced packet).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

from tt.log import Frame

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
"""Types of blocks."""
BYTE_ORDER = 0x1A2B3C4D
ETHERNET = 1
"""The type of link."""
COMMENT, RESOLUTION = 1, 9
"""Options: of any block, and of an interface."""
_IF_NAME, _IF_MAC, _FLAGS = 2, 6, 2
_USER_APPLICATION = 4
_IN, _OUT = 1, 2


def section(options: bytes = b"") -> bytes:
    """Return the block that a file begins with."""
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1), options)


def interface(options: bytes = b"") -> bytes:
    """Return the block that describes an interface for Ethernet, whose times are in ns."""
    return _block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, 0), options + option(RESOLUTION, b"\x09"))


def packet(number: int, at_ns: int, data: bytes, options: bytes = b"") -> bytes:
    """Return the block of a frame of interface `number`; `at_ns` is since 1970."""
    size = len(data)
    head = struct.pack("<IIIII", number, at_ns >> 32, at_ns & 0xFFFFFFFF, size, size)
    return _block(PACKET, head + _padded(data), options)


def option(code: int, value: bytes) -> bytes:
    """Return an option of a block."""
    return struct.pack("<HH", code, len(value)) + _padded(value)


def write(out: BinaryIO, cards: Iterable[str], frames: Iterable[tuple[Frame, int]], comment: str = "") -> int:
    """Write `frames`, each with its time in ns since 1970, to `out`; return how many.

    `cards` are the addresses of the guest's cards (text).  Each packet has its direction, as the
    guest sees it, and a comment with the tick and the frame's number.
    """
    told = option(COMMENT, comment.encode()) if comment else b""
    out.write(section(option(_USER_APPLICATION, b"tt") + told))
    for number, mac in enumerate(cards):
        address = bytes.fromhex(mac.replace(":", ""))
        out.write(interface(option(_IF_NAME, f"ethernet{number}".encode()) + option(_IF_MAC, address)))
    count = 0
    for frame, at_ns in frames:
        note = f"tick {frame.tick}, frame {frame.number}, {'in' if frame.incoming else 'out'}"
        way = struct.pack("<I", _IN if frame.incoming else _OUT)
        options = option(COMMENT, note.encode()) + option(_FLAGS, way)
        out.write(packet(frame.card, at_ns, frame.data, options))
        count += 1
    return count


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    body += options + (bytes(4) if options else b"")  # the end of the options
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
