"""Helpers for the host's file system: writing buffers whole, and where a file has holes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

Buffer = bytes | bytearray | memoryview
MOST_BUFFERS = 1000
"""Of one writev: IOV_MAX is 1,024."""


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write buffers one behind the other, also where the system takes only a part of them at once.

    On a file opened to be appended to, `offset` is where it ends.
    """
    total = sum(map(len, buffers))
    done = os.pwritev(fd, buffers[:MOST_BUFFERS], offset)
    if done < total:
        rest = memoryview(b"".join(buffers))
        while done < total:
            done += os.pwrite(fd, rest[done:], offset + done)


def file_extents(fd: int, offset: int, size: int, most: int = 4096) -> list[tuple[int, bool]]:
    """Return (bytes, whether they are a hole) of a file's neighbouring parts, `most` of them at most.

    A file system that knows of no holes has none.
    """
    found: list[tuple[int, bool]] = []
    end = offset + size
    while offset < end and len(found) < most:
        data = end
        with suppress(OSError):  # no data behind `offset`
            data = min(os.lseek(fd, offset, os.SEEK_DATA), end)
        if data > offset:
            found.append((data - offset, True))
        offset = data
        if offset < end:
            hole = min(os.lseek(fd, offset, os.SEEK_HOLE), end)
            found.append((hole - offset, False))
            offset = hole
    return found


def data_ranges(fd: int, stop: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the data, without holes, between two offsets of a file, rising."""
    at = begin
    while at < stop:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # no data behind `at`
            return
        if data >= stop:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), stop)
        yield data, at
