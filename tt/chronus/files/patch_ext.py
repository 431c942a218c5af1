"""Changing files on an ext volume with e2fsprogs: debugfs makes the changes, e2fsck checks the result."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from tt.chronus.files.changes import Change, Side
from tt.chronus.files.scratch import Scratch, find_tool, run_tool
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log.text import printable
from tt.vmm.boot.filetree import MAX_FILE
from tt.vmm.boot.images import Volume

_PACKAGE = "e2fsprogs"
_CORRECTED = 1  # e2fsck(8): errors were corrected; anything above says that not all were
_EXTENTS = 0x80000  # what debugfs gives files that it makes, where the file system has extents
_INCOMPAT_EXTENTS, _INCOMPAT_INLINE = 0x40, 0x8000
_NAMESPACES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
_ACLS = (2, 3)  # kept on disk in another form than setxattr(2) takes
_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p", stat.S_IFSOCK: "p"}
Attributes = tuple[int, dict[tuple[int, bytes], bytes]]
_WARNINGS = b"debugfs "  # its first line on stderr is its version


class ExtEditor:
    """An ext volume of a disk, of which changed versions can be made.

    First the journal is replayed and what a mount would clean up is cleaned up, by `e2fsck -p`.  What is
    changed then is checked, and repaired where the volume was not sound in the first place.
    """

    def __init__(self, disk: DiskView, volume: Volume) -> None:
        self.volume = volume
        self._where = f"{disk.where} ({volume.name})"
        self._debugfs, self._e2fsck = find_tool("debugfs", _PACKAGE), find_tool("e2fsck", _PACKAGE)
        self._scratch = Scratch(disk, volume)
        try:
            self._now = self._newest_time()
            self._check("-p", "-fy")
            self._prepared = self._scratch.changed()
            self._scratch.keep(self._prepared)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy of the volume."""
        self._scratch.close()

    def edit(self, changes: Mapping[str, Change]) -> dict[int, bytes]:
        """Return what differs from the volume once `changes` (by path on it) are done: offset -> contents.

        Raises `BadInput` where that does not work or leaves no sound file system.
        """
        self._now = max([self._now, *(change.new.stat.mtime for change in changes.values() if change.new)])
        files = self._scratch.folder / "files"
        files.mkdir(exist_ok=True)
        changed: dict[int, bytes] = {}
        try:
            self._debug(_Recipe(changes, files, self._features()).lines())
            self._check("-fp", "-fy")
        finally:
            changed = self._scratch.changed()
            self._scratch.restore(changed)
            for each in files.iterdir():
                each.unlink()
        return {**self._prepared, **changed}

    # ---- inside

    def _features(self) -> int:
        with self._scratch.path.open("rb") as f:
            f.seek(1024 + 0x60)
            return int.from_bytes(f.read(4), "little")

    def _newest_time(self) -> int:
        """Return the time of the last mount or write: it becomes the tools' clock, for stable results."""
        with self._scratch.path.open("rb") as f:
            f.seek(1024 + 0x2C)
            mounted, written = f.read(4), f.read(4)
        return max(int.from_bytes(mounted, "little"), int.from_bytes(written, "little"), 1)

    def _debug(self, lines: list[bytes]) -> None:
        command = [self._debugfs, "-w", "-f", "-", str(self._scratch.path)]
        done = run_tool(command, now_s=self._now, stdin=b"".join(line + b"\n" for line in lines))
        # It returns 0 whatever happens.
        said = [line for line in done.stderr.splitlines() if line and not line.startswith(_WARNINGS)]
        if said or done.returncode:
            reason = printable((said or [b"it gave no reason"])[0].decode("utf-8", "replace"))
            raise BadInput(f"files on {self._where} cannot be changed: debugfs: {reason}")

    def _check(self, *ways: str) -> None:
        """Run e2fsck in the given ways, until one finds the volume sound; raises `BadInput` if none."""
        reason = ""
        for how in ways:
            done = run_tool([self._e2fsck, how, str(self._scratch.path)], now_s=self._now)
            if not done.returncode & ~_CORRECTED:
                return
            lines = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
            said = printable(" ".join(lines[:2]).replace(str(self._scratch.path), self.volume.name))
            reason = reason or f"e2fsck {how}: {said[:300]}"
        raise BadInput(f"the file system on {self._where} is not sound: {reason}")


