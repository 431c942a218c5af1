"""Which bytes of a disk show a change: where to look for who made it.

A change of contents shows in the file's data; a new file, or its mode, owner or times, in its inode; a name that
is gone in its directory.  What is in the journal alone is looked at there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tt.chronus.changes import Change, Side
from tt.chronus.ext_volume import ExtVolume
from tt.chronus.files import Tree
from tt.chronus.history import History, Write
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode
from tt.vmm.boot.filetree import MAX_FILE
from tt.vmm.disk import BLOCK

_MODE, _MTIME, _DTIME, _GID, _LINKS, _FLAGS = 0, 16, 20, 24, 26, 32  # of an inode, 2 or 4 bytes each
_UID = 2
_PIECE = 8  # bytes that are watched
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
        """Where the bytes are in what the write wrote."""
        return self.offset - self.write.lba * 512


def evidence(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    """Yield what shows `change` at `instant`, when it was made: the best first; nothing where none is known."""
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
    for piece in reversed(history.trace.disk_log.pieces(history.disk, offset // BLOCK, instant)):
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


def _of_ext(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    what = set(change.what)
    after, before = change.after, change.before
    if after is not None and after.place is not None:
        new, inode = after.place.volume, after.place.inode
        contents = change.kind == "added" or bool(what & {"contents", "type"})
        if contents and after.node.stat.kind == "file" and inode.size:
            yield from _in_data(history, change, after, instant)
        if change.kind == "added" or "type" in what or "link" in what:
            yield from _in_inode(history, change, new, inode, _MODE, 2, instant)
        for way, at, size in (
            ("mode", _MODE, 2), ("owner", _UID, 2), ("owner", _GID, 2), ("links", _LINKS, 2),
            ("attributes", _FLAGS, 4), ("contents", _MTIME, 4), ("time", _MTIME, 4),
        ):  # fmt: skip
            if way in what and _inode_differs(before, inode, at, size):
                yield from _in_inode(history, change, new, inode, at, size, instant)
    if change.kind in ("removed", "renamed") or (change.kind == "added" and change.after):
        yield from _in_directory(history, change, instant)


def _inode_differs(before: Side | None, inode: Inode, at: int, size: int) -> bool:
    if before is None or before.place is None:
        return True
    return bool(before.place.inode.body[at : at + size] != inode.body[at : at + size])


def _in_data(history: History, change: Change, side: Side, instant: int) -> Iterator[Evidence]:
    assert side.place is not None
    new = side.read(MAX_FILE)
    old = change.before.read(MAX_FILE) if change.before and change.before.node.stat.kind == "file" else b""
    at = first_difference(old, new)
    if at is None:  # it became shorter
        return
    volume, inode = side.place.volume, side.place.inode
    block = _data_block(volume, inode, at // volume.block_size)
    if block is None:
        return
    size = min(_PIECE, len(new) - at, volume.block_size - at % volume.block_size)
    offset = block * volume.block_size + at % volume.block_size
    yield from _at(history, change, volume, "its contents", offset, size, instant)


def _data_block(volume: ExtVolume, inode: Inode, wanted: int) -> int | None:
    for logical, start, count in volume.file_runs(inode):
        if logical <= wanted < logical + count:
            return start + wanted - logical
    return None


def _in_inode(
    history: History, change: Change, volume: ExtVolume, inode: Inode, at: int, size: int, instant: int
) -> Iterator[Evidence]:
    for table in volume.tables:
        index = inode.number - table.first_inode
        each = len(inode.body)
        if 0 <= index < table.count * (volume.block_size // each):
            offset = table.start * volume.block_size + index * each + at
            yield from _at(history, change, volume, "its inode", offset, size, instant)
            return


def _in_directory(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    """Look for the name that came or went, in the blocks of its directory."""
    side = change.before if change.kind == "removed" else change.after
    assert side is not None and side.place is not None
    _, path = Tree(history.at(instant)).place(change.path)
    folder, name = path.rpartition("/")[::2]
    place = side.place.volume
    parent = place.find(folder or "/")
    if parent is None:
        return
    wanted = name.encode("utf-8", "surrogateescape")
    size = place.block_size
    for _logical, start, count in place.file_runs(parent):
        for block in range(start, start + min(count, 4096)):
            data = place.logical(block)
            entry = _entry(data, wanted)
            if entry is not None:
                yield from _entry_evidence(history, change, place, block * size, entry, instant)
                return


def _entry(data: bytes, name: bytes) -> tuple[int, int] | None:
    """Return where the entry of a name is in a block of a directory, and where the one before it is."""
    at = before = 0
    while at + 8 <= len(data):
        inode, length, size = struct.unpack_from("<IHB", data, at)
        if length < 8:
            return None
        if inode and data[at + 8 : at + 8 + size] == name:
            return at, before
        before, at = at, at + length
    return None


def _entry_evidence(
    history: History, change: Change, volume: ExtVolume, start: int, entry: tuple[int, int], instant: int
) -> Iterator[Evidence]:
    at, before = entry
    if change.kind != "removed":
        yield from _at(history, change, volume, "its name", start + at, 4, instant)
        return
    # Linux takes a name out by making the entry before it longer, or clears the inode number of the first.
    place, size = (before + 4, 2) if before != at else (at, 4)
    volume_at = _volume_offset(history, change, instant)
    if volume_at is None:
        return
    write = _logical_write(history, change, instant, start + place)
    if write is not None:
        yield Evidence("its name", write[0], size, write[1])


def _logical_write(history: History, change: Change, instant: int, offset: int) -> tuple[int, Write] | None:
    """Find the write of a volume's byte as the instant shows it, through its journal: (offset, write)."""
    tree = Tree(history.at(instant))
    name, _ = tree.place(change.path)
    wanted = next((each for each in tree.volumes if each.name == name), None)
    if wanted is None:
        return None
    volume = ExtVolume(tree.image.open(wanted), name)
    place = wanted.offset + _through_journal(volume, offset)
    write = last_write_at(history, place, instant)
    return (place, write) if write is not None else None


def _volume_offset(history: History, change: Change, instant: int) -> int | None:
    tree = Tree(history.at(instant))
    name, _ = tree.place(change.path)
    return next((each.offset for each in tree.volumes if each.name == name), None)


def _through_journal(volume: ExtVolume, offset: int) -> int:
    """Return where a byte of a volume really is: its newest copy may be in the journal."""
    block, inside = divmod(offset, volume.block_size)
    copy = volume.newer.get(block)
    return (copy.block if copy is not None else block) * volume.block_size + inside


def _at(
    history: History, change: Change, volume: ExtVolume, what: str, offset: int, size: int, instant: int
) -> Iterator[Evidence]:
    start = _volume_offset(history, change, instant)
    if start is None:
        return
    place = start + _through_journal(volume, offset)
    write = last_write_at(history, place, instant)
    if write is not None:
        yield Evidence(what, place, size, write)


# ---- other file systems


def _by_contents(history: History, change: Change, instant: int) -> Iterator[Evidence]:
    """Look for the new contents among what was written last, where nobody says what lies where."""
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
