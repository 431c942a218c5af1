"""The structures of an ext file system at one instant: its blocks, its inodes, its layout.

What is compared here are *logical* blocks: a block as it will be once the journal has been replayed.
A write to the journal changes the logical blocks of its transaction at the moment that its commit block
arrives; the later write to their place changes nothing.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from tt.errors import BadInput
from tt.vmm.boot.ext import ExtFileSystem, Inode
from tt.vmm.boot.fast_commit import Record
from tt.vmm.boot.filetree import NotFound, Stat
from tt.vmm.boot.journal import JournalCopy, Run

ROOT, RESIZE, JOURNAL = 2, 7, 8
"""Numbers of inodes that every file system has."""

MAX_INODES = 4 << 20
"""Most inodes in use that an index takes."""

_HAS_JOURNAL = 0x4  # feature_compat
_GDT_CSUM, _METADATA_CSUM = 0x10, 0x400  # feature_ro_compat: with either, descriptors count unused inodes
_NO_INODES = 0x1  # bg_flags: the table was never written
_CACHED = 1024  # blocks
_USER_FLAGS = 0x000380FF  # what chattr(1) sets: the kernel's EXT4_FL_USER_MODIFIABLE, without the layout's
_INLINE = 0x10000000
_ATTRIBUTES = b"\0\0\x02\xea"  # little-endian 0xEA020000
_INLINE_DATA = (7, b"data")


@dataclass(frozen=True)
class Table:
    """A group's table of inodes: `count` blocks from `start`, of which those of `used` inodes matter."""

    start: int
    count: int
    first_inode: int
    used: int


@dataclass(frozen=True)
class Held:
    """What an inode holds: runs of (first block, blocks), and among them the blocks that map others."""

    runs: tuple[tuple[int, int], ...]
    maps: frozenset[int]


