"""Reading the guest's code: the instruction that comes next, and what kind of instruction it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import capstone  # type: ignore[import-untyped]
from capstone import x86_const as x86

from tt.vmm.linear import code_base, linear_pc, linear_sp, readable, segment_base

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

LONGEST = 15
_MODES = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
_SYSTEM_CALLS = {x86.X86_INS_SYSCALL, x86.X86_INS_SYSENTER, x86.X86_INS_INT, x86.X86_INS_INT3}
_SYSTEM_RETURNS = {
    x86.X86_INS_IRET,
    x86.X86_INS_IRETD,
    x86.X86_INS_IRETQ,
    x86.X86_INS_SYSRET,
    x86.X86_INS_SYSRETQ,
    x86.X86_INS_SYSEXIT,
    x86.X86_INS_SYSEXITQ,
}
_INTERRUPT_RETURNS = {x86.X86_INS_IRET: 2, x86.X86_INS_IRETD: 4, x86.X86_INS_IRETQ: 8}  # bytes a word
_FAR = {x86.X86_INS_LCALL, x86.X86_INS_LJMP, x86.X86_INS_RETF, x86.X86_INS_RETFQ}
_NO_ACCESS = ("lea ", "nop", "prefetch", "invlpg", "clflush", "clwb")  # these only name an address
_OPERAND_SIZE_PREFIX, _REX_W = 0x66, 8
_MACHINE_CALLS = {x86.X86_INS_VMCALL, x86.X86_INS_VMMCALL}  # of a Denali guest: two return from handlers
_DEAD_ENDS = {x86.X86_INS_UD2, x86.X86_INS_INT3, x86.X86_INS_UD0, x86.X86_INS_UD1}
_WHOLE = {  # the registers that a part belongs to, as far as stacks and addresses need it
    part: whole
    for whole, parts in {
        "rax": "eax ax al ah", "rbx": "ebx bx bl bh", "rcx": "ecx cx cl ch", "rdx": "edx dx dl dh",
        "rsi": "esi si sil", "rdi": "edi di dil", "rbp": "ebp bp bpl", "rsp": "esp sp spl", "rip": "eip ip",
        **{f"r{i}": f"r{i}d r{i}w r{i}b" for i in range(8, 16)},
    }.items()
    for part in (whole, *parts.split())
}  # fmt: skip


def whole(register: str) -> str:
    """Return the name of the 64-bit register that `register` is a part of, or itself."""
    return _WHOLE.get(register, register)


@cache
def _decoder(bits: int) -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
    decoder.detail = True
    return decoder


@dataclass(frozen=True)
class Code:
    """One decoded instruction at linear `addr`; `raw` is capstone's, `base` that of CS."""

    addr: int
    size: int
    text: str
    raw: Any
    bits: int
    base: int = 0

    def _linear(self, offset: int, bits: int) -> int:
        """Return the linear address of an offset in CS that has `bits` bits."""
        return (offset % (1 << bits) + self.base) % (1 << (64 if self.bits == 64 else 32))

    @property
    def following(self) -> int:
        """The linear address after it."""
        return self.in_segment(self.addr - self.base + self.size)

    def in_segment(self, offset: int) -> int:
        """Return the linear address of an offset in its code segment."""
        return self._linear(offset, 64 if self.bits == 64 else 32)

    @property
    def operand_size(self) -> int:
        """The bytes of an operand of ordinary size: 2 or 4, and 8 for jumps and the stack in 64-bit code."""
        is_other = self.raw.prefix[2] == _OPERAND_SIZE_PREFIX
        if self.bits == 64:
            return 2 if is_other and not self.raw.rex & _REX_W else 8
        return 4 if (self.bits == 32) != is_other else 2

    @property
    def stack_word(self) -> int:
        """The bytes of each word that it puts on the stack or takes off."""
        if self.raw.id in _INTERRUPT_RETURNS:
            return _INTERRUPT_RETURNS[self.raw.id]
        if self.is_far and self.bits == 64 and self.raw.id != x86.X86_INS_RETFQ and self.operand_size == 8:
            return 8 if self.raw.rex & _REX_W else 4
        return self.operand_size

    @property
    def popped_words(self) -> int:
        """How many words a return reads off the stack, without those of a change of privilege."""
        if self.is_interrupt_return:
            return 5 if self.bits == 64 else 3
        return 2 if self.is_far else 1

    @property
    def is_far(self) -> bool:
        """Whether it loads CS, too."""
        return self.raw.id in _FAR

    @property
    def is_interrupt_return(self) -> bool:
        """Whether it is IRET in one of its sizes."""
        return self.raw.id in _INTERRUPT_RETURNS

    @property
    def reaches_memory(self) -> bool:
        """Whether a memory operand of it is read or written, not only computed."""
        return not self.text.startswith(_NO_ACCESS)

    @property
    def is_call(self) -> bool:
        """Whether it calls a function."""
        return self.raw.id in (x86.X86_INS_CALL, x86.X86_INS_LCALL)

    @property
    def is_system_call(self) -> bool:
        """Whether it enters the system's software on purpose."""
        return self.raw.id in _SYSTEM_CALLS

    @property
    def is_return(self) -> bool:
        """Whether it returns from a function."""
        return self.raw.id in (x86.X86_INS_RET, x86.X86_INS_RETF, x86.X86_INS_RETFQ)

    @property
    def is_system_return(self) -> bool:
        """Whether it returns from a handler or a system call."""
        return self.raw.id in _SYSTEM_RETURNS

    @property
    def is_repeated(self) -> bool:
        """Whether it is a string instruction with a REP prefix, a tick for each step."""
        return self.raw.prefix[0] in (0xF2, 0xF3) and "rep" in self.text.split()[0]

    @property
    def is_dead_end(self) -> bool:
        """Whether nothing is meant to come after it."""
        return self.raw.id in _DEAD_ENDS

    @property
    def is_machine_call(self) -> bool:
        """Whether it asks a Denali machine for something; two such calls return from handlers."""
        return self.raw.id in _MACHINE_CALLS

    @property
    def is_jump(self) -> bool:
        """Whether it jumps, always or on a condition."""
        return bool(self.raw.group(x86.X86_GRP_JUMP))

    @property
    def is_always_jump(self) -> bool:
        """Whether it jumps whatever the flags."""
        return self.raw.id in (x86.X86_INS_JMP, x86.X86_INS_LJMP)

    @property
    def target(self) -> int | None:
        """The linear address that a direct jump or call goes to, where it stays in this code segment."""
        operands = self.raw.operands
        if self.is_far or not (self.is_jump or self.is_call):
            return None
        if operands and operands[-1].type == x86.X86_OP_IMM:
            return self._linear(int(operands[-1].imm) - self.base, 8 * self.operand_size)
        return None


