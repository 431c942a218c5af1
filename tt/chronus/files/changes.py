"""A file that differs between two views of a disk, and how that is written down, much as git does."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from tt.chronus.files.ext_volume import ExtVolume
from tt.chronus.files.same_file import ext_ways
from tt.chronus.files.text_diff import MAX_TEXT, is_text, lines_of, unified
from tt.chronus.files.tree import Node
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode

ChangeKind = Literal["added", "removed", "changed", "renamed"]

LETTERS: dict[ChangeKind, str] = {"added": "A", "removed": "D", "changed": "M", "renamed": "R"}
"""How `--name-status` writes a kind of change; a change of type is T."""


@dataclass(frozen=True)
class ExtLocation:
    """Where a file of an ext volume is; `written` holds the blocks that may differ in the other view."""

    volume: ExtVolume
    inode: Inode
    written: Collection[int] | None


@dataclass(frozen=True)
class Side:
    """A file in one of two views: `node`, and `read`, which returns its contents up to a bound in bytes.

    `identity` stays the same when a file gets another name, and `place` is where it is; None where the file
    system has no such thing.  `read` raises `BadInput` for what is damaged or too large.
    """

    node: Node
    read: Callable[[int], bytes] = field(repr=False, compare=False)
    identity: tuple[str, int, int] | None = None
    place: ExtLocation | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Change:
    """A file that differs.

    `what` says in which ways (`tt.chronus.files.same_file.WAYS`) if it is in both views.

    `path` is "/etc/fstab", or "vda2:/boot/x" on a volume that is not the root's.  Of a renamed file it is
    the new one, and `old_path` the other.
    """

    path: str
    kind: ChangeKind
    what: tuple[str, ...] = ()
    old_path: str = ""
    before: Side | None = field(default=None, repr=False)
    after: Side | None = field(default=None, repr=False)

    @property
    def old(self) -> Node | None:
        """The file as it was, None if it is new."""
        return self.before.node if self.before else None

    @property
    def new(self) -> Node | None:
        """The file as it became, None if it was removed."""
        return self.after.node if self.after else None

    @property
    def letter(self) -> str:
        """The change as `--name-status` writes it: A, D, M, R, or T for another type."""
        return "T" if "type" in self.what else LETTERS[self.kind]

    @property
    def only_times(self) -> bool:
        """Whether only minor things changed: times, or a directory's count of links."""
        return self.kind == "changed" and not set(self.what) - {"time"}

    def contents(self) -> tuple[bytes | None, bytes | None]:
        """Return what a diff compares on both sides: a file's bytes or a link's target; None for neither.

        Raises `BadInput` for what cannot be read.
        """
        return _contents(self.before), _contents(self.after)

    def unified(self, context: int = 3) -> list[str]:
        """Return the change as git writes it, lines without newlines; what cannot be shown gets a note."""
        lines = [f"diff --git {_name('a', self.old_path or self.path)} {_name('b', self.path)}"]
        lines += self._header()
        if self.kind == "changed" and not {"contents", "link", "type"} & set(self.what):
            return lines
        if self.kind == "renamed" and not {"contents", "link"} & set(self.what):
            return lines
        try:
            old, new = self.contents()
        except BadInput as e:
            return [*lines, f"({e})"]
        if old == new or (old is None and not new) or (new is None and not old):
            return lines
        left = _name("a", self.old_path or self.path) if self.before else "/dev/null"
        right = _name("b", self.path) if self.after else "/dev/null"
        old, new = old or b"", new or b""
        if not is_text(old) or not is_text(new):
            return [*lines, f"Binary files {left} and {right} differ ({len(old):,} and {len(new):,} bytes)"]
        return [*lines, f"--- {left}", f"+++ {right}", *unified(lines_of(old), lines_of(new), context)]

    def counts(self) -> tuple[int, int] | None:
        """Return how many lines were added and removed, None if it is not text or cannot be read."""
        try:
            old, new = self.contents()
        except BadInput:
            return None
        old, new = old or b"", new or b""
        if not is_text(old) or not is_text(new):
            return None
        if old == new:
            return 0, 0
        lines = unified(lines_of(old), lines_of(new), 0)
        return sum(line[:1] == "+" for line in lines), sum(line[:1] == "-" for line in lines)

    def describe(self) -> str:
        """Return one line about the ways in which a file differs, with the old and the new values."""
        if self.old is None or self.new is None:
            return ""
        ways = [way for way in self.what if way != "time" or self.only_times]
        return ", ".join(_way(way, self.old, self.new) for way in ways)

    def _header(self) -> list[str]:
        old, new = self.old, self.new
        if old is None and new is not None:
            return [f"new {_word(new)} mode {new.stat.mode:o}", *_owner("", new)]
        if new is None and old is not None:
            return [f"deleted {_word(old)} mode {old.stat.mode:o}"]
        assert old is not None and new is not None
        lines = []
        if self.kind == "renamed":
            lines += [f"rename from {self.old_path}", f"rename to {self.path}"]
        if old.stat.mode != new.stat.mode:
            lines += [f"old mode {old.stat.mode:o}", f"new mode {new.stat.mode:o}"]
        if "owner" in self.what:
            lines += [*_owner("old ", old, always=True), *_owner("new ", new, always=True)]
        for way in ("links", "device", "attributes", "time"):
            if way in self.what and (way != "time" or self.only_times):
                lines.append(_way(way, old, new))
        return lines


