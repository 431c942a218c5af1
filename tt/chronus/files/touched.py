"""What the blocks of a disk belong to at an instant: files, directories, or the file system's own regions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tt.chronus.files.difference import DiskIndex, OpenVolume
from tt.chronus.files.ext_index import VolumeIndex
from tt.chronus.files.ext_volume import JOURNAL, RESIZE, ExtVolume
from tt.chronus.store.view import DiskView
from tt.vmm.disk import BLOCK

_ROLES = {JOURNAL: "journal", RESIZE: "group descriptors"}


@dataclass(frozen=True)
class Region:
    """Some blocks of 4 KB, and what they belong to.

    `kind`: "file", "directory", "symlink", "map" (blocks that say where a file's others lie, and its extended
    attributes), "journal", "superblock", "group descriptors", "block bitmap", "inode bitmap", "inode table",
    "unused", "volume" (one that tt does not read) or "disk" (outside of all volumes).  `path` is what a
    file is called, empty if it is not a file or has no path; `volume` is `vda1`, empty outside.
    """

    volume: str
    kind: str
    path: str
    blocks: tuple[int, ...]


def touched(view: DiskView, blocks: Collection[int]) -> list[Region]:
    """Return what `blocks`, of 4 KB, of a disk belong to; one that holds parts of several is in each."""
    return regions(DiskIndex(view), blocks)


def regions(index: DiskIndex, blocks: Collection[int]) -> list[Region]:
    """Return what `blocks`, of 4 KB, belong to at the instant of `index`."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for block in sorted(blocks):
        inside = False
        for name, each in index.volumes.items():
            begin, end = each.volume.offset, each.volume.offset + each.volume.size
            if begin < (block + 1) * BLOCK and block * BLOCK < end:
                inside = True
                for kind, path in _roles(each, index.prefix(name), block):
                    found.setdefault((name, kind, path), []).append(block)
        if not inside:
            found.setdefault(("", "disk", ""), []).append(block)
    return [Region(*key, tuple(there)) for key, there in found.items()]


def _roles(each: OpenVolume, prefix: str, block: int) -> set[tuple[str, str]]:
    """Return (kind, path) of each use that a volume makes of a disk's block of 4 KB."""
    if each.index is None:
        return {("volume", "")}
    size = each.index.volume.block_size
    begin = max(0, block * BLOCK - each.volume.offset)
    end = min(each.volume.size, (block + 1) * BLOCK - each.volume.offset)
    found: set[tuple[str, str]] = set()
    for number in range(begin // size, -(-end // size)):
        found |= _roles_of(each.index, prefix, number)
    return found


def _roles_of(index: VolumeIndex, prefix: str, block: int) -> set[tuple[str, str]]:
    volume = index.volume
    found: set[tuple[str, str]] = set()
    for number in index.owners.of(block):
        if number in _ROLES:
            found.add((_ROLES[number], ""))
            continue
        path = index.path(number)
        kind = "map" if index.owners.maps(number, block) else volume.inode(number).kind
        found.add((kind, prefix + path if path else ""))
    if found:
        return found
    return {(_layout(volume, block), "")}


def _layout(volume: ExtVolume, block: int) -> str:
    """Name the part of a file system's layout that a block is in."""
    if volume.inodes_in(block):
        return "inode table"
    if block <= 1024 // volume.block_size:
        return "superblock"
    group = volume.group_of(block)
    first, count = volume.head_of(group)
    if first <= block < first + count:
        return "superblock" if block == first else "group descriptors"
    # With flex_bg the bitmaps of many groups lie together in the first of them.
    for each in range(group, min(group + 64, volume.group_count)):
        bitmaps = volume.bitmaps(each)
        if block in bitmaps:
            return "block bitmap" if block == bitmaps[0] else "inode bitmap"
    return "unused"
