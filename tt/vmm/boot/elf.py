"""Executables in ELF: what a kernel loader needs (System V ABI, "Object Files" and "Program Loading")."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot.plan import Segment

MAGIC = b"\x7fELF"
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_INTERP = 1, 3
_SHT_NULL, _SHT_NOBITS = 0, 8
_MAX_SEGMENTS = 1024
_MAX_ALIGN = 1 << 20


@dataclass(frozen=True)
class ElfImage:
    """A kernel's loadable contents.

    `bits` is 32 or 64; `entry` and `segments` are guest-physical; `end` is the
    address after the last byte it takes in RAM, zeroed parts included, and
    `taken` the `(start, end)` of each part.
    """

    bits: int
    entry: int
    segments: list[Segment]
    end: int
    taken: list[tuple[int, int]]


@dataclass(frozen=True)
class Sections:
    """A file's section headers: `count` of them, `entry_size` bytes each, names in number `names`.

    `unloaded` are the sections that no program header brings into RAM, as
    `(number, contents, alignment)`.
    """

    headers: bytes
    count: int
    entry_size: int
    names: int
    bits: int
    unloaded: list[tuple[int, bytes, int]]

    def headers_with(self, addresses: dict[int, int]) -> bytes:
        """Return the headers with the given guest-physical addresses put in, by section number."""
        out = bytearray(self.headers)
        for number, address in addresses.items():
            if self.bits == 64:
                struct.pack_into("<Q", out, number * self.entry_size + 16, address)
            else:
                struct.pack_into("<I", out, number * self.entry_size + 12, address)
        return bytes(out)


def parse_elf(data: bytes, what: str) -> ElfImage:
    """Read the program headers of an x86 executable; `what` names it in errors.

    An entry point that is a virtual address is turned into the physical one.
    Raises `BadInput` for anything but a complete i386 or x86-64 executable.
    """
    if data[:4] != MAGIC or len(data) < 52:
        raise BadInput(f"{what} is not an ELF file")
    bits = {1: 32, 2: 64}.get(data[4])
    if bits is None or data[5] != 1:
        raise BadInput(f"{what} is an ELF file of an unknown class or byte order: damaged?")
    try:
        return _parse(data, bits, what)
    except struct.error:
        raise BadInput(f"{what} is cut short: its ELF headers point past its end") from None


def _parse(data: bytes, bits: int, what: str) -> ElfImage:
    if bits == 64:
        _, machine, _, entry, table = struct.unpack_from("<HHIQQ", data, 16)
        entry_size, count = struct.unpack_from("<HH", data, 54)
    else:
        _, machine, _, entry, table = struct.unpack_from("<HHIII", data, 16)
        entry_size, count = struct.unpack_from("<HH", data, 42)
    if machine not in (_EM_386, _EM_X86_64):
        raise BadInput(f"{what} is an ELF file for machine type {machine}: tt runs x86 guests")
    if count > _MAX_SEGMENTS:
        raise BadInput(f"{what} claims {count} program headers: damaged?")
    segments: list[Segment] = []
    taken: list[tuple[int, int]] = []
    physical_entry = None
    end = total = 0
    for i in range(count):
        offset = table + i * entry_size
        if offset >= len(data):
            raise BadInput(f"{what} is cut short: program header {i} is past its end")
        if bits == 64:
            kind, _, position, virtual, addr, size, in_memory = struct.unpack_from("<IIQQQQQ", data, offset)
        else:
            kind, position, virtual, addr, size, in_memory = struct.unpack_from("<IIIIII", data, offset)
        if kind == _PT_INTERP:
            raise BadInput(f"{what} is a program for an operating system, not a kernel")
        if kind != _PT_LOAD:
            continue
        total += size
        if position + size > len(data) or total > 2 * len(data):
            raise BadInput(f"{what} is cut short or damaged: it lacks a part of segment {i}")
        segments.append((addr, data[position : position + size]))
        taken.append((addr, addr + max(size, in_memory)))
        end = max(end, taken[-1][1])
        if virtual <= entry < virtual + in_memory and (physical_entry is None or virtual != 0):
            physical_entry = entry - virtual + addr
        if physical_entry is None and addr <= entry < addr + in_memory:
            physical_entry = entry
    if not end:
        raise BadInput(f"{what} has nothing to load: give an executable kernel, not an object file")
    if physical_entry is None:
        raise BadInput(f"{what} starts at {entry:#x}, outside everything it loads: damaged?")
    return ElfImage(bits, physical_entry, segments, end, taken)


def sections(data: bytes, what: str) -> Sections | None:
    """Read the section headers of an executable that `parse_elf` takes; None when it has none.

    Raises `BadInput` when a part of them, or of a section, is missing.
    """
    bits = 64 if data[4] == 2 else 32
    if bits == 64:
        (table,) = struct.unpack_from("<Q", data, 40)
        entry_size, count, names = struct.unpack_from("<HHH", data, 58)
    else:
        (table,) = struct.unpack_from("<I", data, 32)
        entry_size, count, names = struct.unpack_from("<HHH", data, 46)
    if not count:
        return None
    headers = data[table : table + count * entry_size]
    if entry_size < (64 if bits == 64 else 40) or len(headers) < count * entry_size:
        raise BadInput(f"{what} is cut short or damaged: it lacks section headers")
    unloaded = []
    total = 0
    for number in range(count):
        at = number * entry_size
        if bits == 64:
            kind, _, address, offset, size = struct.unpack_from("<IQQQQ", headers, at + 4)
            (align,) = struct.unpack_from("<Q", headers, at + 48)
        else:
            kind, _, address, offset, size = struct.unpack_from("<IIIII", headers, at + 4)
            (align,) = struct.unpack_from("<I", headers, at + 32)
        if address or not size or kind in (_SHT_NULL, _SHT_NOBITS):
            continue
        total += size
        if offset + size > len(data) or total > 2 * len(data) or align > _MAX_ALIGN:
            raise BadInput(f"{what} is cut short or damaged: it lacks a part of section {number}")
        unloaded.append((number, data[offset : offset + size], align))
    return Sections(headers, count, entry_size, names, bits, unloaded)
