"""Write a cpio archive in the "newc" format, as the Linux kernel unpacks it into its initramfs.

The format is the one of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
Each entry is a header of ASCII hexadecimal fields, a name, and the data, the
last two each padded with zeros to four bytes:

    "070701" ino mode uid gid nlink mtime filesize devmajor devminor
    rdevmajor rdevminor namesize check      6 + 13 * 8 = 110 bytes
    name NUL pad4 data pad4 ... an entry named TRAILER!!! ends the archive
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One inode of the archive: `mode` with its type bits, and the file's bytes or the link's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(mode: int = 0o755) -> Entry:
    """Return a directory's entry."""
    return Entry(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Entry:
    """Return a regular file's entry."""
    return Entry(stat.S_IFREG | mode, data)


def symlink(target: str) -> Entry:
    """Return a symbolic link's entry."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """Return a character device's entry."""
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Mapping[str, Entry], mtime: int = 0) -> bytes:
    """Return the archive of `entries`, by path with no leading slash, owned by root.

    The bytes depend on the arguments only: entries are sorted (so that a
    directory comes before what is in it), inodes are numbered in that order,
    every time is `mtime` (seconds since 1970).  Raises `ValueError` for an
    entry whose directory is missing or whose path is absolute.
    """
    out = bytearray()
    for ino, path in enumerate(sorted(entries), start=1):
        _check(path, entries)
        _append(out, ino, path, entries[path], mtime)
    _append(out, 0, _TRAILER, Entry(0), 0)
    return bytes(out)


def _check(path: str, entries: Mapping[str, Entry]) -> None:
    if not path or path.startswith("/") or path == _TRAILER:
        raise ValueError(f"cpio path {path!r}: give a path relative to the archive's root")
    parent = path.rpartition("/")[0]
    if parent and (parent not in entries or not stat.S_ISDIR(entries[parent].mode)):
        raise ValueError(f"cpio path {path!r}: its directory {parent!r} is not in the archive")


def _append(out: bytearray, ino: int, path: str, entry: Entry, mtime: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        *(ino, entry.mode, 0, 0, links, mtime, len(entry.data)),
        *(0, 0, *entry.device, len(name), 0),
    )
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4) + entry.data
    out += bytes(-len(out) % 4)
