"""Reading the guest's code: the instruction that comes next, and where a function returns to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import capstone  # type: ignore[import-untyped]
from capstone import x86_const as x86

from tt.travel.traps import linear_pc

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

LONGEST = 15
_MOST_INSTRUCTIONS = 4_000  # to look through for the end of a function
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
    """One decoded instruction; `raw` is capstone's."""

    addr: int
    size: int
    text: str
    raw: Any

    @property
    def following(self) -> int:
        """The address after it."""
        return self.addr + self.size

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
    def is_jump(self) -> bool:
        """Whether it jumps, always or on a condition."""
        return bool(self.raw.group(x86.X86_GRP_JUMP))

    @property
    def is_always_jump(self) -> bool:
        """Whether it jumps whatever the flags."""
        return self.raw.id in (x86.X86_INS_JMP, x86.X86_INS_LJMP)

    @property
    def target(self) -> int | None:
        """Where a direct jump or call goes."""
        operands = self.raw.operands
        if (self.is_jump or self.is_call) and operands and operands[-1].type == x86.X86_OP_IMM:
            return int(operands[-1].imm) % (1 << 64)
        return None


def decode(data: bytes, addr: int, bits: int) -> Code | None:
    """Return the instruction in `data`, which is at `addr`; None if it is none."""
    for raw in _decoder(bits).disasm(data, addr, 1):
        return Code(addr, raw.size, f"{raw.mnemonic} {raw.op_str}".rstrip(), raw)
    return None


def fetch(timeline: Timeline, addr: int) -> Code | None:
    """Return the instruction at linear `addr`; None where there is none that can be read."""
    return decode(readable(timeline, addr, LONGEST), addr, timeline.machine.engine.bits)


def here(timeline: Timeline) -> Code | None:
    """Return the instruction that comes next."""
    return fetch(timeline, linear_pc(timeline))


def readable(timeline: Timeline, addr: int, size: int) -> bytes:
    """Return `size` bytes at linear `addr`, or those before the first page that is not mapped."""
    data = b""
    while len(data) < size:
        at = addr + len(data)
        try:
            data += timeline.read(at, min(size - len(data), 4096 - at % 4096))
        except (IndexError, OverflowError):
            break
    return data


def calls_before(timeline: Timeline, addr: int) -> list[int]:
    """Return where a call instruction could be that returns to linear `addr`."""
    found = []
    for size in range(2, 9):
        code = fetch(timeline, addr - size) if addr >= size else None
        if code is not None and code.size == size and code.is_call:
            found.append(addr - size)
    return found


def comes_back(timeline: Timeline, code: Code) -> bool:
    """Whether a call can return: not where a trap follows it, as in a thunk, or where it never does."""
    following = fetch(timeline, code.following)
    return following is not None and following.raw.id not in _DEAD_ENDS


def memory_address(code: Code, operand: Any, registers: dict[str, int]) -> int:
    """Return the linear address of a memory operand, with the registers before the instruction."""
    place = operand.mem
    name = code.raw.reg_name
    addr = int(place.disp)
    if place.base:
        base = whole(name(place.base))
        addr += code.following if base == "rip" else registers.get(base, 0)
    if place.index:
        addr += registers.get(whole(name(place.index)), 0) * place.scale
    segment = name(place.segment) if place.segment else ""
    return (addr + registers.get(f"{segment}_base", 0)) % (1 << 64)


def successors(timeline: Timeline, code: Code) -> set[int] | None:
    """Return where the CPU may be after `code`, which comes next; None for anywhere."""
    registers = timeline.registers()
    if code.is_return:
        return {_word(timeline, registers["rsp"])}
    if code.is_repeated:
        return {code.addr, code.following}
    if not code.is_jump and not code.is_call:
        anywhere = code.is_system_return or code.is_system_call or code.raw.id in _MACHINE_CALLS
        return None if anywhere else {code.following}
    found = set() if code.is_always_jump or code.is_call else {code.following}
    if code.target is not None:
        return found | {code.target}
    operand = code.raw.operands[0]
    if operand.type == x86.X86_OP_REG:
        return found | {registers.get(whole(code.raw.reg_name(operand.reg)), -1)}
    if operand.type == x86.X86_OP_MEM:
        return found | {_word(timeline, memory_address(code, operand, registers))}
    return None


