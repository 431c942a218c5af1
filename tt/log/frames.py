"""The contents of Ethernet frames in a trace: stored once, in packs.

A FRAME_IN or FRAME_OUT event is stored with 20 bytes in the place of its data:

    contents  u64 LE   the number of the contents, counted from 0 over the whole trace
    host_ns   u64 LE   when the event was logged, ns since 1970
    size      u32 LE   bytes of the frame

A row of `frame_packs` holds the contents `number`, `number` + 1, ... `number` + `count` - 1:

    count x u32 LE   their sizes
    bytes            their bytes, one after the other

as one zstd frame, or as they are where that is not smaller.  What is the same as a frame of the
last packs (a broadcast that several machines get, a frame sent again) is not stored again.
"""

from __future__ import annotations

import sqlite3
import struct
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tt.errors import BadInput
from tt.log.blobs import pack, unpack
from tt.log.connection import guard
from tt.log.kept import Kept
from tt.log.schema import row_crc

if TYPE_CHECKING:
    from tt.log.reader import Trace

MAX_FRAME = 1 << 17
"""Bytes of the longest frame; a card takes less."""
_PACK_BYTES = 256 << 10
_MAX_PACK = 2 * _PACK_BYTES + MAX_FRAME
_REMEMBERED_PACKS = 4  # how far back a frame that comes again is known
_CACHED_BYTES = 16 << 20
_REFERENCE = struct.Struct("<QQI")


class Reference(NamedTuple):
    """What a stored event has in the place of a frame."""

    contents: int
    host_ns: int
    size: int


def reference(data: bytes) -> Reference:
    """Return what the stored data of a frame event say; raises `BadInput`."""
    if len(data) != _REFERENCE.size:
        raise BadInput(f"a frame is described by {len(data)} bytes")
    return Reference(*_REFERENCE.unpack(data))


class FrameWriter:
    """Puts the contents of frames into the table `frame_packs`; `insert` stores a row."""

    def __init__(self, insert: Callable[..., None]) -> None:
        self._insert = insert
        self._first = 0  # the number of the first of `_waiting`
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._known: list[dict[bytes, int]] = [{}]  # contents -> number, the newest pack last

    def put(self, frame: bytes, host_ns: int) -> bytes:
        """Keep a frame for the next `flush`, due once `full`; return what stands for it in its event."""
        for pack_ in reversed(self._known):
            number = pack_.get(frame)
            if number is not None:
                break
        else:
            number = self._first + len(self._waiting)
            self._waiting.append(frame)
            self._waiting_bytes += len(frame) + 4
            self._known[-1][frame] = number
        return _REFERENCE.pack(number, host_ns, len(frame))

    @property
    def full(self) -> bool:
        """Whether what waits is to be flushed."""
        return self._waiting_bytes >= _PACK_BYTES

    def flush(self) -> None:
        """Store what waits."""
        if not self._waiting:
            return
        count = len(self._waiting)
        raw = struct.pack(f"<{count}I", *map(len, self._waiting)) + b"".join(self._waiting)
        self._insert("frame_packs", self._first, count, len(raw), pack(raw))
        self._first += count
        self._waiting, self._waiting_bytes = [], 0
        self._known.append({})
        del self._known[:-_REMEMBERED_PACKS]


class FrameReader:
    """The contents of the frames of a trace, the last used packs kept unpacked."""

    def __init__(self, trace: Trace, db: sqlite3.Connection) -> None:
        self._trace = trace
        self._db = db
        self._packs: Kept[int, list[bytes]] = Kept(_CACHED_BYTES)
        self._firsts: list[int] | None = None

    def contents(self, of: Reference) -> bytes:
        """Return the frame that `of` refers to; raises `BadInput`."""
        firsts = self._all_firsts()
        at = bisect_right(firsts, of.contents) - 1
        if at < 0:
            raise self._missing(of.contents)
        frames = self._pack(firsts[at])
        slot = of.contents - firsts[at]
        if slot >= len(frames):
            raise self._missing(of.contents)
        if len(frames[slot]) != of.size:
            raise self._trace.damaged(f"frame {of.contents} has another size than its event says")
        return frames[slot]

    def check(self) -> None:
        """Read everything; raises `BadInput`."""
        end = 0
        for first in self._all_firsts():
            if first != end:
                raise self._missing(end)
            end += len(self._pack(first))

    def _all_firsts(self) -> list[int]:
        if self._firsts is None:
            with guard(self._trace.path):
                rows = self._db.execute("SELECT number FROM frame_packs ORDER BY number").fetchall()
            if not all(isinstance(number, int) for (number,) in rows):
                raise self._trace.damaged("a pack of frames has no number")
            self._firsts = [number for (number,) in rows]
        return self._firsts

    def _pack(self, number: int) -> list[bytes]:
        found = self._packs.get(number)
        if found is not None:
            return found
        with guard(self._trace.path):
            row = self._db.execute(
                "SELECT count, raw_size, packed, crc FROM frame_packs WHERE number = ?", (number,)
            ).fetchone()
        count, size, packed, crc = row or (None, None, None, None)
        where = f"the pack of frames from {number} on"
        if not (isinstance(count, int) and isinstance(size, int) and isinstance(packed, bytes)):
            raise self._trace.damaged(f"{where} is missing")
        if row_crc("frame_packs", number, count, size, packed) != crc:
            raise self._trace.damaged(f"{where} has a wrong checksum")
        if not 0 < count <= size // 4:
            raise self._trace.damaged(f"{where} claims {count} frames in {size} bytes")
        try:
            raw = unpack(packed, size, _MAX_PACK)
        except BadInput as e:
            raise self._trace.damaged(f"{where}: {e}") from None
        sizes = struct.unpack_from(f"<{count}I", raw)
        if 4 * count + sum(sizes) != size or max(sizes) > MAX_FRAME:
            raise self._trace.damaged(f"{where} has sizes that make no sense")
        frames, at = [], 4 * count
        for length in sizes:
            frames.append(raw[at : at + length])
            at += length
        return self._packs.put(number, frames, size)

    def _missing(self, number: int) -> BadInput:
        return self._trace.damaged(f"the contents of frame {number} are missing")
