"""Page tables made from Python, and one guest that touches what it is told to."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engine_rig import CODE, GP, MB, NX, PD, PDPT, PF, PML4, PS, A, D, Guest, P, U, W

TABLES = 0x60000  # page tables of the mapping under test: one page a level, top first
PAGE = 0x50000  # what it maps: full of HLT
PAGE2 = 0x51000
CR0, CR0_WP, CR4_PSE, CR4_PAE, CR4_SMEP, CR4_SMAP = 0x80000011, 0x10000, 0x10, 0x20, 1 << 20, 1 << 21
EFER_LONG, EFER_NXE = 0x500, 0x800
OPS = ("read", "write", "fetch", "read8", "write8", "rmw")

_LONG = """
    mov cr4, r11
    mov cr0, r10
    mov ecx, 0xc0000080
    mov eax, r12d
    xor edx, edx
    wrmsr
    lea rsi, [rip + ops]
    mov rdi, [rsi + r8 * 8]
    test r9, r9
    jnz 1f
    jmp rdi
1:  push UDS
    push USTACK
    push 2
    push UCS64
    push rdi
    iretq
ops: .quad read, write, fetch, read8, write8, rmw
read: mov al, [rbx]
    hlt
write: mov byte ptr [rbx], 0xf4
    hlt
fetch: jmp rbx
read8: mov rax, [rbx]
    hlt
write8: mov [rbx], r15
    hlt
rmw: lock inc byte ptr [rbx]
    hlt
"""

_SHORT = """
    mov eax, [0xa900]
    mov cr3, eax
    mov eax, [0xa904]
    mov cr4, eax
    mov ecx, 0xc0000080
    mov eax, [0xa90c]
    xor edx, edx
    wrmsr
    mov eax, [0xa908]
    mov cr0, eax
    jmp 2f
2:  mov ebx, [0xa910]
    mov edi, [0xa914]
    mov edi, [ops + edi * 4]
    cmp dword ptr [0xa918], 0
    jne 1f
    jmp edi
1:  push UDS
    push USTACK
    push 2
    push UCS32
    push edi
    iretd
ops: .long read, write, fetch, read8, write8, rmw
read: mov al, [ebx]
    hlt
write: mov byte ptr [ebx], 0xf4
    hlt
fetch: jmp ebx
read8: fld qword ptr [ebx]
    hlt
write8: fstp qword ptr [ebx]
    hlt
rmw: lock inc byte ptr [ebx]
    hlt
"""


@dataclass(frozen=True)
class Fault:
    vector: int
    error: int
    cr2: int | None = None


def page_fault(error: int, cr2: int) -> Fault:
    return Fault(PF, error, cr2)


class LongPaging(Guest):
    """A long-mode guest; `map` puts one mapping anywhere but the lowest 2 MB and the kernel's."""

    def __init__(self) -> None:
        super().__init__(_LONG)
        self.write(PAGE, b"\xf4" * 0x2000)

    def map(self, addr: int, *entries: int) -> None:
        """Map `addr` by `entries`, from the PML4's down; 0 stands for "present, writable, user, next table".

        The tables lie at `TABLES`, one page a level.  The last entry given is a leaf.
        """
        at = PML4
        for level, entry in enumerate(entries):
            if level == 1 and (addr >> 39) & 511 == 0:
                at = PDPT
            slot = at + ((addr >> (39 - 9 * level)) & 511) * 8
            table = TABLES + level * 0x1000
            old = self.u64(slot)
            if not entry and old & P:  # an existing table
                at = old & 0xFFFFFFFFF000
                continue
            self.put64(slot, entry or table | P | W | U)
            at = (entry or table) & 0xFFFFFFFFF000

    def unmap(self) -> None:
        """Take back every mapping that `map` made."""
        self.write(PML4 + 8, bytes(0xFF8))
        self.write(TABLES, bytes(0x4000))

    def slot(self, addr: int, level: int) -> int:
        """Return where the entry of `level` for `addr` lies (0: PML4)."""
        at = PML4
        for i in range(level):
            at = self.u64(at + ((addr >> (39 - 9 * i)) & 511) * 8) & 0xFFFFFFFFF000
        return at + ((addr >> (39 - 9 * level)) & 511) * 8

    def touch(
        self,
        op: str,
        addr: int,
        *,
        user: bool = False,
        cr0: int = CR0 | CR0_WP,
        cr4: int = CR4_PAE,
        efer: int = EFER_LONG | EFER_NXE,
        value: int = 0,
    ) -> Fault | None:
        """Access `addr`; return the fault, if there was one."""
        self.reset()
        for name, content in (
            ("rbx", addr), ("r8", OPS.index(op)), ("r9", int(user)), ("r10", cr0), ("r11", cr4),
            ("r12", efer),            ("r15", value),
        ):  # fmt: skip
            self.engine.set_register(name, content)
        registers = self.halt()
        if self.vector is None:
            assert not user
            if op == "fetch":
                assert registers["rip"] == addr + 1
            return None
        frame = self.frame_here()
        if (
            user
            and frame.vector == GP
            and frame.rip != addr
            and self.engine.read_virtual(frame.rip, 1) == b"\xf4"
        ):
            return None  # it came to its HLT
        if user and op == "fetch" and frame.vector == GP and frame.rip == addr:
            return None
        assert frame.error is not None
        return Fault(frame.vector, frame.error, registers["cr2"] if frame.vector == PF else None)


class ShortPaging(Guest):
    """A protected-mode guest that switches paging on: two levels, or PAE."""

    def __init__(self, *, pae: bool) -> None:
        super().__init__(_SHORT, "protected32")
        self.pae = pae
        self.write(PAGE, b"\xf4" * 0x2000)
        if pae:
            self.put64(PML4, PDPT | P, 0, 0, 0)
            self.put64(PDPT, P | W | U | PS | A | D)
        else:
            self.write(PML4, struct.pack("<I", PDPT | P | W | U))
            self.write(PDPT, b"".join(struct.pack("<I", i << 12 | P | W | U) for i in range(MB >> 12)))
        self.cr4 = CR4_PAE if pae else CR4_PSE

    def put(self, addr: int, *entries: int) -> None:
        """Map `addr`, not in the lowest 4 MB (PAE: 1 GB), by `entries`, top first; 0: the next table."""
        at, shift, bits, width = (PML4, 30, 9, 8) if self.pae else (PML4, 22, 10, 4)
        for level, entry in enumerate(entries):
            table = TABLES + level * 0x1000
            slot = at + ((addr >> shift) & ((1 << bits) - 1)) * width
            value = entry or table | P | (0 if self.pae and not level else W | U)
            self.write(slot, value.to_bytes(width, "little"))
            at, shift = value & 0xFFFFF000, shift - bits

    def touch(
        self,
        op: str,
        addr: int,
        *,
        user: bool = False,
        cr0: int = CR0 | CR0_WP,
        cr4: int | None = None,
        efer: int = 0,
    ) -> Fault | None:
        words = (PML4, self.cr4 if cr4 is None else cr4, cr0, efer, addr, OPS.index(op), int(user))
        self.write(0xA900, struct.pack("<7I", *words))
        self.reset()
        registers = self.halt()
        if self.vector is None:
            return None
        frame = self.frame_here()
        if user and frame.vector == GP and self.engine.read_virtual(frame.rip, 1) == b"\xf4":
            return None
        assert frame.error is not None
        return Fault(frame.vector, frame.error, registers["cr2"] if frame.vector == PF else None)


__all__ = ["CODE", "NX", "PD", "Fault", "LongPaging", "ShortPaging", "page_fault"]
