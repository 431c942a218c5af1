"""The disks of a recording at any tick, read from the record instead of kept in memory.

A replayed guest makes the same writes again, so they need not be kept in memory: each
is compared with the record, and the disk moves on by one recorded write.  Going to a
tick only sets the number of writes that have been made.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

from tt.errors import Divergence
from tt.log import Trace
from tt.log.blobs import HASH_SIZE
from tt.log.sectors import SECTOR, piece_sizes
from tt.vmm.disk import BLOCK, Base, OverlayDisk, block_hash

_CACHED_BLOCKS = 4096
_SECTORS_PER_BLOCK = BLOCK // SECTOR


@dataclass
class DiskHistory:
    """What was written to one disk: `ticks` of its writes, and for each 4 KB block the pieces in order."""

    ticks: list[int] = field(default_factory=list)
    lbas: list[int] = field(default_factory=list)
    sectors: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    blocks: dict[int, list[tuple[int, int, int, bytes]]] = field(default_factory=dict)
    """Block -> (number of the write on this disk, offset, size, content hash), rising."""


def histories(trace: Trace, disks: int) -> list[DiskHistory]:
    """Read what was written to each disk of a trace; raises `BadInput` when it is damaged."""
    found = [DiskHistory() for _ in range(disks)]
    for write in trace.disk_writes():
        if write.disk >= disks:
            raise trace.damaged(f"disk write #{write.number} is to disk {write.disk}, which does not exist")
        history = found[write.disk]
        number = len(history.ticks)
        history.ticks.append(write.tick)
        history.lbas.append(write.lba)
        history.sectors.append(write.sectors)
        history.hashes.append(write.hashes)
        lba = write.lba
        for at, size in enumerate(piece_sizes(write.lba, write.sectors)):
            piece = (
                number,
                lba % _SECTORS_PER_BLOCK * SECTOR,
                size,
                write.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE],
            )
            history.blocks.setdefault(lba // _SECTORS_PER_BLOCK, []).append(piece)
            lba += size // SECTOR
    return found


class RecordedDisk(OverlayDisk):
    """A disk of a recording: what its base and the first writes of its history make of it.

    Writes must be those of the record: another raises `Divergence`.
    """

    def __init__(self, base: Base, trace: Trace, history: DiskHistory, number: int) -> None:
        super().__init__(base)
        self.done = 0
        """How many of the recorded writes have been made."""
        self._trace = trace
        self._history = history
        self._number = number
        self._sums = [0]  # the digest after each number of writes, as far as it is known
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # (block, version) -> contents

    def go_to(self, tick: int) -> None:
        """Become what it was on first arrival at `tick`."""
        self.done = bisect_left(self._history.ticks, tick)

    def write(self, lba: int, data: bytes) -> None:
        """Move on by one write; raises `Divergence` where the record has another."""
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise ValueError(f"disk write of {len(data)} bytes: not whole sectors")
        self._check(lba, count)
        history, number = self._history, self.done
        recorded = number < len(history.ticks)
        if not recorded or (history.lbas[number], history.sectors[number]) != (lba, count):
            what = f"{history.sectors[number]} at lba {history.lbas[number]}" if recorded else "nothing more"
            raise Divergence(
                f"replay diverges: the guest writes {count} sectors at lba {lba} of disk {self._number}, "
                f"the record has {what}"
            )
        position = 0
        for at, size in enumerate(piece_sizes(lba, count)):
            digest = hashlib.blake2b(data[position : position + size], digest_size=HASH_SIZE).digest()
            if digest != history.hashes[number][at * HASH_SIZE : (at + 1) * HASH_SIZE]:
                raise Divergence(
                    f"replay diverges: the guest writes other bytes than recorded at lba {lba} "
                    f"of disk {self._number}, {position} bytes in"
                )
            position += size
        self.done = number + 1

    def digest(self) -> bytes:
        """Return the digest that `OverlayDisk` gives after the same writes."""
        while len(self._sums) <= self.done:
            self._sums.append(self._sums[-1] + self._step(len(self._sums) - 1))
        return (self._sums[self.done] % (1 << 128)).to_bytes(16, "little")

    @property
    def written(self) -> dict[int, bytes]:
        """The blocks that were written to up to now, and what they hold."""
        return {
            block: self._version(block, self.done)
            for block, pieces in self._history.blocks.items()
            if pieces[0][0] < self.done
        }

    def snapshot(self) -> tuple[dict[int, bytes], int]:
        """Return what was written in the form of `OverlayDisk`, which can restore it."""
        return self.written, int.from_bytes(self.digest(), "little")

    # ---- inside

    def _has(self, block: int) -> bool:
        return block in self._history.blocks

    def _block(self, block: int) -> bytes:
        return self._version(block, self.done)

    def _version(self, block: int, done: int) -> bytes:
        """Return a block after `done` writes."""
        pieces = self._history.blocks.get(block, [])
        at = bisect_right(pieces, done - 1, key=lambda piece: piece[0])
        if not at:
            return self._base.read(block * _SECTORS_PER_BLOCK, _SECTORS_PER_BLOCK)
        key = (block, at)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        # The last piece that covers the whole block, and those after it.
        start = at - 1
        while start >= 0 and pieces[start][2] < BLOCK:
            start -= 1
        if start < 0:
            contents = bytearray(self._base.read(block * _SECTORS_PER_BLOCK, _SECTORS_PER_BLOCK))
            start = 0
        else:
            contents = bytearray()
        for _number, offset, size, digest in pieces[start:at]:
            contents[offset : offset + size] = self._trace.blob(digest, size)
        found = bytes(contents)
        self._cache[key] = found
        if len(self._cache) > _CACHED_BLOCKS:
            self._cache.popitem(last=False)
        return found

    def _step(self, number: int) -> int:
        """Return what write `number` adds to the digest."""
        history, change = self._history, 0
        first = history.lbas[number] // _SECTORS_PER_BLOCK
        last = (history.lbas[number] + history.sectors[number] - 1) // _SECTORS_PER_BLOCK
        for block in range(first, last + 1):
            if history.blocks[block][0][0] < number:
                change -= block_hash(block, self._version(block, number))
            change += block_hash(block, self._version(block, number + 1))
        return change
