"""Which bytes of a disk show a change, so that the process that wrote them can be found.

A change of contents shows in the file's data; a new file, or its mode, owner or times, in its inode; a
name that is gone in its directory.  What is in the journal alone is looked at there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tt.chronus.files.changes import Change, Side
from tt.chronus.files.ext_volume import ExtVolume
from tt.chronus.files.tree import Tree
from tt.chronus.store.history import History
from tt.chronus.store.write import Write
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode
from tt.vmm.boot.filetree import MAX_FILE
from tt.vmm.disk import BLOCK

_MODE, _LINKS = 0, 26
_FIELDS = (
    ("mode", _MODE, 2), ("owner", 2, 2), ("owner", 24, 2), ("links", _LINKS, 2), ("attributes", 32, 4),
    ("contents", 16, 4), ("time", 16, 4),
)  # fmt: skip
"""Where an inode shows in which way a file changed: (way, offset, bytes); the last two are its mtime."""
_PIECE = 8  # bytes that are watched
_MOST_BLOCKS = 4096  # of a directory
_DAMAGE = (ValueError, IndexError, struct.error)


@dataclass(frozen=True)
class Evidence:
    """`size` bytes at `offset` of a disk that show a change, as write `write` left them; `what` they are."""

    what: str
    offset: int
    size: int
    write: Write

    @property
    def inside(self) -> int:
        """The offset of the bytes in the data of the write."""
        return self.offset - self.write.lba * 512


def evidence(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    """Yield the bytes that show `change`, made up to `instant`, the best first; possibly nothing."""
    side = change.after or change.before
    if side is None or side.place is None:
        yield from _by_contents(history, change, instant)
        return
    try:
        yield from _of_ext(history, change, instant)
    except (*_DAMAGE, BadInput):
        return


def last_write_at(history: History, offset: int, instant: int) -> Write | None:
    """Return the last write up to an instant that wrote the byte at `offset`, None where none did."""
    for piece in reversed(history.pieces(offset // BLOCK, instant)):
        if piece.offset <= offset % BLOCK < piece.offset + piece.size:
            return history.write(piece.number)
    return None


def raw_evidence(history: History, write: Write) -> Evidence | None:
    """Return the first bytes that a write changed, None where it changed none."""
    before = history.at(write.number - 1).read(write.lba, write.sectors)
    after = history.at(write.number).read(write.lba, write.sectors)
    at = first_difference(before, after)
    if at is None:
        return None
    at = at // _PIECE * _PIECE
    return Evidence("its data", write.lba * 512 + at, min(_PIECE, len(after) - at), write)


def first_difference(one: bytes, other: bytes) -> int | None:
    """Return the first place in `other` where it differs from `one`; None where nothing of it does."""
    if one[: len(other)] == other:
        return None
    low, high = 0, len(other)  # other[:low] is the same, other[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


# ---- ext


class _Volume:
    """The ext volume of a changed file, as an instant shows it."""

    def __init__(self, history: History, path: str, instant: int) -> None:
        tree = Tree(history.at(instant))
        name, self.path = tree.place(path)
        volume = next(each for each in tree.volumes if each.name == name)
        self.offset = volume.offset
        self.ext = ExtVolume(tree.image.open(volume), name)
        self._history, self._instant = history, instant

    def evidence(self, what: str, offset: int, size: int) -> Iterator[Evidence]:
        """Yield what shows the bytes at `offset` of the volume: their newest copy may be in the journal."""
        block, inside = divmod(offset, self.ext.block_size)
        copy = self.ext.newer.get(block)
        if copy is not None and copy.data is not None:  # made by a fast commit, by this record last
            what, inside, size = "its fast commit", copy.offset, _PIECE
        place = self.offset + (copy.block if copy is not None else block) * self.ext.block_size + inside
        write = last_write_at(self._history, place, self._instant)
        if write is not None:
            yield Evidence(what, place, size, write)


def _of_ext(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    volume = _Volume(history, change.path, instant)
    what, after = set(change.what), change.after
    if after is not None and after.place is not None:
        inode = after.place.inode
        contents = change.kind == "added" or bool(what & {"contents", "type"})
        if contents and after.node.stat.kind == "file" and inode.size:
            yield from _in_data(volume, change, after, inode)
        if change.kind == "added" or what & {"type", "link"}:
            yield from _in_inode(volume, inode, _MODE, 2)
        for way, at, size in _FIELDS:
            if way in what and _inode_differs(change.before, inode, at, size):
                yield from _in_inode(volume, inode, at, size)
    if change.kind != "changed":
        yield from _in_directory(volume, change)
    if change.kind == "removed" and change.before is not None and change.before.place is not None:
        yield from _gone_inode(volume, change.before)


def _inode_differs(before: Side | None, inode: Inode, at: int, size: int) -> bool:
    if before is None or before.place is None:
        return True
    return bool(before.place.inode.body[at : at + size] != inode.body[at : at + size])


def _in_data(volume: _Volume, change: Change, side: Side, inode: Inode) -> Iterator[Evidence]:
    new = side.read(MAX_FILE)
    old = change.before.read(MAX_FILE) if change.before and change.before.node.stat.kind == "file" else b""
    at = first_difference(old, new)
    if at is None:  # it became shorter: its inode shows that
        return
    size = volume.ext.block_size
    wanted, inside = divmod(at, size)
    for logical, start, count in volume.ext.file_runs(inode):
        if logical <= wanted < logical + count:
            offset = (start + wanted - logical) * size + inside
            yield from volume.evidence("its contents", offset, min(_PIECE, len(new) - at, size - inside))


def _in_inode(volume: _Volume, inode: Inode, at: int, size: int) -> Iterator[Evidence]:
    each = len(inode.body)
    for table in volume.ext.tables:
        index = inode.number - table.first_inode
        if 0 <= index < table.count * (volume.ext.block_size // each):
            offset = table.start * volume.ext.block_size + index * each + at
            yield from volume.evidence("its inode", offset, size)


def _in_directory(volume: _Volume, change: Change) -> Iterator[Evidence]:
    """Look for the name that came or went, in the blocks of its directory.

    Linux takes a name out by making the entry before it longer, or, of the first in a block, clears the
    number of the inode.  Where another name has taken the place since, this shows nothing.
    """
    gone = change.kind == "removed"
    side = change.before if gone else change.after
    if side is None or side.place is None:
        return
    where = side.place.volume
    folder, name = volume.path.rpartition("/")[::2]
    parent = where.find(folder or "/")
    if parent is None:
        return
    wanted = name.encode("utf-8", "surrogateescape")
    for _logical, start, count in where.file_runs(parent):
        for block in range(start, start + min(count, _MOST_BLOCKS)):
            data = where.logical(block)
            entry = _entry(data, wanted)
            if entry is None:
                continue
            at, before = entry
            place, size = (before + 4, 2) if gone and before != at else (at, 4)
            now = volume.ext.logical(block)
            end = at + 8 + len(wanted)
            if not gone or (
                now[place : place + size] != data[place : place + size] and _same(now, data, at, end)
            ):
                yield from volume.evidence("its name", block * where.block_size + place, size)
            return


def _same(now: bytes, then: bytes, at: int, end: int) -> bool:
    """Whether no other name took an entry's place: it is as it was but for the inode, or was cleared."""
    return now[at + 8 : end] == then[at + 8 : end] or not any(now[at + 8 : end])


