"""The interface of a disk that can be served, and a plain file that has it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from tt.chronus.store.host_file import MOST_BUFFERS, Buffer, file_extents, write_all
from tt.errors import BadInput

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_ZEROS = bytes(1 << 20)


class Export(Protocol):
    """A disk that can be served: offsets and sizes in bytes, all within `size`.

    Used by several threads at once.  Memory that is handed to `write` and `write_many` belongs to the
    caller again when they return.  After `flush`, and with `fua`, what was written survives a power cut.
    Errors are `tt.errors.TTError` or `OSError`; a client is told ENOSPC if the space ran out, else EIO.
    An export may have a `description: str` for people, which clients show; and, where that is quicker
    than `read`, `read_into(offset: int, memory: memoryview) -> None`, which fills `memory`.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def readonly(self) -> bool: ...

    def read(self, offset: int, size: int) -> Sequence[Buffer]:
        """Return `size` bytes, in pieces."""

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write `data`."""

    def write_many(self, requests: Sequence[tuple[int, Buffer]], fua: bool = False) -> None:
        """Make several writes, (offset, data) each, in order."""

    def zero(self, offset: int, size: int, may_trim: bool = True, fua: bool = False) -> None:
        """Make bytes zeros; they may become a hole with `may_trim`."""

    def trim(self, offset: int, size: int) -> None:
        """Discard bytes: from now on they may read as anything."""

    def flush(self) -> None:
        """Make what was written survive a power cut."""

    def extents(self, offset: int, size: int) -> list[tuple[int, bool]]:
        """Return (bytes, whether they are zeros and take no room) of neighbouring parts, from `offset` on.

        May end early, but holds one part at least.
        """


class RawFileExport:
    """A raw disk image, served as it is.  Raises `BadInput` where it cannot be opened."""

    def __init__(self, path: Path, *, name: str = "", readonly: bool = False) -> None:
        self.name = name
        self.path = path
        self.readonly = readonly
        self.description = f"{path.name}, a raw image"
        try:
            self._fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as e:
            raise BadInput(f"cannot open {path}: {e.strerror}") from None

    def read(self, offset: int, size: int) -> list[Buffer]:
        """Return `size` bytes from `offset`; a file that shrank since it was opened reads as zeros there."""
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return [data]

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill `memory` with what is at `offset`."""
        done = os.preadv(self._fd, [memory], offset)
        while done < len(memory):
            more = os.preadv(self._fd, [memory[done:]], offset + done)
            if not more:
                memory[done:] = bytes(len(memory) - done)
                return
            done += more

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write `data` at `offset`."""
        self.write_many([(offset, data)], fua)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], fua: bool = False) -> None:
        """Make several writes, in order; neighbours go in one call."""
        begin = end = 0
        run: list[Buffer] = []
        for offset, data in requests:
            if run and (offset != end or len(run) == MOST_BUFFERS):
                write_all(self._fd, run, begin)
                run = []
            if not run:
                begin = offset
            run.append(data)
            end = offset + len(data)
        if run:
            write_all(self._fd, run, begin)
        if fua:
            self.flush()

    def zero(self, offset: int, size: int, may_trim: bool = True, fua: bool = False) -> None:
        """Make `size` bytes from `offset` zeros."""
        zero_file(self._fd, offset, size, may_trim)
        if fua:
            self.flush()

    def trim(self, offset: int, size: int) -> None:
        """Make a hole of `size` bytes from `offset`, where the host's file system can."""
        _allocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size)

    def flush(self) -> None:
        """Make what was written survive a power cut."""
        if not self.readonly:
            os.fdatasync(self._fd)

    def extents(self, offset: int, size: int) -> list[tuple[int, bool]]:
        """Return (bytes, whether they are a hole) of neighbouring parts."""
        return file_extents(self._fd, offset, size)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def zero_file(fd: int, offset: int, size: int, may_trim: bool = True) -> None:
    """Make a part of a file zeros: as a hole, by the file system, or by writing them."""
    if may_trim and _allocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size):
        return
    if _allocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, size):
        return
    for at in range(offset, offset + size, len(_ZEROS)):
        write_all(fd, [_ZEROS[: offset + size - at]], at)


_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _allocate(fd: int, mode: int, offset: int, size: int) -> bool:
    """Call fallocate(2), which `os` has without its modes; return whether the file system could."""
    while _fallocate(fd, mode, offset, size):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
