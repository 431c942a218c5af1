"""The journal of ext3 and ext4, JBD2, read but never written (Documentation/filesystems/ext4/journal.rst).

An image of a machine that was not shut down holds its newest directories and
inodes in the journal alone.  Nothing is copied: the result says which block of
the journal stands for which block of the file system.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MAGIC = b"\xc0\x3b\x39\x98"

Run = tuple[int, int, int]
"""`(first block in the file, first block on disk, blocks)`."""

_DESCRIPTOR, _COMMIT, _SUPERBLOCK_V1, _SUPERBLOCK_V2, _REVOKE = 1, 2, 3, 4, 5
_64BIT, _CHECKSUM_V2, _CHECKSUM_V3 = 0x2, 0x8, 0x10
_TAG_ESCAPED, _TAG_SAME_UUID, _TAG_LAST = 1, 2, 8


@dataclass(frozen=True)
class JournalCopy:
    """Where the newest copy of a block lies: `block` on disk; `escaped` if its first 4 bytes are `MAGIC`."""

    block: int
    escaped: bool


def replay(runs: Sequence[Run], read: Callable[[int], bytes], block_size: int) -> dict[int, JournalCopy]:
    """Return the blocks that recovery would write, by block number.

    `runs` maps the journal's own blocks, `read` reads a block of the disk.
    Only transactions with their commit block count.  Raises `ValueError` for a
    journal that is damaged at its very beginning.
    """
    return _Journal(runs, read, block_size).replay()


class _Journal:
    def __init__(self, runs: Sequence[Run], read: Callable[[int], bytes], block_size: int) -> None:
        self._runs = runs
        self._starts = [run[0] for run in runs]
        self._read = read
        head = read(self._disk_block(0))
        magic, kind, _, size, length, first, sequence, start = struct.unpack_from(">4s7I", head)
        if magic != MAGIC or kind not in (_SUPERBLOCK_V1, _SUPERBLOCK_V2) or size != block_size:
            raise ValueError("the journal has no superblock")
        self._features = struct.unpack_from(">I", head, 0x28)[0] if kind == _SUPERBLOCK_V2 else 0
        self._block_size = block_size
        mapped = runs[-1][0] + runs[-1][2]
        self._first, self._end = first, min(length, mapped)
        self._sequence, self._start = sequence, start

    def _disk_block(self, number: int) -> int:
        at = bisect_right(self._starts, number) - 1
        if at < 0:
            raise ValueError("the journal has a hole")
        logical, physical, count = self._runs[at]
        if number >= logical + count:
            raise ValueError("the journal has a hole")
        return physical + number - logical

    def _after(self, number: int) -> int:
        return number + 1 if number + 1 < self._end else self._first

    def replay(self) -> dict[int, JournalCopy]:
        found: dict[int, JournalCopy] = {}
        if not self._first <= self._start < self._end:
            return found  # 0: nothing to recover
        position, sequence = self._start, self._sequence
        writes: list[tuple[int, JournalCopy]] = []
        revoked: list[int] = []
        # Each step takes at least one block, and a journal is gone round once at most.
        steps = self._end - self._first
        while steps > 0:
            disk_block = self._disk_block(position)
            block = self._read(disk_block)
            magic, kind, block_sequence = struct.unpack_from(">4sII", block)
            if magic != MAGIC or block_sequence != sequence & 0xFFFFFFFF:
                break
            steps -= 1
            position = self._after(position)
            if kind == _DESCRIPTOR:
                for target, escaped in self._tags(block):
                    writes.append((target, JournalCopy(self._disk_block(position), escaped)))
                    position = self._after(position)
                    steps -= 1
            elif kind == _REVOKE:
                revoked += self._revoked(block)
            elif kind == _COMMIT:
                # A revoked block was freed: older copies, in this transaction too, must not come back.
                writes = [w for w in writes if w[0] not in set(revoked)] if revoked else writes
                for target in revoked:
                    found.pop(target, None)
                found.update(writes)
                writes, revoked = [], []
                sequence += 1
            else:
                break
        return found

    def _tags(self, block: bytes) -> Iterator[tuple[int, bool]]:
        wide = bool(self._features & _64BIT)
        size = 8 + 4 * wide + 2 * bool(self._features & _CHECKSUM_V2)
        if self._features & _CHECKSUM_V3:
            size = 16
        end = self._block_size - (4 if self._features & (_CHECKSUM_V2 | _CHECKSUM_V3) else 0)
        at = 12
        while at + size <= end:
            if self._features & _CHECKSUM_V3:
                number, flags, high = struct.unpack_from(">III", block, at)
            else:
                number, _, flags = struct.unpack_from(">IHH", block, at)
                high = struct.unpack_from(">I", block, at + 8)[0] if wide else 0
            yield number | (high << 32 if wide else 0), bool(flags & _TAG_ESCAPED)
            at += size + (0 if flags & _TAG_SAME_UUID else 16)
            if flags & _TAG_LAST:
                return

    def _revoked(self, block: bytes) -> list[int]:
        (used,) = struct.unpack_from(">I", block, 12)
        size = 8 if self._features & _64BIT else 4
        used = min(used, len(block))
        return [int.from_bytes(block[at : at + size], "big") for at in range(16, used - size + 1, size)]
