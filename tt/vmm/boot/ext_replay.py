"""What fast commits change on an ext file system, done in memory (`ext4_fc_replay` in the kernel).

Blocks are made anew, never written: tables of inodes, directories, descriptors of groups.  What needs
more room than there is (a map of extents, a directory) gets blocks with numbers past the end of the
file system, which only exist here.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tt.vmm.boot.fast_commit import Record, Tag

_EXTENTS, _INLINE = 0x80000, 0x10000000  # flags of inodes
_EXTENT_MAGIC = 0xF30A
_EMPTY_MAP = struct.pack("<HHHHI", _EXTENT_MAGIC, 0, 4, 0, 0)
_UNWRITTEN = 0x8000
_MAP, _AFTER_MAP, _MAP_END = 40, 100, 100
_MOST = 1 << 20  # extents and blocks of directories looked at: damage can claim more than there is
_DAMAGE = (ValueError, IndexError, struct.error)
_TAIL = b"\0\0\0\0\x0c\0\0\xde"  # how the checksum at the end of a directory's block begins
_FILE_TYPES = {0x8: 1, 0x4: 2, 0x2: 3, 0x6: 4, 0x1: 5, 0xC: 6, 0xA: 7}  # by mode >> 12
_NO_INODES = 0x1  # bg_flags: no inode of the group was ever used

Extent = tuple[int, int, int, bool]
"""`(first block in the file, first block on disk, blocks, unwritten)`."""


class Volume(Protocol):
    """What is asked of the file system: an `ExtFileSystem`."""

    block_size: int

    def inode_place(self, number: int) -> tuple[int, int, int]:
        """Return (block, offset in it, bytes) of an inode; raises `ValueError` where there is none."""

    def descriptor_place(self, number: int) -> tuple[int, int, int]:
        """Return (block, offset in it, bytes) of the descriptor of an inode's group."""

    def read_block(self, number: int) -> bytes:
        """Return a block as it is by now."""

    def write_block(self, number: int, data: bytes, record: Record) -> None:
        """Let a block be `data` from now on, because of `record`."""

    def new_block(self) -> int:
        """Return the number of a block that only exists here."""

    def extents(self, number: int) -> Iterable[Extent]:
        """Yield what an inode with a map of extents holds, rising; raises `ValueError` for damage."""

    def directory_blocks(self, number: int) -> Iterable[int]:
        """Yield where on disk the blocks of a directory are that is not inline."""

    def inline_entries(self, number: int) -> list[tuple[bytes, int, int]]:
        """Return (name, inode, file type) of what is in an inline directory."""

    inodes_per_group: int
    has_file_types: bool
    counts_unused_inodes: bool


def replay(volume: Volume, records: Iterable[Record]) -> None:
    """Do what `records` say, in order; ends at the first that cannot be done, as the kernel does."""
    run = _Replay(volume)
    handlers: dict[Tag, Callable[[Record], None]] = {
        Tag.INODE: run.inode,
        Tag.ADD_RANGE: run.add_range,
        Tag.DEL_RANGE: run.del_range,
        Tag.CREAT: run.create,
        Tag.LINK: run.link,
        Tag.UNLINK: run.unlink,
    }
    with suppress(*_DAMAGE):
        for record in records:
            handler = handlers.get(record.tag)
            if handler is not None:
                handler(record)
    run.flush()


@dataclass
class _Map:
    extents: list[Extent]
    record: Record


@dataclass
class _Directory:
    """Where the names of a directory are, by block, and where there was room last."""

    names: dict[bytes, tuple[int, int]]  # name -> block on disk, inode
    room: int


