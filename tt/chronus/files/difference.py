"""What differs between two views of a disk: files added, removed and changed, on all of its volumes.

On ext, only what was written between the two instants is looked at (`tt.chronus.files.ext_index`); what
cannot be followed block by block (FAT, a file system made anew) is compared file by file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tt.chronus.files.changes import Change, ExtLocation, Side, pair_renames
from tt.chronus.files.ext_index import MAX_PATHS, Geometry, Moved, VolumeIndex
from tt.chronus.files.ext_volume import ExtVolume
from tt.chronus.files.same_file import ext_ways, tree_ways
from tt.chronus.files.tree import Node, Tree
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode
from tt.vmm.boot.filetree import FileSystem
from tt.vmm.boot.images import DiskImage, Volume
from tt.vmm.disk import BLOCK

__all__ = ["Change", "DiskIndex", "OpenVolume", "Side", "diff", "pair_renames", "written_blocks"]

_DEEPEST = 255  # directories in a path
_MAX_NOTES = 20
_AT_ONCE = 256  # blocks that are compared at once where it is not known what was written


def diff(old: DiskView, new: DiskView, changed_blocks: Collection[int] | None = None) -> list[Change]:
    """Return how the files on `new` differ from those on `old`, sorted by path.

    `changed_blocks` holds all blocks of 4 KB that were written to between the two; without it all of both
    are read.  A file under another name is removed here and added there: see `pair_renames`.
    Raises `BadInput` where neither holds a file system that can be read.
    """
    return DiskIndex(old).move(new, changed_blocks)


@dataclass
class OpenVolume:
    """A volume of a disk: its index if it is ext, else its file system; or the reason why it has neither."""

    volume: Volume
    index: VolumeIndex | None = None
    files: FileSystem[Any] | None = None
    error: str = ""


class DiskIndex:
    """All files of a disk at one instant; `move` goes to another; see `VolumeIndex`.

    `notes` says which changes the list of the last move lacks, and why.
    """

    def __init__(self, view: DiskView) -> None:
        self.view = view
        self.notes: list[str] = []
        image = view.image()
        self.volumes = {volume.name: _open(image, volume) for volume in image.volumes}
        self.root = _root(view, next(iter(self.volumes), ""))

    @property
    def readable(self) -> bool:
        """Whether any volume holds a file system that can be read."""
        return any(each.index or each.files for each in self.volumes.values())

    def move(self, view: DiskView, written: Collection[int] | None = None) -> list[Change]:
        """Go to another instant, and return what differs there, sorted by path; see `diff`."""
        if written is None:
            written = written_blocks(self.view, view)
        self.notes = []
        changes: list[Change] = []
        image = view.image()
        root = self.volumes.get(self.root)
        if root is None or not (root.index or root.files):
            self.root = _root(view, self.root)
        volumes: dict[str, OpenVolume] = {}
        was = self.volumes
        for volume in image.volumes:
            name = volume.name
            before = was.pop(name, None)
            blocks = _inside(volume, written)
            if before is not None and before.volume == volume and not blocks:
                volumes[name] = before  # which shows another instant, but the same bytes
                continue
            after, found = self._step(before, image, volume, blocks)
            volumes[name] = after
            changes += found
        for before in was.values():
            changes += self._compare(before, None)
        self.view, self.volumes = view, volumes
        changes.sort(key=lambda change: change.path)
        return changes

    def prefix(self, name: str) -> str:
        """Return the prefix of paths on a volume: empty for the root volume, else `vda2:`."""
        return "" if name == self.root else f"{name}:"

    # ---- inside

    def _step(
        self, before: OpenVolume | None, image: DiskImage, volume: Volume, written: set[int]
    ) -> tuple[OpenVolume, list[Change]]:
        name = volume.name
        if before is not None and before.index is not None and before.volume == volume:
            try:
                new = ExtVolume(image.open(volume), f"{image.where} ({name})")
                moved = before.index.move(new, in_blocks(volume, written, new.block_size))
                return before, list(self._moved(name, before.index, moved))
            except Geometry:
                pass
            except BadInput as e:
                self._note(f"{name} cannot be read any more: {e}")
                return OpenVolume(volume, error=str(e)), []
        after = _open(image, volume)
        return after, list(self._compare(before, after))

    def _moved(self, name: str, index: VolumeIndex, moved: Moved) -> Iterator[Change]:
        """Yield the changes of files between the two instants of a move."""
        old, new = _affected(index, moved, True), _affected(index, moved, False)
        prefix = self.prefix(name)
        written = moved.blocks
        for each in (moved.old, moved.new):
            each.budget = 8 * each.block_count + (1 << 20)
        try:
            for path in sorted(old.keys() | new.keys()):
                one, two = old.get(path), new.get(path)
                before = ext_side(name, prefix + path, moved.old, one, written)
                after = ext_side(name, prefix + path, moved.new, two, written)
                change = _change(prefix + path, before, after)
                if before and after and before.place and after.place:
                    ways = ext_ways(moved.old, before.place.inode, moved.new, after.place.inode, written)
                    change = Change(prefix + path, "changed", ways, "", before, after) if ways else None
                if change is not None:
                    yield change
        finally:
            moved.old.budget = moved.new.budget = None

    def _compare(self, before: OpenVolume | None, after: OpenVolume | None) -> Iterator[Change]:
        """Compare two volumes file by file."""
        volume = (after or before or _NOTHING).volume
        prefix = self.prefix(volume.name)
        old, new = _files_of(before), _files_of(after)
        for each, files in ((before, old), (after, new)):
            if each is not None and files is None:
                what = each.volume.type or "nothing that can be read"
                self._note(f"{volume.name} ({what}) was written to; its files cannot be listed")
                return
        left, right = self._walk(old), self._walk(new)
        for path in sorted(left | right):
            try:
                one = tree_side(prefix + path, path, old) if old and path in left else None
                two = tree_side(prefix + path, path, new) if new and path in right else None
                change = _change(prefix + path, one, two)
                if change is not None and change.kind == "changed" and old is not None and new is not None:
                    ways = tree_ways(old, new, path)
                    change = Change(change.path, "changed", ways, "", one, two) if ways else None
            except BadInput as e:
                self._note(str(e))
                continue
            if change is not None:
                yield change

    def _walk(self, files: FileSystem[Any] | None) -> set[str]:
        """Return all paths of a file system but the root's own; damaged files are left out."""
        found: set[str] = set()
        stack = ["/"] if files else []
        while stack and files:
            folder = stack.pop()
            try:
                names = files.listdir(folder)
            except BadInput as e:
                self._note(str(e))
                continue
            for name in names:
                path = f"{folder.rstrip('/')}/{name}"
                try:
                    kind = files.lstat(path).kind
                except BadInput:
                    continue
                found.add(path)
                if kind == "directory" and path.count("/") < _DEEPEST:  # a damaged one may contain itself
                    stack.append(path)
                if len(found) > MAX_PATHS:
                    raise BadInput(f"{files.where} has over {MAX_PATHS} files: too many to list")
        return found

    def _note(self, text: str) -> None:
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)