def decode(data: bytes, addr: int, bits: int, base: int = 0) -> Code | None:
    """Return the instruction in `data`, which is at linear `addr`; None if these bytes are not one."""
    for raw in _decoder(bits).disasm(data, addr, 1):
        return Code(addr, raw.size, f"{raw.mnemonic} {raw.op_str}".rstrip(), raw, bits, base)
    return None


def fetch(timeline: Timeline, addr: int) -> Code | None:
    """Return the instruction at linear `addr`; None where there is none that can be read."""
    engine = timeline.machine.engine
    return decode(readable(timeline.read, addr, LONGEST), addr, engine.bits, segment_base(engine, "cs"))


def here(timeline: Timeline) -> Code | None:
    """Return the instruction that comes next."""
    return fetch(timeline, linear_pc(timeline.machine.engine))


def calls_before(timeline: Timeline, addr: int) -> list[int]:
    """Return where a call instruction could be that returns to linear `addr`."""
    found = []
    for size in range(2, 9):
        code = fetch(timeline, addr - size) if addr >= size else None
        if code is not None and code.size == size and code.is_call:
            found.append(addr - size)
    return found


def comes_back(timeline: Timeline, code: Code) -> bool:
    """Whether a call can return: not if a trap follows it, as in a thunk or after a call of `panic`."""
    following = fetch(timeline, code.following)
    return following is not None and not following.is_dead_end


def word_at(timeline: Timeline, addr: int, size: int) -> int:
    """Return the number in `size` bytes at linear `addr`; 0 where nothing is mapped."""
    return int.from_bytes(readable(timeline.read, addr, size), "little")


def return_address(timeline: Timeline, code: Code, sp: int) -> int | None:
    """Return the linear address that `code`, a return, goes to when RSP is `sp`; None if not known."""
    engine, size = timeline.machine.engine, code.stack_word
    offset = word_at(timeline, linear_sp(engine, sp), size)
    if not code.is_far and not code.is_interrupt_return:
        return code.in_segment(offset)
    return far_address(timeline, word_at(timeline, linear_sp(engine, sp + size), 2), offset)


def far_address(timeline: Timeline, selector: int, offset: int) -> int | None:
    """Return the linear address of an offset in the code segment of `selector`; None if that is not known."""
    base = code_base(timeline.machine.engine, selector)
    if base is None:
        return None
    return (base + offset) % (1 << (64 if timeline.machine.engine.bits == 64 else 32))
