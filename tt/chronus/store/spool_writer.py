"""The writing end of a spool: segments that grow, are made safe, and go when they are packed."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from tt.chronus.store import spool
from tt.chronus.store.host_file import Buffer, write_all
from tt.errors import TTError


class SpoolWriter:
    """The segments of a spool; the caller makes sure that only one thread at a time uses it.

    `segment` is the number of the one that is written, `end` how many bytes it has, `unpacked` how many bytes
    of all of them are not known to be in the history.  Raises `TTError` where it cannot write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segment = 0
        self.end = 0
        self.unpacked = 0
        self._descriptors: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._written: dict[int, list[tuple[int, int]]] = {}  # segment -> (block, blocks) written in it
        self._dirty: set[int] = set()
        self._new_names = False  # there are new segments whose names are not synced
        self._begin_segment()

    def append(self, buffers: Sequence[Buffer], size: int) -> None:
        """Append `size` bytes; none of them are there when this raises."""
        descriptor = self._descriptors[self.segment]
        try:
            write_all(descriptor, buffers, self.end)
        except OSError as e:
            with suppress(OSError):
                os.ftruncate(descriptor, self.end)
            raise TTError(f"cannot write {self.folder}: {e.strerror}") from None
        self.end += size
        self.unpacked += size
        self._sizes[self.segment] = self.end
        self._dirty.add(self.segment)

    def wrote(self, block: int, count: int) -> None:
        """Remember that the bytes appended last are these blocks."""
        self._written[self.segment].append((block, count))

    def end_batch(self) -> None:
        """Begin another segment if this one is long enough."""
        if self.end >= spool.SEGMENT_BYTES:
            self._begin_segment()

    def read(self, segment: int, offset: int, size: int) -> bytes:
        """Return bytes of a segment."""
        data = os.pread(self._descriptors[segment], size, offset)
        if len(data) != size:
            raise TTError(f"{self.folder} was cut short by another program")
        return data

    def take_dirty(self) -> tuple[bool, list[tuple[int, int]]]:
        """Return what is to be synced, to do it without the lock.

        Whether the folder is to be synced; and (segment, descriptor of its own) of each segment.
        """
        dirty = [(number, os.dup(self._descriptors[number])) for number in sorted(self._dirty)]
        self._dirty.clear()
        new_names, self._new_names = self._new_names, False
        return new_names, dirty

    def still_dirty(self, new_names: bool, segments: Collection[int]) -> None:
        """Note again as not synced what `take_dirty` returned: syncing it failed."""
        self._dirty.update(segments)
        self._new_names = self._new_names or new_names

    def packed_below(self, segment: int) -> None:
        """Take note that the segments below one are in the history."""
        self.unpacked = sum(size for number, size in self._sizes.items() if number >= segment)
        if segment == self.segment:
            self.unpacked = 0  # at most one segment: too little to count

    def drop_oldest(self, below: int, keep_bytes: int) -> tuple[int, list[tuple[int, int]]] | None:
        """Remove the oldest segment, if it is below `below` and all are more than `keep_bytes`.

        Returns its number and the (block, blocks) that were written in it; None where none is removed.
        """
        oldest = min(self._sizes)
        if sum(self._sizes.values()) <= keep_bytes or oldest >= min(below, self.segment):
            return None
        del self._sizes[oldest]
        self._dirty.discard(oldest)
        os.close(self._descriptors.pop(oldest))
        spool.segment_path(self.folder, oldest).unlink(missing_ok=True)
        return oldest, self._written.pop(oldest)

    def close(self) -> None:
        """Let go of the files, which stay."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _begin_segment(self) -> None:
        self.segment = max([self.segment, *spool.segments(self.folder)]) + 1
        path = spool.segment_path(self.folder, self.segment)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptors[self.segment] = os.open(path, flags, 0o644)
        except OSError as e:
            raise TTError(f"cannot write {self.folder}: {e.strerror}") from None
        self._new_names = True
        self.end = 0
        self._sizes[self.segment] = 0
        self._written[self.segment] = []