_NOTHING = OpenVolume(Volume(0, 0, 0, ""))


def written_blocks(old: DiskView, new: DiskView) -> set[int]:
    """Return the blocks of 4 KB in which two views differ, by reading both."""
    found: set[int] = set()
    count = -(-max(old.size, new.size) // BLOCK)
    both = min(old.size, new.size) // BLOCK
    for first in range(0, both, _AT_ONCE):
        part = min(_AT_ONCE, both - first)
        one, two = old.blocks(first, part), new.blocks(first, part)
        if one != two:
            found |= {first + at for at in range(part) if one[at] != two[at]}
    return found | set(range(both, count))


def _open(image: DiskImage, volume: Volume) -> OpenVolume:
    try:
        if volume.type == "ext":
            name = f"{image.where} ({volume.name})"
            return OpenVolume(volume, index=VolumeIndex(ExtVolume(image.open(volume), name)))
        if volume.type == "fat":
            return OpenVolume(volume, files=image.filesystem(volume))
    except BadInput as e:
        return OpenVolume(volume, error=str(e))
    return OpenVolume(volume)


def _root(view: DiskView, otherwise: str) -> str:
    try:
        return Tree(view).root
    except BadInput:
        return otherwise


def _inside(volume: Volume, written: Collection[int]) -> set[int]:
    """Return the blocks of a disk that have bytes of a volume."""
    first, last = volume.offset // BLOCK, -(-(volume.offset + volume.size) // BLOCK)
    return {block for block in written if first <= block < last}


def in_blocks(volume: Volume, written: set[int], size: int) -> set[int]:
    """Return the blocks, of `size` bytes, of a volume that lie in blocks of 4 KB of its disk."""
    found: set[int] = set()
    for block in written:
        begin = max(0, block * BLOCK - volume.offset)
        end = min(volume.size, (block + 1) * BLOCK - volume.offset)
        found.update(range(begin // size, -(-end // size)))
    return found


def _affected(index: VolumeIndex, moved: Moved, old: bool) -> dict[str, int]:
    """Return what may differ, as it was or as it is: path -> inode."""
    found: dict[str, int] = {}
    for number in moved.inodes:
        for path in index.paths(number, old):
            found[path] = number
            if len(found) > MAX_PATHS:
                raise BadInput(f"{moved.new.where} has over {MAX_PATHS} changed files: too many to list")
    for (directory, name), (before, after) in moved.entries.items():
        number = before if old else after
        above = index.directory_path(directory, old)
        if not number or above is None:
            continue
        for path, child in index.below(number, f"{above}/{name}", old):
            found[path] = child
            if len(found) > MAX_PATHS:
                raise BadInput(f"{moved.new.where} has over {MAX_PATHS} changed files: too many to list")
    return found


def ext_side(
    name: str, path: str, volume: ExtVolume, number: int | None, written: Collection[int] | None = None
) -> Side | None:
    """Return a file of an ext volume; one whose inode cannot be read counts as missing."""
    if not number:
        return None
    try:
        inode = volume.inode(number)
        stat = volume.stat_of(inode)
        link = volume.link_target(inode) if stat.kind == "symlink" else None
    except (ValueError, IndexError):
        return None
    identity, place = (name, number, volume.generation(inode)), ExtLocation(volume, inode, written)
    return Side(Node(path, stat, link), partial(_read_inode, volume, inode, path), identity, place)


def _read_inode(volume: ExtVolume, inode: Inode, path: str, limit: int) -> bytes:
    try:
        if inode.size > limit:
            raise BadInput(f"{inode.size} bytes, over the bound of {limit}")
        return volume.contents(inode)
    except (ValueError, IndexError) as e:
        raise BadInput(f"{path} is damaged: {e}") from None


def tree_side(shown: str, path: str, files: FileSystem[Any]) -> Side:
    """Return the file at `path` of a file system of any kind; `shown` is its path in reports."""
    stat = files.lstat(path)
    link = files.readlink(path) if stat.kind == "symlink" else None
    return Side(Node(shown, stat, link), partial(_read_path, files, path))


def _read_path(files: FileSystem[Any], path: str, limit: int) -> bytes:
    return files.read(path, limit)


def _change(path: str, before: Side | None, after: Side | None) -> Change | None:
    if before is None:
        return Change(path, "added", (), "", None, after) if after else None
    if after is None:
        return Change(path, "removed", (), "", before, None)
    return Change(path, "changed", (), "", before, after)


def _files_of(volume: OpenVolume | None) -> FileSystem[Any] | None:
    if volume is None:
        return None
    return volume.index.volume if volume.index else volume.files
