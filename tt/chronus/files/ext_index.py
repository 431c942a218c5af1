"""An index of an ext file system: the inode that holds a block, and the names that lead to an inode.

Built once, by one pass over the tables of inodes and one over the directories.  From then on it moves
between instants of the same disk by looking only at what was written between them, forwards or
backwards, and reports what changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tt.chronus.files.ext_volume import JOURNAL, RESIZE, ROOT, ExtVolume, Held, candidates
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode

MAX_NAMES = 8 << 20
"""Most names of files that an index takes."""

MAX_PATHS = 4 << 20
"""Most paths that one comparison names."""

_CHUNK = 8  # bits: blocks are looked up by their chunk of 256
_DEPTH = 4096  # names in a path, as tt.vmm.boot.filetree
_DAMAGE = (ValueError, IndexError, struct.error)


Run = tuple[int, int, int]
"""(first block, blocks, inode that holds them)."""

Link = tuple[int, str]
"""What leads to an inode: (directory, name)."""

Links = Link | set[Link]


class Owners:
    """Which inodes hold a block: more than one only where the file system is between two states."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Run]] = {}
        self._runs: dict[int, tuple[Run, ...]] = {}
        self._maps: dict[int, frozenset[int]] = {}

    def put(self, inode: int, held: Held | None) -> None:
        """Set the blocks that an inode holds."""
        self._maps.pop(inode, None)
        for run in self._runs.pop(inode, ()):
            for chunk in _chunks_of(run):
                there = self._chunks.get(chunk, [])
                if run in there:
                    there.remove(run)
                if not there:
                    self._chunks.pop(chunk, None)
        if held is None or not held.runs:
            return
        self._runs[inode] = runs = tuple((start, count, inode) for start, count in held.runs)
        if held.maps:
            self._maps[inode] = held.maps
        for run in runs:
            for chunk in _chunks_of(run):
                self._chunks.setdefault(chunk, []).append(run)

    def of(self, block: int) -> list[int]:
        """Return the inodes that hold a block."""
        there = self._chunks.get(block >> _CHUNK, ())
        return [inode for start, count, inode in there if start <= block < start + count]

    def maps(self, inode: int, block: int) -> bool:
        """Whether a block of an inode maps other blocks, rather than holding contents."""
        return block in self._maps.get(inode, ())


def _chunks_of(run: Run) -> range:
    return range(run[0] >> _CHUNK, (run[0] + run[1] - 1 >> _CHUNK) + 1)


@dataclass
class Moved:
    """What differs between `old` and `new`, found when an index moved from one to the other.

    `inodes`: those whose bytes may differ, with the blocks of their contents that were written to.
    `entries`: (directory, name) -> (inode before, inode after), 0 for none.
    """

    old: ExtVolume
    new: ExtVolume
    inodes: dict[int, set[int]] = field(default_factory=dict)
    entries: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)


class Geometry(Exception):  # noqa: N818 - not an error, a turn
    """The two file systems are laid out differently, so that they cannot be compared block by block."""