def _word(timeline: Timeline, addr: int) -> int:
    return int.from_bytes(readable(timeline, addr, timeline.machine.engine.bits // 8), "little")


# ---- where a function returns to


@dataclass(frozen=True)
class Return:
    """What the function will do when it is done: go to `addr`, and RSP is `sp` then.

    `of_handler`: it is a handler, and goes back to what was interrupted.
    """

    addr: int
    sp: int
    of_handler: bool = False


@dataclass(frozen=True)
class _Place:
    addr: int
    sp: int
    fp: int | None  # RBP, where it is known


def find_return(timeline: Timeline) -> Return | None:
    """Find where the current function returns to, wherever in it one stands; None if that cannot be told.

    Walks the code from here, nearest instructions first, keeping track of RSP
    and RBP, to an instruction that would return to right after a call.  Needs no
    symbols and no frame pointers.  Where all ways end at a jump through a table,
    the machine is run to there, and comes back; then a frame pointer is believed.
    """
    start, registers = timeline.tick, timeline.registers()
    found, jumps = _walk(timeline)
    if found is None and jumps and _run_past(timeline, jumps):
        found, _ = _walk(timeline)
    timeline.seek(start)
    return found or _by_frame_pointer(timeline, registers)


def _run_past(timeline: Timeline, jumps: dict[int, int]) -> bool:
    """Run past the first of `jumps` (address: RSP there), if it comes soon."""
    for _ in range(_MOST_INSTRUCTIONS):
        reached = jumps.get(linear_pc(timeline)) == timeline.registers()["rsp"]
        if timeline.tick >= timeline.end_tick:
            return False
        timeline.step()
        if reached:
            return True
    return False


def _walk(timeline: Timeline) -> tuple[Return | None, dict[int, int]]:
    """Walk the code from here; return where it returns to, and the jumps that led nobody knows where."""
    registers = timeline.registers()
    jumps: dict[int, int] = {}
    first = _Place(linear_pc(timeline), registers["rsp"], registers["rbp"])
    todo, seen = deque([first]), {first.addr}
    while todo and len(seen) < _MOST_INSTRUCTIONS:
        place = todo.popleft()
        code = fetch(timeline, place.addr)
        if code is None or code.raw.id in _DEAD_ENDS:
            continue
        width = timeline.machine.engine.bits // 8
        if code.is_return:
            addr = _word(timeline, place.sp)
            if calls_before(timeline, addr):
                return Return(addr, place.sp + width), jumps
            continue
        if code.raw.id in (x86.X86_INS_IRETQ, x86.X86_INS_IRET, x86.X86_INS_IRETD):
            if width == 8:
                return Return(_word(timeline, place.sp), _word(timeline, place.sp + 24), True), jumps
            continue
        for following in _after(code, place, timeline):
            if following.addr not in seen:
                seen.add(following.addr)
                todo.append(following)
        if code.is_always_jump and code.target is None:
            jumps[place.addr] = place.sp
    return None, jumps


def _by_frame_pointer(timeline: Timeline, registers: dict[str, int]) -> Return | None:
    width = timeline.machine.engine.bits // 8
    fp, sp = registers["rbp"], registers["rsp"]
    if sp <= fp < sp + (1 << 16):
        addr = _word(timeline, fp + width)
        if calls_before(timeline, addr):
            return Return(addr, fp + 2 * width)
    return None


def _after(code: Code, place: _Place, timeline: Timeline) -> Iterator[_Place]:
    """Yield where the function may be after `code`; a call has come back."""
    if code.is_system_return:
        return
    if code.is_jump:
        if code.target is not None:
            yield _Place(code.target, place.sp, place.fp)
        if not code.is_always_jump:
            yield _Place(code.following, place.sp, place.fp)
        return
    if code.is_call and not comes_back(timeline, code):
        if code.target is not None:
            yield _Place(code.target, place.sp - timeline.machine.engine.bits // 8, place.fp)
        return
    moved = (place.sp, place.fp) if code.is_call else _stack_after(code, place, timeline)
    if moved is not None:
        yield _Place(code.following, *moved)


def _stack_after(code: Code, place: _Place, timeline: Timeline) -> tuple[int, int | None] | None:
    """Return RSP and RBP after an instruction that is no jump; None if RSP is not known any more."""
    raw, sp, fp = code.raw, place.sp, place.fp
    width = timeline.machine.engine.bits // 8
    operands = raw.operands
    names = [whole(raw.reg_name(o.reg)) if o.type == x86.X86_OP_REG else "" for o in operands]
    into = names[0] if names else ""
    _, written = raw.regs_access()
    writes = {whole(raw.reg_name(r)) for r in written}
    if raw.id == x86.X86_INS_PUSH or raw.id in (x86.X86_INS_PUSHF, x86.X86_INS_PUSHFD, x86.X86_INS_PUSHFQ):
        return sp - width, fp
    if raw.id in (x86.X86_INS_POP, x86.X86_INS_POPF, x86.X86_INS_POPFD, x86.X86_INS_POPFQ):
        return None if into == "rsp" else (sp + width, None if into == "rbp" else fp)
    if raw.id == x86.X86_INS_LEAVE:
        return None if fp is None else (fp + width, None)
    if into in ("rsp", "rbp") and len(operands) == 2:
        value = _value(code, operands[1], names[1], sp if into == "rsp" else fp, sp, fp)
        if into == "rbp":
            return sp, value
        return None if value is None else (value, fp)
    if "rsp" in writes:
        return None
    return sp, None if "rbp" in writes else fp


def _value(code: Code, operand: Any, name: str, old: int | None, sp: int, fp: int | None) -> int | None:
    """Return what a MOV, LEA, ADD, SUB or AND of two operands makes of RSP or RBP."""
    raw = code.raw
    known = {"rsp": sp, "rbp": fp}
    if raw.id == x86.X86_INS_MOV:
        return known.get(name)
    if raw.id == x86.X86_INS_LEA and not operand.mem.index:
        base = known.get(whole(raw.reg_name(operand.mem.base) or ""))
        return None if base is None else (base + operand.mem.disp) % (1 << 64)
    if old is not None and operand.type == x86.X86_OP_IMM:
        by = int(operand.imm)
        changed = {x86.X86_INS_ADD: old + by, x86.X86_INS_SUB: old - by, x86.X86_INS_AND: old & by}
        if raw.id in changed:
            return changed[raw.id] % (1 << 64)
    return None
