"""The journal of ext3 and ext4, JBD2, read but never written (Documentation/filesystems/ext4/journal.rst).

An image of a machine that was not shut down holds its newest directories and inodes in the journal alone.
Nothing is copied: the result says which block of the journal stands for which block of the file system.
Which transactions count is decided as the kernel's fs/jbd2/recovery.c does: those with a commit block, in
order, up to the first whose checksum is wrong.

    block 0         superblock
    first..last-1   the log, a ring: descriptor, data..., [revoke...], commit, descriptor, ...
    last+1..        fast commits (`tt.vmm.boot.fast_commit`), of the transaction behind the log's last
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tt.vmm.boot._crc32c import crc32c
from tt.vmm.boot.ext_features import check_journal

MAGIC = b"\xc0\x3b\x39\x98"

Run = tuple[int, int, int]
"""`(first block in the file, first block on disk, blocks)`."""

_DESCRIPTOR, _COMMIT, _SUPERBLOCK_V1, _SUPERBLOCK_V2, _REVOKE = 1, 2, 3, 4, 5
_CHECKSUM_V1 = 0x1  # of the compatible features
_64BIT, _CHECKSUM_V2, _CHECKSUM_V3, _FAST_COMMIT = 0x2, 0x8, 0x10, 0x20
_TAG_ESCAPED, _TAG_SAME_UUID, _TAG_LAST = 1, 2, 8
_FAST_BLOCKS = 256  # where the superblock does not say how many there are
_CRC32, _CRC32_SIZE, _CRC32C = 1, 4, 4
_ALL = 0xFFFF_FFFF
_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


@dataclass(frozen=True)
class JournalCopy:
    """The newest copy of a block.

    It lies at `block` on disk; `escaped` if its first 4 bytes are `MAGIC`.  Where `check` is not None it
    is (what its checksum goes on from, the checksum, its mask); where that is wrong `older` counts, and
    if that is None the block in its place.  Where `data` is not None, that is the contents, which fast
    commits made: `block` and `offset` are where the last record is that they follow from.
    """

    block: int
    escaped: bool
    check: tuple[int, int, int] | None = None
    data: bytes | None = None
    offset: int = 0
    older: JournalCopy | None = field(default=None, compare=False, repr=False)

    def contents(self, read: Callable[[int], bytes]) -> bytes | None:
        """Return the block's contents; None where no copy of it is whole.  `read` reads a block of disk."""
        copy: JournalCopy | None = self
        while copy is not None:
            if copy.data is not None:
                return copy.data
            raw = read(copy.block)
            if copy.check is None or crc32c(raw, copy.check[0]) & copy.check[2] == copy.check[1]:
                return MAGIC + raw[4:] if copy.escaped else raw
            copy = copy.older
        return None


@dataclass
class Recovery:
    """What replaying a journal would do.

    `copies` holds the blocks it would write.  `fast_blocks` yields the blocks of fast commits behind it,
    (block on disk, contents), which count where they are of transaction `fast_transaction`.
    """

    copies: dict[int, JournalCopy]
    fast_transaction: int
    fast_blocks: Iterator[tuple[int, bytes]]


def recover(runs: Sequence[Run], read: Callable[[int], bytes], block_size: int, where: str) -> Recovery:
    """Say what recovery would do.

    `runs` maps the journal's own blocks, `read` reads a block of the disk, `where` names it in errors.
    Raises `BadInput` for features that are not known, `ValueError` for a journal that recovery would not
    replay at all.
    """
    return _Journal(runs, read, block_size, where).recover()


@dataclass
class _Transaction:
    writes: list[tuple[int, JournalCopy]]
    revoked: set[int]


