"""In which ways two files differ, reading no more of their contents than needed."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any

from tt.chronus.files.ext_volume import ExtVolume
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode
from tt.vmm.boot.filetree import FileSystem, Stat
from tt.vmm.boot.journal import Run

WAYS = ("type", "contents", "mode", "owner", "link", "links", "device", "attributes", "time")
"""In which ways a file can differ, in the order in which they are reported."""

_INLINE = 0x10000000
_AT_ONCE = 64  # blocks compared at once
_DAMAGE = (ValueError, IndexError, struct.error)


def stat_ways(old: Stat, new: Stat) -> set[str]:
    """Return the ways in which two files differ that their stats alone show."""
    ways = set()
    if old.mode >> 12 != new.mode >> 12:
        ways.add("type")
    if old.mode & 0o7777 != new.mode & 0o7777 and new.kind != "symlink":
        ways.add("mode")
    if (old.uid, old.gid) != (new.uid, new.gid):
        ways.add("owner")
    if old.nlink != new.nlink and "directory" not in (old.kind, new.kind):
        ways.add("links")
    if old.rdev != new.rdev:
        ways.add("device")
    if old.mtime != new.mtime:
        ways.add("time")
    return ways


def ext_ways(
    old: ExtVolume, one: Inode, new: ExtVolume, two: Inode, written: Collection[int] | None
) -> tuple[str, ...]:
    """Return the ways in which two inodes differ.

    `written` holds the logical blocks that may differ between the volumes; None says that any may.
    """
    ways = stat_ways(old.stat_of(one), new.stat_of(two))
    if old.mtime_ns(one) != new.mtime_ns(two):
        ways.add("time")
    if _differs(lambda volume, inode: volume.attributes(inode), old, one, new, two):
        ways.add("attributes")
    if one.kind == two.kind == "symlink":
        if _differs(lambda volume, inode: volume.link_target(inode), old, one, new, two):
            ways.add("link")
    elif one.kind == two.kind == "file" and not _same_contents(old, one, new, two, written):
        ways.add("contents")
    return in_order(ways)


def tree_ways(old: FileSystem[Any], new: FileSystem[Any], path: str) -> tuple[str, ...]:
    """Return the ways in which a file at `path` differs between two file systems of any kind."""
    one, two = old.lstat(path), new.lstat(path)
    ways = stat_ways(one, two)
    if one.kind == two.kind == "symlink":
        if old.readlink(path) != new.readlink(path):
            ways.add("link")
    elif one.kind == two.kind == "file" and (one.size != two.size or old.read(path) != new.read(path)):
        ways.add("contents")
    return in_order(ways)


def in_order(ways: Collection[str]) -> tuple[str, ...]:
    """Return ways in the order of `WAYS`; if the type changed, only that."""
    if "type" in ways:
        return ("type",)
    return tuple(way for way in WAYS if way in ways)


def _differs(read: Any, old: ExtVolume, one: Inode, new: ExtVolume, two: Inode) -> bool:
    return bool(_or_damage(read, old, one) != _or_damage(read, new, two))


def _or_damage(read: Any, volume: ExtVolume, inode: Inode) -> Any:
    try:
        return read(volume, inode)
    except (*_DAMAGE, BadInput) as e:
        return type(e)


def _same_contents(
    old: ExtVolume, one: Inode, new: ExtVolume, two: Inode, written: Collection[int] | None
) -> bool:
    if one.size != two.size:
        return False
    try:
        if one.flags & _INLINE or two.flags & _INLINE:
            short = one.size <= 2 * old.block_size
            return short and bool(old.contents(one) == new.contents(two))
        return all(
            _same_run(old, new, piece, one.size, written)
            for piece in _side_by_side(old.file_runs(one), new.file_runs(two))
        )
    except _DAMAGE:
        return bool(_or_damage(_mapped, old, one) == _or_damage(_mapped, new, two))


def _mapped(volume: ExtVolume, inode: Inode) -> list[Run]:
    return list(volume.file_runs(inode))


Piece = tuple[int, int | None, int | None, int]
"""(block in the file, block on the old disk, block on the new one, blocks); None for a hole."""


def _same_run(
    old: ExtVolume, new: ExtVolume, piece: Piece, size: int, written: Collection[int] | None
) -> bool:
    logical, one, two, count = piece
    if one == two:
        if one is None:
            return True
        if written is not None:
            there = range(one, one + count)
            touched = [n for n in there if n in written] if count < len(written) else _within(there, written)
            return all(_same(old, new, (logical + n - one, n, n, 1), size) for n in touched)
    for at in range(0, count, _AT_ONCE):
        part = min(_AT_ONCE, count - at)
        moved = (logical + at, None if one is None else one + at, None if two is None else two + at, part)
        if not _same(old, new, moved, size):
            return False
    return True


def _within(there: range, written: Collection[int]) -> list[int]:
    return [block for block in written if block in there]


def _same(old: ExtVolume, new: ExtVolume, piece: Piece, size: int) -> bool:
    logical, one, two, count = piece
    length = min(count * old.block_size, max(0, size - logical * old.block_size))
    zeros = bytes(length)
    left = zeros if one is None else old.logical(one, count)[:length]
    right = zeros if two is None else new.logical(two, count)[:length]
    return left == right


def _side_by_side(left: Iterator[Run], right: Iterator[Run]) -> Iterator[Piece]:
    """Cut two maps of a file, ascending, at each other's ends; where both have a hole there is no piece."""
    one, two = next(left, None), next(right, None)
    while one is not None or two is not None:
        start = min(run[0] for run in (one, two) if run is not None)
        ends = [edge for run in (one, two) if run for edge in (run[0], run[0] + run[2]) if edge > start]
        count = min(ends) - start
        first = one[1] + start - one[0] if one is not None and one[0] <= start else None
        second = two[1] + start - two[0] if two is not None and two[0] <= start else None
        yield start, first, second, count
        if one is not None and one[0] + one[2] <= start + count:
            one = next(left, None)
        if two is not None and two[0] + two[2] <= start + count:
            two = next(right, None)
