"""The live time-travel disk: every write is kept, and the disk is as quick as a file.

A write goes into the spool (one sequential write, `tt.chronus.store.spool`) and is done; a process beside
this one packs the spool into the history.  What was written lately is read from the spool, what was
never written from the base image, and the rest from the history: `tt.chronus.store.block_map` knows which.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tt.chronus.store import block_map, spool
from tt.chronus.store.block_map import BlockMap
from tt.chronus.store.history import config_of
from tt.chronus.store.host_file import Buffer, file_extents
from tt.chronus.store.packer import recover
from tt.chronus.store.packing import PackerProcess
from tt.chronus.store.spool_writer import SpoolWriter
from tt.errors import BadInput, TTError, UsageError
from tt.log import Trace
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DISK_ONLY, DiskWriter
from tt.log.sectors import BLOCK_SECTORS, SECTOR
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.disk import BLOCK, BaseImage
from tt.vmm.disk_images import describe_disk, open_disks

CACHE_BYTES = 4 << 30  # of the spool, kept for reading although it is packed
BACKLOG_BYTES = 8 << 30  # of the spool, not packed yet, before writers have to wait


def create(path: Path, base: Path | None, size: int | None = None, overwrite: bool = False) -> None:
    """Make the history of a disk that starts out as the image `base`, or as `size` bytes of zeros.

    Raises `UsageError` where it exists, or for an invalid size, `BadInput` for an unreadable base.
    """
    if base is not None:
        disk = describe_disk(base)
    elif size is None or size <= 0 or size % SECTOR:
        raise UsageError(
            f"a disk of {size} bytes: give --base IMAGE, or a --size in whole sectors of 512 bytes"
        )
    else:
        disk = DiskConfig("", size, "")
    config = MachineConfig(DISK_ONLY, 0, 1, int(time.time()), "host", "", "", (disk,), ("a disk's history",))
    meta = {"id": os.urandom(16).hex(), "config": config.plain(), "period_ns": 1}
    DiskWriter.create(path, meta, overwrite=overwrite).seal("nothing written yet")


class LiveDisk:
    """A disk that can be written to, each write of which becomes an instant of the history at `path`.

    `size`, offsets and sizes are in bytes; what is not aligned to 4 KB is extended to whole blocks.  `write`,
    `zero`, `trim` are done when they return, and safe after `flush`, or at once with `fua`.  May be used by
    several threads.  Raises `BadInput` where `path` is no disk's history or in use, `TTError` where it cannot
    be written any more.
    """

    readonly = False

    def __init__(
        self,
        path: Path,
        *,
        base: Path | None = None,
        name: str = "",
        cache_bytes: int = CACHE_BYTES,
        backlog_bytes: int = BACKLOG_BYTES,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = path
        self.name = name
        self._cache_bytes = cache_bytes
        self._backlog_bytes = backlog_bytes
        recover(path, say)
        self._lock = spool.Lock(path)
        # Held while the attributes below are used; notified when the packer has made room, or died.
        self._state = threading.Condition(threading.Lock())
        self._error: str | None = None
        try:
            self._trace = Trace.open(path)
            config = config_of(self._trace)
            if self._trace.meta.get("machine") != DISK_ONLY:
                raise BadInput(
                    f"{path} is a recording of a machine: serve it with --at POS (--overlay to write over it)"
                )
            self._base = open_disks(config, {0: base} if base else None)[0].base
            self.size = self._base.sectors * SECTOR
            self._base_fd = os.open(self._base.path, os.O_RDONLY) if isinstance(self._base, BaseImage) else -1
            self._number = self._trace.disk_write_count
            self._map = BlockMap(self._in_history if self._number else None)
            self._spool = SpoolWriter(self._lock.folder)
            self._packer = PackerProcess(path, self._lock.descriptor, self._packed, self._packing_failed)
        except BaseException:
            self._lock.release()
            raise

    @property
    def number(self) -> int:
        """The number of the newest write."""
        return self._number

    # The operations of a disk

    def read(self, offset: int, size: int) -> list[Buffer]:
        """Return `size` bytes from `offset`, in pieces."""
        if not size:
            return []
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        with self._state:
            pieces: list[Buffer] = []
            for code, block, count in self._map.spans(first, last - first + 1):
                begin = max(offset, block * BLOCK)
                end = min(offset + size, (block + count) * BLOCK)
                pieces.append(self._fetch(code, block, begin, end))
        return pieces

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write `data` at `offset`."""
        self.write_many([(offset, data)], fua)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], fua: bool = False) -> None:
        """Make several writes, in order: (offset, data) each."""
        with self._state:
            self._wait_for_room()
            batch: list[tuple[int, Buffer]] = []
            size = 0
            for offset, data in requests:
                length = len(data)
                if length > spool.MAX_BATCH_BYTES:
                    raise UsageError(f"a write of {length:,} bytes: {spool.MAX_BATCH_BYTES:,} at most")
                if offset % BLOCK or (length % BLOCK and offset + length != self.size):
                    # It changes a part of a block; the rest comes from the writes before it.
                    self._put(batch)
                    batch, size = [], 0
                    offset, data = self._aligned(offset, data)
                    length = len(data)
                if batch and (size + length > spool.MAX_BATCH_BYTES or len(batch) == spool.MAX_BATCH):
                    self._put(batch)
                    batch, size = [], 0
                batch.append((offset, data))
                size += length
            self._put(batch)
        if fua:
            self.flush()

    def zero(self, offset: int, size: int, may_trim: bool = True, fua: bool = False) -> None:
        """Make `size` bytes from `offset` zeros."""
        self._clear(ChangeKind.ZEROES, offset, size)
        if fua:
            self.flush()

    def trim(self, offset: int, size: int) -> None:
        """Discard `size` bytes from `offset`: they read as zeros from here on."""
        self._clear(ChangeKind.DISCARD, offset, size)

    def flush(self) -> None:
        """Make every write that was done safe from a power cut."""
        with self._state:
            self._check()
            new_names, dirty = self._spool.take_dirty()
        failed: list[int] = []
        error: OSError | TTError | None = None
        for number, descriptor in dirty:
            try:
                os.fdatasync(descriptor)
            except OSError as e:
                failed.append(number)
                error = e
            finally:
                os.close(descriptor)
        try:
            if new_names:
                spool.sync_folder(self._lock.folder)
        except TTError as e:
            error = error or e
        else:
            new_names = False
        if error is not None:
            with self._state:
                self._spool.still_dirty(new_names, failed)
            if isinstance(error, OSError):
                raise TTError(f"cannot write {self._lock.folder}: {error.strerror}")
            raise error

    def extents(self, offset: int, size: int) -> list[tuple[int, bool]]:
        """Return (bytes, whether they are zeros) of neighbouring parts, as far as is known."""
        found: list[tuple[int, bool]] = []
        end = offset + size
        with self._state:
            for code, block, count in self._map.spans(offset // BLOCK, -(-end // BLOCK) - offset // BLOCK):
                low, high = max(offset, block * BLOCK), min(end, (block + count) * BLOCK)
                parts = [(high - low, code == block_map.ZERO)]
                if code == block_map.BASE:
                    parts = self._base_extents(low, high)
                for length, zero in parts:
                    if found and found[-1][1] == zero:
                        found[-1] = (found[-1][0] + length, zero)
                    else:
                        found.append((length, zero))
        return found

    def close(self) -> None:
        """Make everything safe, have it packed, and leave the history as one file."""
        with suppress(TTError):
            self.flush()
        with self._state:
            self._error = self._error or f"{self.path} is closed"
            self._state.notify_all()
            self._trace.close()  # an open reader keeps SQLite from merging its -wal file
        code = self._packer.finish()
        with self._state:
            self._spool.close()
            if self._base_fd >= 0:
                os.close(self._base_fd)
        if code == 0:
            for number in spool.segments(self._lock.folder):
                spool.segment_path(self._lock.folder, number).unlink()
        self._lock.release()
        if code:
            raise TTError(
                f"{self.path}: packing ended with {code}; its writes are safe in {self._lock.folder}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- writing, with the lock held

    def _put(self, writes: Sequence[tuple[int, Buffer]]) -> None:
        """Append writes of whole blocks to the spool as one batch, and note where the blocks are now."""
        if not writes:
            return
        head = spool.batch_of_data(self._number + 1, time.time_ns(), writes)
        end = self._spool.end + len(head)
        buffers = [head, *[data for _offset, data in writes]]
        size = sum(map(len, buffers))
        self._spool.append(buffers, size)
        self._number += len(writes)
        # Neighbours are noted as one: their data lies side by side in the spool too.
        code = self._spool.segment << block_map.OFFSET_BITS | end
        first = following = writes[0][0]
        begin = code
        for offset, data in writes:
            if offset != following or following % BLOCK:
                self._note(first // BLOCK, -(-(following - first) // BLOCK), begin)
                first, begin = offset, code
            following = offset + len(data)
            code += len(data)
        self._note(first // BLOCK, -(-(following - first) // BLOCK), begin)
        self._spool.end_batch()

    def _note(self, block: int, count: int, code: int) -> None:
        self._map.set(block, count, code)
        self._spool.wrote(block, count)

    def _clear(self, kind: ChangeKind, offset: int, size: int) -> None:
        end = offset + size
        whole_begin, whole_end = -(-offset // BLOCK) * BLOCK, end // BLOCK * BLOCK
        if end == self.size:
            whole_end = max(whole_begin, end)
        edges = [(offset, min(end, whole_begin)), (max(whole_end, whole_begin, offset), end)]
        for begin, stop in edges:
            if begin < stop:
                self.write(begin, bytes(stop - begin))
        if whole_begin >= whole_end:
            return
        with self._state:
            self._wait_for_room()
            lba, sectors = whole_begin // SECTOR, (whole_end - whole_begin) // SECTOR
            head = spool.batch_of_zeros(self._number + 1, time.time_ns(), kind, lba, sectors)
            self._spool.append([head], len(head))
            self._number += 1
            self._map.set_zero(whole_begin // BLOCK, -(-(whole_end - whole_begin) // BLOCK))
            self._spool.end_batch()

    def _aligned(self, offset: int, data: Buffer) -> tuple[int, bytes]:
        """Return a write extended to whole blocks."""
        begin = offset // BLOCK * BLOCK
        end = min(-(-(offset + len(data)) // BLOCK) * BLOCK, self.size)
        whole = bytearray(end - begin)
        for edge in {begin, (end - 1) // BLOCK * BLOCK}:
            stop = min(edge + BLOCK, end)
            for code, block, _count in self._map.spans(edge // BLOCK, 1):
                whole[edge - begin : stop - begin] = self._fetch(code, block, edge, stop)
        whole[offset - begin : offset - begin + len(data)] = data
        return begin, bytes(whole)

    def _check(self) -> None:
        """Raise `TTError` where nothing can be written any more."""
        if self._error is not None:
            raise TTError(self._error)

    def _wait_for_room(self) -> None:
        """Wait while the packer is too far behind; raises `TTError` as `_check` does.

        Others may take the lock meanwhile: what was looked up before may be outdated.
        """
        while self._error is None and self._spool.unpacked > self._backlog_bytes:
            self._state.wait()
        self._check()

    # ---- reading, with the lock held

    def _fetch(self, code: int, block: int, begin: int, end: int) -> Buffer:
        """Return the bytes from `begin` to `end` of a span that begins at `block`."""
        if code > block_map.ZERO:
            at = (code & block_map.OFFSET) + begin - block * BLOCK
            return self._spool.read(code >> block_map.OFFSET_BITS, at, end - begin)
        if code == block_map.ZERO:
            return bytes(end - begin)
        if code == block_map.BASE:
            if self._base_fd < 0:
                return bytes(end - begin)
            return os.pread(self._base_fd, end - begin, begin).ljust(end - begin, b"\0")
        first = begin // BLOCK
        joined = b"".join(self._from_history(at) for at in range(first, -(-end // BLOCK)))
        return joined[begin - first * BLOCK : end - first * BLOCK]

    def _from_history(self, block: int) -> bytes:
        """Return a block as the history has it now, after the packer's newest commit."""
        lba = block * BLOCK_SECTORS
        contents = bytearray(self._base.read(lba, min(BLOCK_SECTORS, self._base.sectors - lba)))
        for piece in self._trace.disk_log.pieces(0, block, self._number):
            data = self._trace.blob(piece.key, piece.size) if piece.key else bytes(piece.size)
            contents[piece.offset : piece.offset + piece.size] = data
        return bytes(contents[: min(BLOCK, self.size - block * BLOCK)])

    def _in_history(self, blocks: range) -> Iterator[int]:
        """Yield those of some blocks that the history knew when the disk was opened."""
        return (block for block in blocks if self._trace.disk_log.touched(0, block))

    def _base_extents(self, begin: int, end: int) -> list[tuple[int, bool]]:
        if self._base_fd < 0:
            return [(end - begin, True)]
        return file_extents(self._base_fd, begin, end - begin)

    # ---- what the packer says, in its thread

    def _packed(self, _number: int, segment: int) -> None:
        """Remove segments that are packed, except those kept for reading."""
        with self._state:
            self._spool.packed_below(segment)
            while dropped := self._spool.drop_oldest(segment, self._cache_bytes):
                number, written = dropped
                for block, count in written:
                    self._map.set_packed(block, count, number)
            self._state.notify_all()

    def _packing_failed(self) -> None:
        with self._state:
            self._error = f"cannot write {self.path}: packing failed; what was flushed is safe in the spool"
            self._state.notify_all()