class _Journal:
    def __init__(
        self, runs: Sequence[Run], read: Callable[[int], bytes], block_size: int, where: str
    ) -> None:
        self._runs = runs
        self._starts = [run[0] for run in runs]
        self._read = read
        head = read(self._disk_block(0))
        magic, kind, _, size, length, first, sequence, start = struct.unpack_from(">4s7I", head)
        if magic != MAGIC or kind not in (_SUPERBLOCK_V1, _SUPERBLOCK_V2) or size != block_size:
            raise ValueError("the journal has no superblock")
        features = struct.unpack_from(">3I", head, 0x24) if kind == _SUPERBLOCK_V2 else (0, 0, 0)
        check_journal(where, *features)
        self._compat, self._features, _ = features
        self._block_size = block_size
        self._seed = crc32c(head[0x30:0x40], _ALL)
        self._check_superblock(head)
        mapped = runs[-1][0] + runs[-1][2]
        length = min(length, mapped)
        self._first, self._end, self._fast = first, length, range(0)
        if self._features & _FAST_COMMIT:
            (fast,) = struct.unpack_from(">I", head, 0x54)
            self._end = length - (fast or _FAST_BLOCKS)
            self._fast = range(self._end + 1, length)
            if self._end <= first:
                raise ValueError("the journal has no room for a log beside its fast commits")
        self._sequence, self._start = sequence, start

    @property
    def _checked(self) -> bool:
        """Whether every block has a checksum."""
        return bool(self._features & (_CHECKSUM_V2 | _CHECKSUM_V3))

    def _check_superblock(self, head: bytes) -> None:
        if self._features & _CHECKSUM_V2 and self._features & _CHECKSUM_V3:
            raise ValueError("the journal has checksums of two versions")
        if not self._checked:
            return
        if self._compat & _CHECKSUM_V1 or head[0x50] != _CRC32C:
            raise ValueError("the journal has checksums of two versions")
        if crc32c(head[:0xFC] + bytes(4) + head[0x100:1024], _ALL) != int.from_bytes(head[0xFC:0x100], "big"):
            raise ValueError("the checksum of the journal's superblock is wrong")

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

    def recover(self) -> Recovery:
        if not self._first <= self._start < self._end:
            return Recovery({}, 0, iter(()))  # 0: nothing to recover
        found: dict[int, JournalCopy] = {}
        sequence = self._sequence
        for transaction in self._transactions():
            # A revoked block was freed: older copies, in this transaction too, must not come back.
            for target in transaction.revoked:
                found.pop(target, None)
            for target, copy in transaction.writes:
                if target in transaction.revoked:
                    continue
                older = found.get(target)
                if copy.check is not None and older is not None:
                    copy = JournalCopy(copy.block, copy.escaped, copy.check, older=older)
                found[target] = copy
            sequence += 1
        return Recovery(found, sequence & _ALL, self._fast_blocks())

    def _fast_blocks(self) -> Iterator[tuple[int, bytes]]:
        for number in self._fast:
            block = self._disk_block(number)
            yield block, self._read(block)

    def _transactions(self) -> Iterator[_Transaction]:
        """Yield the transactions that count, in order (`do_one_pass` in the kernel, PASS_SCAN)."""
        position, sequence = self._start, self._sequence
        now = _Transaction([], set())
        newest = 0  # when the last transaction was committed, in s
        wrong = False  # a checksum in this transaction
        total = 0xFFFF_FFFF  # of checksums of version 1
        # Each step takes at least one block, and a journal is gone round once at most.
        steps = self._end - self._first
        while steps > 0:
            block = self._read(self._disk_block(position))
            magic, kind, block_sequence = struct.unpack_from(">4sII", block)
            if magic != MAGIC or block_sequence != sequence & _ALL:
                return
            steps -= 1
            position = self._after(position)
            if kind == _DESCRIPTOR:
                wrong = wrong or not self._tail_is_right(block)
                total = self._sum(block, total)
                for target, escaped, expected in self._tags(block):
                    disk_block = self._disk_block(position)
                    now.writes.append(
                        (target, JournalCopy(disk_block, escaped, self._check(sequence, expected)))
                    )
                    if self._compat & _CHECKSUM_V1:
                        total = self._sum(self._read(disk_block), total)
                    position = self._after(position)
                    steps -= 1
            elif kind == _REVOKE:
                wrong = wrong or not self._tail_is_right(block)
                now.revoked.update(self._revoked(block))
            elif kind == _COMMIT:
                (time,) = struct.unpack_from(">Q", block, 0x30)
                if wrong and time >= newest:
                    # The kernel does not mount it.
                    raise ValueError(f"a checksum in transaction {sequence} of the journal is wrong")
                if wrong or not self._commit_is_right(block, total):
                    return  # left over from an earlier round, or not all of it was written
                yield now
                newest, total = time, 0xFFFF_FFFF
                now = _Transaction([], set())
                sequence += 1
            else:
                return

    def _sum(self, block: bytes, total: int) -> int:
        """Go on with a checksum of version 1: CRC-32, most significant bit first (`crc32_be`)."""
        if not self._compat & _CHECKSUM_V1:
            return total
        flipped = zlib.crc32(block.translate(_REVERSED), _flip(total) ^ _ALL) ^ _ALL
        return _flip(flipped)

    def _tail_is_right(self, block: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revoke block is right, if there is one."""
        if not self._checked:
            return True
        return crc32c(block[:-4] + bytes(4), self._seed) == int.from_bytes(block[-4:], "big")

    def _commit_is_right(self, block: bytes, total: int) -> bool:
        kind, size, _, stored = struct.unpack_from(">BBHI", block, 12)
        if self._checked:
            return crc32c(block[:16] + bytes(4) + block[20:], self._seed) == int(stored)
        if self._compat & _CHECKSUM_V1:
            found: tuple[int, int, int] = (kind, size, stored)
            return found in ((_CRC32, _CRC32_SIZE, total), (0, 0, 0))
        return True

    def _check(self, sequence: int, expected: int) -> tuple[int, int, int] | None:
        if not self._checked:
            return None
        seed = crc32c((sequence & _ALL).to_bytes(4, "big"), self._seed)
        return seed, expected, _ALL if self._features & _CHECKSUM_V3 else 0xFFFF

    def _tags(self, block: bytes) -> Iterator[tuple[int, bool, int]]:
        """Yield (block, whether it is escaped, its checksum) for each block that a descriptor tells of."""
        wide = bool(self._features & _64BIT)
        size = 8 + 4 * wide + 2 * bool(self._features & _CHECKSUM_V2)
        if self._features & _CHECKSUM_V3:
            size = 16
        end = self._block_size - (4 if self._checked else 0)
        at = 12
        while at + size <= end:
            if self._features & _CHECKSUM_V3:
                number, flags, high, checksum = struct.unpack_from(">IIII", block, at)
            else:
                number, checksum, flags = struct.unpack_from(">IHH", block, at)
                high = struct.unpack_from(">I", block, at + 8)[0] if wide else 0
            yield number | (high << 32 if wide else 0), bool(flags & _TAG_ESCAPED), checksum
            at += size + (0 if flags & _TAG_SAME_UUID else 16)
            if flags & _TAG_LAST:
                return

    def _revoked(self, block: bytes) -> list[int]:
        (used,) = struct.unpack_from(">I", block, 12)
        size = 8 if self._features & _64BIT else 4
        if used > self._block_size - (4 if self._checked else 0):
            raise ValueError("a list of revoked blocks is longer than its block")
        return [int.from_bytes(block[at : at + size], "big") for at in range(16, used - size + 1, size)]


def _flip(number: int) -> int:
    """Return 32 bits in the other order."""
    return int.from_bytes(number.to_bytes(4, "little").translate(_REVERSED), "big")
