"""Linear addresses: what the code that runs makes of an offset in a segment, and reading memory by them.

In 64-bit code only FS and GS have a base, and addresses have 64 bits.  In code of 32 and 16 bits
every segment has a base, and a linear address has 32 bits (Intel SDM volume 1, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

_PAGE = 4096
_BIG = 1 << 22  # the B flag of a stack segment's descriptor
_PROTECTED, _VIRTUAL_8086 = 1, 1 << 17
_IN_LDT = 4


class Cpu(Protocol):
    """What is asked of an engine here."""

    @property
    def bits(self) -> int:
        """Return the size of the code that runs."""

    def registers(self) -> dict[str, int]:
        """Return the registers by name."""

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """Return (selector, base, limit, flags) of a segment register."""

    def read_virtual(self, addr: int, size: int) -> bytes:
        """Return memory at a linear address."""


def segment_base(cpu: Cpu, segment: str) -> int:
    """Return what the code that runs adds to an offset in `segment` (cs, ss, ds, es, fs or gs)."""
    return cpu.segment(segment)[1] if cpu.bits != 64 or segment in ("fs", "gs") else 0


def linear(cpu: Cpu, segment: str, offset: int) -> int:
    """Return the linear address of an offset in `segment`."""
    return (offset + segment_base(cpu, segment)) % (1 << (64 if cpu.bits == 64 else 32))


def linear_pc(cpu: Cpu) -> int:
    """Return the linear address of the next instruction."""
    return linear(cpu, "cs", cpu.registers()["rip"])


def stack_bits(cpu: Cpu) -> int:
    """Return how many bits of RSP say where the stack is: 64, 32 or 16."""
    if cpu.bits == 64:
        return 64
    return 32 if cpu.segment("ss")[3] & _BIG else 16


def linear_sp(cpu: Cpu, sp: int | None = None) -> int:
    """Return the linear address of the top of the stack, or of what `sp` in RSP would point to."""
    offset = cpu.registers()["rsp"] if sp is None else sp
    return linear(cpu, "ss", offset % (1 << stack_bits(cpu)))


def code_base(cpu: Cpu, selector: int) -> int | None:
    """Return the base that CS has after a far jump to `selector`; None where that cannot be told.

    Looks into the descriptor table, as the CPU does; a gate leads elsewhere and has no base.
    """
    registers = cpu.registers()
    if not registers["cr0"] & _PROTECTED or registers["rflags"] & _VIRTUAL_8086:
        return selector << 4
    table = cpu.segment("ldtr" if selector & _IN_LDT else "gdtr")[1]
    try:
        entry = int.from_bytes(cpu.read_virtual(table + (selector & ~7), 8), "little")
    except (IndexError, OverflowError):
        return None
    if not entry >> 44 & 1:  # S: neither code nor data
        return None
    if entry >> 53 & 1:  # L: 64-bit code
        return 0
    return entry >> 16 & 0xFF_FFFF | entry >> 56 << 24


def readable(read: Callable[[int, int], bytes], addr: int, size: int) -> bytes:
    """Return `size` bytes, or as many as there are before the first page that cannot be read.

    `read(addr, size)` raises `IndexError` where there is no memory.
    """
    data = bytearray()
    while len(data) < size:
        at = addr + len(data)
        try:
            data += read(at, min(size - len(data), _PAGE - at % _PAGE))
        except (IndexError, OverflowError):
            break
    return bytes(data)