def _gone_inode(volume: _Volume, side: Side) -> Iterator[Evidence]:
    """Look at the inode of a file that is gone: its count of links is 0, unless another file has it now."""
    assert side.place is not None
    number, at = side.place.inode.number, _LINKS
    for table in volume.ext.tables:
        each = volume.ext.block_size // len(side.place.inode.body)
        if table.first_inode <= number < table.first_inode + table.count * each:
            body = volume.ext.bodies_in(table.start + (number - table.first_inode) // each)[number]
            if body[at : at + 2] == b"\0\0" != side.place.inode.body[at : at + 2]:
                yield from _in_inode(volume, side.place.inode, at, 2)


def _entry(data: bytes, name: bytes) -> tuple[int, int] | None:
    """Return where a name's entry is in a block of a directory, and the one before it, or itself if first."""
    at = before = 0
    while at + 8 <= len(data):
        inode, length, size = struct.unpack_from("<IHB", data, at)
        if length < 8:
            return None
        if inode and data[at + 8 : at + 8 + size] == name:
            return at, before
        before, at = at, at + length
    return None


# ---- other file systems


def _by_contents(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    """Look for the new contents in the latest writes, where the file system's layout is not known."""
    if change.after is None or change.after.node.stat.kind != "file":
        return
    new = change.after.read(MAX_FILE)
    old = change.before.read(MAX_FILE) if change.before and change.before.node.stat.kind == "file" else b""
    at = first_difference(old, new)
    if at is None:
        return
    begin = at // 512 * 512
    wanted = new[begin : begin + 512]
    for number in range(instant, max(history.first, instant - 4096), -1):
        write = history.write(number)
        if write.disk != history.disk:
            continue
        data = history.at(number).read(write.lba, write.sectors)
        found = data.find(wanted)
        if found >= 0 and found % 512 == 0:
            offset = write.lba * 512 + found + at - begin
            yield Evidence("its contents", offset, min(_PIECE, len(new) - at, 512 - at % 512), write)
            return
