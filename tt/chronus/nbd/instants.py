"""An export of a disk at one instant: read-only, or writable without changing the history."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Self

from tt.chronus.store.host_file import Buffer, write_all
from tt.chronus.store.view import DiskView
from tt.errors import TTError
from tt.vmm.disk import BLOCK

_BELOW, _OVER, _ZERO = 0, 1, 2  # where a block of 4 KB is: the view, the overlay's file, nowhere


class InstantExport:
    """A view of a disk as an export; with `overlay`, what clients write stays in a temporary file.

    The file has no name, takes as much room as was written, and is gone when the
    export is closed.  `lock` is shared by exports whose views read from one `History`, which is not to
    be used by two threads at once.
    """

    def __init__(
        self,
        disk: DiskView,
        *,
        name: str = "",
        overlay: bool = False,
        lock: threading.Lock | None = None,
        description: str = "",
    ) -> None:
        self.name = name
        self.size = disk.size
        self.readonly = not overlay
        self.description = description or disk.where
        self._disk = disk
        self._below = lock or threading.Lock()
        self._lock = threading.Lock()
        self._fd = -1
        self._blocks = -(-self.size // BLOCK)
        self._where = bytearray()
        if overlay:
            with tempfile.TemporaryFile(prefix="chronus-overlay-") as file:
                self._fd = os.dup(file.fileno())
            self._where = bytearray(self._blocks)  # untouched pages of it take no memory

    def read(self, offset: int, size: int) -> list[Buffer]:
        """Return `size` bytes from `offset`, in pieces."""
        if self._fd < 0:
            return [self._read_below(offset, offset + size)]
        with self._lock:
            return [self._fetch(*span) for span in self._spans(offset, offset + size)]

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write `data` at `offset`, into the overlay."""
        if not data:
            return
        with self._lock:
            self._fill_edges(offset, offset + len(data))
            self._put(offset, data)
            first, last = offset // BLOCK, (offset + len(data) - 1) // BLOCK
            self._where[first : last + 1] = bytes([_OVER]) * (last + 1 - first)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], fua: bool = False) -> None:
        """Make several writes, in order."""
        for offset, data in requests:
            self.write(offset, data)

    def zero(self, offset: int, size: int, may_trim: bool = True, fua: bool = False) -> None:
        """Make `size` bytes from `offset` zeros."""
        end = offset + size
        first = -(-offset // BLOCK)
        last = self._blocks if end == self.size else end // BLOCK
        if first >= last:
            self.write(offset, bytes(size))
            return
        self.write(offset, bytes(first * BLOCK - offset))
        self.write(last * BLOCK, bytes(max(0, end - last * BLOCK)))
        with self._lock:
            self._where[first:last] = bytes([_ZERO]) * (last - first)

    def trim(self, offset: int, size: int) -> None:
        """Make `size` bytes from `offset` zeros."""
        self.zero(offset, size)

    def flush(self) -> None:
        """Do nothing: an overlay is discarded at the end."""

    def extents(self, offset: int, size: int) -> list[tuple[int, bool]]:
        """Return (bytes, whether they are zeros) of neighbouring parts, as far as the overlay knows."""
        if self._fd < 0:
            return [(size, False)]
        with self._lock:
            spans = [
                (end - begin, where == _ZERO) for where, begin, end in self._spans(offset, offset + size)
            ]
        return [
            (sum(length for length, _ in run), zero) for zero, run in groupby(spans, lambda span: span[1])
        ]

    def close(self) -> None:
        """Forget the overlay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- inside, under the lock

    def _spans(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (where, begin, end) of neighbouring bytes that are in one place."""
        block, last = offset // BLOCK, -(-end // BLOCK)
        for where, run in groupby(self._where[block:last]):
            stop = block + sum(1 for _ in run)
            yield where, max(offset, block * BLOCK), min(end, stop * BLOCK)
            block = stop

    def _fetch(self, where: int, begin: int, end: int) -> bytes:
        if where == _BELOW:
            return self._read_below(begin, end)
        if where == _ZERO:
            return bytes(end - begin)
        return os.pread(self._fd, end - begin, begin).ljust(end - begin, b"\0")

    def _read_below(self, begin: int, end: int) -> bytes:
        if begin >= end:
            return b""
        first, last = begin // BLOCK, (end - 1) // BLOCK
        with self._below:
            blocks = self._disk.blocks(first, last + 1 - first)
        return b"".join(blocks)[begin - first * BLOCK : end - first * BLOCK]

    def _fill_edges(self, offset: int, end: int) -> None:
        """Bring the blocks that a write covers only in part into the overlay."""
        edges = {offset // BLOCK} if offset % BLOCK else set()
        if end % BLOCK and end < self.size:
            edges.add(end // BLOCK)
        for block in edges:
            if self._where[block] != _OVER:
                begin, stop = block * BLOCK, min((block + 1) * BLOCK, self.size)
                self._put(begin, self._fetch(self._where[block], begin, stop))

    def _put(self, offset: int, data: Buffer) -> None:
        try:
            write_all(self._fd, [data], offset)
        except OSError as e:
            raise TTError(f"cannot write the overlay in {tempfile.gettempdir()}: {e.strerror}") from e
