"""Capture files as ends of cables: one that is there is played to the guest, another is written.

Read are pcap (microseconds and nanoseconds, either byte order) and pcapng.  Sources: PCAP Capture File
Format (draft-ietf-opsawg-pcap) and PCAP Next Generation Capture File Format (draft-ietf-opsawg-pcapng,
sections 4.1 to 4.4 and, of blocks that old tools wrote, appendix A).  dpkt reads them too, but gives times as
floating-point numbers, which do not hold the nanoseconds of a date.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tt.errors import BadInput, TTError
from tt.frames import pcapng
from tt.frames.pcapng import BYTE_ORDER, ETHERNET, INTERFACE, PACKET, RESOLUTION, SECTION
from tt.net.ends import Nothing
from tt.vmm.messages import LONGEST_FRAME, SHORTEST_FRAME

_LARGEST = 1 << 30  # a file is read whole
_PACKET_OLD, _PACKET_SIMPLE = 2, 3
_END, _OFFSET = 0, 14
_MAGIC_US, _MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
_NS = 1_000_000_000


def read_capture(path: Path) -> list[tuple[int, bytes]]:
    """Return the frames of a capture file, each with its time in ns; raises `BadInput`.

    Frames that are none, or that were cut when they were captured, are refused.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise BadInput(f"{path} is too large to be played: at most {_LARGEST >> 20:,} MB")
        data = path.read_bytes()
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}") from None
    try:
        kind = data[:4]
        if kind == SECTION.to_bytes(4, "little"):
            frames = list(_read_pcapng(data))
        elif order := next((o for o in "<>" if _pcap_unit(kind, o)), ""):
            frames = list(_read_pcap(data, order))
        else:
            raise BadInput("it is neither pcap nor pcapng")
        for number, (_at, frame) in enumerate(frames, 1):
            if not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME:
                raise BadInput(f"frame {number} has {len(frame):,} bytes, which no Ethernet frame has")
    except BadInput as e:
        raise BadInput(f"{path} cannot be played: {e}") from None
    except (struct.error, IndexError):
        raise BadInput(f"{path} cannot be played: it ends in the middle of a block") from None
    return frames


class Player(Nothing):
    """An end that plays frames to the guest, at their times relative to the first, in guest time.

    The first comes when somebody listens in the guest, or at guest time `at_ns`.  What the guest
    sends is lost.
    """

    up = True

    def __init__(self, name: str, frames: list[tuple[int, bytes]], at_ns: int | None = None) -> None:
        super().__init__()
        self.name = name
        self._frames = frames
        self._next = 0
        self._at_ns = at_ns

    @property
    def started(self) -> bool:
        """Whether it is known when the first frame comes."""
        return self._at_ns is not None

    def receive(self, most: int, now_ns: int = 0) -> list[bytes]:
        """Return the frames that are due."""
        if self._at_ns is None:
            self._at_ns = now_ns
        found: list[bytes] = []
        while len(found) < most and (due := self.due_ns()) is not None and due <= now_ns:
            found.append(self._frames[self._next][1])
            self._next += 1
        return found

    def due_ns(self) -> int | None:
        """Return when the next frame comes."""
        if self._at_ns is None or self._next == len(self._frames):
            return None
        # One that is dated before the first comes with it.
        return self._at_ns + max(0, self._frames[self._next][0] - self._frames[0][0])


