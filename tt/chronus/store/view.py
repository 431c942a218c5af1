"""A disk that never changes: reading it, looking into it, writing over it without touching it."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import BinaryIO, cast

from tt.log.sectors import BLOCK_SECTORS, SECTOR
from tt.vmm.boot.images import DiskImage
from tt.vmm.disk import BLOCK, BaseImage, OverlayDisk
from tt.vmm.streams import DiskStream


class DiskView(abc.ABC):
    """A whole disk that never changes; a `tt.vmm.disk.Base`: `sectors` of 512 bytes, and `read`.

    `size` is in bytes; `where` names it in errors.
    """

    sectors: int
    size: int
    where: str

    @abc.abstractmethod
    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB (the last of a disk may be shorter)."""

    def block(self, block: int) -> bytes:
        """Return one block of 4 KB."""
        return self.blocks(block, 1)[0]

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors from `lba`; raises `IndexError` past the end, `BadInput` for damage."""
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise IndexError(f"sectors {lba}+{count} are past the end of the disk ({self.sectors})")
        if not count:
            return b""
        first, last = lba // BLOCK_SECTORS, (lba + count - 1) // BLOCK_SECTORS
        joined = b"".join(self.blocks(first, last - first + 1))
        skip = lba % BLOCK_SECTORS * SECTOR
        return joined[skip : skip + count * SECTOR]

    def stream(self) -> BinaryIO:
        """Return the disk as a seekable read-only file, which reads nothing ahead."""
        return cast(BinaryIO, DiskStream(self))

    def image(self) -> DiskImage:
        """Return the disk with its partitions and file systems found."""
        return DiskImage(self.stream(), self.size, self.where)

    def overlay(self) -> OverlayDisk:
        """Return a disk to write on, in memory, that starts out as this one."""
        return OverlayDisk(self)


class ImageView(DiskView):
    """A raw disk image on the host, as a view; raises `BadInput` where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._image = BaseImage(path)
        self.sectors = self._image.sectors
        self.size = self.sectors * SECTOR
        self.where = str(path)

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB."""
        lba = first * BLOCK_SECTORS
        data = self._image.read(lba, min(count * BLOCK_SECTORS, self.sectors - lba))
        return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


class TrackedView(DiskView):
    """A view of a disk that notes in `reads` which blocks of 4 KB are read: what a verdict depends on."""

    def __init__(self, disk: DiskView) -> None:
        self.disk = disk
        self.sectors, self.size, self.where = disk.sectors, disk.size, disk.where
        self.reads: set[int] = set()

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB, and note them."""
        self.reads.update(range(first, first + count))
        return self.disk.blocks(first, count)
