"""Which partitions a disk has: GUID tables and DOS tables, as Linux reads them.

Two sources decide.  Linux's own code (block/partitions/efi.c, then block/partitions/msdos.c) says
what a table is and which entries count; it runs before anyone looks for a file system on the whole
disk, so a valid table wins over a signature that an older use of the disk left behind.  Where
Linux would see no partitions only because the first copy of a GUID table is damaged, the backup
at the end of the disk is used, as sfdisk(8) and blkid(8) do.

Left out: what Linux finds inside of partitions (labels of BSD, Solaris, Minix and UnixWare), and
tables of other machines (Apple, Sun, SGI, Amiga, Atari).  None of them holds a file system tt reads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512

_MAX_PARTS = 255  # numbers that Linux gives partitions of one disk (DISK_MAX_PARTS)
_MAX_EMPTY_LINKS = 100  # extended boot records in a row that hold no partition (parse_extended)
_EXTENDED = (0x05, 0x0F, 0x85)
_GPT_PROTECTIVE = 0xEE
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # UEFI 2.10, section 5.3.2
_GPT_ENTRY = 128
_GPT_MAX_BYTES = 4 << 20  # of a table; Linux takes KMALLOC_MAX_SIZE, which is this
_GPT_SECTORS = (SECTOR, 4096)

Part = tuple[int, int, int]
"""`(number, offset, size)`, in bytes."""


@dataclass(frozen=True)
class Table:
    """The partitions of a disk, by number; `problem` says why a table that is there cannot be used."""

    parts: tuple[Part, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _Entry:
    """One of the four entries of a boot record; `start` and `count` in sectors."""

    boot: int
    type: int
    start: int
    count: int

    @property
    def extended(self) -> bool:
        return self.type in _EXTENDED


def read_table(stream: BinaryIO, size: int, *, fat: bool = False) -> Table:
    """Read the partition table of a disk of `size` bytes.

    Partitions that begin past the end of the disk are left out, those that only end there are cut,
    as Linux does.  An extended partition is not listed, the logical ones in it are.  `fat` says that
    the first sector is also a whole boot sector of FAT, whose code can look like a table: then only
    a table without any contradiction counts.
    """
    sector = _read_at(stream, 0, SECTOR)
    entries = _entries(sector)
    if not entries:
        return Table()
    if any(entry.type == _GPT_PROTECTIVE and entry.start == 1 for entry in entries):
        found = _gpt(stream, size)
        return Table(tuple(_inside(found, size))) if found is not None else Table(problem=_no_gpt(size))
    if any(entry.type == _GPT_PROTECTIVE for entry in entries):
        return Table()  # Linux's reader of DOS tables leaves such a disk alone
    if any(entry.boot not in (0, 0x80) for entry in entries):
        return Table()  # code of a boot sector, or text
    if fat and not _sound(entries, size):
        return Table()
    return Table(tuple(_inside(_dos(stream, entries, size), size)))


def _read_at(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _inside(parts: list[Part], size: int) -> Iterator[Part]:
    for number, offset, length in parts:
        if offset < size and length > 0 and number <= _MAX_PARTS:
            yield number, offset, min(length, size - offset)


# ---- DOS


def _entries(sector: bytes) -> list[_Entry]:
    """Return the four entries of a boot record; none without its signature."""
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        return []
    raw = [sector[446 + 16 * i : 462 + 16 * i] for i in range(4)]
    return [_Entry(each[0], each[4], *struct.unpack_from("<II", each, 8)) for each in raw]


def _sound(entries: list[_Entry], size: int) -> bool:
    """Whether the used entries have a type, lie inside of the disk and do not overlap."""
    used = sorted((e for e in entries if e.type or e.start or e.count), key=lambda entry: entry.start)
    end = 1
    for entry in used:
        if not entry.type or not entry.count or entry.start < end:
            return False
        end = entry.start + entry.count
    return end * SECTOR <= size


def _dos(stream: BinaryIO, entries: list[_Entry], size: int) -> list[Part]:
    """Read a DOS table, with logical partitions numbered from 5 (`msdos_partition` in Linux)."""
    parts = [
        (i + 1, entry.start * SECTOR, entry.count * SECTOR)
        for i, entry in enumerate(entries)
        if entry.count and not entry.extended
    ]
    following = 5
    for entry in entries:
        if entry.count and entry.extended:
            for offset, length in _logical(stream, entry, size):
                if following > _MAX_PARTS:
                    break
                parts.append((following, offset, length))
                following += 1
    return parts


def _logical(stream: BinaryIO, outer: _Entry, size: int) -> Iterator[tuple[int, int]]:
    """Follow the chain of extended boot records (`parse_extended` in Linux).

    The first two entries of a record count always, the others only where they lie inside, since
    they can be rubbish.  A chain that goes back to a record it had ends there.
    """
    at, length = outer.start, outer.count
    seen: set[int] = set()
    empty = 0
    while at not in seen and empty < _MAX_EMPTY_LINKS and len(seen) < _MAX_PARTS and at * SECTOR < size:
        seen.add(at)
        empty += 1
        entries = _entries(_read_at(stream, at * SECTOR, SECTOR))
        for i, entry in enumerate(entries):
            if not entry.count or entry.extended:
                continue
            first, last = at + entry.start, at + entry.start + entry.count
            if i >= 2 and (
                entry.start + entry.count > length or first < outer.start or last > outer.start + outer.count
            ):
                continue
            empty = 0
            yield first * SECTOR, entry.count * SECTOR
        link = next((entry for entry in entries if entry.count and entry.extended), None)
        if link is None:
            return
        at, length = outer.start + link.start, link.count


# ---- GPT


def _gpt(stream: BinaryIO, size: int) -> list[Part] | None:
    """Read a GUID partition table (UEFI 2.10, section 5.3) for sectors of 512 or 4096 bytes.

    The first copy whose checksums are right counts: the one at the beginning, else the one at the
    end of the disk.  Returns None where neither is.
    """
    for sector in _GPT_SECTORS:
        last = size // sector - 1
        for at in (1, last):
            found = _gpt_copy(stream, sector, at, last) if 0 < at <= last else None
            if found is not None:
                return found
    return None


def _gpt_copy(stream: BinaryIO, sector: int, at: int, last: int) -> list[Part] | None:
    """Return the partitions of one copy of the table, None where it is not valid (`is_gpt_valid`)."""
    data = _read_at(stream, at * sector, sector)
    if len(data) < sector or not data.startswith(b"EFI PART"):
        return None
    (_, _, length, crc, _, own, _, first_usable, last_usable, _, table, count, each, table_crc) = (
        _GPT_HEADER.unpack_from(data)
    )
    if not _GPT_HEADER.size <= length <= sector:
        return None
    if zlib.crc32(data[:16] + bytes(4) + data[20:length]) != crc or own != at:
        return None
    if not first_usable <= last_usable <= last or each != _GPT_ENTRY:
        return None
    if not 0 < count * each <= _GPT_MAX_BYTES or table > last:
        return None
    entries = _read_at(stream, table * sector, count * each)
    if len(entries) < count * each or zlib.crc32(entries) != table_crc:
        return None
    parts: list[Part] = []
    for i in range(min(count, _MAX_PARTS)):
        kind, _, begin, end = struct.unpack_from("<16s16sQQ", entries, i * each)
        if any(kind) and begin <= end <= last:
            parts.append((i + 1, begin * sector, (end - begin + 1) * sector))
    return parts


def _no_gpt(size: int) -> str:
    where = f"sector 1 and sector {size // SECTOR - 1}"
    return f"its GUID partition table is damaged: neither copy, at {where}, is whole by its checksums"
