"""What the CPU says of itself: only what this emulator does right, and always the same.

An AMD vendor string keeps Linux from isolating page tables against a flaw that
an emulator does not have.  Absent on purpose: RDRAND and RDSEED (host entropy
that cannot be hooked), MONITOR, XSAVE and AVX (not emulated), APIC (the machine
has none), 57-bit paging.  Leaves after the AMD CPUID Specification (25481) and
the AMD64 Architecture Programmer's Manual volume 3, appendix E.
"""

from __future__ import annotations

import struct

Leaf = tuple[int, int | None, int, int, int, int]

_VENDOR = b"AuthenticAMD"
_BRAND = b"tt virtual CPU (deterministic)"
_PHYSICAL_BITS = 44
_LINEAR_BITS = 48

# Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
_EDX1 = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26))
# Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 POPCNT AES HYPERVISOR
_ECX1 = sum(1 << bit for bit in (0, 1, 9, 13, 19, 20, 23, 25, 31))
# Extended EDX: those of leaf 1 that AMD repeats, SYSCALL NX PDPE1GB LM
_EDX8 = (_EDX1 & 0x0183F3FF) | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29
_ECX8 = 1 << 0  # LAHF in long mode
_SIGNATURE = 0x00000F61  # family 15, model 6, stepping 1: before every speculation flaw


def cpuid_table() -> list[Leaf]:
    """Return the leaves as (leaf, subleaf or None for any, EAX, EBX, ECX, EDX)."""
    b, d, c = struct.unpack("<III", _VENDOR)
    brand = struct.unpack("<12I", _BRAND.ljust(48, b"\0"))
    table: list[Leaf] = [
        (0, None, 7, b, c, d),
        (1, None, _SIGNATURE, 8 << 8, _ECX1, _EDX1),
        (7, 0, 0, 0, 0, 0),
        (0x4000_0000, None, 0x4000_0000, *struct.unpack("<III", b"tt tt tt tt ")),
        (0x8000_0000, None, 0x8000_0008, b, c, d),
        (0x8000_0001, None, _SIGNATURE, 0, _ECX8, _EDX8),
        (0x8000_0007, None, 0, 0, 0, 1 << 8),  # invariant TSC
        (0x8000_0008, None, _LINEAR_BITS << 8 | _PHYSICAL_BITS, 0, 0, 0),
    ]
    for i in range(3):
        table.append((0x8000_0002 + i, None, *brand[4 * i : 4 * i + 4]))
    return table