class _Replay:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._maps: dict[int, _Map] = {}
        self._directories: dict[int, _Directory] = {}
        self._left = _MOST

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("fast commits reach more than the file system has")

    # ---- inodes

    def _body(self, number: int) -> bytearray:
        block, at, size = self._volume.inode_place(number)
        return bytearray(self._volume.read_block(block)[at : at + size])

    def _store(self, number: int, body: bytes | bytearray, record: Record) -> None:
        block, at, _ = self._volume.inode_place(number)
        data = bytearray(self._volume.read_block(block))
        data[at : at + len(body)] = body
        self._volume.write_block(block, bytes(data), record)

    def _alive(self, number: int) -> bytearray | None:
        """Return an inode that is in use, else None (`ext4_iget` fails there)."""
        try:
            body = self._body(number)
        except ValueError:
            return None
        return body if body[0:2] != b"\0\0" else None

    def inode(self, record: Record) -> None:
        (number,) = struct.unpack_from("<I", record.value)
        raw = record.value[4:]
        self._flush(number)
        self._directories.pop(number, None)
        body = self._body(number)
        body[:_MAP] = raw[:_MAP]
        body[_AFTER_MAP : len(raw)] = raw[_AFTER_MAP:]
        (flags,) = struct.unpack_from("<I", body, 32)
        if flags & _EXTENTS:
            if struct.unpack_from("<H", body, _MAP)[0] != _EXTENT_MAGIC:
                body[_MAP : _MAP + len(_EMPTY_MAP)] = _EMPTY_MAP
        elif flags & _INLINE:
            body[_MAP:_MAP_END] = raw[_MAP:_MAP_END]
        self._store(number, body, record)
        self._mark_used(number, record)

    def _mark_used(self, number: int, record: Record) -> None:
        """Count an inode among those of its group that were used once (`ext4_mark_inode_used`)."""
        if not self._volume.counts_unused_inodes:
            return
        block, at, size = self._volume.descriptor_place(number)
        data = bytearray(self._volume.read_block(block))
        index = (number - 1) % self._volume.inodes_per_group
        (flags,) = struct.unpack_from("<H", data, at + 0x12)
        unused = int.from_bytes(data[at + 0x1C : at + 0x1E], "little")
        if size >= 64:
            unused |= int.from_bytes(data[at + 0x32 : at + 0x34], "little") << 16
        if flags & _NO_INODES:
            unused = self._volume.inodes_per_group
        left = min(unused, self._volume.inodes_per_group - index - 1)
        if left == unused and not flags & _NO_INODES:
            return
        struct.pack_into("<H", data, at + 0x12, flags & ~_NO_INODES)
        data[at + 0x1C : at + 0x1E] = (left & 0xFFFF).to_bytes(2, "little")
        if size >= 64:
            data[at + 0x32 : at + 0x34] = (left >> 16).to_bytes(2, "little")
        self._volume.write_block(block, bytes(data), record)

    def _count_links(self, number: int, record: Record, links: Callable[[int], int]) -> None:
        body = self._body(number)
        (before,) = struct.unpack_from("<H", body, 26)
        after = max(0, min(links(before), 0xFFFF))
        if after != before:
            struct.pack_into("<H", body, 26, after)
            self._store(number, body, record)

    # ---- maps

    def add_range(self, record: Record) -> None:
        number, first, middle, low = struct.unpack("<IIII", record.value)
        kept = self._map(number, record)
        length = middle & 0xFFFF
        unwritten = length > _UNWRITTEN
        length -= _UNWRITTEN if unwritten else 0
        if kept is None or not length:
            return
        _cut(kept.extents, first, length)
        at = bisect_right(kept.extents, (first,))
        kept.extents.insert(at, (first, low | (middle >> 16) << 32, length, unwritten))

    def del_range(self, record: Record) -> None:
        number, first, length = struct.unpack("<III", record.value)
        kept = self._map(number, record)
        if kept is not None:
            _cut(kept.extents, first, length)

    def _map(self, number: int, record: Record) -> _Map | None:
        """Return a file's extents, to be changed; None where it has no such map: Linux passes over it."""
        kept = self._maps.get(number)
        if kept is None:
            body = self._alive(number)
            if body is None or not struct.unpack_from("<I", body, 32)[0] & _EXTENTS:
                return None
            extents: list[Extent] = []
            for extent in self._volume.extents(number):
                self._spend()
                extents.append(extent)
            kept = self._maps[number] = _Map(extents, record)
        kept.record = record
        return kept

    def flush(self) -> None:
        """Write all maps that were changed."""
        for number in list(self._maps):
            with suppress(*_DAMAGE):
                self._flush(number)

    def _flush(self, number: int) -> None:
        kept = self._maps.pop(number, None)
        if kept is not None:
            body = self._body(number)
            body[_MAP:_MAP_END] = self._tree(_joined(kept.extents), kept.record)
            self._store(number, body, kept.record)

    def _tree(self, extents: list[Extent], record: Record) -> bytes:
        """Return the 60 bytes of a map; what does not fit is in new blocks."""
        entries = [
            struct.pack(
                "<IHHI", first, count + (_UNWRITTEN if unwritten else 0), block >> 32, block & 0xFFFFFFFF
            )
            for first, block, count, unwritten in extents
        ]
        room = (self._volume.block_size - 12) // 12
        depth = 0
        while len(entries) > 4:
            above = []
            for at in range(0, len(entries), room):
                part = entries[at : at + room]
                node = struct.pack("<HHHHI", _EXTENT_MAGIC, len(part), room, depth, 0) + b"".join(part)
                block = self._volume.new_block()
                self._volume.write_block(block, node.ljust(self._volume.block_size, b"\0"), record)
                above.append(struct.pack("<4sIHH", part[0][:4], block & 0xFFFFFFFF, block >> 32, 0))
            entries = above
            depth += 1
        head = struct.pack("<HHHHI", _EXTENT_MAGIC, len(entries), 4, depth, 0)
        return (head + b"".join(entries)).ljust(60, b"\0")

    # ---- names

    def create(self, record: Record) -> None:
        parent, number = struct.unpack_from("<II", record.value)
        self._mark_used(number, record)
        body = self._alive(number)
        if body is None:
            raise ValueError(f"there is no inode {number} to give a name")
        if body[1] >> 4 == 0x4:
            self._new_directory(parent, number, body, record)
        if self._enter(parent, number, record.value[8:], record):
            self._count_links(number, record, lambda _: 1)

    def link(self, record: Record) -> None:
        parent, number = struct.unpack_from("<II", record.value)
        if self._alive(number) is not None and self._enter(parent, number, record.value[8:], record):
            self._count_links(number, record, lambda links: links + 1)

    def unlink(self, record: Record) -> None:
        parent, number = struct.unpack_from("<II", record.value)
        if self._alive(number) is None or self._alive(parent) is None:
            return
        if self._remove(parent, record.value[8:], record, number):
            self._count_links(number, record, lambda links: links - 1)

    def _directory(self, number: int, record: Record) -> _Directory:
        found = self._directories.get(number)
        if found is None:
            self._flush(number)
            self._make_plain(number, record)
            found = _Directory({}, 0)
            for block in self._volume.directory_blocks(number):
                self._spend()
                data = self._volume.read_block(block)
                for at, inode, _, size in _walk(data):
                    if inode:
                        found.names.setdefault(data[at + 8 : at + 8 + size], (block, inode))
                found.room = block
            self._directories[number] = found
        return found

    def _enter(self, parent: int, number: int, name: bytes, record: Record) -> bool:
        """Put a name into a directory; one that is there leads to `number` from now on.

        Returns whether it did not lead there yet.
        """
        if self._alive(parent) is None:
            return False
        directory = self._directory(parent, record)
        before = directory.names.get(name)
        if before is not None:
            if before[1] == number:
                return False
            self._remove(parent, name, record, before[1])
        mode = self._body(number)[1] >> 4
        entry = _Entry(number, name, _FILE_TYPES.get(mode, 0) if self._volume.has_file_types else 0)
        data = _insert(self._volume.read_block(directory.room), entry) if directory.names else None
        if data is not None:
            self._volume.write_block(directory.room, data, record)
        else:
            self._append(parent, directory, _block_of([entry], self._volume.block_size), record)
        directory.names[name] = directory.room, number
        return True

    def _remove(self, parent: int, name: bytes, record: Record, number: int) -> bool:
        """Take a name out of a directory if it leads to `number`; return whether it did."""
        directory = self._directory(parent, record)
        block, inode = directory.names.get(name, (0, 0))
        if inode != number:
            return False
        data = bytearray(self._volume.read_block(block))
        before = None
        for at, inode, length, size in _walk(data):
            if inode and data[at + 8 : at + 8 + size] == name:
                if before is None:
                    data[at : at + 4] = bytes(4)
                else:
                    _set_length(data, before, at + length - before)
                self._volume.write_block(block, bytes(data), record)
                break
            before = at
        del directory.names[name]
        directory.room = block
        return True

    def _make_plain(self, number: int, record: Record) -> None:
        """Give an inline directory a block."""
        body = self._body(number)
        (flags,) = struct.unpack_from("<I", body, 32)
        if body[1] >> 4 != 0x4:
            raise ValueError(f"inode {number} is not a directory")
        if not flags & _INLINE:
            return
        (parent,) = struct.unpack_from("<I", body, _MAP)
        entries = [_Entry(number, b".", 2), _Entry(parent, b"..", 2)]
        entries += [_Entry(inode, name, kind) for name, inode, kind in self._volume.inline_entries(number)]
        self._start_directory(number, body, entries, record)

    def _new_directory(self, parent: int, number: int, body: bytearray, record: Record) -> None:
        """Give a directory that was just made its first block (`ext4_init_new_dir`)."""
        self._start_directory(number, body, [_Entry(number, b".", 2), _Entry(parent, b"..", 2)], record)

    def _start_directory(self, number: int, body: bytearray, entries: list[_Entry], record: Record) -> None:
        self._maps.pop(number, None)
        self._directories.pop(number, None)
        (flags,) = struct.unpack_from("<I", body, 32)
        struct.pack_into("<I", body, 32, flags & ~_INLINE | _EXTENTS)
        body[_MAP:_MAP_END] = _EMPTY_MAP.ljust(60, b"\0")
        struct.pack_into("<I", body, 4, 0)
        self._store(number, body, record)
        self._append(number, None, _block_of(entries, self._volume.block_size), record)

    def _append(self, number: int, directory: _Directory | None, data: bytes, record: Record) -> None:
        """Make a directory a block longer."""
        body = self._body(number)
        flags, size = struct.unpack_from("<I", body, 32)[0], struct.unpack_from("<I", body, 4)[0]
        index = size // self._volume.block_size
        block = self._volume.new_block()
        if flags & _EXTENTS:
            extents = [*self._volume.extents(number), (index, block, 1, False)]
            body[_MAP:_MAP_END] = self._tree(extents, record)
        elif index < 12:
            struct.pack_into("<I", body, _MAP + 4 * index, block)
        else:
            raise ValueError(f"directory {number} cannot grow")
        struct.pack_into("<I", body, 4, size + self._volume.block_size)
        self._volume.write_block(block, data, record)
        self._store(number, body, record)
        if directory is not None:
            directory.room = block


