"""ext2, ext3 and ext4, read-only (the kernel's Documentation/filesystems/ext4).

A reader of our own.  The library `ext4` (1.4.1) reads every file that is not
mapped by extents, that is all of ext2 and ext3, as zeros without an error,
cuts inline data at 60 bytes, ignores meta_bg, and on damaged input follows
circular extent trees for ever.  The file systems are small where only reading
matters, so this module reads all of them, with a bound on every loop.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tt.errors import BadInput
from tt.vmm.boot import ext_features, ext_replay, fast_commit, journal
from tt.vmm.boot.filetree import FileSystem, Kind, Stat
from tt.vmm.boot.journal import JournalCopy, Run

# feature_incompat
_FILETYPE, _RECOVER, _META_BG, _64BIT = 0x2, 0x4, 0x10, 0x80
# feature_ro_compat
_SPARSE_SUPER, _GDT_CSUM, _METADATA_CSUM = 0x1, 0x10, 0x400
# feature_compat
_HAS_JOURNAL, _SPARSE_SUPER2 = 0x4, 0x200

_ROOT_INODE = 2
_FLAG_ENCRYPTED, _FLAG_EXTENTS, _FLAG_INLINE = 0x800, 0x80000, 0x10000000
_KINDS: dict[int, Kind] = {0x8: "file", 0x4: "directory", 0xA: "symlink"}
_DEVICES = (0x2, 0x6)
_MAX_DIRECTORY = 16 << 20
_KEPT_DIRECTORY = 256 << 10  # bytes of a directory worth keeping in memory
_KEPT_DIRECTORIES = 64
_MAX_EXTENT_DEPTH = 5
_UNWRITTEN = 0x8000  # an extent this long or longer is allocated but reads as zeros
_XATTR_MAGIC = 0xEA020000


@dataclass(frozen=True)
class Inode:
    """One inode: `block` is its 60-byte map, `body` all its bytes."""

    number: int
    mode: int
    size: int
    mtime: int
    flags: int
    block: bytes
    body: bytes

    @property
    def kind(self) -> Kind:
        """What the inode is, by the file type in its mode."""
        return _KINDS.get(self.mode >> 12, "other")


class ExtFileSystem(FileSystem[Inode]):
    """An ext2, ext3 or ext4 file system in `stream`, a file of just that volume.

    Raises `BadInput` for a damaged superblock or a feature this reader lacks.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = stream
        self.where = where
        stream.seek(1024)
        sb = stream.read(1024)
        if len(sb) < 1024 or sb[56:58] != b"\x53\xef":
            raise BadInput(f"{where} holds no ext2/3/4 file system: its superblock is missing")

        def u16(offset: int) -> int:
            return int.from_bytes(sb[offset : offset + 2], "little")

        def u32(offset: int) -> int:
            return int.from_bytes(sb[offset : offset + 4], "little")

        log_block_size = u32(24)
        dynamic = u32(76) > 0
        compat, incompat, ro_compat = (u32(92), u32(96), u32(100)) if dynamic else (0, 0, _SPARSE_SUPER)
        ext_features.check(where, compat, incompat, ro_compat)
        self._inode_size = u16(88) if dynamic else 128
        if log_block_size > 6:
            raise BadInput(f"ext file system on {where} is damaged: block size 2^{10 + log_block_size}")
        self.block_size = 1024 << log_block_size
        self._blocks_per_group, self.inodes_per_group = u32(32), u32(40)
        self._blocks, self._inodes = u32(4), u32(0)
        self._first_data_block = u32(20)
        self._descriptor_size = 32
        if incompat & _64BIT:
            self._blocks |= u32(0x150) << 32
            self._descriptor_size = u16(0xFE) or 32
        self._check_geometry()
        self._first_meta_bg = u32(0x104) if incompat & _META_BG else None
        self._sparse = bool(ro_compat & _SPARSE_SUPER)
        self._backup_groups = (u32(0x24C), u32(0x250)) if compat & _SPARSE_SUPER2 else None
        self.kind = "ext4" if incompat & 0x2D0 else "ext3" if compat & 0x4 else "ext2"
        self.uuid = str(uuid.UUID(bytes=sb[104:120]))
        self.label = sb[120:136].split(b"\0")[0].decode("utf-8", "replace")
        self._kept: dict[int, dict[str, int]] = {}
        self._newer: dict[int, JournalCopy] = {}
        self._new_blocks = 0
        self.has_file_types = bool(incompat & _FILETYPE)
        self.counts_unused_inodes = bool(ro_compat & (_GDT_CSUM | _METADATA_CSUM))
        if incompat & _RECOVER:
            journal_number = u32(0xE0)
            if compat & _HAS_JOURNAL and not journal_number:
                device = uuid.UUID(bytes=sb[0xD0:0xE0])
                raise BadInput(
                    f"ext file system on {where} has its newest changes on a journal device of its own "
                    f"(UUID {device}), which tt does not read: mount and unmount it with both devices first"
                )
            self._read_journal(journal_number)

    def _check_geometry(self) -> None:
        size = self._inode_size
        if (
            size < 128
            or size > self.block_size
            or size & (size - 1)
            or not 0 < self.inodes_per_group <= 8 * self.block_size
            or not self._blocks_per_group
            or not 32 <= self._descriptor_size <= 1024
            or self._first_data_block > 1
            or self._blocks <= self._first_data_block
        ):
            raise BadInput(f"ext file system on {self.where} is damaged: its superblock contradicts itself")

    # Blocks and inodes

    def _blocks_at(self, number: int, count: int = 1) -> bytes:
        """Read whole blocks; raises `ValueError` past the end of the file system."""
        if number < 0 or number + count > self._blocks:
            copy = self._newer.get(number) if count == 1 else None
            if copy is not None and copy.data is not None:
                return copy.data  # a block that only exists here
            raise ValueError(f"block {number + count - 1} is past the end")
        self._stream.seek(number * self.block_size)
        data = self._stream.read(count * self.block_size)
        if len(data) < count * self.block_size:
            raise ValueError(f"the image ends before block {number + count - 1}")
        newer = [n for n in range(number, number + count) if n in self._newer] if self._newer else []
        if newer:
            patched = bytearray(data)
            for n in newer:
                at = (n - number) * self.block_size
                patched[at : at + self.block_size] = (
                    self._newer[n].contents(self._raw_block) or patched[at : at + self.block_size]
                )
            data = bytes(patched)
        return data

    def _raw_block(self, number: int) -> bytes:
        self._stream.seek(number * self.block_size)
        return self._stream.read(self.block_size)

    def _read_journal(self, number: int) -> None:
        """Find what the journal holds that is not in its place yet.

        A journal that recovery would not replay is passed over: the file system as it lies on the disk
        is still worth looking into.
        """
        try:
            inode = self._inode(number)
            runs = list(self._runs(inode, min(-(-inode.size // self.block_size), self._blocks)))
            found = journal.recover(runs, self._blocks_at, self.block_size, self.where)
            self._newer = found.copies
            self._forget()
            records = fast_commit.scan(
                found.fast_blocks, found.fast_transaction, self._inode_size, self.where
            )
        except (ValueError, IndexError, struct.error):
            return
        ext_replay.replay(self, records)

    def _forget(self) -> None:
        """Forget blocks that were kept, as they were before the journal was looked into."""

    # What `tt.vmm.boot.ext_replay` asks for

    def read_block(self, number: int) -> bytes:
        """Return a block as it is once the journal is replayed."""
        return self._blocks_at(number)

    def write_block(self, number: int, data: bytes, record: fast_commit.Record) -> None:
        """Let a block be `data` from now on, because of a record of a fast commit."""
        self._newer[number] = JournalCopy(record.block, False, data=data, offset=record.offset)

    def new_block(self) -> int:
        """Return the number of a block that only exists here."""
        self._new_blocks += 1
        return self._blocks + self._new_blocks - 1

    def extents(self, number: int) -> Iterator[ext_replay.Extent]:
        """Yield what an inode with a map of extents holds, rising; raises `ValueError` for damage."""
        return self._walk_extents(self._inode(number), 1 << 32)

    def directory_blocks(self, number: int) -> Iterator[int]:
        """Yield where on disk the blocks of a directory are that is not inline."""
        inode = self._inode(number)
        self._check_directory(inode)
        needed = -(-inode.size // self.block_size)
        for logical, physical, count in list(self._runs(inode, needed)):
            yield from range(physical, physical + min(count, needed - logical))

    def inline_entries(self, number: int) -> list[tuple[bytes, int, int]]:
        """Return (name, inode, file type) of what is in an inline directory."""
        return list(self._entries(self._inode(number)))

    def _has_super(self, group: int) -> bool:
        if self._backup_groups is not None:
            return group == 0 or group in self._backup_groups
        if not self._sparse or group <= 1:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def _descriptor_at(self, group: int) -> tuple[int, int]:
        """Return where a group's descriptor is: (block, offset in it)."""
        per_block = self.block_size // self._descriptor_size
        index = group // per_block
        if self._first_meta_bg is None or index < self._first_meta_bg:
            block = 1024 // self.block_size + 1 + index
        else:
            first = index * per_block
            block = self._first_data_block + first * self._blocks_per_group + self._has_super(first)
            if not first and not self._first_data_block and self.block_size == 1024:
                block += 1  # bigalloc numbers blocks from 0: the boot block comes before the superblock
        return block, group % per_block * self._descriptor_size

    def _descriptor(self, group: int) -> bytes:
        """Return a group's descriptor."""
        block, at = self._descriptor_at(group)
        return self._blocks_at(block)[at : at + self._descriptor_size]

    def descriptor_place(self, number: int) -> tuple[int, int, int]:
        """Return (block, offset in it, bytes) of the descriptor of an inode's group."""
        return *self._descriptor_at((number - 1) // self.inodes_per_group), self._descriptor_size

    def _inode_table(self, group: int) -> int:
        descriptor = self._descriptor(group)
        table: int = struct.unpack_from("<I", descriptor, 8)[0]
        if self._descriptor_size >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        return table

    def inode_place(self, number: int) -> tuple[int, int, int]:
        """Return (block, offset in it, bytes) of an inode; raises `ValueError` where there is none."""
        if not 0 < number <= self._inodes:
            raise ValueError(f"there is no inode {number}")
        group, index = divmod(number - 1, self.inodes_per_group)
        block, at = divmod(index * self._inode_size, self.block_size)
        return self._inode_table(group) + block, at, self._inode_size

    def _inode(self, number: int) -> Inode:
        block, at, size = self.inode_place(number)
        return self._parse_inode(number, self._blocks_at(block)[at : at + size])

    def _parse_inode(self, number: int, body: bytes) -> Inode:
        mode, _, low, _, _, mtime = struct.unpack_from("<HHIIII", body)
        (flags,) = struct.unpack_from("<I", body, 32)
        (high,) = struct.unpack_from("<I", body, 108)
        size = low | high << 32 if mode >> 12 in _KINDS else low
        return Inode(number, mode, size, mtime, flags, body[40:100], body)

    # File contents

    def _contents(self, inode: Inode) -> bytes:
        """Return all of a file's bytes; the caller has bounded `inode.size`."""
        if inode.flags & _FLAG_INLINE:
            return self._inline_data(inode)[: inode.size]
        needed = -(-inode.size // self.block_size)
        out = bytearray(inode.size)
        for logical, physical, count in self._runs(inode, needed):
            count = min(count, needed - logical)
            if count > 0:
                data = self._blocks_at(physical, count)
                at = logical * self.block_size
                data = data[: inode.size - at]
                out[at : at + len(data)] = data
        return bytes(out)

    def _runs(self, inode: Inode, needed: int) -> Iterator[Run]:
        """Map the first `needed` blocks of a file, ascending; what no run covers is a hole."""
        return self._extents(inode, needed) if inode.flags & _FLAG_EXTENTS else self._block_map(inode, needed)

    def _extents(self, inode: Inode, needed: int) -> Iterator[Run]:
        for first, physical, length, unwritten in self._walk_extents(inode, needed):
            if not unwritten:
                yield first, physical, length

    def _walk_extents(self, inode: Inode, needed: int) -> Iterator[ext_replay.Extent]:
        """Walk an extent tree; logical blocks must ascend, so a damaged tree cannot go round in circles."""
        position = 0

        def walk(node: bytes, depth: int | None) -> Iterator[ext_replay.Extent]:
            nonlocal position
            magic, entries, _, level = struct.unpack_from("<HHHH", node)
            if magic != 0xF30A or level > _MAX_EXTENT_DEPTH or (depth is not None and level != depth):
                raise ValueError(f"the extent tree of inode {inode.number} is broken")
            if depth is not None and not entries:
                raise ValueError(f"the extent tree of inode {inode.number} has an empty node")
            for i in range(entries):
                first, middle, word = struct.unpack_from("<III", node, 12 + 12 * i)
                if first >= needed:
                    position = max(position, needed)
                    return
                if first < position:
                    raise ValueError(f"the extent tree of inode {inode.number} is out of order")
                if level:
                    before = position
                    yield from walk(self._blocks_at(middle | (word & 0xFFFF) << 32), level - 1)
                    if position == before:
                        raise ValueError(f"the extent tree of inode {inode.number} goes round in circles")
                else:
                    length = middle & 0xFFFF
                    unwritten = length > _UNWRITTEN
                    length -= _UNWRITTEN if unwritten else 0
                    if not length:
                        raise ValueError(f"inode {inode.number} has an empty extent")
                    position = first + length
                    yield first, word | (middle >> 16) << 32, length, unwritten

        yield from walk(inode.block, None)

    def _block_map(self, inode: Inode, needed: int) -> Iterator[Run]:
        """Walk the classic map: 12 direct blocks, then one, two and three levels of indirection."""
        per_block = self.block_size // 4
        pointers = struct.unpack("<15I", inode.block)

        def walk(pointer: int, level: int, logical: int) -> Iterator[Run]:
            span = per_block**level
            if not pointer or logical >= needed:
                return
            if not level:
                yield logical, pointer, 1
                return
            table = struct.unpack(f"<{per_block}I", self._blocks_at(pointer))
            for i, child in enumerate(table):
                start = logical + i * (span // per_block)
                if start >= needed:
                    return
                yield from walk(child, level - 1, start)

        yield from _joined(run for i in range(12) for run in walk(pointers[i], 0, i))
        logical = 12
        for level in (1, 2, 3):
            yield from _joined(walk(pointers[11 + level], level, logical))
            logical += per_block**level

    def _inline_data(self, inode: Inode) -> bytes:
        """Join the inode's 60 bytes and its attribute `system.data` (ext4, "Inline Data")."""
        body = inode.body
        if len(body) <= 132:
            return inode.block
        start = 128 + int.from_bytes(body[128:130], "little")
        if body[start : start + 4] != _XATTR_MAGIC.to_bytes(4, "little"):
            return inode.block
        entry = first = start + 4
        while entry + 16 <= len(body) and body[entry : entry + 4] != bytes(4):
            name_size, index, offset, _, size = struct.unpack_from("<BBHII", body, entry)
            if index == 7 and body[entry + 16 : entry + 16 + name_size] == b"data":
                return inode.block + body[first + offset : first + offset + size]
            entry += -(-(16 + name_size) // 4) * 4
        return inode.block

    def _directory(self, inode: Inode) -> Iterator[tuple[str, int]]:
        """List names and inode numbers; a hashed directory (ext4, "Hash Tree") reads as a plain one."""
        for name, number, _ in self._entries(inode):
            yield name.decode("utf-8", "surrogateescape"), number

    def _check_directory(self, inode: Inode) -> None:
        if inode.size > _MAX_DIRECTORY:
            raise ValueError(f"directory of {inode.size} bytes")

    def _entries(self, inode: Inode) -> Iterator[tuple[bytes, int, int]]:
        self._check_directory(inode)
        data = self._contents(inode)
        chunk = self.block_size
        if inode.flags & _FLAG_INLINE:
            # 4 bytes of parent inode, entries to byte 60, more entries behind it.
            pieces = [data[4:60], data[60:]]
        else:
            pieces = [data[i : i + chunk] for i in range(0, len(data), chunk)]
        for piece in pieces:
            at = 0
            while at + 8 <= len(piece):
                number, length, name_size, kind = struct.unpack_from("<IHBB", piece, at)
                if length in (0, 0xFFFF) and chunk == 65536:
                    length = 65536  # does not fit into its field
                if length < 8 or at + length > len(piece) or 8 + name_size > length:
                    raise ValueError(f"directory inode {inode.number} is broken")
                if number and name_size:
                    yield piece[at + 8 : at + 8 + name_size], number, kind
                at += length

    # The interface

    def _root(self) -> Inode:
        return self._inode(_ROOT_INODE)

    def _stat(self, node: Inode) -> Stat:
        body = node.body
        low_uid, ctime, low_gid, nlink = (
            int.from_bytes(body[at : at + size], "little") for at, size in ((2, 2), (12, 4), (24, 2), (26, 2))
        )
        uid = low_uid | int.from_bytes(body[120:122], "little") << 16
        gid = low_gid | int.from_bytes(body[122:124], "little") << 16
        old, new = struct.unpack_from("<II", node.block)
        rdev = (old or _linux_device(new)) if node.mode >> 12 in _DEVICES else 0
        return Stat(node.kind, node.size, node.mode, node.mtime, uid, gid, nlink, rdev, ctime, node.number)

    def _names(self, node: Inode) -> Iterator[str]:
        return (name for name, _ in self._directory(node))

    def _child(self, node: Inode, name: str) -> Inode | None:
        names = self._kept.get(node.number)
        if names is None:
            names = dict(self._directory(node))
            if node.size <= _KEPT_DIRECTORY:
                if len(self._kept) >= _KEPT_DIRECTORIES:
                    self._kept.clear()
                self._kept[node.number] = names
        number = names.get(name)
        return self._inode(number) if number is not None else None

    def _read(self, node: Inode) -> bytes:
        if node.flags & _FLAG_ENCRYPTED:
            raise ValueError("the file is encrypted")
        return self._contents(node)

    def _link_target(self, node: Inode) -> str:
        if node.size > self.block_size:
            raise ValueError("a symbolic link longer than a block")
        fast = node.size < 60 and not node.flags & (_FLAG_EXTENTS | _FLAG_INLINE)
        target = node.block[: node.size] if fast else self._contents(node)
        return target.decode("utf-8", "surrogateescape")


def _linux_device(new: int) -> int:
    """Return a device's number from the form that has room for large minors (kdev_t.h)."""
    return (new & 0xFFF00) | (new & 0xFF) | (new >> 20) << 20


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


def _joined(runs: Iterator[Run]) -> Iterator[Run]:
    """Join runs that follow each other both in the file and on disk."""
    logical = physical = count = 0
    for first, block, length in runs:
        if count and first == logical + count and block == physical + count:
            count += length
            continue
        if count:
            yield logical, physical, count
        logical, physical, count = first, block, length
    if count:
        yield logical, physical, count
