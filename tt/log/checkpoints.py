"""Checkpoints in a trace: the machine's small state, and the pages of RAM that changed since the one before.

A row of `checkpoints`:

    tick      integer
    digest    16 bytes   the digest of RAM there
    state     zstd       JSON: what `Machine.save` gives, its bytes in base64
    changed   zstd       a bit for each page of RAM, lowest first: changed since the checkpoint before
    refs      zstd       u32 LE for each bit set, rising: where the page's contents are

A reference is 64 x pack + slot, or 0xffffffff for a page of zeros.  A row of
`page_packs` holds up to 64 of them, one zstd frame.  Packs with numbers below
0x2000000 hold pages of 4 KB.  Since version 4 there are packs of deltas, with
numbers from there on, so that the highest bit of a reference says which; a delta is

    base      u32 LE     reference of a page of 4 KB
    words     64 bytes   a bit for each word of 8 bytes, lowest first: the word differs from the base's
    values    8 x n      these words

A page whose words differ in more than a quarter from those last stored whole is
stored whole again.  A page at checkpoint k has the contents in the last row up to k that
holds it, or else those at power-on, which the machine's description gives.

When there are too many, or they take too much room, the writer drops the one
whose neighbours are closest together, the oldest first: its pages move to the
next.  So they stay evenly spread, and the way to any tick stays bounded.  The distance
between two is measured by what it costs to run from one to the other.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import zstandard

from tt.errors import BadInput
from tt.log._pages import DeltaPack, PagePacker, rank
from tt.log.blobs import inflate
from tt.log.connection import guard
from tt.log.kept import Kept
from tt.log.schema import row_crc

if TYPE_CHECKING:
    from tt.log.reader import Trace

PAGE = 4096
PACK_PAGES = 64
ZEROS = 0xFFFFFFFF
DELTA_PACKS = 1 << 25  # packs with numbers from here on hold deltas
MOST_CHECKPOINTS = 1000
_LEVEL = -3  # packed while the guest runs: level 1 makes traces a fifth smaller, and takes twice as long
_ZERO_PAGE = bytes(PAGE)
_MAX_STATE = 16 << 20
_MAX_PAGES = 1 << 28  # a terabyte
_CACHED_BYTES = 128 << 20
_MAX_DELTA = 4 + 64 + PAGE

Insert = Callable[..., None]


class CheckpointWriter:
    """Adds checkpoints to an open trace, and thins them to `most`, and to `most_bytes` of packed pages."""

    def __init__(
        self,
        db: sqlite3.Connection,
        insert: Insert,
        *,
        most: int = MOST_CHECKPOINTS,
        most_bytes: int = 1 << 62,
    ) -> None:
        self._db = db
        self._insert = insert
        self._most = most
        self._most_bytes = most_bytes
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self._ticks: list[int] = []
        self._costs: dict[int, int] = {}  # tick -> of the way there from power-on
        self._changed: dict[int, int] = {}  # tick -> bits
        self._refs: dict[int, array[int]] = {}
        self._packer = PagePacker()
        self._live: Counter[int] = Counter()  # pack -> references to it, and packs with deltas on it
        self._bases: dict[int, set[int]] = {}  # pack of deltas -> packs
        self._pack_bytes: dict[int, int] = {}
        self._bytes = 0

    def add(
        self,
        tick: int,
        state: dict[str, Any],
        digest: bytes,
        pages: bytes,
        contents: bytes,
        cost: int | None = None,
    ) -> None:
        """Store a checkpoint after all others: `pages` u32 numbers, rising, and their `contents`.

        `cost` says how long the way from power-on takes, in any unit; ticks, if it is left out.
        """
        numbers = array("I", pages)
        packed_refs, packs = self._packer.pack(pages, contents)
        refs = array("I", packed_refs)
        bits = bytearray(max(numbers, default=0) // 8 + 1)
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)
        for number, count, raw in packs:
            self._put_pack(number, count, raw)
        self._live.update(ref // PACK_PAGES for ref in refs if ref != ZEROS)
        self._ticks.append(tick)
        self._costs[tick] = tick if cost is None else cost
        self._changed[tick] = int.from_bytes(bits, "little")
        self._refs[tick] = refs
        self._put(tick, digest, self._compressor.compress(encode_state(state)))
        while len(self._ticks) > 3 and (len(self._ticks) > self._most or self._bytes > self._most_bytes):
            self._drop_one()

    # ---- inside

    def _put_pack(self, number: int, count: int, raw: bytes) -> None:
        packed = self._compressor.compress(raw)
        self._insert("page_packs", number, count, packed)
        self._pack_bytes[number] = len(packed)
        self._bytes += len(packed)
        if number >= DELTA_PACKS:
            self._bases[number] = {base // PACK_PAGES for base in DeltaPack(raw, count).bases}
            self._live.update(self._bases[number])

    def _put(self, tick: int, digest: bytes, state: bytes) -> None:
        bits = self._changed[tick]
        changed = self._compressor.compress(bits.to_bytes((bits.bit_length() + 7) // 8, "little"))
        refs = self._compressor.compress(self._refs[tick].tobytes())
        self._insert("checkpoints", tick, digest, state, changed, refs)

    def _drop_one(self) -> None:
        ticks = self._ticks
        costs = self._costs
        at = min(range(1, len(ticks) - 1), key=lambda i: (costs[ticks[i + 1]] - costs[ticks[i - 1]], i))
        dropped, following = ticks[at], ticks[at + 1]
        before = self._pages(dropped)
        after = self._pages(following)
        for number in before.keys() & after.keys():
            self._release(before[number])
        merged = dict(sorted((before | after).items()))
        self._changed[following] |= self._changed.pop(dropped)
        self._refs[following] = array("I", merged.values())
        del self._refs[dropped], costs[dropped], ticks[at]
        digest, state = self._db.execute(
            "SELECT digest, state FROM checkpoints WHERE tick = ?", (following,)
        ).fetchone()
        self._db.execute("DELETE FROM checkpoints WHERE tick IN (?, ?)", (dropped, following))
        self._put(following, digest, state)

    def _pages(self, tick: int) -> dict[int, int]:
        return dict(zip(set_bits(self._changed[tick]), self._refs[tick], strict=True))

    def _release(self, ref: int) -> None:
        if ref != ZEROS:
            self._release_pack(ref // PACK_PAGES)

    def _release_pack(self, pack: int) -> None:
        self._live[pack] -= 1
        if not self._live[pack]:
            del self._live[pack]
            self._bytes -= self._pack_bytes.pop(pack)
            self._db.execute("DELETE FROM page_packs WHERE number = ?", (pack,))
            for base in self._bases.pop(pack, ()):
                self._release_pack(base)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint of a trace: the pages in `changed` (bits, lowest first) changed since the one before."""

    reader: CheckpointReader
    tick: int
    digest: bytes
    changed: bytes

    @cached_property
    def state(self) -> dict[str, Any]:
        """The machine's state, as `Machine.save` gave it; raises `BadInput` when it is damaged."""
        return self.reader.state(self.tick)

    def page(self, number: int) -> bytes | memoryview:
        """Return what page `number` held, which must be one that changed; raises `BadInput`."""
        refs, at = self._refs, rank(self.changed, number)
        if at >= len(refs):
            raise self.reader.trace.damaged(f"the checkpoint at tick {self.tick:,} lacks pages")
        return self.reader.content(refs[at])

    @cached_property
    def _refs(self) -> array[int]:
        return self.reader.refs(self.tick)


