"""FAT12, FAT16 and FAT32, read-only, by the library pyfatfs.

Its class `PyFat` parses boot sector, directories and long names.  Two of its
methods are replaced: the one that unpacks the allocation table, which takes
seconds for a large volume, and the one that follows a chain of clusters, which
follows a circular one for ever.  Looking up, reading and case are done here:
the library's own file layer is case-sensitive and needs the package `fs`,
which does not import under today's setuptools.
"""

from __future__ import annotations

import struct
import warnings
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from pyfatfs.PyFat import PyFat  # type: ignore[import-untyped]

from tt.errors import BadInput
from tt.vmm.boot.filetree import FileSystem, Kind, Stat

_MAX_TABLE = 256 << 20  # bytes of FAT; a table for 64 M clusters
_MAX_DIRECTORY = 2 << 20  # bytes: the format's own bound is 65,536 entries of 32
_MAX_FAT12, _MAX_FAT16, _MAX_FAT32 = 0xFF4, 0xFFF4, 0x0FFFFFF6  # clusters, as Linux bounds them
_READ_ONLY, _DIRECTORY, _VOLUME_ID = 0x01, 0x10, 0x08
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10  # DIR_NTRes, as Windows NT and Linux use it


def check_fields(sector: bytes) -> None:
    """Raise `ValueError` where a boot sector has fields that no FAT has, or that change how it is read.

    Bounds are those of Linux (fs/fat/inode.c, `fat_read_bpb` and `fat_fill_super`).  Two fields that
    Linux does not look at are refused where they are in use, since files could be read wrongly: a later
    version of FAT32, and a table that is kept up to date in a copy other than the first.
    """
    size, per_cluster, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
    roots, total, media, length = struct.unpack_from("<HHBH", sector, 17)
    (long_total,) = struct.unpack_from("<I", sector, 32)
    long_length, flags, version = struct.unpack_from("<IHH", sector, 36)
    if size not in (512, 1024, 2048, 4096):
        raise ValueError(f"sectors of {size} bytes")
    if not per_cluster or per_cluster & (per_cluster - 1):
        raise ValueError(f"clusters of {per_cluster} sectors")
    if not reserved or not fats:
        raise ValueError("no room for a boot sector, or no file allocation table")
    if media < 0xF8 and media != 0xF0:
        raise ValueError(f"medium {media:#x}")
    wide = not length
    if wide:
        length = long_length
        if version:
            raise ValueError(f"version {version >> 8}.{version & 0xFF} of FAT32, which tt does not know")
        if flags & 0x80 and flags & 0xF:
            raise ValueError(f"only copy {flags & 0xF} of its file allocation table is kept up to date")
    elif roots * 32 % size:
        raise ValueError(f"a root directory of {roots} entries, which do not fill sectors")
    if not length:
        raise ValueError("a file allocation table of no length")
    start = reserved + fats * length + (0 if wide else roots * 32 // size)
    clusters = ((total or long_total) - start) // per_cluster
    if clusters < 0:
        raise ValueError("fewer sectors than its tables need")
    bits = 32 if wide else 16 if clusters > _MAX_FAT12 else 12
    clusters = min(clusters, length * size * 8 // bits - 2)
    if clusters > {12: _MAX_FAT12, 16: _MAX_FAT16, 32: _MAX_FAT32}[bits]:
        raise ValueError(f"{clusters} clusters, which is too many for FAT{bits}")


class _Fat(PyFat):  # type: ignore[misc]
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._volume = stream

    def __del__(self) -> None:
        """Leave the stream open: it belongs to the caller."""

    def _parse_fat(self) -> None:
        header = self.bpb_header
        sector = header["BPB_BytsPerSec"]
        self.bytes_per_cluster = sector * header["BPB_SecPerClus"]
        size = sector * self._fat_size
        if not 0 < size <= _MAX_TABLE:
            raise ValueError(f"a file allocation table of {size} bytes")
        self._volume.seek(header["BPB_RsvdSecCnt"] * sector)
        table = self._volume.read(size)
        if len(table) < size:
            raise ValueError("the image ends inside the file allocation table")
        if self.fat_type == self.FAT_TYPE_FAT16:
            self.fat = array("H", table[: size // 2 * 2])
        elif self.fat_type == self.FAT_TYPE_FAT32:
            self.fat = array("I", table[: size // 4 * 4])
        else:
            pairs = (table[i] | table[i + 1] << 8 | table[i + 2] << 16 for i in range(0, size // 3 * 3, 3))
            self.fat = array("H", (half for pair in pairs for half in (pair & 0xFFF, pair >> 12)))
        if len(self.fat) < 2:
            raise ValueError("the file allocation table is empty")

    def get_cluster_chain(self, first_cluster: int) -> Iterator[int]:
        mask = 0x0FFFFFFF if self.fat_type == self.FAT_TYPE_FAT32 else 0xFFFF
        end = self.FAT_CLUSTER_VALUES[self.fat_type]["END_OF_CLUSTER_MIN"]
        cluster = first_cluster
        seen: set[int] = set()
        while cluster not in seen:
            if not 2 <= cluster < len(self.fat):
                raise ValueError(f"its chain of clusters leads to cluster {cluster}, which does not exist")
            yield cluster
            seen.add(cluster)
            cluster = self.fat[cluster] & mask
            if cluster >= end:
                return
        raise ValueError("its chain of clusters goes round in circles")

    def parse_dir_entries_in_cluster_chain(self, cluster: int) -> list[Any]:
        size = 0
        for _ in self.get_cluster_chain(cluster):
            size += self.bytes_per_cluster
            if size > _MAX_DIRECTORY:
                raise ValueError("a directory longer than the format allows")
        return list(super().parse_dir_entries_in_cluster_chain(cluster))


class FatFileSystem(FileSystem[Any]):
    """A FAT file system in `stream`, a file of just that volume; names match in any case.

    Raises `BadInput` for a damaged volume.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self.where = where
        self.kind = "fat"
        self._fat = _Fat(stream)
        try:
            stream.seek(0)
            check_fields(stream.read(512))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # dirty flags and differing copies: fine for reading
                self._fat.set_fp(_ReadOnly(stream))
        except Exception as e:  # the library lets many kinds of errors through
            raise BadInput(f"FAT file system on {where} is damaged: {str(e) or type(e).__name__}") from None
        header = self._fat.bpb_header
        serial = int(header["BS_VolID"])
        self.kind = f"fat{self._fat.fat_type}"
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        label = bytes(header["BS_VolLab"]).decode("ascii", "replace").strip(" \0")
        self.label = "" if label == "NO NAME" else label

    def _root(self) -> Any:
        return self._fat.root_dir

    def _stat(self, node: Any) -> Stat:
        kind: Kind = "directory" if node.attr & _DIRECTORY else "file"
        mode = (0o40000 if kind == "directory" else 0o100000) | (0o555 if node.attr & _READ_ONLY else 0o755)
        return Stat(kind, 0 if kind == "directory" else int(node.filesize), mode, _mtime(node))

    def _files(self, node: Any) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directories, files, _ = node.get_entries()
        yield from directories
        yield from files

    def _names(self, node: Any) -> Iterator[str]:
        return (_name(entry) for entry in self._files(node))

    def _child(self, node: Any, name: str) -> Any:
        wanted = name.casefold()
        for entry in self._files(node):
            if _name(entry).casefold() == wanted or str(entry.get_short_name()).casefold() == wanted:
                return entry
        return None

    def _read(self, node: Any) -> bytes:
        out = bytearray()
        if node.filesize:
            for cluster in self._fat.get_cluster_chain(node.get_cluster()):
                out += self._fat.read_cluster_contents(cluster)
                if len(out) >= node.filesize:
                    break
        if len(out) < node.filesize:
            raise ValueError(f"the file ends after {len(out)} of {node.filesize} bytes")
        return bytes(out[: node.filesize])

    def _link_target(self, node: Any) -> str:
        raise ValueError("FAT has no symbolic links")


class _ReadOnly:
    """What `PyFat.set_fp` asks of a file, never writable, whatever the stream below is."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek = stream.seek
        self.read = stream.read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


def _name(entry: Any) -> str:
    if entry.lfn_entry is not None:
        return str(entry.get_long_name())
    base, dot, extension = str(entry.get_short_name()).partition(".")
    if entry.ntres & _LOWER_BASE:
        base = base.lower()
    if entry.ntres & _LOWER_EXTENSION:
        extension = extension.lower()
    return base + dot + extension


def _mtime(entry: Any) -> int:
    date, time = int(entry.wrtdate), int(entry.wrttime)
    try:
        stamp = datetime(
            1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2,
            tzinfo=UTC,
        )  # fmt: skip
    except ValueError:
        return 0
    return int(stamp.timestamp())
