"""Changing files on a FAT volume, by the library pyfatfs."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from typing import Any

from pyfatfs import FAT_OEM_ENCODING  # type: ignore[import-untyped]
from pyfatfs._exceptions import PyFATException  # type: ignore[import-untyped]
from pyfatfs.EightDotThree import EightDotThree  # type: ignore[import-untyped]
from pyfatfs.FATDirectoryEntry import (  # type: ignore[import-untyped]
    FATDirectoryEntry,
    make_lfn_entry,
)
from pyfatfs.PyFat import PyFat  # type: ignore[import-untyped]

from tt.chronus.files.changes import Change
from tt.chronus.files.scratch import Scratch
from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log.text import one_line
from tt.vmm.boot.fat import FatFileSystem
from tt.vmm.boot.filetree import MAX_FILE
from tt.vmm.boot.images import Volume

_HEADER = 32
_FREE_COUNT = 0x1E8  # of the FSInfo sector (Microsoft's FAT specification, section 5)
_READ_ONLY, _DIRECTORY, _ARCHIVE = 0x01, 0x10, 0x20


class FatEditor:
    """A FAT volume of a disk, of which changed versions can be made."""

    def __init__(self, disk: DiskView, volume: Volume) -> None:
        self.volume = volume
        self._where = f"{disk.where} ({volume.name})"
        self._scratch = Scratch(disk, volume)

    def close(self) -> None:
        """Remove the copy of the volume."""
        self._scratch.close()

    def edit(self, changes: Mapping[str, Change]) -> dict[int, bytes]:
        """Return what differs from the volume once `changes` (by path on it) are done: offset -> contents.

        Raises `BadInput` where that does not work.
        """
        changed: dict[int, bytes] = {}
        try:
            with self._opened() as volume:
                _apply(volume, changes)
        finally:
            changed = self._scratch.changed()
            self._scratch.restore(changed)
        return changed

    @contextmanager
    def _opened(self) -> Iterator[_Writable]:
        with self._scratch.path.open("r+b") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of dirty flags
            try:
                volume = _Writable(f, self._where)
                yield volume
                volume.finish()
            except BadInput:
                raise
            # On a damaged volume the library raises many kinds of errors.
            except (PyFATException, ValueError, LookupError, TypeError, AttributeError) as e:
                raise BadInput(f"files on {self._where} cannot be changed: {one_line(e)}") from None


def _apply(volume: _Writable, changes: Mapping[str, Change]) -> None:
    for path in sorted(changes, reverse=True):
        change = changes[path]
        if change.before is not None and _goes(change):
            volume.remove(path)
    for path in sorted(changes):
        change = changes[path]
        if change.after is None:
            continue
        stat = change.after.node.stat
        if change.before is None or _goes(change):
            if stat.kind == "directory":
                volume.add(path, None)
            else:
                volume.add(path, change.after.read(MAX_FILE))
        volume.describe(path, stat.mtime, not stat.mode & 0o222)


def _goes(change: Change) -> bool:
    """Whether a file is written again, rather than only given new attributes."""
    return change.before is None or change.after is None or bool(set(change.what) & {"contents", "type"})


class _Fat(PyFat):  # type: ignore[misc]
    """The library's volume, but a chain of clusters that loops is an error."""

    def __del__(self) -> None:
        """Leave the file open, and its dirty flag as it is: it belongs to the caller."""

    def get_cluster_chain(self, first_cluster: int) -> Iterator[int]:
        seen = set()
        for cluster in super().get_cluster_chain(first_cluster):
            if cluster in seen or not 2 <= cluster < len(self.fat):
                raise ValueError("a chain of clusters loops, or leaves the volume")
            seen.add(cluster)
            yield cluster


