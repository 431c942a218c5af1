"""Where a value came from: what the instruction that stored it read, and what made that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capstone import CS_AC_READ, CS_AC_WRITE  # type: ignore[import-untyped]
from capstone import x86_const as x86

from tt.travel.addresses import ORDER_OF_POPA, POPS_OF_ALL, CpuBefore, implicit, memory_address
from tt.travel.code import Code, here, whole
from tt.travel.writes import Write, last_write
from tt.vmm.linear import linear_pc, readable

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

FARTHEST_TICKS = 20_000  # how far back a register is followed
_WINDOW_TICKS = 256
_COPIES = ("mov", "push", "pop", "xchg", "stos", "lods", "cmov")  # begin the names of instructions that copy


@dataclass(frozen=True)
class Input:
    """One thing that an instruction read.

    `kind` is "register", "memory" (`size` bytes at linear `addr`) or "immediate".
    `value` is what it held, None where that is not known (a register of SSE).
    """

    kind: str
    value: int | None
    register: str = ""
    addr: int = 0
    size: int = 0

    def __str__(self) -> str:
        name = self.register or (f"{self.size} bytes at {self.addr:#x}" if self.size else "")
        value = "?" if self.value is None else f"{self.value:#x}"
        return f"{name} = {value}" if name else value


@dataclass(frozen=True)
class Origin:
    """Where a value came from: the instruction `text` at linear `rip`, which retires as tick `tick` + 1.

    `how` is "copied" (from the one input), "computed" (from all of them), or what stored
    it when no instruction did: "device", "interrupt", "page walk".  `inputs` had their
    values at `tick`.  `origin_of` tells where an input came from.
    """

    tick: int
    rip: int
    text: str
    how: str
    inputs: tuple[Input, ...] = ()

    def __str__(self) -> str:
        if not self.text:
            return f"by the {self.how} at tick {self.tick:,}"
        from_what = ", ".join(map(str, self.inputs)) or "nothing"
        return f"{self.how} from {from_what} by {self.text} ({self.rip:#x}) at tick {self.tick:,}"


def source_of(timeline: Timeline, write: Write) -> Origin:
    """Say where the value of `write` came from; the timeline is left at the tick where it was."""
    from tt.travel.search import arrive_at, excursion

    start = timeline.tick
    with excursion(timeline):
        arrive_at(timeline, write.tick - 1)
        if write.by != "instruction":
            source = Origin(timeline.tick, write.rip, "", write.by)
        else:
            source = _read_by(timeline, None)
        timeline.seek(start)
        return source


def origin_of(timeline: Timeline, source: Origin, which: int = 0) -> Write | Origin | None:
    """Tell what made input number `which` of `source`, and go to the tick right after that.

    Memory has a `Write`, a register the `Origin` of the instruction that set it.  None for
    an immediate, for what was there at power-on, and for a register that was set
    more than 20,000 ticks before; the timeline is then at `source.tick`.
    """
    from tt.travel.search import arrive_at, excursion

    with excursion(timeline):
        arrive_at(timeline, source.tick)
        if which >= len(source.inputs) or source.inputs[which].kind == "immediate":
            return None
        wanted = source.inputs[which]
        if wanted.kind == "memory":
            return last_write(timeline, wanted.addr, wanted.size, just_now=True)
        tick = _last_set(timeline, wanted.register)
        arrive_at(timeline, source.tick if tick is None else tick)
        if tick is None:
            return None
        found = _read_by(timeline, wanted.register)
        timeline.seek(tick + 1)
        return found


# ---- inside


def _last_set(timeline: Timeline, register: str) -> int | None:
    """Return the tick before the last instruction before here that wrote to `register`."""
    end = timeline.tick
    farthest = max(0, end - FARTHEST_TICKS)
    known: dict[int, bool] = {}
    while end > farthest:
        begin = max(farthest, end - _WINDOW_TICKS)
        timeline.seek(begin)
        found = None
        while timeline.tick < end:
            addr = linear_pc(timeline.machine.engine)
            if addr not in known:
                code = here(timeline)
                known[addr] = code is not None and register in _written(code)
            if known[addr]:
                found = timeline.tick
            timeline.step()
        if found is not None:
            return found
        end = begin
    return None


def _written(code: Code) -> set[str]:
    _, written = code.raw.regs_access()
    return {whole(code.raw.reg_name(register)) for register in written}


def _read_by(timeline: Timeline, register: str | None) -> Origin:
    """Say what the next instruction will read to make what it stores: into memory, or into `register`."""
    state, code = CpuBefore(timeline.machine.engine), here(timeline)
    if code is None:
        addr = linear_pc(timeline.machine.engine)
        return Origin(timeline.tick, addr, "what cannot be read", "computed")
    inputs = _inputs(timeline, code, state, register)
    copied = len(inputs) == 1 and code.text.split()[-2 if code.is_repeated else 0].startswith(_COPIES)
    how = "copied" if copied or code.is_call or code.is_return else "computed"
    return Origin(timeline.tick, code.addr, code.text, how, tuple(inputs))


def _inputs(timeline: Timeline, code: Code, state: CpuBefore, register: str | None) -> list[Input]:
    raw, registers = code.raw, state.registers
    if code.is_call and register != "rip":
        return [Input("immediate", code.following - code.base)]
    if register == "rsp" and raw.id == x86.X86_INS_LEAVE:
        return [_register("rbp", registers)]
    unnamed = [access for access in implicit(code, state) if not access.is_write]
    if raw.id in POPS_OF_ALL and register in ORDER_OF_POPA:
        addr = state.stack(ORDER_OF_POPA.index(register) * code.stack_word)
        unnamed = [access for access in unnamed if access.addr == addr]
    elif code.is_return or code.is_interrupt_return:
        unnamed = unnamed[:1]  # the rest is for CS, the flags and another stack
    inputs = [_memory(timeline, access.addr, access.size) for access in unnamed]
    if inputs:
        return inputs
    for operand in raw.operands:
        if raw.id == x86.X86_INS_LEA and operand.type == x86.X86_OP_MEM:
            parts = [raw.reg_name(r) for r in (operand.mem.base, operand.mem.index) if r]
            inputs += [_register(part, registers) for part in parts if whole(part) != "rip"]
            inputs.append(Input("immediate", operand.mem.disp % (1 << 8 * raw.addr_size)))
        elif _is_source(raw, operand, register):
            inputs.append(_input(timeline, code, operand, state))
    return inputs


def _is_source(raw: Any, operand: Any, register: str | None) -> bool:
    """Whether the operand is part of what the instruction stores; what XCHG stores into is not."""
    stored = operand.type == x86.X86_OP_MEM
    if register is not None:
        stored = operand.type == x86.X86_OP_REG and whole(raw.reg_name(operand.reg)) == register
    if raw.id in (x86.X86_INS_XCHG, x86.X86_INS_CMPXCHG):
        return not stored and operand.type != x86.X86_OP_IMM
    is_written_only = operand.access & CS_AC_WRITE and not operand.access & CS_AC_READ
    return operand.type == x86.X86_OP_IMM or not is_written_only


def _input(timeline: Timeline, code: Code, operand: Any, state: CpuBefore) -> Input:
    if operand.type == x86.X86_OP_IMM:
        return Input("immediate", operand.imm % (1 << 8 * operand.size))
    if operand.type == x86.X86_OP_REG:
        return _register(code.raw.reg_name(operand.reg), state.registers)
    return _memory(timeline, memory_address(code, operand, state), operand.size)


def _memory(timeline: Timeline, addr: int, size: int) -> Input:
    data = readable(timeline.read, addr, size)
    value = int.from_bytes(data, "little") if len(data) == size else None
    return Input("memory", value, addr=addr, size=size)


def _register(name: str, registers: dict[str, int]) -> Input:
    value = registers.get(whole(name))
    if value is not None and whole(name) != name:
        value >>= 8 if name in ("ah", "bh", "ch", "dh") else 0
        size = 4 if name.startswith("e") or name.endswith("d") else 1 if name[-1] in "lhb" else 2
        value &= (1 << 8 * size) - 1
    return Input("register", value, whole(name))
