"""Disks as the machine sees them: a base image that is never written, and the guest's writes over it."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Protocol

from tt.errors import BadInput

SECTOR = 512
BLOCK = 4096
_SECTORS_PER_BLOCK = BLOCK // SECTOR


class Disk(Protocol):
    """A block device of `sectors` sectors of 512 bytes."""

    sectors: int

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors from `lba`; raises `IndexError` past the end."""
        ...

    def write(self, lba: int, data: bytes) -> None:
        """Store whole sectors at `lba`; raises `IndexError` past the end."""
        ...

    def flush(self) -> None:
        """Make every write so far durable."""
        ...


def refuse_special(path: Path) -> None:
    """Raise `BadInput` for what opens but is no file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        raise BadInput(f"cannot read {path}: it is not a regular file")


class Base(Protocol):
    """What a disk starts out as: never written."""

    sectors: int

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors of 512 bytes."""
        ...


class BaseImage:
    """A raw disk image, mapped read-only.

    A length that is no multiple of 512 is padded with zeros, as a hypervisor
    would.  Raises `BadInput` when the file cannot be read or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_special(path)
        try:
            with path.open("rb") as f:
                self.size = os.fstat(f.fileno()).st_size
                if not self.size:
                    raise BadInput(f"disk image {path} is empty: give an image that holds something to boot")
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise BadInput(f"cannot read disk image {path}: {e}") from None
        self.sectors = -(-self.size // SECTOR)

    def read(self, lba: int, count: int) -> bytes:
        start = lba * SECTOR
        data = self._map[start : start + count * SECTOR]
        return data.ljust(count * SECTOR, b"\0")


class OverlayDisk:
    """Writes kept in memory, in 4 KB blocks, over a base that is never touched.

    Blocks are hashed when a digest is asked for, not when they are written: what is written ten times in
    between is hashed once, and a guest does not wait for it.
    """

    def __init__(self, base: Base) -> None:
        self.sectors = base.sectors
        self.blocks: dict[int, bytes] = {}
        self._digest = 0  # of the blocks as they were when it was asked for last
        self._hashes: dict[int, int] = {}  # what blocks add to it, as far as that is known
        self._changed: set[int] = set()  # since then
        self._base = base

    def twin(self) -> OverlayDisk:
        """Return a disk over the same base, with nothing written yet."""
        return OverlayDisk(self._base)

    @property
    def base(self) -> Base:
        """What the disk started out as."""
        return self._base

    def read(self, lba: int, count: int) -> bytes:
        self._check(lba, count)
        first, last = lba // _SECTORS_PER_BLOCK, (lba + count - 1) // _SECTORS_PER_BLOCK
        if not any(self._has(block) for block in range(first, last + 1)):
            return self._base.read(lba, count)
        joined = b"".join(self._block(b) for b in range(first, last + 1))
        skip = (lba - first * _SECTORS_PER_BLOCK) * SECTOR
        return joined[skip : skip + count * SECTOR]

    def write(self, lba: int, data: bytes) -> None:
        """Keep whole sectors; raises `ValueError` for parts of one, `IndexError` past the end."""
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise ValueError(f"disk write of {len(data)} bytes: not whole sectors")
        self._check(lba, count)
        view = memoryview(data)
        position, size = 0, len(data)
        while position < size:
            sector = lba + position // SECTOR
            block, within = sector // _SECTORS_PER_BLOCK, sector % _SECTORS_PER_BLOCK * SECTOR
            piece = bytes(view[position : position + BLOCK - within])
            position += len(piece)
            if len(piece) < BLOCK:
                old = self._block(block)
                piece = old[:within] + piece + old[within + len(piece) :]
            if block not in self._changed:
                if block in self.blocks and block not in self._hashes:
                    self._hashes[block] = block_hash(block, self.blocks[block])
                self._changed.add(block)
            self.blocks[block] = piece

    def flush(self) -> None:
        """Do nothing: the board tells the door, and whoever records makes it durable."""

    def digest(self) -> bytes:
        """Return a 16-byte digest of what was written: a sum over blocks, brought up to date here."""
        for block in self._changed:
            added = block_hash(block, self.blocks[block])
            self._digest += added - self._hashes.get(block, 0)
            self._hashes[block] = added
        self._changed.clear()
        return (self._digest % (1 << 128)).to_bytes(16, "little")

    def snapshot(self) -> tuple[dict[int, bytes], int]:
        """Return a copy of what was written."""
        self.digest()
        return dict(self.blocks), self._digest

    def restore(self, saved: tuple[dict[int, bytes], int]) -> None:
        """Go back to a snapshot."""
        self.blocks, self._digest = dict(saved[0]), saved[1]
        self._hashes.clear()
        self._changed.clear()

    def _has(self, block: int) -> bool:
        return block in self.blocks

    def _block(self, block: int) -> bytes:
        data = self.blocks.get(block)
        return data if data is not None else self._base.read(block * _SECTORS_PER_BLOCK, _SECTORS_PER_BLOCK)

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise IndexError(f"sectors {lba}+{count} are past the end of the disk ({self.sectors})")


def block_hash(block: int, data: bytes) -> int:
    """Return what a written block adds to a disk's digest."""
    digest = hashlib.blake2b(data, digest_size=16, key=block.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")