class VolumeIndex:
    """The files of `volume`; raises `BadInput` for a file system that is too large or too damaged.

    A single damaged directory or file is left out, and listed in `broken`.
    """

    def __init__(self, volume: ExtVolume) -> None:
        self.volume = volume
        self.owners = Owners()
        self.names: dict[int, dict[str, int]] = {}
        self.broken: set[int] = set()
        self._links: dict[int, Links] = {}
        self._old_names: dict[int, dict[str, int]] = {}
        self._old_links: dict[int, list[Link]] = {}
        self._known_paths: dict[tuple[int, bool], str | None] = {}
        self._count = 0
        volume.budget = 4 * volume.block_count + (1 << 16)
        try:
            for inode in volume.used_inodes():
                self._rename(inode.number, self._take(inode))
        finally:
            volume.budget = None
        self._old_names, self._old_links = {}, {}

    # Names

    def paths(self, inode: int, old: bool = False) -> Iterator[str]:
        """Yield the paths of an inode; with `old`, as they were before the last move."""
        if inode == ROOT:
            yield "/"
            return
        for parent, name in self._links_of(inode, old):
            above = self.directory_path(parent, old)
            if above is not None:
                yield f"{above}/{name}"

    def path(self, inode: int, old: bool = False) -> str | None:
        """Return one path of an inode, None where nothing leads to it."""
        return next(self.paths(inode, old), None)

    def directory_path(self, directory: int, old: bool = False) -> str | None:
        """Return a directory's path without a slash at its end, None where no path leads to it."""
        key = directory, old
        if key not in self._known_paths:
            self._known_paths[key] = self._climb(directory, old)
        return self._known_paths[key]

    def below(self, inode: int, path: str, old: bool = False) -> Iterator[tuple[str, int]]:
        """Yield (path, inode) of an inode at `path` and of all that is below it."""
        stack = [(path, inode)]
        seen: set[int] = set()
        while stack:
            at, number = stack.pop()
            yield at, number
            if number in seen:
                continue  # a directory inside itself
            seen.add(number)
            if len(stack) > MAX_PATHS:
                raise BadInput(f"{self.volume.where} has over {MAX_PATHS} changed files: too many to list")
            stack += [(f"{at}/{name}", child) for name, child in self._names_of(number, old).items()]

    # Moving

    def move(self, new: ExtVolume, written: set[int]) -> Moved:
        """Go to another instant, where `written` holds all the blocks that were written to between the two.

        Raises `Geometry` where the file systems are laid out differently; the index is of no use then.
        """
        old = self.volume
        self._old_names, self._old_links = {}, {}
        self._known_paths.clear()
        moved = Moved(old, new)
        if not written:
            self.volume = new
            return moved
        if old.superblock != new.superblock and old.geometry() != new.geometry():
            raise Geometry
        maybe = candidates(old, new, written)
        moved.blocks = maybe
        again = set(self.broken)  # inodes to look at again
        contents: dict[int, set[int]] = {}
        for block in maybe:
            if new.inodes_in(block):
                again |= self._changed_inodes(old, new, block)
                continue
            for inode in self.owners.of(block):
                contents.setdefault(inode, set()).add(block)
                if self.owners.maps(inode, block) or inode in self.names:
                    again.add(inode)
        new.budget = 4 * new.block_count + (1 << 16)
        try:
            self._look_again(moved, again)
        finally:
            new.budget = None
        for inode in sorted(again):
            moved.inodes[inode] = set()
        for block in maybe:
            for inode in self.owners.of(block):
                contents.setdefault(inode, set()).add(block)
        for inode, blocks in contents.items():
            if inode not in (JOURNAL, RESIZE):
                moved.inodes[inode] = blocks
        return moved

    # ---- inside

    def _look_again(self, moved: Moved, again: set[int]) -> None:
        """Read the inodes of `again` anew, and note which names were added and removed."""
        self.volume = moved.new
        self.broken -= again
        listed: dict[int, dict[str, int] | None] = {}
        for number in again:
            self.owners.put(number, None)
            try:
                inode = moved.new.inode(number)
            except _DAMAGE:
                self.broken.add(number)
                continue
            if inode.mode:
                listed[number] = self._take(inode)
        for number in again:
            for name, pair in self._rename(number, listed.get(number)).items():
                moved.entries[number, name] = pair

    def _take(self, inode: Inode) -> dict[str, int] | None:
        """Note what an inode holds, and return its names if it is a directory, else None."""
        number = inode.number
        if number != RESIZE:  # it maps blocks that are reserved for growing, in another format
            try:
                self.owners.put(number, self.volume.held(inode))
            except _DAMAGE:
                self.broken.add(number)
        links = struct.unpack_from("<H", inode.body, 26)[0]
        if inode.kind == "directory" and links:
            try:
                return self.volume.directory(inode)
            except _DAMAGE:
                self.broken.add(number)
                return {}
        return None

    def _rename(self, directory: int, listed: dict[str, int] | None) -> dict[str, tuple[int, int]]:
        """Set a directory's names; return those added, removed or with another inode: (before, after)."""
        before = self.names.pop(directory, {})
        if listed is not None:
            self.names[directory] = listed
        after = listed or {}
        changed = {}
        for name in before.keys() | after.keys():
            one, two = before.get(name, 0), after.get(name, 0)
            if one != two:
                changed[name] = (one, two)
        if not changed:
            return changed
        self._count += len(after) - len(before)
        if self._count > MAX_NAMES:
            raise BadInput(f"{self.volume.where} has over {MAX_NAMES} files: too many to compare")
        self._old_names[directory] = before
        for name, (one, two) in changed.items():
            if one:
                self._unlink(one, (directory, name))
            if two:
                self._link(two, (directory, name))
        return changed

    def _link(self, inode: int, link: Link) -> None:
        self._keep_links(inode)
        there = self._links.get(inode)
        if there is None:
            self._links[inode] = link
        elif isinstance(there, set):
            there.add(link)
        else:
            self._links[inode] = {there, link}

    def _unlink(self, inode: int, link: Link) -> None:
        self._keep_links(inode)
        there = self._links.get(inode)
        if isinstance(there, set):
            there.discard(link)
            if there:
                return
        self._links.pop(inode, None)

    def _keep_links(self, inode: int) -> None:
        if inode not in self._old_links:
            self._old_links[inode] = self._links_of(inode, False)

    def _changed_inodes(self, old: ExtVolume, new: ExtVolume, block: int) -> set[int]:
        one, two = self._bodies(old, block), self._bodies(new, block)
        return {number for number in one.keys() | two.keys() if one.get(number) != two.get(number)}

    def _bodies(self, volume: ExtVolume, block: int) -> dict[int, bytes]:
        try:
            return volume.bodies_in(block)
        except _DAMAGE:
            return {}

    def _links_of(self, inode: int, old: bool) -> list[Link]:
        """Return the names that lead to an inode, sorted."""
        if old and inode in self._old_links:
            return self._old_links[inode]
        there = self._links.get(inode)
        if there is None:
            return []
        return sorted(there) if isinstance(there, set) else [there]

    def _names_of(self, directory: int, old: bool) -> dict[str, int]:
        if old and directory in self._old_names:
            return self._old_names[directory]
        return self.names.get(directory, {})

    def _climb(self, directory: int, old: bool) -> str | None:
        parts: list[str] = []
        at = directory
        while at != ROOT:
            links = self._links_of(at, old)
            if not links or len(parts) > _DEPTH:
                return None
            at, name = links[0]
            parts.append(name)
        return "".join(f"/{name}" for name in reversed(parts))
