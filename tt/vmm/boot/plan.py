"""The result of every kernel loader: what to put into RAM, and how the CPU starts."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tt.errors import BadInput

PAGE = 4096
MIB = 1 << 20

LOW_RAM_END = 0x9FC00
"""End of the RAM below the PC's video and ROM hole; the last 1 KB under 640 KB is the BIOS's (EBDA)."""

HIGH_RAM_START = 0x100000
"""Start of the RAM above the hole."""

CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
GDT_BASE = 0x500
GDT_LIMIT = 4 * 8 - 1

# Descriptors (Intel SDM volume 3, 3.4.5): base 0, limit 4 GB, present, DPL 0, accessed.
_CODE64 = 0x00AF_9B00_0000_FFFF
_CODE32 = 0x00CF_9B00_0000_FFFF
_DATA = 0x00CF_9300_0000_FFFF

Mode = Literal["long64", "protected32", "real16"]
Segment = tuple[int, bytes]


@dataclass(frozen=True)
class CpuStart:
    """The CPU's state at tick 0; plain data.

    `mode` says what is switched on: `long64` is paging with the tables at
    `cr3` and EFER.LME and LMA, `protected32` is CR0.PE alone, `real16` neither.
    `registers` names general registers (`rsp`, `rsi`, ...; one not named is 0),
    RFLAGS is 2 (interrupts off).  `cs` holds a code and `ds` a data selector
    (for DS, ES, FS, GS and SS) of the GDT at `gdt_base`, all flat: base 0,
    limit 4 GB.  Addresses are guest-physical.
    """

    mode: Mode
    rip: int
    registers: Mapping[str, int]
    cr3: int = 0
    gdt_base: int = 0
    gdt_limit: int = 0
    cs: int = CODE_SELECTOR
    ds: int = DATA_SELECTOR


@dataclass(frozen=True)
class BootPlan:
    """A guest ready to start: RAM contents, CPU state, and the parts it was made from.

    `segments` are `(guest-physical address, bytes)`, ascending, none
    overlapping another, all inside RAM; RAM outside them is zero.  `kernel`,
    `initrd`, `cmdline` and `kind` are what `plan_boot_from_parts` needs to make
    the same plan again.  `description` is for people, a fact a line.
    """

    segments: list[Segment]
    start: CpuStart
    description: list[str]
    kernel: bytes
    initrd: bytes | None
    cmdline: str
    kind: str


def page_up(size: int) -> int:
    """Return `size` (bytes) rounded up to whole 4 KB pages."""
    return -(-size // PAGE) * PAGE


def gdt(mode: Mode) -> bytes:
    """Return the flat GDT for `mode`: two empty slots, code at 0x10, data at 0x18.

    These are the selectors `__BOOT_CS` and `__BOOT_DS` that the Linux boot
    protocol asks for (boot.rst, "32-bit boot protocol" and "64-bit boot protocol").
    """
    return struct.pack("<4Q", 0, 0, _CODE64 if mode == "long64" else _CODE32, _DATA)


def ram_map(mem_bytes: int) -> list[tuple[int, int]]:
    """Return the usable RAM as `(address, size)`, in bytes: all but the hole from 639 KB to 1 MB."""
    return [(0, LOW_RAM_END), (HIGH_RAM_START, mem_bytes - HIGH_RAM_START)]


def need_memory(mem_bytes: int, end: int, what: str) -> None:
    """Raise `BadInput` when `what`, which ends at guest-physical `end`, does not fit into `mem_bytes`.

    No guest starts with less than 2 MB: the hole ends at 1 MB.
    """
    end = max(end, 2 * MIB)
    if end > mem_bytes:
        raise BadInput(f"{what} needs at least {-(-end // MIB)} MB, not {mem_bytes // MIB}: use --mem")


def checked_segments(segments: Sequence[Segment], mem_bytes: int, what: str) -> list[Segment]:
    """Return `segments` in ascending order, without empty ones.

    Raises `BadInput` when two overlap or one lies outside RAM.
    """
    ordered = sorted((s for s in segments if s[1]), key=lambda s: s[0])
    end = 0
    for addr, data in ordered:
        if addr < end:
            raise BadInput(f"{what}: its contents at {addr:#x} overlap others that end at {end:#x}: damaged?")
        end = addr + len(data)
    need_memory(mem_bytes, end, what)
    return ordered
