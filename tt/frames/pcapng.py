"""Capture files that Wireshark and tshark read.

Source: PCAP Next Generation (pcapng) Capture File Format, draft-ietf-opsawg-pcapng, sections 4.1
(section header), 4.2 (interface description) and 4.3 (enhanced packet).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

from tt.log import Frame

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_ETHERNET = 1
_COMMENT, _IF_NAME, _IF_MAC, _IF_RESOLUTION, _FLAGS = 1, 2, 6, 9, 2
_USER_APPLICATION = 4
_IN, _OUT = 1, 2


def write(out: BinaryIO, cards: Iterable[str], frames: Iterable[tuple[Frame, int]], comment: str = "") -> int:
    """Write `frames`, each with its time in ns since 1970, to `out`; return how many.

    `cards` are the addresses of the guest's cards (text).  Each packet has its direction, as the
    guest sees it, and a comment with the tick and the frame's number.
    """
    options = _option(_USER_APPLICATION, b"tt") + (_option(_COMMENT, comment.encode()) if comment else b"")
    out.write(_block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1), options))
    for number, mac in enumerate(cards):
        options = _option(_IF_NAME, f"ethernet{number}".encode())
        options += _option(_IF_MAC, bytes.fromhex(mac.replace(":", "")))
        options += _option(_IF_RESOLUTION, b"\x09")  # ns
        out.write(_block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0), options))
    count = 0
    for frame, at_ns in frames:
        size = len(frame.data)
        head = struct.pack("<IIIII", frame.card, at_ns >> 32, at_ns & 0xFFFFFFFF, size, size)
        direction = "in" if frame.incoming else "out"
        note = f"tick {frame.tick}, frame {frame.number}, {direction}"
        options = _option(_COMMENT, note.encode())
        options += _option(_FLAGS, struct.pack("<I", _IN if frame.incoming else _OUT))
        out.write(_block(_PACKET, head + _padded(frame.data), options))
        count += 1
    return count


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    options += bytes(4)  # the end of the options
    size = 12 + len(body) + len(options)
    return struct.pack("<II", kind, size) + body + options + struct.pack("<I", size)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