class Writer(Nothing):
    """An end that writes what the guest sends as pcapng, at guest time; `epoch` is that of power-on."""

    up = True

    def __init__(self, path: Path, *, epoch: int = 0, say: Callable[[str], None] = lambda line: None) -> None:
        """Begin the file; raises `TTError` where that cannot be done."""
        super().__init__()
        self.name = f"pcap:{path}"
        self._say = say
        self._epoch_ns = epoch * _NS
        try:
            self._file = path.open("xb")
            self._file.write(pcapng.section() + pcapng.interface())
            self._file.flush()
        except OSError as e:
            raise TTError(f"cannot write {path}: {e.strerror or e}") from None

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Write a frame; where that fails, the file ends, and frames are lost."""
        if self._file.closed:
            self.lost += 1
            return
        try:
            self._file.write(pcapng.packet(0, self._epoch_ns + now_ns, frame))
        except OSError as e:
            self._fail(e)

    def close(self) -> None:
        """Close the file."""
        if not self._file.closed:
            try:
                self._file.close()
            except OSError as e:
                self._fail(e)

    def _fail(self, error: OSError) -> None:
        self.lost += 1
        self._say(f"{self.name} cannot be written any more: {error.strerror or error}")
        with contextlib.suppress(OSError):
            self._file.close()


def _pcap_unit(magic: bytes, order: str) -> int:
    """Return how many ns a unit of a pcap file's times has, 0 where it is none."""
    units = {_MAGIC_US: 1000, _MAGIC_NS: 1}
    return units.get(struct.unpack(f"{order}I", magic)[0], 0) if len(magic) == 4 else 0


def _read_pcap(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    unit = _pcap_unit(data[:4], order)
    (link,) = struct.unpack_from(f"{order}20xI", data)
    _check_link(link)
    at = 24
    while at < len(data):
        seconds, rest, size, whole = struct.unpack_from(f"{order}IIII", data, at)
        at += 16
        yield seconds * _NS + rest * unit, _piece(data, at, size, whole)
        at += size


def _read_pcapng(data: bytes) -> Iterator[tuple[int, bytes]]:
    order, at, time_ns = "<", 0, 0
    scales: list[Callable[[int], int]] = []  # of each interface of the section, from its units to ns
    while at < len(data):
        if data[at : at + 4] == SECTION.to_bytes(4, "little"):
            order = "<" if struct.unpack_from("<I", data, at + 8)[0] == BYTE_ORDER else ">"
            if struct.unpack_from(f"{order}I", data, at + 8)[0] != BYTE_ORDER:
                raise BadInput("a section of it has no byte order")
            scales = []
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = data[at + 8 : at + size - 4]
        if size < 12 or size % 4 or at + size > len(data):
            raise BadInput("it ends in the middle of a block")
        at += size
        if kind == INTERFACE:
            _check_link(struct.unpack_from(f"{order}H", body)[0])
            scales.append(_scale(body[8:], order))
        elif kind in (PACKET, _PACKET_OLD):
            first, high, low, length, whole = struct.unpack_from(f"{order}IIIII", body)
            interface = first if kind == PACKET else struct.unpack_from(f"{order}H", body)[0]
            if interface >= len(scales):
                raise BadInput(f"a frame of it is of interface {interface}, which was not described")
            time_ns = scales[interface](high << 32 | low)
            yield time_ns, _piece(body, 20, length, whole)
        elif kind == _PACKET_SIMPLE:  # it has no time: it comes with the one before it
            (whole,) = struct.unpack_from(f"{order}I", body)
            yield time_ns, _piece(body, 4, min(whole, len(body) - 4), whole)


def _scale(options: bytes, order: str) -> Callable[[int], int]:
    """Return what makes ns of an interface's times, as its options say."""
    resolution, offset_ns, at = 6, 0, 0
    while at + 4 <= len(options):
        code, size = struct.unpack_from(f"{order}HH", options, at)
        if code == _END:
            break
        if code == RESOLUTION:
            resolution = options[at + 4]
        elif code == _OFFSET:
            offset_ns = struct.unpack_from(f"{order}q", options, at + 4)[0] * _NS
        at += 4 + size + -size % 4
    parts = 1 << (resolution & 127) if resolution & 128 else 10**resolution
    return lambda units: units * _NS // parts + offset_ns


def _piece(data: bytes, at: int, size: int, whole: int) -> bytes:
    if size < whole:
        raise BadInput(
            f"a frame of {whole:,} bytes was cut to {size:,} when it was captured: capture whole ones"
        )
    if at + size > len(data):
        raise BadInput("it ends in the middle of a frame")
    return data[at : at + size]


def _check_link(kind: int) -> None:
    if kind != ETHERNET:
        raise BadInput(f"its frames are of the kind {kind} (LINKTYPE), and only Ethernet (1) can be played")
