"""The spool: where the writes of a live disk go first, as fast as the host's file system takes them.

Beside x.tt, in the folder x.tt.spool, lie segments of at most 64 MB, `00000001.seg` and so on, each a
sequence of batches of writes that were made at once:

    offset  size
       0      4   "ttw2"
       4      4   writes in the batch, 1 to 4,096
       8      8   number of the first of them
      16      8   host time, ns since 1970
      24      8   bytes of data
      32      8   XXH3-64 of the 32 bytes above and everything below
      40          for each write: lba u64 (512-byte sectors), then u64: sectors << 8 | kind
                  (0 data, 1 zeros, 2 a discard)
                  the data of all of them, one behind the other

all little-endian.  So neighbouring blocks that were written together lie side by side, and are read at
once.  A flush of the disk is one fdatasync of the segments written since the last.  The packer
(`tt.chronus.store.packer`) moves writes into x.tt; a segment is removed after that.  What is in the
spool when its owner was killed is moved when the disk is served next, and until then read where it is
(`tt.chronus.store.spooled`): an incomplete batch ends the spool, and can only be one that was not flushed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from tt.errors import BadInput, TTError
from tt.log.disk_rows import MAX_LBA, ChangeKind
from tt.log.sectors import SECTOR

MAGIC = b"ttw2"
HEADER = struct.Struct("<4sIQQQQ")
SEGMENT_BYTES = 64 << 20
MAX_BATCH = 4096
MAX_BATCH_BYTES = 64 << 20
_OLD_MAGIC = b"ttw1"
_CHECKED = HEADER.size - 8
_ROW = 16
_PATIENCE_S = 60.0


class Record(NamedTuple):
    """One write in the spool."""

    kind: ChangeKind
    number: int
    host_ns: int
    lba: int
    sectors: int
    data: bytes


class _Head(NamedTuple):
    """The first 40 bytes of a batch."""

    writes: int
    number: int
    host_ns: int
    data_size: int
    check: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return HEADER.size + self.writes * _ROW + self.data_size


def batch_of_data(
    number: int, host_ns: int, writes: Sequence[tuple[int, bytes | bytearray | memoryview]]
) -> bytes:
    """Return the header and table before the data of `writes`: (offset, data) each, from `number` on."""
    rows: list[int] = []
    size = 0
    for offset, data in writes:
        length = len(data)
        rows += (offset // SECTOR, length // SECTOR << 8)
        size += length
    table = struct.pack(f"<{len(rows)}Q", *rows)
    return _head(number, host_ns, len(writes), size, table, [data for _offset, data in writes])


def batch_of_zeros(number: int, host_ns: int, kind: ChangeKind, lba: int, sectors: int) -> bytes:
    """Return the batch of one write without data: zeros, or a discard."""
    return _head(number, host_ns, 1, 0, struct.pack("<2Q", lba, sectors << 8 | kind), ())


def _head(
    number: int,
    host_ns: int,
    count: int,
    size: int,
    table: bytes,
    data: Iterable[bytes | bytearray | memoryview],
) -> bytes:
    head = HEADER.pack(MAGIC, count, number, host_ns, size, 0)[:_CHECKED]
    check = xxhash.xxh3_64(head)
    check.update(table)
    update = check.update
    for piece in data:
        update(piece)
    return head + check.intdigest().to_bytes(8, "little") + table


def folder_of(path: Path) -> Path:
    """Return the folder of a history's spool."""
    return path.with_name(f"{path.name}.spool")


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{number:08}.seg"


def segments(folder: Path) -> list[int]:
    """Return the numbers of the segments that there are, rising."""
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdigit())


def batches(descriptor: int, offset: int = 0) -> Iterator[tuple[list[Record], int]]:
    """Yield (writes of a batch, offset of its end) from `offset` of a segment, up to one that is not whole.

    Raises `BadInput` for the spool of an older chronus.
    """
    while (head := _read_head(descriptor, offset)) is not None:
        raw = os.pread(descriptor, head.size, offset)
        found = xxhash.xxh3_64(raw[:_CHECKED])
        found.update(memoryview(raw)[HEADER.size :])
        if len(raw) < head.size or found.intdigest() != head.check:
            return
        records = _records(head, raw)
        if records is None:
            return
        offset += head.size
        yield records, offset


def _records(head: _Head, raw: bytes) -> list[Record] | None:
    """Return the writes of a batch; None where it makes no sense."""
    at = HEADER.size + head.writes * _ROW
    rows = struct.unpack_from(f"<{2 * head.writes}Q", raw, HEADER.size)
    found = []
    for index in range(head.writes):
        lba, packed = rows[2 * index : 2 * index + 2]
        sectors, kind = packed >> 8, packed & 0xFF
        if kind > max(ChangeKind) or lba + sectors > MAX_LBA:
            return None
        size = sectors * SECTOR if kind == ChangeKind.DATA else 0
        data = raw[at : at + size]
        at += size
        found.append(Record(ChangeKind(kind), head.number + index, head.host_ns, lba, sectors, data))
    return found if at == len(raw) else None


def _read_head(descriptor: int, offset: int) -> _Head | None:
    """Return the head of the batch at `offset`, None where there is none."""
    raw = os.pread(descriptor, HEADER.size, offset)
    if raw[:4] == _OLD_MAGIC:
        raise BadInput("the spool was written by an older chronus: let that one serve the disk once more")
    if len(raw) < HEADER.size or raw[:4] != MAGIC:
        return None
    head = _Head(*HEADER.unpack(raw)[1:])
    return head if 1 <= head.writes <= MAX_BATCH and head.data_size <= MAX_BATCH_BYTES else None


def first_number(descriptor: int) -> int | None:
    """Return the number of the first write in a segment, None where it holds none."""
    head = _read_head(descriptor, 0)
    return None if head is None else head.number


def offset_of(descriptor: int, number: int) -> int:
    """Return the offset of the batch with write `number`, or of the first one after it.

    Batches before it are passed over by their heads alone.
    """
    offset = 0
    while (head := _read_head(descriptor, offset)) is not None and head.number + head.writes <= number:
        offset += head.size
    return offset


class Lock:
    """The right to add to a history, held by one process and the packer it started.

    Its file holds the process's number.

    Raises `BadInput` where another has it, or where nothing can be written beside the history.
    """

    def __init__(self, path: Path) -> None:
        self.folder = folder_of(path)
        try:
            self.folder.mkdir(exist_ok=True)
            self.descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise BadInput(f"cannot write beside {path}: {e.strerror}") from None
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                # The packer of a server that was killed finishes its commit, and then exits.
                if self._owner_lives() or time.monotonic() > deadline:
                    os.close(self.descriptor)
                    raise BadInput(f"{path} is being served by another process: stop it first") from None
                time.sleep(0.02)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def _owner_lives(self) -> bool:
        owner = os.pread(self.descriptor, 20, 0).strip()
        return not owner.isdigit() or Path(f"/proc/{int(owner)}").exists()

    def release(self) -> None:
        """Give the right up, and remove the folder if nothing is left in it."""
        with suppress(OSError):
            if not segments(self.folder):
                (self.folder / "lock").unlink()
                self.folder.rmdir()
        os.close(self.descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; raises `TTError`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise TTError(f"cannot write {folder}: {e.strerror}") from None
