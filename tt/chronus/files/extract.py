"""Taking files out of the past, into a folder, so that nothing can escape from it.

A disk's file system is not trusted.  Invalid names ("..", or with a slash) are left out; nothing is
written through a symbolic link; links are rewritten so that they stay inside the folder; devices, sockets and
pipes are not made, and no file is set-user-ID.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tt.chronus.files.tree import Node, Tree
from tt.errors import BadInput, UsageError
from tt.vmm.boot.filetree import NotFound, printable

MAX_BYTES = 64 << 30
_MAX_FILE = 4 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Extracted:
    """What was taken out: `nodes` by path, `size` bytes of contents, and what was left out and why."""

    nodes: dict[str, Node] = field(default_factory=dict)
    size: int = 0
    left_out: list[str] = field(default_factory=list)


def extract(
    tree: Tree,
    paths: Iterable[str],
    into: Path,
    *,
    limit: int = MAX_BYTES,
    missing_ok: bool = False,
    on_node: Callable[[Node], None] = lambda node: None,
) -> Extracted:
    """Take `paths`, and what is below them, out of `tree` into the folder `into`, under the same paths.

    Contents are `limit` bytes at most.  Raises `NotFound` for a path that is not there (unless
    `missing_ok`), `BadInput` for damage and too large files, `UsageError` where `into` cannot be written.
    """
    found = Extracted()
    try:
        into.mkdir(parents=True, exist_ok=True)
        root = os.open(into, _DIRECTORY)
    except OSError as e:
        raise UsageError(f"cannot write into {into}: {e.strerror}") from None
    try:
        for path in paths:
            try:
                for node in tree.walk(path):
                    inside = tree.place(node.path)[1]
                    put(tree, node, inside, root, found, limit)
                    on_node(node)
            except NotFound:
                if not missing_ok:
                    raise
    except OSError as e:
        raise UsageError(f"cannot write into {into}: {e.strerror or e}") from None
    finally:
        os.close(root)
    found.left_out += tree.complaints
    return found


def put(tree: Tree, node: Node, inside: str, root: int, found: Extracted, limit: int = MAX_BYTES) -> None:
    """Put one file at `inside` (its path in the volume) below the folder open as `root`."""
    parts = [part for part in inside.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        found.left_out.append(f"{printable(node.path)}: not a valid file name")
        return
    found.nodes[node.path] = node
    if not parts:
        return
    folder = _open_folder(root, parts[:-1])
    name = parts[-1]
    try:
        match node.stat.kind:
            case "directory":
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
            case "symlink":
                os.symlink(inside_link(inside, node.link or ""), name, dir_fd=folder)
            case "file":
                found.size += node.stat.size
                if found.size > limit:
                    raise BadInput(f"{tree.disk.where}: more than {limit:,} bytes of files: name fewer paths")
                data = tree.read(node.path, _MAX_FILE)
                descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
                with os.fdopen(descriptor, "wb") as f:
                    f.write(data)
                    os.fchmod(f.fileno(), node.stat.mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR)
            case _:
                found.left_out.append(f"{printable(node.path)}: not a file, folder or link")
                return
        with suppress(OSError, OverflowError):
            os.utime(name, (node.stat.mtime, node.stat.mtime), dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as e:
        found.left_out.append(f"{printable(node.path)}: {e.strerror}")
    finally:
        os.close(folder)


def remove(inside: str, root: int) -> None:
    """Remove what is at `inside` below the folder open as `root`, if it is there."""
    parts = [part for part in inside.split("/") if part]
    try:
        folder = _open_folder(root, parts[:-1], make=False)
    except OSError:
        return
    try:
        if stat.S_ISDIR(os.lstat(parts[-1], dir_fd=folder).st_mode):
            shutil.rmtree(parts[-1], dir_fd=folder)
        else:
            os.unlink(parts[-1], dir_fd=folder)
    except OSError:
        pass
    finally:
        os.close(folder)


def inside_link(path: str, target: str) -> str:
    """Return a link's target, changed so that it leads to the same file inside the folder as on the disk.

    `path` is where the link is.  Absolute targets become relative ones, and none leads out.
    """
    if "\0" in target or not target:
        return "."
    folder = posixpath.dirname(path) or "/"
    leads = posixpath.normpath(posixpath.join(folder, target))
    return posixpath.relpath("/" + leads.lstrip("/"), folder)


def below(path: str, paths: Collection[str]) -> bool:
    """Tell whether `path` is one of `paths` or below one."""
    return any(path == p or p == "/" or path.startswith(p.rstrip("/") + "/") for p in paths)


def _open_folder(root: int, parts: list[str], make: bool = True) -> int:
    """Open a folder below `root`, made where it is missing, never through a link."""
    at = os.dup(root)
    try:
        for part in parts:
            try:
                following = os.open(part, _DIRECTORY, dir_fd=at)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o700, dir_fd=at)
                following = os.open(part, _DIRECTORY, dir_fd=at)
            os.close(at)
            at = following
    except BaseException:
        os.close(at)
        raise
    return at
