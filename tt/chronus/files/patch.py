"""A disk with some of its files in the state that they have at another instant.

`Patcher` takes changes (`tt.chronus.files.difference`) that lead from its disk to another, and makes
disks with some of them applied.  Only temporary copies are written: the result is a view like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tt.chronus.files.changes import Change, ChangeKind
from tt.chronus.files.patch_ext import ExtEditor
from tt.chronus.files.patch_fat import FatEditor
from tt.chronus.files.tree import Tree
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log.sectors import SECTOR
from tt.vmm.disk import BLOCK

_OPPOSITE: dict[ChangeKind, ChangeKind] = {"added": "removed", "removed": "added"}
_BOOT = 1024  # bytes before an ext superblock, which belong to a boot loader


@dataclass(frozen=True)
class Delta:
    """Changes that are applied together or not at all: of one file, with all its names if it has several.

    `blocks` are changes outside of files (a swap volume, the boot sector): offset in bytes -> new contents.
    """

    name: str
    changes: tuple[Change, ...] = ()
    blocks: Mapping[int, bytes] = field(default_factory=dict, repr=False, compare=False)


class PatchedDisk(DiskView):
    """A disk with some bytes replaced: `pieces`, offset in bytes -> contents, in whole sectors."""

    def __init__(self, disk: DiskView, pieces: Mapping[int, bytes], what: str) -> None:
        self.sectors, self.size = disk.sectors, disk.size
        self.where = f"{disk.where} with {what}"
        self.base = disk
        overlay = disk.overlay()
        for at, data in pieces.items():
            overlay.write(at // SECTOR, data)
        self.written: dict[int, bytes] = overlay.blocks

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB."""
        numbers = range(first, first + count)
        if not any(number in self.written for number in numbers):
            return self.base.blocks(first, count)
        return [
            self.written[number] if number in self.written else self.base.block(number) for number in numbers
        ]


def reverse(change: Change) -> Change:
    """Return the change that undoes a change; a rename stands for two changes, so it is refused."""
    if change.kind == "renamed":
        raise ValueError("undo a rename as a removal and an addition: see `pair_renames`")
    kind = _OPPOSITE.get(change.kind, change.kind)
    return replace(change, kind=kind, before=change.after, after=change.before)


