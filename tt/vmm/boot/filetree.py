"""The interface to a file system inside an image: paths, links, limits, and damage turned into one error."""

from __future__ import annotations

import abc
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tt.errors import BadInput

MAX_FILE = 512 << 20
"""Most bytes `FileSystem.read` returns unless told otherwise."""

_MAX_SYMLINKS = 40  # as Linux (path_resolution(7))
_MAX_PARTS = 4096  # names in a path, links put in; Linux's PATH_MAX would allow half

Kind = Literal["file", "directory", "symlink", "other"]
NodeT = TypeVar("NodeT")


class NotFound(BadInput):
    """A path does not exist in a file system."""


@dataclass(frozen=True)
class Stat:
    """What is known of a file: `size` in bytes, `mode` as in stat(2), times in seconds since 1970.

    What a format does not know (FAT has no owners) is 0, and 1 link.  `rdev` is a device's number as
    Linux writes it: major << 8 | minor, for small ones.
    """

    kind: Kind
    size: int
    mode: int
    mtime: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    rdev: int = 0
    ctime: int = 0
    inode: int = 0


class FileSystem(abc.ABC, Generic[NodeT]):
    """A file system inside an image, read-only.

    Paths are absolute, with `/`; symbolic links are followed (40 at most), and
    never lead out of the file system.  Every method raises `NotFound` for a
    path that is not there and `BadInput` for damage; no damage makes one hang
    or take memory without bound.  `kind` names the format, `uuid` is the
    volume's identifier as Linux and GRUB write it, `where` names it in errors.
    """

    kind: str
    uuid: str
    label: str
    where: str

    def exists(self, path: str) -> bool:
        """Tell whether `path` leads to anything."""
        try:
            self._resolve(path)
        except NotFound:
            return False
        return True

    def stat(self, path: str) -> Stat:
        """Return what `path` leads to, links followed."""
        with self._guard(path):
            return self._stat(self._resolve(path)[-1])

    def lstat(self, path: str) -> Stat:
        """Return what `path` is, a final link not followed."""
        with self._guard(path):
            return self._stat(self._resolve(path, follow=False)[-1])

    def is_dir(self, path: str) -> bool:
        """Tell whether `path` leads to a directory."""
        return self.exists(path) and self.stat(path).kind == "directory"

    def is_file(self, path: str) -> bool:
        """Tell whether `path` leads to a regular file."""
        return self.exists(path) and self.stat(path).kind == "file"

    def read(self, path: str, limit: int = MAX_FILE) -> bytes:
        """Return the contents of a file; raises `BadInput` when they exceed `limit` bytes."""
        node = self._resolve(path)[-1]
        with self._guard(path):
            stat = self._stat(node)
            if stat.kind != "file":
                raise BadInput(f"{printable(path)} on {self.where} is not a regular file")
            if stat.size > limit:
                raise BadInput(
                    f"{printable(path)} on {self.where} is {stat.size} bytes, over the bound of {limit}"
                )
            return self._read(node)

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted, without `.` and `..`."""
        node = self._resolve(path)[-1]
        with self._guard(path):
            if self._stat(node).kind != "directory":
                raise BadInput(f"{printable(path)} on {self.where} is not a directory")
            return sorted(name for name in self._names(node) if name not in (".", ".."))

    def readlink(self, path: str) -> str:
        """Return the target of a symbolic link; raises `BadInput` when `path` is something else."""
        node = self._resolve(path, follow=False)[-1]
        with self._guard(path):
            if self._stat(node).kind != "symlink":
                raise BadInput(f"{printable(path)} on {self.where} is not a symbolic link")
            return self._link_target(node)

    @abc.abstractmethod
    def _root(self) -> NodeT: ...

    @abc.abstractmethod
    def _stat(self, node: NodeT) -> Stat: ...

    @abc.abstractmethod
    def _names(self, node: NodeT) -> Iterator[str]: ...

    @abc.abstractmethod
    def _child(self, node: NodeT, name: str) -> NodeT | None: ...

    @abc.abstractmethod
    def _read(self, node: NodeT) -> bytes: ...

    @abc.abstractmethod
    def _link_target(self, node: NodeT) -> str: ...

    def _resolve(self, path: str, *, follow: bool = True) -> list[NodeT]:
        """Walk to `path` and return the nodes on the way, the root first."""
        with self._guard(path):
            trail = [self._root()]
            names = [name for name in reversed(path.split("/")) if name not in ("", ".")]
            links = 0
            while names:
                if len(names) > _MAX_PARTS:
                    raise NotFound(f"{printable(path)} on {self.where} is too long a path")
                name = names.pop()
                if name == "..":
                    del trail[max(len(trail) - 1, 1) :]
                    continue
                if self._stat(trail[-1]).kind != "directory":
                    raise NotFound(f"no {printable(path)} on {self.where}")
                node = self._child(trail[-1], name)
                if node is None:
                    raise NotFound(f"no {printable(path)} on {self.where}")
                if self._stat(node).kind == "symlink" and (names or follow):
                    links += 1
                    if links > _MAX_SYMLINKS:
                        raise NotFound(f"{printable(path)} on {self.where} is a loop of symbolic links")
                    target = self._link_target(node)
                    if target.startswith("/"):
                        del trail[1:]
                    names += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                    continue
                trail.append(node)
            return trail

    @contextmanager
    def _guard(self, path: str) -> Iterator[None]:
        """Turn whatever damaged data makes a reader raise into one clear `BadInput`."""
        try:
            yield
        except BadInput:
            raise
        except Exception as e:
            reason = str(e) or type(e).__name__
            raise BadInput(f"{self.kind} on {self.where} is damaged at {printable(path)}: {reason}") from None


def printable(text: str, limit: int = 200) -> str:
    """Return at most `limit` characters of text from an image, safe to print on a terminal in one line."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:limit])


def normalise(path: str) -> str:
    """Return `path` absolute, with `.`, `..` and double slashes worked out by text alone."""
    return posixpath.normpath("/" + path.lstrip("/"))
