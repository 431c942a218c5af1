"""Looking at a machine that stands still: each function gives plain data and lines to read.

Nothing here changes the machine, and nothing prints.  The shell's commands
(`tt/shell`) are made of these.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tt.errors import UsageError
from tt.log import Trace
from tt.log.text import lines as console_lines
from tt.log.text import printable
from tt.position import format_tick
from tt.vmm.linear import linear_pc, readable
from tt.vmm.machine import Machine

_LONGEST_INSTRUCTION = 15  # bytes
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # ECMA-48, section 5.4
_FLAGS = (
    *((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF")),
    *((14, "NT"), (18, "AC")),
)
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


@dataclass(frozen=True)
class Moment:
    """A machine at a tick of a trace.  `at_end` when nothing more is recorded."""

    machine: Machine
    trace: Trace
    at_end: bool = False


@dataclass(frozen=True)
class Answer:
    """What a command found: plain `data` for programs, `lines` for people.

    `good` is false when there was nothing to find: an address where no memory is.
    `look` says what the lines are, for colours: `text`, `code` or `memory`.
    """

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    good: bool = True
    look: str = "text"


# ---- what there is to see


def where(moment: Moment) -> Answer:
    """Tell the tick, the guest time and the instruction that comes next."""
    machine = moment.machine
    end_tick = moment.trace.end_tick
    ended = machine.ended or (moment.trace.summary.get("ended") if moment.at_end else None)
    data = {"tick": machine.tick, "end_tick": end_tick, "guest_ns": machine.now_ns, "ended": ended}
    state = "" if ended is None else f"; the machine has ended: {printable(str(ended))}"
    if not state and machine.halted:
        state = "; the CPU is halted"
    of = f" of {format_tick(end_tick)}" if machine.tick != end_tick else ", the end"
    return Answer(
        data, [f"tick {format_tick(machine.tick)}{of}; {machine.now_ns / 1e9:.9f} s of guest time{state}"]
    )


def registers(moment: Moment) -> Answer:
    """Show the registers."""
    values = moment.machine.engine.registers()
    flags = [name for bit, name in _FLAGS if values["rflags"] >> bit & 1]
    rows = [
        " ".join(f"{name:>6} {values[name]:016x}" for name in _GENERAL[at : at + 4]) for at in range(0, 16, 4)
    ]
    rows.append(f"{'rip':>6} {values['rip']:016x} rflags {values['rflags']:08x} [{' '.join(flags)}]")
    rows.append(" ".join(f"{name:>6} {values[name]:04x}" for name in _SELECTORS))
    rows.append(" ".join(f"{name:>6} {values[name]:x}" for name in _CONTROL))
    rows.append(f"fs_base {values['fs_base']:x} gs_base {values['gs_base']:x}")
    return Answer({"registers": values, "flags": flags}, rows)


def digest(moment: Moment) -> Answer:
    """Show the digests of the whole state and of its parts."""
    parts = {name: value.hex() for name, value in moment.machine.digest_parts().items()}
    whole = moment.machine.digest().hex()
    rows = [f"{name:>6} {value}" for name, value in ({"state": whole} | parts).items()]
    return Answer({"digest": whole, "parts": parts}, rows)


def memory(moment: Moment, addr: int, size: int) -> Answer:
    """Show bytes of memory at a virtual address."""
    return _dump(moment.machine.engine.read_virtual, addr, size)


def physical_memory(moment: Moment, addr: int, size: int) -> Answer:
    """Show bytes of memory at a physical address."""
    return _dump(moment.machine.engine.read, addr, size)


def disassembly(
    moment: Moment,
    number: int = 5,
    addr: int | None = None,
    name: Callable[[int], str] | None = None,
    note: Callable[[str], str] | None = None,
) -> Answer:
    """Show the instructions that come next, or those at `addr`.

    `name` gives an address a name, or ""; `note` what to say behind an instruction, or "".
    """
    engine = moment.machine.engine
    here = linear_pc(engine)
    addr = here if addr is None else addr
    code = readable(engine.read_virtual, addr, number * _LONGEST_INSTRUCTION)
    found = disassemble(code, addr, engine.bits, number)
    data = [{"addr": a, "bytes": raw.hex(), "text": text} for a, raw, text in found]
    names = [name(a) if name else "" for a, _raw, _text in found]
    notes = [note(text) if note else "" for _a, _raw, text in found]
    width = max(map(len, names), default=0)
    gap = "  " if width else ""
    rows = [
        f"{'->' if a == here else '  '} {a:#018x}  {each:<{width}}{gap}{raw.hex():<20}  {text}{more}"
        for (a, raw, text), each, more in zip(found, names, notes, strict=True)
    ]
    if not found:
        rows = [f"{addr:#x}: {'no instruction' if code else 'no memory is mapped there'}"]
    return Answer({"instructions": data, "bits": engine.bits}, rows, good=bool(found), look="code")


def console(moment: Moment, number: int = 10) -> Answer:
    """Show the last lines that the guest had printed."""
    # A Denali guest's call that prints is the instruction before its event's tick, a PC's OUT the one after.
    until = moment.machine.tick + (moment.machine.kind == "denali")
    printed = (run for run in moment.trace.console() if moment.at_end or run[0] < until)
    last = deque(console_lines(printed), maxlen=number)
    width = max((len(format_tick(tick)) for tick, _unit, _text in last), default=0)
    return Answer(
        {"console": [{"tick": tick, "unit": unit, "text": text} for tick, unit, text in last]},
        [f"{format_tick(tick):>{width}}  {bare(text)}" for tick, _unit, text in last],
    )


def bare(text: str) -> str:
    """Return printed text without the sequences that move a cursor or colour it, other controls escaped."""
    return printable(_CONTROL_SEQUENCE.sub("", text))


def devices(moment: Moment, name: str | None = None) -> Answer:
    """Show what the devices and the clock hold, or one of them."""
    state = {"clock": moment.machine.clock.save(), **moment.machine.board.save()}
    if name is not None:
        if name not in state:
            raise UsageError(f"there is no device {printable(name)!r}: there are {', '.join(state)}")
        state = {name: state[name]}
    return Answer({"devices": state}, [f"{name} {value}" for name, value in _flat("", state)])


def info(moment: Moment) -> Answer:
    """Tell what was recorded, and where in it this is."""
    trace = moment.trace
    here = where(moment)
    data = here.data | {"trace": str(trace.path), "reason": trace.reason, "events": trace.event_count}
    ended = trace.reason if trace.sealed else "not sealed: the recording was cut off, or still runs"
    return Answer(
        data, [f"{printable(str(trace.path))}: {trace.event_count:,} events; ended: {ended}", *here.lines]
    )


# ---- how


def _dump(read: Callable[[int, int], bytes], addr: int, size: int) -> Answer:
    data = readable(read, addr, size)
    rows = [hex_row(addr + at, data[at : at + 16]) for at in range(0, len(data), 16)]
    if len(data) < size:
        rows.append(f"{addr + len(data):#x}: no memory is mapped there")
    return Answer({"addr": addr, "bytes": data.hex()}, rows, good=len(data) == size, look="memory")


def hex_row(addr: int, data: bytes) -> str:
    """Return a line of a dump: the address, up to 16 bytes, and what of them is text."""
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{addr:#018x}  {data[:8].hex(' '):<23}  {data[8:].hex(' '):<23}  {text}"


def disassemble(code: bytes, addr: int, bits: int, number: int) -> list[tuple[int, bytes, str]]:
    """Return (addr, bytes, text) of up to `number` instructions in `code`, which lies at `addr`."""
    import capstone  # type: ignore[import-untyped]

    modes = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
    found = []
    for instruction in capstone.Cs(capstone.CS_ARCH_X86, modes[bits]).disasm(code, addr, number):
        text = f"{instruction.mnemonic} {instruction.op_str}".rstrip()
        found.append((int(instruction.address), bytes(instruction.bytes), text))
    return found


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(f"{prefix}{key}.", value)
        else:
            rows.append((f"{prefix}{key}", printable(str(value))))
    return rows
