"""Where the CPU goes from an instruction, and where a function returns to, read from its code."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capstone import x86_const as x86  # type: ignore[import-untyped]

from tt.travel.addresses import POPS, POPS_OF_ALL, PUSHES, PUSHES_OF_ALL, CpuBefore, memory_address
from tt.travel.code import (
    Code,
    calls_before,
    comes_back,
    far_address,
    fetch,
    return_address,
    whole,
    word_at,
)
from tt.vmm.linear import linear, linear_pc, linear_sp, stack_bits

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_MOST_INSTRUCTIONS = 4_000  # to look through for the end of a function
_NEAR_FRAME = 1 << 16  # bytes from RSP up to a frame pointer that is trusted


def successors(timeline: Timeline, code: Code) -> set[int] | None:
    """Return the linear addresses where the CPU may be after `code`, which comes next; None for anywhere."""
    if code.is_return:
        addr = return_address(timeline, code, timeline.registers()["rsp"])
        return None if addr is None else {addr}
    if code.is_repeated:
        return {code.addr, code.following}
    if not code.is_jump and not code.is_call:
        anywhere = code.is_system_return or code.is_system_call or code.is_machine_call
        return None if anywhere else {code.following}
    found = set() if code.is_always_jump or code.is_call else {code.following}
    target = code.target if code.target is not None else _computed_target(timeline, code)
    return None if target is None else found | {target}


def _computed_target(timeline: Timeline, code: Code) -> int | None:
    """Return where a jump or call through a register or memory goes, or one to another segment."""
    state = CpuBefore(timeline.machine.engine)
    operand, size = code.raw.operands[-1], code.operand_size
    if code.is_far and operand.type == x86.X86_OP_IMM:
        return far_address(timeline, int(code.raw.operands[0].imm) & 0xFFFF, int(operand.imm))
    if operand.type == x86.X86_OP_REG:
        value = state.registers.get(whole(code.raw.reg_name(operand.reg)))
        return None if value is None else code.in_segment(value % (1 << 8 * size))
    if operand.type != x86.X86_OP_MEM:
        return None
    addr = memory_address(code, operand, state)
    if code.is_far:
        size = code.stack_word
        return far_address(timeline, word_at(timeline, addr + size, 2), word_at(timeline, addr, size))
    return code.in_segment(word_at(timeline, addr, size))


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
class _Spot:
    addr: int
    sp: int
    fp: int | None  # RBP, where it is known


def find_return(timeline: Timeline) -> Return | None:
    """Find where the current function returns to, from any instruction of it; None if not known.

    Walks the code from here, nearest instructions first, keeping track of RSP
    and RBP, to an instruction that would return to right after a call.  Needs no
    symbols and no frame pointers.  Where all paths end at a jump through a table, the
    machine is run to there and brought back; after that RBP is trusted as a frame pointer.
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
        reached = jumps.get(linear_pc(timeline.machine.engine)) == timeline.registers()["rsp"]
        if timeline.tick >= timeline.end_tick:
            return False
        timeline.step()
        if reached:
            return True
    return False


def _walk(timeline: Timeline) -> tuple[Return | None, dict[int, int]]:
    """Walk the code from here; return where it returns to, and the jumps whose targets are not known."""
    registers = timeline.registers()
    jumps: dict[int, int] = {}
    first = _Spot(linear_pc(timeline.machine.engine), registers["rsp"], registers["rbp"])
    todo, seen = deque([first]), {first.addr}
    while todo and len(seen) < _MOST_INSTRUCTIONS:
        spot = todo.popleft()
        code = fetch(timeline, spot.addr)
        if code is None or code.is_dead_end:
            continue
        if code.is_return:
            addr = return_address(timeline, code, spot.sp)
            if addr is not None and calls_before(timeline, addr):
                return Return(addr, _moved(timeline, spot.sp, code.popped_words * code.stack_word)), jumps
            continue
        if code.is_interrupt_return:
            addr = return_address(timeline, code, spot.sp)
            if addr is not None:
                return Return(addr, _sp_after_interrupt(timeline, code, spot.sp), True), jumps
            continue
        for following in _after(code, spot, timeline):
            if following.addr not in seen:
                seen.add(following.addr)
                todo.append(following)
        if code.is_always_jump and code.target is None:
            jumps[spot.addr] = spot.sp
    return None, jumps