class _Recipe:
    """The commands for debugfs(8) that do some changes, by path on the volume."""

    def __init__(self, changes: Mapping[str, Change], files: Path, features: int) -> None:
        self._changes = changes
        self._files = files
        self._features = features
        self._made: dict[object, tuple[str, int]] = {}  # identity -> path and links made so far
        self._count = 0

    def lines(self) -> list[bytes]:
        """Return all commands: first removals, the deepest paths first; then new files; then attributes."""
        found: list[bytes] = []
        for path in sorted(self._changes, reverse=True):
            change = self._changes[path]
            if change.before is not None and self._goes(change):
                word = b"rmdir" if change.before.node.stat.kind == "directory" else b"rm"
                found.append(_command(word, path))
        late: list[bytes] = []
        for path in sorted(self._changes):
            change = self._changes[path]
            if change.after is None:
                continue
            fresh = change.before is None or self._goes(change)
            first = change.after.identity not in self._made
            if fresh:
                found += self._make(path, change.after)
            if first or not fresh:
                late += self._describe(path, change, fresh)
        late += [
            _command(b"sif", path, b"links_count %d" % links)
            for path, links in self._made.values()
            if links > 1
        ]
        return found + late

    def _goes(self, change: Change) -> bool:
        """Whether a file is made anew: its contents, its type or its inode are other ones."""
        before, after = change.before, change.after
        if before is None or after is None:
            return True
        if before.node.stat.kind == after.node.stat.kind == "directory":
            return False
        if set(change.what) & {"contents", "type", "link", "device"}:
            return True
        linked = before.node.stat.nlink > 1 or after.node.stat.nlink > 1
        return linked and before.identity != after.identity

    def _make(self, path: str, side: Side) -> Iterator[bytes]:
        node = side.node
        folder, name = path.rpartition("/")[::2]
        # New names are given bare: `write` takes them as they are, and the others take /x to be in the
        # current directory.
        yield _command(b"cd", folder or "/")
        if node.stat.kind == "directory":
            yield _command(b"mkdir", name)
            return
        made = self._made.get(side.identity) if side.identity else None
        if made is not None:
            yield b"ln %s %s" % (_quoted(made[0]), _quoted(name))
            self._made[side.identity] = made[0], made[1] + 1
            return
        self._made[side.identity or path] = path, 1
        if node.stat.kind == "symlink":
            yield b"symlink %s %s" % (_quoted(name), _quoted(node.link or ""))
        elif node.stat.kind == "file":
            yield b"write %s %s" % (_quoted(str(self._put(side.read(MAX_FILE)))), _quoted(name))
        else:
            kind = _KINDS.get(stat.S_IFMT(node.stat.mode), "p")
            device = b" %d %d" % _numbers(node.stat.rdev) if kind in "cb" else b""
            yield b"mknod %s %s%s" % (_quoted(name), kind.encode(), device)

    def _describe(self, path: str, change: Change, fresh: bool) -> Iterator[bytes]:
        assert change.after is not None
        at = change.after.node.stat
        yield _command(b"sif", path, b"mode 0%o" % at.mode)
        yield _command(b"sif", path, b"uid %d" % at.uid)
        yield _command(b"sif", path, b"gid %d" % at.gid)
        for name, seconds in ((b"mtime", at.mtime), (b"ctime", at.ctime or at.mtime)):
            yield _command(b"sif", path, b"%s @%d" % (name, seconds & 0xFFFF_FFFF))
            yield _command(b"sif", path, b"%s_extra %d" % (name, _epoch(seconds)))
        before = None if fresh else change.before
        yield from self._attributes(path, _attributes(before), _attributes(change.after), fresh, change)

    def _attributes(
        self, path: str, old: Attributes, new: Attributes, fresh: bool, change: Change
    ) -> Iterator[bytes]:
        for key in sorted(old[1].keys() - new[1].keys()):
            yield b"ea_rm %s %s" % (_quoted(path), _attribute_name(key))
        for key, value in sorted(new[1].items()):
            if old[1].get(key) == value or key[0] not in _NAMESPACES:
                continue
            raw = b"-r " if key[0] in _ACLS else b""
            source = _quoted(str(self._put(value)))
            yield b"ea_set -f %s %s%s %s" % (source, raw, _quoted(path), _attribute_name(key))
        if old[0] != new[0]:
            yield from self._flags(path, old[0], new[0], fresh, change)

    def _flags(self, path: str, old: int, new: int, fresh: bool, change: Change) -> Iterator[bytes]:
        if fresh:
            extents = _EXTENTS if self._features & _INCOMPAT_EXTENTS else 0
            if not self._features & _INCOMPAT_INLINE:
                yield _command(b"sif", path, b"flags 0x%x" % (extents | new))
        elif change.before is not None and change.before.place is not None:
            kept = change.before.place.inode.flags & ~old
            yield _command(b"sif", path, b"flags 0x%x" % (kept | new))

    def _put(self, data: bytes) -> Path:
        self._count += 1
        path = self._files / str(self._count)
        try:
            path.write_bytes(data)
        except OSError as e:
            raise BadInput(f"cannot write {path} ({e.strerror}): set TMPDIR to a folder with room") from None
        return path


def _attributes(side: Side | None) -> Attributes:
    if side is None or side.place is None:
        return 0, {}
    try:
        return side.place.volume.attributes(side.place.inode)
    except (ValueError, IndexError):
        return 0, {}


def _attribute_name(key: tuple[int, bytes]) -> bytes:
    space, name = key
    return _quoted((_NAMESPACES.get(space, b"user.") + name).decode("utf-8", "surrogateescape"))


def _numbers(device: int) -> tuple[int, int]:
    """Return a device's major and minor number, as Linux packs them (new_decode_dev in linux/kdev_t.h)."""
    return (device & 0xFFF00) >> 8, (device & 0xFF) | (device >> 12 & 0xFFF00)


def _epoch(seconds: int) -> int:
    """Return the bits that carry a time past 2038 (the kernel's fs/ext4/ext4.h, ext4_encode_extra_time)."""
    low = (seconds & 0xFFFF_FFFF) - ((seconds & 0x8000_0000) << 1)
    return (seconds - low) >> 32 & 3


def _command(word: bytes, path: str, rest: bytes = b"") -> bytes:
    return b"%s %s %s" % (word, _quoted(path), rest) if rest else b"%s %s" % (word, _quoted(path))


def _quoted(text: str) -> bytes:
    """Quote a word for debugfs (its parser is libss's: a quote inside quotes is written twice)."""
    data = text.encode("utf-8", "surrogateescape")
    if b"\n" in data or b"\0" in data:
        raise BadInput(f"{printable(text)!r}: debugfs takes no name or link with a newline in it")
    return b'"' + data.replace(b'"', b'""') + b'"'
