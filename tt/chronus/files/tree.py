"""The files of a disk at one instant: with all its volumes in one tree.

Paths are "/etc/fstab" on the root volume, and "vda2:/boot/x" on any: volumes are named as Linux names
the partitions of its first virtio disk.  The root volume is the one that looks like a root, else the
largest that can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tt.chronus.store.view import DiskView
from tt.errors import BadInput, UsageError
from tt.vmm.boot.filesystems import READABLE
from tt.vmm.boot.filetree import MAX_FILE, FileSystem, NotFound, Stat, normalise, printable
from tt.vmm.boot.images import DiskImage, Volume

MAX_NODES = 2_000_000  # of one walk
_DEEPEST = 200
_VOLUME = re.compile(r"(vd[a-z][0-9]{0,3}):(.*)", re.DOTALL)
_OF_A_ROOT = ("/etc/fstab", "/etc/os-release", "/etc/passwd", "/sbin/init")


@dataclass(frozen=True)
class Node:
    """A file as a tree shows it: its whole path, what it is, and where it points if it is a symbolic link."""

    path: str
    stat: Stat
    link: str | None = None


@dataclass
class Tree:
    """The files of `disk`.

    Every method raises `NotFound` for what is not there, and `BadInput` for damage or where no
    file system can be read.
    """

    disk: DiskView
    _open: dict[str, FileSystem[Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def image(self) -> DiskImage:
        """The disk with its volumes."""
        return self.disk.image()

    @property
    def volumes(self) -> list[Volume]:
        """The parts of the disk that may hold a file system."""
        return self.image.volumes

    @cached_property
    def root(self) -> str:
        """The name of the root volume."""
        readable = []
        why = ""
        for volume in self.volumes:
            if volume.type not in READABLE:
                continue
            try:
                files = self.filesystem(volume.name)
                likely = sum(files.exists(path) for path in _OF_A_ROOT)
            except BadInput as e:
                why = str(e)
                continue
            readable.append((likely, volume.size, volume.name))
        if readable:
            return max(readable)[2]
        if why:
            raise BadInput(why)
        held = ", ".join(f"{v.name} {v.type or 'unknown'}" for v in self.volumes)
        held = held or self.image.problem or "no partitions"
        raise BadInput(
            f"{self.disk.where} holds no file system that tt reads ({held}): "
            "chronus cat --raw shows its bytes, chronus export writes an image"
        )

    def filesystem(self, volume: str) -> FileSystem[Any]:
        """Return the file system on a volume, by its name."""
        found = self._open.get(volume)
        if found is None:
            wanted = next((v for v in self.volumes if v.name == volume), None)
            if wanted is None:
                names = ", ".join(v.name for v in self.volumes) or "none"
                raise NotFound(f"{self.disk.where} has no volume {printable(volume)}: it has {names}")
            found = self._open[volume] = self.image.filesystem(wanted)
        return found

    def place(self, path: str) -> tuple[str, str]:
        """Return the volume, and the path inside it, of a path; raises `UsageError` if it is not absolute."""
        match = _VOLUME.fullmatch(path)
        volume, inside = (match[1], match[2] or "/") if match else ("", path)
        if not inside.startswith("/"):
            raise UsageError(
                f"{printable(path)!r} is no path of a disk: begin with / or, as in vda2:/boot, a volume"
            )
        return volume or self.root, normalise(inside)

    def lstat(self, path: str) -> Stat:
        """Return what `path` is, a final link not followed."""
        volume, inside = self.place(path)
        return self.filesystem(volume).lstat(inside)

    def stat(self, path: str) -> Stat:
        """Return what `path` leads to."""
        volume, inside = self.place(path)
        return self.filesystem(volume).stat(inside)

    def exists(self, path: str) -> bool:
        """Tell whether `path` leads to anything."""
        volume, inside = self.place(path)
        return self.filesystem(volume).exists(inside)

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        volume, inside = self.place(path)
        return self.filesystem(volume).listdir(inside)

    def read(self, path: str, limit: int = MAX_FILE) -> bytes:
        """Return a file's contents, of at most `limit` bytes."""
        volume, inside = self.place(path)
        return self.filesystem(volume).read(inside, limit)

    def readlink(self, path: str) -> str:
        """Return where a symbolic link points."""
        volume, inside = self.place(path)
        return self.filesystem(volume).readlink(inside)

    def node(self, path: str) -> Node:
        """Return what is at `path`, a final link not followed."""
        volume, inside = self.place(path)
        files = self.filesystem(volume)
        stat = files.lstat(inside)
        return Node(
            self._shown(volume, inside), stat, files.readlink(inside) if stat.kind == "symlink" else None
        )

    def walk(self, path: str = "/") -> Iterator[Node]:
        """Yield what is at `path` and everything below it, directories before what is in them.

        Links are not followed.  A directory that cannot be read is passed over, as `find` does; it is
        noted in `complaints`.
        """
        volume, inside = self.place(path)
        files = self.filesystem(volume)
        seen: set[int] = set()
        left = MAX_NODES
        waiting = [(inside, 0)]
        while waiting:
            at, depth = waiting.pop()
            try:
                node = self.node(f"{volume}:{at}")
            except BadInput as e:
                if at == inside:
                    raise
                self.complaints.append(str(e))
                continue
            yield node
            left -= 1
            if not left:
                raise BadInput(f"{self.disk.where} holds more than {MAX_NODES:,} files: name a folder")
            # On a damaged disk a directory may be inside itself.
            if node.stat.kind != "directory" or depth > _DEEPEST or node.stat.inode in seen:
                continue
            if node.stat.inode:
                seen.add(node.stat.inode)
            try:
                names = files.listdir(at)
            except BadInput as e:
                self.complaints.append(str(e))
                continue
            waiting += [
                (f"{at.rstrip('/')}/{name}", depth + 1) for name in reversed(names) if "/" not in name
            ]

    @cached_property
    def complaints(self) -> list[str]:
        """What could not be read on walks."""
        return []

    def _shown(self, volume: str, inside: str) -> str:
        return inside if volume == self.root else f"{volume}:{inside}"