def undo(delta: Delta, disk: DiskView) -> Delta:
    """Return the delta that undoes `delta`; `disk` is the disk before `delta`."""
    blocks = {at: disk.read(at // SECTOR, len(data) // SECTOR) for at, data in delta.blocks.items()}
    return Delta(delta.name, tuple(reverse(change) for change in delta.changes), blocks)


def deltas(changes: Iterable[Change]) -> list[Delta]:
    """Group `changes` into deltas, by path; a change that only follows from others is left out.

    A directory whose times changed follows from what changed in it, and a file's count of links from
    the names that it got or lost.  Names of one file that has several belong together.
    """
    listed = [change for change in changes if _is_cause(change)]
    leader: dict[str, str] = {}
    by_identity: dict[object, str] = {}

    def find(path: str) -> str:
        while leader.setdefault(path, path) != path:
            path = leader[path]
        return path

    for change in listed:
        for side in (change.before, change.after):
            if side is not None and side.identity is not None and side.node.stat.nlink > 1:
                if side.node.stat.kind == "directory":
                    continue
                other = by_identity.setdefault(side.identity, change.path)
                leader[find(change.path)] = find(other)
    groups: dict[str, list[Change]] = {}
    for change in sorted(listed, key=lambda change: change.path):
        groups.setdefault(find(change.path), []).append(change)
    return [Delta(", ".join(change.path for change in group), tuple(group)) for group in groups.values()]


def raw_deltas(old: DiskView, new: DiskView, written: Iterable[int]) -> list[Delta]:
    """Return what differs outside of files, among the blocks `written` between two views."""
    regions = list(_regions(old, new))
    found: dict[str, dict[int, bytes]] = {}
    for block in sorted(written):
        for name, begin, end in regions:
            low, high = max(begin, block * BLOCK), min(end, (block + 1) * BLOCK, old.size, new.size)
            if low >= high:
                continue
            data = new.read(low // SECTOR, (high - low) // SECTOR)
            if data != old.read(low // SECTOR, (high - low) // SECTOR):
                found.setdefault(name, {})[low] = data
    return [Delta(name, (), blocks) for name, blocks in found.items()]


class Patcher:
    """Makes copies of `disk` with some changes applied.

    The copies that the tools work on are made once.  Close it, or use it with `with`.
    """

    def __init__(self, disk: DiskView) -> None:
        self.disk = disk
        self._tree = Tree(disk)
        self._editors: dict[str, ExtEditor | FatEditor] = {}

    def close(self) -> None:
        """Remove the copies."""
        for editor in self._editors.values():
            editor.close()
        self._editors.clear()

    def __enter__(self) -> Patcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self, chosen: Sequence[Delta], others: Sequence[Delta] = ()) -> PatchedDisk:
        """Return the disk after the changes of `chosen`.

        Those of `others` that the chosen ones need are applied too: a new directory for a new file in it, the
        removal of the files in a directory that is removed.  Raises `BadInput` where the file system is
        damaged, has no room, or a tool is missing.
        """
        pieces: dict[int, bytes] = {}
        wanted = {change.path: change for delta in chosen for change in delta.changes}
        available = {change.path: change for delta in others for change in delta.changes}
        by_volume: dict[str, dict[str, Change]] = {}
        for change in _closure(wanted, available).values():
            volume, inside = self._tree.place(change.path)
            by_volume.setdefault(volume, {})[inside] = change
        for name, changes in by_volume.items():
            editor = self._editor(name)
            for at, data in editor.edit(changes).items():
                pieces[editor.volume.offset + at] = data
        patched = PatchedDisk(self.disk, pieces, _told(chosen))
        raw = {at: data for delta in chosen for at, data in delta.blocks.items()}
        return PatchedDisk(patched, raw, "other blocks") if raw else patched

    def _editor(self, name: str) -> ExtEditor | FatEditor:
        found = self._editors.get(name)
        if found is None:
            volume = next((each for each in self._tree.volumes if each.name == name), None)
            kind = volume.type if volume else ""
            if volume is None or kind not in ("ext", "fat"):
                raise BadInput(
                    f"{self.disk.where} has no file system on {name} in which files can be changed"
                )
            editor = ExtEditor if kind == "ext" else FatEditor
            found = self._editors[name] = editor(self.disk, volume)
        return found


def _is_cause(change: Change) -> bool:
    old, new = change.old, change.new
    if change.kind != "changed" or old is None or new is None:
        return True
    ways = set(change.what)
    if old.stat.kind == new.stat.kind == "directory":
        return bool(ways - {"time", "links", "contents"})
    same = (
        change.before is not None
        and change.after is not None
        and (change.before.identity == change.after.identity)
    )
    return bool(ways - {"links", "time"}) or ("time" in ways and "links" not in ways) or not same


def _closure(wanted: Mapping[str, Change], available: Mapping[str, Change]) -> dict[str, Change]:
    """Add to `wanted` the changes that those in it need."""
    found = dict(wanted)
    for path, change in wanted.items():
        if change.new is not None:
            above = path
            while (cut := above.rfind("/")) > 0:
                above = above[:cut]
                maker = available.get(above)
                if maker is not None and above not in found and _makes_directory(maker):
                    found[above] = maker
    going = [path for path, change in found.items() if _ends_directory(change)]
    for folder in going:
        for path, change in available.items():
            if path.startswith(f"{folder}/") and change.new is None:
                found.setdefault(path, change)
    return found


def _makes_directory(change: Change) -> bool:
    old, new = change.old, change.new
    return new is not None and new.stat.kind == "directory" and (old is None or old.stat.kind != "directory")


def _ends_directory(change: Change) -> bool:
    old, new = change.old, change.new
    return old is not None and old.stat.kind == "directory" and (new is None or new.stat.kind != "directory")


def _told(chosen: Sequence[Delta]) -> str:
    names = [delta.name for delta in chosen]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} changed" if names else "nothing changed"


def _regions(old: DiskView, new: DiskView) -> Iterator[tuple[str, int, int]]:
    """Yield (name, begin, end) in bytes of the parts of a disk that hold no files."""
    volumes = sorted(old.image().volumes, key=lambda volume: volume.offset)
    at = 0
    for volume in volumes:
        if volume.offset > at:
            yield "outside of the volumes", at, volume.offset
        if volume.type == "ext":
            yield f"the boot sector of {volume.name}", volume.offset, volume.offset + _BOOT
        elif volume.type != "fat":
            what = volume.type or "no file system"
            yield f"{volume.name} ({what})", volume.offset, volume.offset + volume.size
        at = max(at, volume.offset + volume.size)
    end = min(old.size, new.size)
    if at < end:
        yield "outside of the volumes", at, end
