"""Disks and parts of them as seekable read-only files."""

from __future__ import annotations

import abc
import io
from typing import BinaryIO

from tt.vmm.disk import SECTOR, Base


class ReadOnlyStream(io.RawIOBase, abc.ABC):
    """A seekable file of `size` bytes that is read where it is asked to, and nothing ahead."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._position = 0

    @abc.abstractmethod
    def fetch(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, at least one, from `offset`; all of them lie inside."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        data = self.fetch(self._position, size)
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class DiskStream(ReadOnlyStream):
    """A disk that stands still."""

    def __init__(self, disk: Base) -> None:
        super().__init__(disk.sectors * SECTOR)
        self._disk = disk

    def fetch(self, offset: int, size: int) -> bytes:
        first, last = offset // SECTOR, (offset + size - 1) // SECTOR
        data = self._disk.read(first, last - first + 1)
        skip = offset % SECTOR
        return data if len(data) == size else data[skip : skip + size]


class Window(ReadOnlyStream):
    """`size` bytes at `offset` of another seekable file."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._stream = stream
        self._offset = offset

    def fetch(self, offset: int, size: int) -> bytes:
        self._stream.seek(self._offset + offset)
        return self._stream.read(size)
