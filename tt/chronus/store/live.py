"""The live time-travel disk: every write is kept, and the disk is as quick as a file.

A write goes into the spool (one sequential write, `tt.chronus.store.spool`) and is done; a process beside
this one packs the spool into the history.  What was written lately is read from the spool, what was
never written from the base image, and the rest from the history.  Which is which is kept in a map
of the regions that were touched: for each block of 4 KB

    0  the base      1  the history      2  zeros      else  segment << 40 | offset in the spool
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tt.chronus.store import spool
from tt.chronus.store.history import config_of
from tt.chronus.store.packer import recover
from tt.errors import BadInput, TTError, UsageError
from tt.log import Trace
from tt.log.disk_rows import FANOUT_BITS, ChangeKind
from tt.log.disk_writer import DISK_ONLY, DiskWriter
from tt.log.sectors import BLOCK_SECTORS, SECTOR
from tt.vmm.config import DiskConfig, MachineConfig, describe_disk, open_disks
from tt.vmm.disk import BLOCK, BaseImage

CACHE_BYTES = 4 << 30  # of the spool, kept for reading although it is packed
BACKLOG_BYTES = 8 << 30  # of the spool, not packed yet, before writers have to wait
_REGION_BITS = FANOUT_BITS  # blocks of a region: 256, that is 1 MB
_REGION = 1 << _REGION_BITS
_BASE, _PACKED, _ZERO = 0, 1, 2
_OFFSET_BITS = 40
_OFFSET = (1 << _OFFSET_BITS) - 1
_MOST_BUFFERS = 1000  # of one writev (IOV_MAX is 1,024)
_FINISH_S = 3600

Buffer = bytes | bytearray | memoryview


def create(path: Path, base: Path | None, size: int | None = None, overwrite: bool = False) -> None:
    """Make the history of a disk that starts out as the image `base`, or as `size` bytes of zeros.

    Raises `UsageError` where it exists, or for a size that is none, `BadInput` for an unreadable base.
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

    `size`, offsets and sizes are in bytes; what is not aligned to 4 KB is written as the blocks that it
    makes.  `write`, `zero`, `trim` are done when they return, and safe after `flush`, or at once with
    `fua`.  May be used by several threads.  Raises `BadInput` where `path` is no disk's history or in
    use, `TTError` where it cannot be written any more.
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
        recover(path, say)
        self._lock = spool.Lock(path)
        self._mutex = threading.Lock()
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
            self._regions: dict[int, array[int]] = {}
            self._has_history = self._trace.disk_write_count > 0
            self._number = self._trace.disk_write_count
            self._safe_number = self._number
            self._cache_bytes = cache_bytes
            self._backlog_bytes = backlog_bytes
            self._descriptors: dict[int, int] = {}
            self._sizes: dict[int, int] = {}
            self._written: dict[int, list[tuple[int, int]]] = {}  # segment -> (block, blocks) written in it
            self._packed_below = 0
            self._unpacked = 0  # bytes of the segments that are not packed wholly
            self._dirty: set[int] = set()
            self._segment = 0
            self._new_segment()
            self._packer = subprocess.Popen(
                [sys.executable, "-m", "tt.chronus.store.packer", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._lock.descriptor],
            )
        except BaseException:
            self._lock.release()
            raise
        self._listener = threading.Thread(target=self._listen, name="packer's listener", daemon=True)
        self._listener.start()

    @property
    def number(self) -> int:
        """The number of the newest write."""
        return self._number

    # What a disk does

    def read(self, offset: int, size: int) -> list[Buffer]:
        """Return `size` bytes from `offset`, in pieces."""
        if not size:
            return []
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        with self._mutex:
            pieces: list[Buffer] = []
            for code, block, count in self._spans(first, last - first + 1):
                begin = max(offset, block * BLOCK)
                end = min(offset + size, (block + count) * BLOCK)
                pieces.append(self._fetch(code, block, begin, end))
        return pieces

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write `data` at `offset`."""
        self.write_many([(offset, data)], fua)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], fua: bool = False) -> None:
        """Make several writes, in order: (offset, data) each."""
        with self._mutex:
            self._check()
            host_ns = time.time_ns()
            buffers: list[Buffer] = []
            moves: list[tuple[int, int, int]] = []
            at = self._sizes[self._segment]
            for offset, data in requests:
                if offset % BLOCK or (len(data) % BLOCK and offset + len(data) != self.size):
                    # What it makes of its blocks depends on the writes before it.
                    at = self._put(buffers, moves, at)
                    buffers, moves = [], []
                    offset, data = self._aligned(offset, data)
                self._number += 1
                sectors = len(data) // SECTOR
                buffers += (spool.header(0, self._number, host_ns, offset // SECTOR, sectors, data), data)
                moves.append((offset // BLOCK, -(-len(data) // BLOCK), at + spool.HEADER.size))
                at += spool.HEADER.size + len(data)
                if len(buffers) >= _MOST_BUFFERS or at >= spool.SEGMENT_BYTES:
                    at = self._put(buffers, moves, at)
                    buffers, moves = [], []
            self._put(buffers, moves, at)
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
        with self._mutex:
            self._check()
            dirty = [(number, os.dup(self._descriptors[number])) for number in sorted(self._dirty)]
            self._dirty.clear()
        failed = None
        for number, descriptor in dirty:
            try:
                os.fdatasync(descriptor)
            except OSError as e:
                failed = e
                with self._mutex:
                    self._dirty.add(number)
            finally:
                os.close(descriptor)
        if failed is not None:
            raise TTError(f"cannot write {self._lock.folder}: {failed.strerror}")

    def extents(self, offset: int, size: int) -> list[tuple[int, bool]]:
        """Return (bytes, whether they are zeros) of neighbouring parts, as far as is known."""
        found: list[tuple[int, bool]] = []
        end = offset + size
        with self._mutex:
            for code, block, count in self._spans(offset // BLOCK, -(-end // BLOCK) - offset // BLOCK):
                low, high = max(offset, block * BLOCK), min(end, (block + count) * BLOCK)
                parts = self._base_extents(low, high) if code == _BASE else [(high - low, code == _ZERO)]
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
        with self._mutex:
            self._error = self._error or f"{self.path} is closed"
            self._trace.close()  # while somebody reads it, SQLite does not put it into one file
        try:
            with suppress(BrokenPipeError):
                assert self._packer.stdin is not None
                self._packer.stdin.write(b"finish\n")
                self._packer.stdin.flush()
            code = self._packer.wait(_FINISH_S)
        except subprocess.TimeoutExpired:
            self._packer.kill()
            code = -1
        self._listener.join(5)
        with self._mutex:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
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

    # ---- writing

    def _put(self, buffers: list[Buffer], moves: list[tuple[int, int, int]], end: int) -> int:
        """Append to the segment, note where the blocks are now, and return where the next record goes."""
        if not buffers:
            return self._sizes[self._segment]
        descriptor = self._descriptors[self._segment]
        start = self._sizes[self._segment]
        try:
            _write_all(descriptor, buffers)
        except OSError as e:
            self._number -= len(moves)
            with suppress(OSError):
                os.ftruncate(descriptor, start)
            raise TTError(f"cannot write {self._lock.folder}: {e.strerror}") from None
        self._unpacked += end - start
        self._sizes[self._segment] = end
        self._dirty.add(self._segment)
        segment = self._segment << _OFFSET_BITS
        for block, count, at in moves:
            self._written[self._segment].append((block, count))
            self._set(block, count, range(segment | at, (segment | at) + count * BLOCK, BLOCK))
        if end >= spool.SEGMENT_BYTES:
            self._new_segment()
        return self._sizes[self._segment]

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
        with self._mutex:
            self._check()
            self._number += 1
            lba, sectors = whole_begin // SECTOR, (whole_end - whole_begin) // SECTOR
            head = spool.header(kind, self._number, time.time_ns(), lba, sectors)
            first, count = whole_begin // BLOCK, -(-(whole_end - whole_begin) // BLOCK)
            self._put([head], [], self._sizes[self._segment] + len(head))
            self._set_zero(first, count)

    def _aligned(self, offset: int, data: Buffer) -> tuple[int, bytes]:
        """Return a write as the whole blocks that it makes."""
        begin = offset // BLOCK * BLOCK
        end = min(-(-(offset + len(data)) // BLOCK) * BLOCK, self.size)
        whole = bytearray(end - begin)
        for edge in {begin, (end - 1) // BLOCK * BLOCK}:
            stop = min(edge + BLOCK, end)
            for code, block, _count in self._spans(edge // BLOCK, 1):
                whole[edge - begin : stop - begin] = self._fetch(code, block, edge, stop)
        whole[offset - begin : offset - begin + len(data)] = data
        return begin, bytes(whole)

    def _new_segment(self) -> None:
        self._segment = max([self._segment, *spool.segments(self._lock.folder)]) + 1
        path = spool.segment_path(self._lock.folder, self._segment)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptors[self._segment] = os.open(path, flags, 0o644)
        except OSError as e:
            raise TTError(f"cannot write {self._lock.folder}: {e.strerror}") from None
        spool.sync_folder(self._lock.folder)
        self._sizes[self._segment] = 0
        self._written[self._segment] = []

    def _check(self) -> None:
        """Wait while the packer is too far behind; raises `TTError` where it died."""
        while self._error is None and self._unpacked > self._backlog_bytes:
            self._mutex.release()
            time.sleep(0.02)
            self._mutex.acquire()
        if self._error is not None:
            raise TTError(self._error)

    # ---- the map

    def _region(self, index: int) -> array[int]:
        """Return a region's map, to be changed."""
        region = self._regions.get(index)
        if region is _ALL_ZERO:
            region = self._regions[index] = _ALL_ZERO[:]
        if region is None:
            region = array("Q", bytes(8 * _REGION))
            if self._has_history:
                for block in self._in_history(index):
                    region[block & _REGION - 1] = _PACKED
            self._regions[index] = region
        return region

    def _in_history(self, index: int) -> Iterator[int]:
        """Yield the blocks of a region that the history knew when the disk was opened."""
        first = index << _REGION_BITS
        for block in range(first, first + _REGION):
            if self._trace.disk_log.touched(0, block):
                yield block

    def _set(self, block: int, count: int, codes: Sequence[int]) -> None:
        at = 0
        while at < count:
            index, within = (block + at) >> _REGION_BITS, (block + at) & _REGION - 1
            some = min(_REGION - within, count - at)
            self._region(index)[within : within + some] = array("Q", codes[at : at + some])
            at += some

    def _set_zero(self, block: int, count: int) -> None:
        end = block + count
        while block < end:
            index, within = block >> _REGION_BITS, block & _REGION - 1
            some = min(_REGION - within, end - block)
            if some == _REGION:
                self._regions[index] = _ALL_ZERO
            else:
                self._region(index)[within : within + some] = _ALL_ZERO[:some]
            block += some

    def _spans(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (code, block, blocks) of neighbouring blocks that lie side by side in one place."""
        code, begin, length = -1, first, 0
        block, end = first, first + count
        while block < end:
            index, within = block >> _REGION_BITS, block & _REGION - 1
            some = min(_REGION - within, end - block)
            region = self._regions.get(index)
            if region is None:
                region = self._region(index) if self._has_history else _UNTOUCHED
            for next_code in region[within : within + some]:
                follows = code + length * BLOCK if code > _ZERO else code
                if length and next_code == follows:
                    length += 1
                else:
                    if length:
                        yield code, begin, length
                    code, begin, length = next_code, block, 1
                block += 1
        if length:
            yield code, begin, length

    def _fetch(self, code: int, block: int, begin: int, end: int) -> Buffer:
        """Return the bytes from `begin` to `end` of a span that begins at `block`."""
        if code > _ZERO:
            descriptor = self._descriptors[code >> _OFFSET_BITS]
            data = os.pread(descriptor, end - begin, (code & _OFFSET) + begin - block * BLOCK)
            if len(data) == end - begin:
                return data
            raise TTError(f"{self._lock.folder} was cut short by somebody else")
        if code == _ZERO:
            return bytes(end - begin)
        if code == _BASE:
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

    def _base_extents(self, begin: int, end: int) -> list[tuple[int, bool]]:
        if self._base_fd < 0:
            return [(end - begin, True)]
        found = []
        at = begin
        while at < end:
            try:
                data = min(os.lseek(self._base_fd, at, os.SEEK_DATA), end)
            except OSError:  # past the last data
                data = end
            if data > at:
                found.append((data - at, True))
            if data < end:
                hole = min(os.lseek(self._base_fd, data, os.SEEK_HOLE), end)
                found.append((hole - data, False))
                at = hole
            else:
                at = end
        return found

    # ---- the packer

    def _listen(self) -> None:
        """Take note of what the packer has done, and let segments go."""
        assert self._packer.stdout is not None
        for line in self._packer.stdout:
            number, segment = map(int, line.split())
            with self._mutex:
                self._safe_number, self._packed_below = number, segment
                self._unpacked = sum(size for at, size in self._sizes.items() if at >= segment)
                if segment == self._segment:
                    self._unpacked = 0
            self._trim_spool()
        if self._packer.wait():
            with self._mutex:
                self._error = (
                    f"cannot write {self.path}: packing failed; what was flushed is safe in the spool"
                )

    def _trim_spool(self) -> None:
        """Remove the oldest packed segments while the spool is larger than its cache."""
        while True:
            with self._mutex:
                oldest = min(self._sizes)
                if sum(self._sizes.values()) <= self._cache_bytes or oldest >= min(
                    self._packed_below, self._segment
                ):
                    return
                for block, count in self._written.pop(oldest):
                    for at in range(block, block + count):
                        region = self._regions[at >> _REGION_BITS]
                        if region[at & _REGION - 1] >> _OFFSET_BITS == oldest:
                            region[at & _REGION - 1] = _PACKED
                del self._sizes[oldest]
                self._dirty.discard(oldest)
                os.close(self._descriptors.pop(oldest))
                spool.segment_path(self._lock.folder, oldest).unlink(missing_ok=True)


_UNTOUCHED = array("Q", [_BASE]) * _REGION
_ALL_ZERO = array("Q", [_ZERO]) * _REGION  # shared: a discard may cover a million regions


def _write_all(descriptor: int, buffers: list[Buffer]) -> None:
    """Write buffers, also where the system takes only a part of them at once."""
    total = sum(map(len, buffers))
    done = os.writev(descriptor, buffers)
    while done < total:
        rest = memoryview(b"".join(buffers))[done:]
        done += os.write(descriptor, rest)
