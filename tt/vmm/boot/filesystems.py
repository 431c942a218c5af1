"""Looking into file systems of disk images: one small read-only interface over ext2/3/4 and FAT."""

from __future__ import annotations

from typing import Any, BinaryIO

from tt.errors import BadInput
from tt.vmm.boot.ext import ExtFileSystem
from tt.vmm.boot.fat import FatFileSystem
from tt.vmm.boot.filetree import MAX_FILE, FileSystem, Kind, NotFound, Stat

__all__ = [
    "MAX_FILE", "READABLE", "FileSystem", "Kind", "NotFound", "Stat", "open_filesystem", "probe",
]  # fmt: skip

READABLE = ("ext", "fat")
"""What `open_filesystem` opens, as `probe` names it."""

_OTHERS = (
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "iso9660"),
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (512, b"LABELONE", "LVM"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (4096 - 10, b"SWAPSPACE2", "swap"),
)


def probe(stream: BinaryIO) -> str | None:
    """Name what a volume holds by its signatures: `ext`, `fat`, or a format tt does not read, or None."""
    stream.seek(0)
    head = stream.read(0x11000)
    if head[1024 + 56 : 1024 + 58] == b"\x53\xef":
        return "ext"
    for offset, magic, name in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return name
    if looks_like_fat(head):
        return "fat"
    return None


def open_filesystem(stream: BinaryIO, where: str) -> FileSystem[Any]:
    """Open the file system in `stream`, a seekable binary file of just that volume.

    `where` names the volume in errors.  Raises `BadInput` when there is none
    that tt reads, or it is damaged.
    """
    try:
        kind = probe(stream)
    except OSError as e:
        raise BadInput(f"cannot read {where}: {e}") from None
    try:
        if kind == "ext":
            return ExtFileSystem(stream, where)
        if kind == "fat":
            return FatFileSystem(stream, where)
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"{kind} file system on {where} is damaged: {str(e) or type(e).__name__}") from None
    if kind is None:
        raise BadInput(f"{where} holds no file system tt knows (it reads ext2/3/4 and FAT)")
    raise BadInput(f"{where} holds {kind}, which tt does not read (it reads ext2/3/4 and FAT): give --kernel")


def looks_like_fat(head: bytes) -> bool:
    """Judge a boot sector by the fields every FAT has (fatgen103, "Boot Sector and BPB")."""
    if len(head) < 512 or head[510:512] != b"\x55\xaa" or head[0] not in (0xEB, 0xE9):
        return False
    sector = int.from_bytes(head[11:13], "little")
    per_cluster, reserved, fats, media = head[13], int.from_bytes(head[14:16], "little"), head[16], head[21]
    return (
        sector in (512, 1024, 2048, 4096)
        and per_cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and fats in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
    )
