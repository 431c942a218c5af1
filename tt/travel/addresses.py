"""Which memory an instruction reads and writes: its operands, the stack, and accesses its text does not name.

Addresses are computed as the CPU does it (Intel SDM volume 1, section 3.7.5): the parts are added up
in the instruction's address size, the segment's base is added to that, and the stack is reached
through SS by as many bits of RSP as SS says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capstone import CS_AC_WRITE  # type: ignore[import-untyped]
from capstone import x86_const as x86

from tt.travel.code import Code, whole
from tt.vmm.linear import Cpu, segment_base, stack_bits

_STACK_BASES = ("rbp", "rsp")
_BIT_TESTS = {x86.X86_INS_BT, x86.X86_INS_BTS, x86.X86_INS_BTR, x86.X86_INS_BTC}
_MASKED_STORES = {x86.X86_INS_MASKMOVQ: 8, x86.X86_INS_MASKMOVDQU: 16}
POPS = {x86.X86_INS_POP, x86.X86_INS_POPF, x86.X86_INS_POPFD, x86.X86_INS_POPFQ}
PUSHES = {x86.X86_INS_PUSH, x86.X86_INS_PUSHF, x86.X86_INS_PUSHFD, x86.X86_INS_PUSHFQ}
POPS_OF_ALL = {x86.X86_INS_POPAW, x86.X86_INS_POPAL}
PUSHES_OF_ALL = {x86.X86_INS_PUSHAW, x86.X86_INS_PUSHAL}
ORDER_OF_POPA = ("rdi", "rsi", "rbp", "rsp", "rbx", "rdx", "rcx", "rax")
_SEGMENT_PREFIXES = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}


@dataclass(frozen=True)
class Access:
    """`size` bytes at linear `addr` that an instruction reads or (`is_write`) writes."""

    addr: int
    size: int
    is_write: bool = False


class CpuBefore:
    """The CPU's state before an instruction, as far as addresses depend on it; each part is read once."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._bases: dict[str, int] = {}

    @cached_property
    def registers(self) -> dict[str, int]:
        """The registers by name."""
        return self._cpu.registers()

    @cached_property
    def bits(self) -> int:
        """The size of the code that runs."""
        return self._cpu.bits

    @cached_property
    def stack_bits(self) -> int:
        """How many bits of RSP count."""
        return stack_bits(self._cpu)

    def linear(self, segment: str, offset: int) -> int:
        """Return the linear address of an offset in `segment`."""
        if segment not in self._bases:
            self._bases[segment] = segment_base(self._cpu, segment)
        return (offset + self._bases[segment]) % (1 << (64 if self.bits == 64 else 32))

    def stack(self, offset: int, register: str = "rsp") -> int:
        """Return the linear address `offset` bytes above what RSP (or RBP) points to."""
        return self.linear("ss", (self.registers[register] + offset) % (1 << self.stack_bits))


def memory_address(code: Code, operand: Any, state: CpuBefore) -> int:
    """Return the linear address of a memory operand, from the state before the instruction."""
    raw, parts, registers = code.raw, operand.mem, state.registers
    base = whole(raw.reg_name(parts.base)) if parts.base else ""
    offset = int(parts.disp)
    if base == "rip":
        offset += code.following
    elif base:
        offset += registers.get(base, 0)
    if parts.index:
        offset += registers.get(whole(raw.reg_name(parts.index)), 0) * parts.scale  # RIZ: no index register
    if base == "rsp" and raw.id == x86.X86_INS_POP:
        offset += operand.size  # POP moves RSP first
    if raw.id in _BIT_TESTS and raw.operands[1].type == x86.X86_OP_REG:
        offset += _bit_string(code, operand.size, registers)
    segment = raw.reg_name(parts.segment) if parts.segment else "ss" if base in _STACK_BASES else "ds"
    return state.linear(segment, offset % (1 << 8 * raw.addr_size))


def accesses(code: Code, state: CpuBefore) -> list[Access]:
    """Return what the instruction reads and writes; of a repeated instruction, one repetition.

    Of far calls and returns, interrupts, and ENTER with a nesting level only those accesses to the
    stack are returned that happen without a change of privilege or of the stack.
    """
    return [*_operands(code, state), *implicit(code, state)]


def implicit(code: Code, state: CpuBefore) -> list[Access]:
    """Return the accesses that no operand names: the stack's, XLAT's and masked stores'."""
    raw, size = code.raw, code.stack_word
    if raw.id in POPS:
        return [Access(state.stack(0), size)]
    if raw.id in PUSHES or raw.id == x86.X86_INS_ENTER or raw.id == x86.X86_INS_CALL:
        return [Access(state.stack(-size), size, True)]
    if raw.id == x86.X86_INS_LCALL:
        return [Access(state.stack(-size), size, True), Access(state.stack(-2 * size), size, True)]
    if raw.id == x86.X86_INS_LEAVE:
        return [Access(state.stack(0, "rbp"), size)]
    if raw.id in POPS_OF_ALL:
        return [Access(state.stack(at * size), size) for at in range(8) if at != 3]
    if raw.id in PUSHES_OF_ALL:
        return [Access(state.stack(-at * size), size, True) for at in range(1, 9)]
    if code.is_return or code.is_interrupt_return:
        return [Access(state.stack(at * size), size) for at in range(code.popped_words)]
    if raw.id == x86.X86_INS_XLATB:
        offset = state.registers["rbx"] + (state.registers["rax"] & 0xFF)
        return [Access(_data(code, state, offset), 1)]
    if raw.id in _MASKED_STORES:
        return [Access(_data(code, state, state.registers["rdi"]), _MASKED_STORES[raw.id], True)]
    return []


def _operands(code: Code, state: CpuBefore) -> list[Access]:
    if not code.reaches_memory:
        return []
    found = []
    for operand in code.raw.operands:
        if operand.type == x86.X86_OP_MEM:
            is_write = bool(operand.access & CS_AC_WRITE)
            found.append(Access(memory_address(code, operand, state), operand.size, is_write))
    return found


def _data(code: Code, state: CpuBefore, offset: int) -> int:
    """Return the linear address of an offset in DS, or in the segment that a prefix names."""
    segment = _SEGMENT_PREFIXES.get(code.raw.prefix[1], "ds")
    return state.linear(segment, offset % (1 << 8 * code.raw.addr_size))


def _bit_string(code: Code, size: int, registers: dict[str, int]) -> int:
    """Return how far from its operand BT with a bit number in a register reaches, in bytes, signed."""
    number = registers[whole(code.raw.reg_name(code.raw.operands[1].reg))] % (1 << 8 * size)
    if number >> (8 * size - 1):
        number -= 1 << 8 * size
    return (number // (8 * size)) * size