class _Writable(FatFileSystem):
    """A FAT file system whose files can be added and removed; paths as in `FatFileSystem`."""

    def __init__(self, file: Any, where: str) -> None:
        super().__init__(file, where)
        self._file = file
        self._was_dirty = bool(self._fat._is_dirty())
        self.fat = _Fat(encoding=FAT_OEM_ENCODING)
        self.fat.set_fp(file)
        self._fat = self.fat

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory."""
        *_, parent, entry = self._chain(path)
        if entry.attr & _DIRECTORY and not entry.is_empty():
            raise BadInput(f"{path} on {self.where} is not empty")
        cluster = entry.get_cluster()
        parent.remove_dir_entry(str(entry))
        self.fat.update_directory_entry(parent)
        if cluster:
            self.fat.free_cluster_chain(cluster)

    def add(self, path: str, contents: bytes | None) -> None:
        """Make a file with `contents`, or a directory where that is None."""
        folder, name = path.rpartition("/")[::2]
        parent = self._chain(folder or "/")[-1]
        short = EightDotThree(encoding=self.fat.encoding)
        short.set_str_name(short.make_8dot3_name(name, parent))
        entry = FATDirectoryEntry.new(
            name=short,
            tz=UTC,
            encoding=self.fat.encoding,
            attr=_DIRECTORY if contents is None else _ARCHIVE,
        )
        if short.get_unpadded_filename() != name:
            entry.set_lfn_entry(make_lfn_entry(name, short))
        if contents is None:
            self._fill_directory(entry, parent)
        elif contents:
            clusters = self.fat.allocate_bytes(len(contents))
            entry.set_cluster(clusters[0])
            entry.filesize = len(contents)
            self.fat.write_data_to_cluster(contents, clusters[0], extend_cluster=False, erase=True)
        parent.add_subdirectory(entry)
        self.fat.update_directory_entry(parent)

    def describe(self, path: str, mtime: int, read_only: bool) -> None:
        """Set a file's time (seconds since 1970), and whether it is read-only."""
        *_, parent, entry = self._chain(path)
        when = datetime.fromtimestamp(max(mtime, 315_532_800), UTC)  # FAT's clock begins in 1980
        date = (min(when.year, 2107) - 1980) << 9 | when.month << 5 | when.day
        time = when.hour << 11 | when.minute << 5 | when.second // 2
        entry.wrtdate = entry.crtdate = entry.lstaccessdate = date
        entry.wrttime = entry.crttime = time
        entry.attr = entry.attr & ~_READ_ONLY | (_READ_ONLY if read_only else 0)
        self.fat.update_directory_entry(parent)

    def finish(self) -> None:
        """Write the table, the count of free clusters, and whether the volume is clean, as it was."""
        self.fat.flush_fat()
        if not self._was_dirty:
            self.fat._mark_clean()
        header = self.fat.bpb_header
        if self.fat.fat_type != PyFat.FAT_TYPE_FAT32 or not 0 < header["BPB_FSInfo"] < 32:
            return
        at = header["BPB_FSInfo"] * header["BPB_BytsPerSec"]
        self._file.seek(at)
        if self._file.read(4) == b"RRaA":
            used = header["BPB_RsvdSecCnt"] + header["BPB_NumFATs"] * header["BPB_FATSz32"]
            clusters = (header["BPB_TotSec32"] - used) // header["BPB_SecPerClus"]
            table = list(self.fat.fat[2 : clusters + 2])
            self._file.seek(at + _FREE_COUNT)
            self._file.write(struct.pack("<I", sum(not each & 0x0FFF_FFFF for each in table)))

    # ---- inside

    def _chain(self, path: str) -> list[Any]:
        """Return the entries that lead to a path, from the root's."""
        found = [self._root()]
        for name in path.split("/"):
            if name:
                child = self._child(found[-1], name)
                if child is None:
                    raise BadInput(f"{path} is not on {self.where}")
                found.append(child)
        return found

    def _fill_directory(self, entry: Any, parent: Any) -> None:
        cluster = self.fat.allocate_bytes(2 * _HEADER, erase=True)[0]
        entry.set_cluster(cluster)
        for name, target in ((b".          ", entry), (b"..         ", parent)):
            dot = copy(target)
            dot.name = EightDotThree()
            dot.name.set_byte_name(name)
            dot.attr = _DIRECTORY
            dot.lfn_entry = None
            dot._parent = None
            if target is self._root():
                dot.set_cluster(0)
            entry.add_subdirectory(dot)
        self.fat.update_directory_entry(entry)