def pair_renames(changes: Iterable[Change]) -> list[Change]:
    """Join the removal and the addition of the same file, under two names, into one change "renamed".

    Files that moved only because a directory above them was renamed are left out.
    """
    listed = list(changes)
    gone: dict[object, list[Change]] = {}
    for change in listed:
        if change.kind == "removed" and change.before and change.before.identity:
            gone.setdefault(change.before.identity, []).append(change)
    for same in gone.values():
        same.reverse()
    pairs: dict[str, Change] = {}  # by the new path
    left: set[str] = set()
    for change in listed:
        if change.kind == "added" and change.after and gone.get(change.after.identity):
            old = gone[change.after.identity].pop()
            pairs[change.path] = old
            left.add(old.path)
    found = []
    moved: dict[str, str] = {}
    for change in listed:
        source = pairs.get(change.path) if change.kind == "added" else None
        if source is None:
            if not (change.kind == "removed" and change.path in left):
                found.append(change)
            continue
        what = _moved_ways(source.before, change.after)
        renamed = replace(change, kind="renamed", old_path=source.path, before=source.before, what=what)
        moved[change.path] = source.path
        folder, _, name = change.path.rpartition("/")
        old_folder, _, old_name = source.path.rpartition("/")
        if what or name != old_name or moved.get(folder) != old_folder:
            found.append(renamed)
    return found


def _moved_ways(before: Side | None, after: Side | None) -> tuple[str, ...]:
    """Return in which ways a file changed, besides its name."""
    if before is None or after is None or before.place is None or after.place is None:
        return ()
    old, new = before.place, after.place
    ways = ext_ways(old.volume, old.inode, new.volume, new.inode, new.written)
    return tuple(way for way in ways if way != "time")


def _contents(side: Side | None) -> bytes | None:
    if side is None:
        return None
    node = side.node
    if node.stat.kind == "symlink":
        return (node.link or "").encode("utf-8", "surrogateescape")
    if node.stat.kind != "file":
        return b""
    if node.stat.size > MAX_TEXT:
        raise BadInput(f"{node.stat.size:,} bytes, too large to compare line by line")
    return side.read(MAX_TEXT)


def _name(side: str, path: str) -> str:
    volume, colon, rest = path.partition(":/")
    return f"{side}/{volume}:/{rest}" if colon and "/" not in volume else f"{side}{path}"


def _word(node: Node) -> str:
    return node.stat.kind if node.stat.kind != "other" else _special(node.stat.mode)


def _special(mode: int) -> str:
    names = {
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }
    return names.get(stat.S_IFMT(mode), "special file")


def _owner(prefix: str, node: Node, always: bool = False) -> list[str]:
    owner = node.stat.uid, node.stat.gid
    return [f"{prefix}owner {owner[0]}:{owner[1]}"] if always or any(owner) else []


def _way(way: str, old: Node, new: Node) -> str:
    one, two = old.stat, new.stat
    match way:
        case "mode":
            return f"mode {one.mode & 0o7777:04o} to {two.mode & 0o7777:04o}"
        case "owner":
            return f"owner {one.uid}:{one.gid} to {two.uid}:{two.gid}"
        case "links":
            return f"links {one.nlink} to {two.nlink}"
        case "device":
            return f"device {one.rdev:#x} to {two.rdev:#x}"
        case "type":
            return f"type {_word(old)} to {_word(new)}"
        case "link":
            return f"link {old.link or ''} to {new.link or ''}"
        case "time":
            return f"time {_time(one.mtime)} to {_time(two.mtime)}"
        case "contents" if one.size != two.size:
            return f"contents {one.size:,} to {two.size:,} bytes"
    return way


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"