class ExtVolume(ExtFileSystem):
    """An ext file system in `stream`, with a view of what lies where.

    `reads`, where it is not None, notes the logical blocks that are read.  `budget`, where it is not None,
    is how many reads and runs `held` may still take: a damaged file system may claim to hold more than the
    disk.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self.reads: set[int] | None = None
        self.budget: int | None = None
        self._cached: dict[int, bytes] = {}
        super().__init__(stream, where)
        stream.seek(1024)
        self.superblock = stream.read(1024)

    # Layout

    @property
    def block_count(self) -> int:
        """How many blocks the file system has."""
        return self._blocks

    @property
    def newer(self) -> Mapping[int, JournalCopy]:
        """Where the newest copies of blocks lie that are in the journal alone."""
        return self._newer

    @property
    def group_count(self) -> int:
        """How many groups of blocks there are."""
        return -(-(self._blocks - self._first_data_block) // self._blocks_per_group)

    @cached_property
    def tables(self) -> list[Table]:
        """The tables of inodes, by group; raises `BadInput` where there are too many to look at."""
        (features,) = struct.unpack_from("<I", self.superblock, 100)
        counted = features & (_GDT_CSUM | _METADATA_CSUM)
        per_block = self.block_size // self._inode_size
        found = []
        total = 0
        groups = min(self.group_count, -(-self._inodes // self.inodes_per_group))
        with self._guard("/"):
            for group in range(groups):
                used = self.inodes_per_group
                if counted:
                    used = max(0, used - self._unused_inodes(group))
                found.append(
                    Table(
                        self._inode_table(group),
                        -(-self.inodes_per_group // per_block),
                        group * self.inodes_per_group + 1,
                        used,
                    )
                )
                total += used
                if total > MAX_INODES:
                    raise BadInput(f"{self.where} has over {MAX_INODES} inodes: too many to compare")
        return found

    def shape(self) -> tuple[object, ...]:
        """Return the fields of the superblock that two views must share to be compared block by block."""
        groups = self._blocks_per_group, self.inodes_per_group, self._first_data_block, self._first_meta_bg
        return self.block_size, self._blocks, self._inodes, self._inode_size, *groups, self.uuid

    def geometry(self) -> tuple[object, ...]:
        """Return the shape, and where the tables of inodes are."""
        return *self.shape(), tuple(table.start for table in self.tables)

    def bitmaps(self, group: int) -> tuple[int, int]:
        """Return where a group's bitmaps of blocks and of inodes are."""
        descriptor = self._descriptor(group)
        low = struct.unpack_from("<II", descriptor)
        high = struct.unpack_from("<II", descriptor, 0x20) if self._descriptor_size >= 64 else (0, 0)
        return low[0] | high[0] << 32, low[1] | high[1] << 32

    def group_of(self, block: int) -> int:
        """Return the group that a block lies in."""
        return max(0, block - self._first_data_block) // self._blocks_per_group

    def head_of(self, group: int) -> tuple[int, int]:
        """Return where the copies of superblock and descriptors in a group are: (first, blocks)."""
        if not self._has_super(group):
            return 0, 0
        first = group * self._blocks_per_group + self._first_data_block
        per_block = self.block_size // self._descriptor_size
        return first, 1 + (-(-self.group_count // per_block) if self._first_meta_bg is None else 1)

    @cached_property
    def journal(self) -> list[Run]:
        """Where the journal lies: none, or runs of (block in it, block on disk, blocks)."""
        (features,) = struct.unpack_from("<I", self.superblock, 92)
        (number,) = struct.unpack_from("<I", self.superblock, 0xE0)
        if not features & _HAS_JOURNAL or not number:
            return []
        try:
            inode = self._inode(number)
            return list(self._runs(inode, min(-(-inode.size // self.block_size), self._blocks)))
        except (ValueError, IndexError, struct.error):
            return []

    @cached_property
    def _starts(self) -> list[tuple[int, Table]]:
        return sorted(((table.start, table) for table in self.tables), key=lambda pair: pair[0])

    def inodes_in(self, block: int) -> range:
        """Return the numbers of the inodes that lie in a block; none where it is not part of a table."""
        at = bisect_right(self._starts, block, key=lambda pair: pair[0]) - 1
        if at < 0:
            return range(0)
        table = self._starts[at][1]
        if block >= table.start + table.count:
            return range(0)
        per_block = self.block_size // self._inode_size
        first = (block - table.start) * per_block
        last = min(first + per_block, self.inodes_per_group)
        return range(table.first_inode + first, table.first_inode + last)

    # Inodes

    def used_inodes(self) -> Iterator[Inode]:
        """Yield the inodes that are in use, or were and are not overwritten yet, by number."""
        per_block = self.block_size // self._inode_size
        zeros = bytes(self.block_size)
        for table in self.tables:
            for at in range(-(-table.used // per_block)):
                with self._guard("/"):
                    data = self._blocks_at(table.start + at)
                if data == zeros:
                    continue
                first = at * per_block
                for index in range(first, min(first + per_block, table.used)):
                    offset = (index - first) * self._inode_size
                    if data[offset : offset + 2] != b"\0\0":
                        body = data[offset : offset + self._inode_size]
                        yield self._parse_inode(table.first_inode + index, body)

    def inode(self, number: int) -> Inode:
        """Return an inode; raises `ValueError` where there is none."""
        return self._inode(number)

    def find(self, path: str) -> Inode | None:
        """Return what is at `path`, a final link not followed; None where nothing is."""
        try:
            return self._resolve(path, follow=False)[-1]
        except NotFound:
            return None

    def bodies_in(self, block: int) -> dict[int, bytes]:
        """Return the bytes of the inodes that lie in a block of a table."""
        data = self._blocks_at(block)
        numbers = self.inodes_in(block)
        size = self._inode_size
        return {number: data[at * size : (at + 1) * size] for at, number in enumerate(numbers)}

    def held(self, inode: Inode) -> Held:
        """Return what an inode holds, its block of attributes too.

        Raises `ValueError` for damage, `BadInput` where the budget is used up.
        """
        runs: list[tuple[int, int]] = []
        before, self.reads = self.reads, set()
        try:
            if self.has_blocks(inode):
                for _logical, start, count in self._runs(inode, self.blocks_of(inode)):
                    self._spend()
                    runs.append((start, count))
            maps = frozenset(self.reads)
        finally:
            self.reads = before
        attributes = self.attribute_block(inode)
        if attributes:
            maps |= {attributes}
        return Held(tuple(runs) + tuple((block, 1) for block in sorted(maps)), maps)

    def blocks_of(self, inode: Inode) -> int:
        """Return how many blocks a file's bytes take, holes too."""
        return min(-(-inode.size // self.block_size), 1 << 32)

    def has_blocks(self, inode: Inode) -> bool:
        """Whether an inode's 60 bytes map blocks, rather than being its contents."""
        if inode.flags & _INLINE or inode.kind == "other":
            return False
        fast_link = inode.kind == "symlink" and inode.size < 60 and not inode.flags & 0x80000
        return not fast_link

    def attribute_block(self, inode: Inode) -> int:
        """Return the block of an inode's extended attributes, 0 where it has none."""
        low, _, _, high = struct.unpack_from("<IIIxxH", inode.body, 104)
        block: int = low | high << 32
        return block if block < self._blocks else 0

    def attributes(self, inode: Inode) -> tuple[int, dict[tuple[int, bytes], bytes]]:
        """Return what chattr(1) and setfattr(1) change: flags, and (namespace, name) -> value.

        Of a value that has an inode of its own that inode's number is returned; `ValueError` for damage.
        """
        found: dict[tuple[int, bytes], bytes] = {}
        body = inode.body
        if len(body) > 132:
            start = 128 + int.from_bytes(body[128:130], "little")
            if body[start : start + 4] == _ATTRIBUTES:
                found.update(_entries(body[start + 4 :], 0))
        block = self.attribute_block(inode)
        if block:
            data = self._blocks_at(block)
            if data[:4] == _ATTRIBUTES:
                found.update(_entries(data, 32))
        found.pop(_INLINE_DATA, None)  # the end of the file's own contents
        return inode.flags & _USER_FLAGS, found

    def generation(self, inode: Inode) -> int:
        """Return a value that changes when an inode number is freed and used again."""
        number: int = struct.unpack_from("<I", inode.body, 0x64)[0]
        return number

    def mtime_ns(self, inode: Inode) -> int:
        """Return when contents changed last, in ns since 1970, as far as the inode's size allows."""
        extra = 0
        if len(inode.body) >= 0x8C and int.from_bytes(inode.body[128:130], "little") >= 12:
            (extra,) = struct.unpack_from("<I", inode.body, 0x88)
        return (inode.mtime + ((extra & 3) << 32)) * 10**9 + (extra >> 2)

    def directory(self, inode: Inode) -> dict[str, int]:
        """Return the names in a directory, without `.`, `..` and invalid names; `ValueError` for damage."""
        found = dict(self._directory(inode))
        return {name: number for name, number in found.items() if name not in (".", "..") and "/" not in name}

    def link_target(self, inode: Inode) -> str:
        """Return where a symbolic link leads."""
        return self._link_target(inode)

    def file_runs(self, inode: Inode) -> Iterator[Run]:
        """Yield (block in the file, block on disk, blocks) of a file's contents; holes are left out."""
        return self._runs(inode, self.blocks_of(inode))

    def logical(self, block: int, count: int = 1) -> bytes:
        """Return blocks as they are after the journal's replay; raises `ValueError` past the end."""
        return self._blocks_at(block, count)

    def stat_of(self, inode: Inode) -> Stat:
        """Return the facts of an inode."""
        return self._stat(inode)

    def contents(self, inode: Inode) -> bytes:
        """Return all of a file's bytes; the caller has bounded its size."""
        return self._read(inode)

    # ---- inside

    def _blocks_at(self, number: int, count: int = 1) -> bytes:
        if self.reads is not None:
            self.reads.update(range(number, number + count))
        self._spend()
        if count != 1:
            return super()._blocks_at(number, count)
        found = self._cached.get(number)
        if found is None:
            found = super()._blocks_at(number)
            if len(self._cached) >= _CACHED:
                self._cached.clear()
            self._cached[number] = found
        return found

    def _forget(self) -> None:
        self._cached.clear()

    def write_block(self, number: int, data: bytes, record: Record) -> None:
        """Replace a block's contents by `data`, because of a record of a fast commit."""
        self._cached.pop(number, None)
        super().write_block(number, data, record)

    def _spend(self) -> None:
        if self.budget is not None:
            self.budget -= 1
            if self.budget < 0:
                raise BadInput(f"ext file system on {self.where} is damaged: its files hold more than it has")

    def _unused_inodes(self, group: int) -> int:
        descriptor = self._descriptor(group)
        low, high = struct.unpack_from("<H", descriptor, 0x1C)[0], 0
        if self._descriptor_size >= 64:
            (high,) = struct.unpack_from("<H", descriptor, 0x32)
        (flags,) = struct.unpack_from("<H", descriptor, 0x12)
        unused: int = low | high << 16
        return self.inodes_per_group if flags & _NO_INODES else min(unused, self.inodes_per_group)


def candidates(old: ExtVolume, new: ExtVolume, written: set[int]) -> set[int]:
    """Return the logical blocks that may differ, where the blocks of `written` were written to between them.

    A block that was written with the contents it had may be among them; one that is not is the same in both.
    """
    found = set(written)
    for block in old.newer.keys() | new.newer.keys():
        one, two = old.newer.get(block), new.newer.get(block)
        if one != two or (one is not None and one.block in written):
            found.add(block)
        else:
            found.discard(block)  # both views show the journal's copy, not the block itself
    return found


def _entries(data: bytes, first: int) -> Iterator[tuple[tuple[int, bytes], bytes]]:
    """List attributes: entries from `first`, values anywhere in `data` (the kernel's fs/ext4/xattr.h)."""
    at = first
    while at + 16 <= len(data) and data[at : at + 4] != bytes(4):
        length, space, offset, inode, size = struct.unpack_from("<BBHII", data, at)
        value = inode.to_bytes(4, "little") if inode else data[offset : offset + size]
        yield (space, data[at + 16 : at + 16 + length]), value
        at += 16 + -(-length // 4) * 4
