"""The disk images that a machine starts from: describing them, finding them again, opening them."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from tt.errors import BadInput
from tt.vmm.config import MIB, DiskConfig, MachineConfig
from tt.vmm.disk import BaseImage, OverlayDisk, refuse_special

_HASH_PIECE = MIB


def image_digest(path: Path) -> str:
    """Return a digest of a file's contents in hex: the BLAKE2b-256 of those of its 1 MB pieces.

    Holes of a sparse file are not read: a piece of zeros has a known digest.
    """
    zero_piece = hashlib.blake2b(bytes(_HASH_PIECE), digest_size=32).digest()
    whole = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            data_at = 0
            for start in range(0, size, _HASH_PIECE):
                length = min(_HASH_PIECE, size - start)
                if data_at < start:
                    data_at = _next_data(f.fileno(), start, size)
                if data_at >= start + length and length == _HASH_PIECE:
                    whole.update(zero_piece)
                    continue
                f.seek(start)
                whole.update(hashlib.blake2b(f.read(length), digest_size=32).digest())
    except OSError as e:
        raise BadInput(f"cannot read disk image {path}: {e.strerror}") from None
    return whole.hexdigest()


def _next_data(descriptor: int, start: int, size: int) -> int:
    """Return where data that is no hole begins, from `start` on; `size` if nowhere."""
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as e:
        return size if e.errno == errno.ENXIO else start


def describe_disk(path: Path) -> DiskConfig:
    """Look at a disk image (raw, or qcow2 converted to raw) and describe it."""
    from tt.vmm.boot import images

    raw = images.raw_image(path)
    return DiskConfig(str(raw.absolute()), raw.stat().st_size, image_digest(raw))


def open_disks(
    config: MachineConfig, found: dict[int, Path] | None = None, *, check: bool = True
) -> list[OverlayDisk]:
    """Open the base images, writable in memory only.

    `found` says where an image is now, by disk number.  With `check`, an image
    that is not what it was is refused.  Raises `BadInput`.
    """
    disks = []
    for number, disk in enumerate(config.disks):
        if not disk.path:
            disks.append(OverlayDisk(BlankImage(disk.size)))
            continue
        path = (found or {}).get(number, Path(disk.path))
        if not path.exists():
            raise BadInput(
                f"disk {number}'s base image {path} is missing: put it back, or say where it is "
                f"with --base {number}=FILE"
            )
        refuse_special(path)
        if check:
            size = path.stat().st_size
            if size != disk.size:
                raise BadInput(
                    f"disk {number}'s base image {path} has changed: it has {size} bytes, "
                    f"and had {disk.size} when it was recorded"
                )
            if image_digest(path) != disk.digest:
                raise BadInput(
                    f"disk {number}'s base image {path} has changed since it was recorded (same size, other "
                    f"contents): restore the original, or say where it is with --base {number}=FILE"
                )
        disks.append(OverlayDisk(BaseImage(path)))
    return disks


class BlankImage:
    """A base image of zeros."""

    def __init__(self, size: int) -> None:
        self.sectors = size // 512

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors of zeros."""
        return bytes(count * 512)