def _cut(extents: list[Extent], first: int, length: int) -> None:
    """Take blocks of a file out of its extents, which stay in order."""
    end = first + length
    kept: list[Extent] = []
    for start, block, count, unwritten in extents:
        if start < first:
            kept.append((start, block, min(count, first - start), unwritten))
        if start + count > end:
            skip = max(0, end - start)
            kept.append((start + skip, block + skip, count - skip, unwritten))
    extents[:] = kept


def _joined(extents: list[Extent]) -> list[Extent]:
    """Join neighbours, as far as an extent can be long."""
    found: list[Extent] = []
    for extent in extents:
        if found:
            start, block, count, unwritten = found[-1]
            longest = 0x7FFF if unwritten else 0x8000
            if (
                (start + count, block + count, unwritten) == (extent[0], extent[1], extent[3])
                and count + extent[2] <= longest
            ):  # fmt: skip
                found[-1] = (start, block, count + extent[2], unwritten)
                continue
        found.append(extent)
    return found


# ---- blocks of directories


@dataclass(frozen=True)
class _Entry:
    inode: int
    name: bytes
    kind: int

    @property
    def needs(self) -> int:
        return 8 + -(-len(self.name) // 4) * 4

    def pack(self, length: int) -> bytes:
        head = struct.pack("<IHBB", self.inode, _packed(length), len(self.name), self.kind)
        return (head + self.name).ljust(self.needs, b"\0")


def _packed(length: int) -> int:
    """Return an entry's length as it is stored: of 65,536 there are only two bytes."""
    return length if length < 65536 else 0xFFFF


def _set_length(data: bytearray, at: int, length: int) -> None:
    struct.pack_into("<H", data, at + 4, _packed(length))


def _walk(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (offset, inode, length, bytes of the name) of the entries in a block."""
    at = 0
    while at + 8 <= len(data):
        inode, length, size = struct.unpack_from("<IHB", data, at)
        if length in (0, 0xFFFF) and len(data) == 65536:
            length = 65536
        if length < 8 or at + length > len(data) or 8 + size > length:
            raise ValueError("a block of a directory is broken")
        yield at, inode, length, size
        at += length


def _insert(data: bytes, entry: _Entry) -> bytes | None:
    """Return a directory's block with an entry more; None where it is full."""
    for at, inode, length, size in _walk(data):
        if data[at : at + 8] == _TAIL and at + 12 == len(data):
            continue
        used = 8 + -(-size // 4) * 4 if inode else 0
        if length - used < entry.needs:
            continue
        changed = bytearray(data)
        if used:
            _set_length(changed, at, used)
        packed = entry.pack(length - used)
        changed[at + used : at + used + len(packed)] = packed
        return bytes(changed)
    return None


def _block_of(entries: list[_Entry], size: int) -> bytes:
    """Return a directory's block that holds `entries`, which fit."""
    out = bytearray()
    for entry in entries[:-1]:
        out += entry.pack(entry.needs)
    if len(out) + entries[-1].needs > size:
        raise ValueError("a directory does not fit into a block")
    out += entries[-1].pack(size - len(out))
    return bytes(out.ljust(size, b"\0"))