class CheckpointReader:
    """The checkpoints of a trace, and the contents of their pages, the last used ones kept unpacked."""

    def __init__(self, trace: Trace, db: sqlite3.Connection) -> None:
        self.trace = trace
        self._db = db
        self._packs: Kept[int, bytes] = Kept(_CACHED_BYTES)
        self._deltas: Kept[int, DeltaPack] = Kept(_CACHED_BYTES)

    def all(self) -> list[StoredCheckpoint]:
        """Return all checkpoints by tick; raises `BadInput` when one is damaged."""
        found = []
        for tick, digest, _state, changed, _refs in self.trace.rows(
            "checkpoints", "tick, digest, state, changed, refs"
        ):
            if not isinstance(tick, int) or not 0 <= tick <= self.trace.end_tick or len(digest) != 16:
                raise self.trace.damaged("a checkpoint is of a tick that was not recorded")
            found.append(StoredCheckpoint(self, tick, digest, self._unpack(changed, _MAX_PAGES // 8)))
        return found

    def state(self, tick: int) -> dict[str, Any]:
        """Return the state of the checkpoint at `tick`."""
        return decode_state(self._unpack(self._column("state", tick), _MAX_STATE), self.trace)

    def refs(self, tick: int) -> array[int]:
        """Return the references of the checkpoint at `tick`."""
        raw = self._unpack(self._column("refs", tick), 4 * _MAX_PAGES)
        if len(raw) % 4:
            raise self.trace.damaged(f"the checkpoint at tick {tick:,} has half a reference")
        return array("I", raw)

    def content(self, ref: int) -> bytes | memoryview:
        """Return the 4096 bytes that a reference stands for."""
        if ref == ZEROS:
            return _ZERO_PAGE
        number, slot = divmod(ref, PACK_PAGES)
        if number >= DELTA_PACKS:
            deltas = self._delta_pack(number)
            if slot >= deltas.count:
                raise self.trace.damaged(f"pack {number} of pages has no page {slot}")
            base = deltas.base(slot)
            if base // PACK_PAGES >= DELTA_PACKS:  # deltas based on deltas could form an endless chain
                raise self.trace.damaged(f"page {slot} in pack {number} is not based on a whole page")
            return deltas.page(slot, self.content(base))
        pack = self._packs.get(number)
        if pack is None:
            pack = self._whole_pack(number)
        page = memoryview(pack)[slot * PAGE : (slot + 1) * PAGE]
        if len(page) != PAGE:
            raise self.trace.damaged(f"pack {number} of pages has no page {slot}")
        return page

    # ---- inside

    def _whole_pack(self, number: int) -> bytes:
        count, packed = self._pack_row(number)
        pack = self._inflated(number, packed, count * PAGE)
        return self._packs.put(number, pack, len(pack))

    def _delta_pack(self, number: int) -> DeltaPack:
        found = self._deltas.get(number)
        if found is not None:
            return found
        count, packed = self._pack_row(number)
        try:
            size = zstandard.get_frame_parameters(packed).content_size
            if not 0 <= size <= count * _MAX_DELTA:
                raise ValueError(f"it claims {size} bytes")
            deltas = DeltaPack(self._inflated(number, packed, size), count)
        except (zstandard.ZstdError, ValueError) as e:
            raise self.trace.damaged(f"pack {number} of pages: {e}") from None
        return self._deltas.put(number, deltas, size)

    def _pack_row(self, number: int) -> tuple[int, bytes]:
        with guard(self.trace.path):
            row = self._db.execute(
                "SELECT count, packed, crc FROM page_packs WHERE number = ?", (number,)
            ).fetchone()
        count, packed, crc = row or (None, None, None)
        if not isinstance(count, int) or not isinstance(packed, bytes) or not 0 < count <= PACK_PAGES:
            raise self.trace.damaged(f"pack {number} of pages is missing")
        if row_crc("page_packs", number, count, packed) != crc:
            raise self.trace.damaged(f"pack {number} of pages has a wrong checksum")
        return count, packed

    def _inflated(self, number: int, packed: bytes, size: int) -> bytes:
        try:
            return inflate(packed, size)
        except BadInput as e:
            raise self.trace.damaged(f"pack {number} of pages: {e}") from None

    def _column(self, name: str, tick: int) -> bytes:
        for row in self.trace.rows(
            "checkpoints", "tick, digest, state, changed, refs", where=f"tick = {int(tick)}"
        ):
            value = dict(zip(("tick", "digest", "state", "changed", "refs"), row, strict=True))[name]
            if isinstance(value, bytes):
                return value
        raise self.trace.damaged(f"the checkpoint at tick {tick:,} is missing")

    def _unpack(self, packed: Any, limit: int) -> bytes:
        if not isinstance(packed, bytes):
            raise self.trace.damaged("a column of a checkpoint is not bytes")
        try:
            size = zstandard.get_frame_parameters(packed).content_size
            if not 0 <= size <= limit:
                raise BadInput(f"it claims {size} bytes")
            return inflate(packed, size) if size else b""
        except (zstandard.ZstdError, BadInput) as e:
            raise self.trace.damaged(f"a checkpoint does not unpack ({e})") from None


def set_bits(bits: int) -> list[int]:
    """Return the numbers of the bits set in `bits`, rising."""
    numbers = []
    for at, byte in enumerate(bits.to_bytes((bits.bit_length() + 7) // 8, "little")):
        if byte:
            numbers += [at * 8 + i for i in range(8) if byte >> i & 1]
    return numbers


def encode_state(state: dict[str, Any]) -> bytes:
    """Return a machine's state as JSON, with the CPU's bytes in base64."""
    plain = {**state, "cpu": base64.b64encode(state["cpu"]).decode()}
    return json.dumps(plain, separators=(",", ":")).encode()


def decode_state(data: bytes, trace: Trace) -> dict[str, Any]:
    """Return the state that `encode_state` was given; raises `BadInput`."""
    with guard(trace.path):
        state = json.loads(data)
        if not isinstance(state, dict) or not isinstance(state.get("cpu"), str):
            raise ValueError("a checkpoint's state is not a table")
        return {**state, "cpu": base64.b64decode(state["cpu"], validate=True)}
