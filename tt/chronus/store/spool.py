"""The spool: where the writes of a live disk go first, as fast as the host's file system takes them.

Beside x.tt, in the folder x.tt.spool, lie segments of at most 64 MB, `00000001.seg` and so on, each a
sequence of records:

    offset  size
       0      4   "ttw1"
       4      1   kind: 0 data, 1 zeros, 2 a discard
       5      3   0
       8      8   number of the write
      16      8   host time, ns since 1970
      24      8   lba (512-byte sectors)
      32      8   sectors
      40      8   XXH3-64 of the 40 bytes above and the data
      48          the data, sectors * 512 bytes (nothing unless kind is 0)

all little-endian.  A flush of the disk is one fdatasync of the segments written since the last.  The
packer (`tt.chronus.store.packer`) moves records into x.tt; a segment is removed after that.  What is in the
spool when its owner was killed is moved by whoever opens the history next: a record that is not
whole ends it, and can only be one that no flush had made safe.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from tt.errors import BadInput, TTError
from tt.log.disk_rows import MAX_LBA, ChangeKind
from tt.log.sectors import SECTOR

HEADER = struct.Struct("<4sB3xQQQQQ")
MAGIC = b"ttw1"
SEGMENT_BYTES = 64 << 20
MAX_RECORD = 64 << 20
_CHECKED = HEADER.size - 8
_PATIENCE_S = 60.0


class Record(NamedTuple):
    """One write in the spool."""

    kind: ChangeKind
    number: int
    host_ns: int
    lba: int
    sectors: int
    data: bytes


def header(
    kind: int, number: int, host_ns: int, lba: int, sectors: int, data: bytes | bytearray | memoryview = b""
) -> bytes:
    """Return the 48 bytes that go before `data`."""
    head = HEADER.pack(MAGIC, kind, number, host_ns, lba, sectors, 0)[:_CHECKED]
    check = xxhash.xxh3_64(head)
    check.update(data)
    return head + check.intdigest().to_bytes(8, "little")


def folder_of(path: Path) -> Path:
    """Return the folder of a history's spool."""
    return path.with_name(f"{path.name}.spool")


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{number:08}.seg"


def segments(folder: Path) -> list[int]:
    """Return the numbers of the segments that there are, rising."""
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdigit())


def records(descriptor: int, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield (record, offset of its end) from `offset` of a segment, up to the first that is not whole."""
    while True:
        head = os.pread(descriptor, HEADER.size, offset)
        if len(head) < HEADER.size:
            return
        magic, kind, number, host_ns, lba, sectors, check = HEADER.unpack(head)
        size = sectors * SECTOR if kind == ChangeKind.DATA else 0
        if magic != MAGIC or kind > max(ChangeKind) or size > MAX_RECORD or lba + sectors > MAX_LBA:
            return
        data = os.pread(descriptor, size, offset + HEADER.size) if size else b""
        found = xxhash.xxh3_64(head[:_CHECKED])
        found.update(data)
        if len(data) < size or found.intdigest() != check:
            return
        offset += HEADER.size + size
        yield Record(ChangeKind(kind), number, host_ns, lba, sectors, data), offset


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
                # The packer of a server that was killed ends its commit, and then itself.
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