def _sp_after_interrupt(timeline: Timeline, code: Code, sp: int) -> int:
    """Return RSP after IRET: from the stack in 64-bit code and where the privilege changes."""
    engine, size = timeline.machine.engine, code.stack_word
    cs = word_at(timeline, linear_sp(engine, sp + size), 2)
    registers = engine.registers()
    if code.bits == 64 or (registers["cr0"] & 1 and cs & 3 != registers["cs"] & 3):
        return word_at(timeline, linear_sp(engine, sp + 3 * size), size)
    return _moved(timeline, sp, 3 * size)


def _moved(timeline: Timeline, sp: int, by: int) -> int:
    """Return RSP `by` bytes higher: only as many bits of it change as the stack's segment says."""
    mask = (1 << stack_bits(timeline.machine.engine)) - 1
    return sp & ~mask | (sp + by) & mask


def _by_frame_pointer(timeline: Timeline, registers: dict[str, int]) -> Return | None:
    engine = timeline.machine.engine
    width = engine.bits // 8
    fp, sp = registers["rbp"], registers["rsp"]
    if sp <= fp < sp + _NEAR_FRAME:
        addr = linear(engine, "cs", word_at(timeline, linear_sp(engine, fp + width), width))
        if calls_before(timeline, addr):
            return Return(addr, fp + 2 * width)
    return None


def _after(code: Code, spot: _Spot, timeline: Timeline) -> Iterator[_Spot]:
    """Yield where the function may be after `code`; calls are taken to have returned."""
    if code.is_system_return:
        return
    if code.is_jump:
        if code.target is not None:
            yield _Spot(code.target, spot.sp, spot.fp)
        if not code.is_always_jump:
            yield _Spot(code.following, spot.sp, spot.fp)
        return
    if code.is_call and not comes_back(timeline, code):
        if code.target is not None:
            yield _Spot(code.target, _moved(timeline, spot.sp, -code.stack_word), spot.fp)
        return
    moved = (spot.sp, spot.fp) if code.is_call else _stack_after(code, spot, timeline)
    if moved is not None:
        yield _Spot(code.following, *moved)


def _stack_after(code: Code, spot: _Spot, timeline: Timeline) -> tuple[int, int | None] | None:
    """Return RSP and RBP after an instruction that is not a jump; None if RSP is not known any more."""
    raw, sp, fp = code.raw, spot.sp, spot.fp
    width = code.stack_word
    operands = raw.operands
    names = [whole(raw.reg_name(o.reg)) if o.type == x86.X86_OP_REG else "" for o in operands]
    into = names[0] if names else ""
    _, written = raw.regs_access()
    writes = {whole(raw.reg_name(r)) for r in written}
    if raw.id in PUSHES:
        return _moved(timeline, sp, -width), fp
    if raw.id in POPS:
        return None if into == "rsp" else (_moved(timeline, sp, width), None if into == "rbp" else fp)
    if raw.id in PUSHES_OF_ALL:
        return _moved(timeline, sp, -8 * width), fp
    if raw.id in POPS_OF_ALL:
        return _moved(timeline, sp, 8 * width), None
    if raw.id == x86.X86_INS_LEAVE:
        return None if fp is None else (_moved(timeline, fp, width), None)
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
        return None if base is None else _narrowed(base + operand.mem.disp, code, base)
    if old is not None and operand.type == x86.X86_OP_IMM:
        by = int(operand.imm)
        changed = {x86.X86_INS_ADD: old + by, x86.X86_INS_SUB: old - by, x86.X86_INS_AND: old & by}
        if raw.id in changed:
            return _narrowed(changed[raw.id], code, old)
    return None


def _narrowed(value: int, code: Code, old: int) -> int:
    """Return a register's new value: 16-bit results leave the rest as it was, 32-bit ones clear it."""
    size = int(code.raw.operands[0].size)
    if size == 2:
        return old & ~0xFFFF | value & 0xFFFF
    return value % (1 << 8 * size)
