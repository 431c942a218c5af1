"""Looking at a machine that stands still: each command gives plain data and lines to read.

`tt replay --batch` and the shell share this table; neither knows what a command
does.  Nothing here changes the machine.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tt.errors import UsageError
from tt.log import Trace
from tt.log.text import lines as console_lines
from tt.log.text import printable
from tt.position import format_tick
from tt.vmm.machine import Machine

_LONGEST_INSTRUCTION = 15  # bytes
_MOST_BYTES = 1 << 20
_MOST_LINES = 10_000
_PAGE = 4096
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
    """

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    good: bool = True


Run = Callable[[Moment, Sequence[str]], Answer]


@dataclass(frozen=True)
class Command:
    """A command: how it is typed, what it does, and at most how many words it takes."""

    usage: str
    about: str
    run: Run
    least: int = 0
    most: int = 0


def parse_batch(text: str) -> list[tuple[Command, list[str]]]:
    """Return the commands in `text`, which `;` separates; raises `UsageError` for what is none."""
    batch = []
    for part in text.split(";"):
        try:
            words = shlex.split(part)
        except ValueError as e:
            raise UsageError(f"{part.strip()!r}: {e}") from None
        if not words:
            continue
        command = COMMANDS.get(words[0])
        if command is None:
            raise UsageError(f"{words[0]!r} is no command: there are {', '.join(COMMANDS)}")
        if not command.least <= len(words) - 1 <= command.most:
            raise UsageError(f"{part.strip()!r}: it is {command.usage}")
        batch.append((command, words[1:]))
    return batch


# ---- the commands


def where(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Tell the tick, the guest time and the instruction that comes next."""
    machine = moment.machine
    end_tick = moment.trace.end_tick
    data = {"tick": machine.tick, "end_tick": end_tick, "guest_ns": machine.now_ns, "ended": machine.ended}
    state = "" if machine.ended is None else f"; the machine has ended: {machine.ended}"
    if not state and machine.halted:
        state = "; the CPU is halted"
    of = f" of {format_tick(end_tick)}" if machine.tick != end_tick else ", the end"
    return Answer(
        data, [f"tick {format_tick(machine.tick)}{of}; {machine.now_ns / 1e9:.9f} s of guest time{state}"]
    )


def registers(moment: Moment, words: Sequence[str] = ()) -> Answer:
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


def digest(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Show the digests of the whole state and of its parts."""
    parts = {name: value.hex() for name, value in moment.machine.digest_parts().items()}
    whole = moment.machine.digest().hex()
    rows = [f"{name:>6} {value}" for name, value in ({"state": whole} | parts).items()]
    return Answer({"digest": whole, "parts": parts}, rows)


def memory(moment: Moment, words: Sequence[str]) -> Answer:
    """Show bytes of memory at a virtual address."""
    return _dump(moment, words, moment.machine.engine.read_virtual)


def physical_memory(moment: Moment, words: Sequence[str]) -> Answer:
    """Show bytes of memory at a physical address."""
    return _dump(moment, words, moment.machine.engine.read)


def disassembly(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Show the instructions that come next, or those at an address."""
    engine = moment.machine.engine
    number = _count(words[0], 1000) if words else 5
    addr = _address(moment, words[1]) if len(words) > 1 else _next_instruction(moment)
    code = _readable(engine.read_virtual, addr, number * _LONGEST_INSTRUCTION)
    found = _disassemble(code, addr, engine.bits, number)
    data = [{"addr": a, "bytes": raw.hex(), "text": text} for a, raw, text in found]
    here = _next_instruction(moment)
    rows = [f"{'->' if a == here else '  '} {a:#018x}  {raw.hex():<20}  {text}" for a, raw, text in found]
    if not found:
        rows = [f"{addr:#x}: {'no instruction' if code else 'no memory is mapped there'}"]
    return Answer({"instructions": data, "bits": engine.bits}, rows, good=bool(found))


def console(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Show the last lines that the guest had printed."""
    number = _count(words[0], _MOST_LINES) if words else 10
    until = None if moment.at_end else moment.machine.tick
    printed = (run for run in moment.trace.console() if until is None or run[0] < until)
    last = deque(console_lines(printed), maxlen=number)
    width = max((len(format_tick(tick)) for tick, _unit, _text in last), default=0)
    return Answer(
        {"console": [{"tick": tick, "unit": unit, "text": text} for tick, unit, text in last]},
        [f"{format_tick(tick):>{width}}  {printable(text)}" for tick, _unit, text in last],
    )


def devices(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Show what the devices and the clock hold."""
    state = {"clock": moment.machine.clock.save(), **moment.machine.board.save()}
    if words:
        if words[0] not in state:
            raise UsageError(f"there is no device {words[0]!r}: there are {', '.join(state)}")
        state = {words[0]: state[words[0]]}
    return Answer({"devices": state}, [f"{name} {value}" for name, value in _flat("", state)])


def info(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """Tell what was recorded, and where in it this is."""
    trace = moment.trace
    here = where(moment)
    data = here.data | {"trace": str(trace.path), "reason": trace.reason, "events": trace.event_count}
    ended = trace.reason if trace.sealed else "not sealed: the recording was cut off, or still runs"
    return Answer(
        data, [f"{printable(str(trace.path))}: {trace.event_count:,} events; ended: {ended}", *here.lines]
    )


def usage(moment: Moment, words: Sequence[str] = ()) -> Answer:
    """List the commands."""
    width = max(len(command.usage) for command in COMMANDS.values())
    rows = [f"{command.usage:<{width}}  {command.about}" for command in COMMANDS.values()]
    return Answer({"commands": {name: command.about for name, command in COMMANDS.items()}}, rows)


COMMANDS = {
    "where": Command("where", "the tick and the guest time", where),
    "regs": Command("regs", "the registers", registers),
    "disas": Command(
        "disas [N [ADDR]]", "N instructions (5) from the next one, or from ADDR", disassembly, most=2
    ),
    "x": Command("x ADDR LEN", "LEN bytes of memory at virtual ADDR (0x1000, rsp, rsp+0x10)", memory, 2, 2),
    "xp": Command("xp ADDR LEN", "LEN bytes of memory at physical ADDR", physical_memory, 2, 2),
    "console": Command("console [N]", "the last N lines (10) the guest had printed", console, most=1),
    "devices": Command("devices [NAME]", "what the devices hold", devices, most=1),
    "digest": Command("digest", "the digest of the whole state, and of its parts", digest),
    "info": Command("info", "the trace, and where in it this is", info),
    "help": Command("help", "this list", usage),
}


# ---- how


def _dump(moment: Moment, words: Sequence[str], read: Callable[[int, int], bytes]) -> Answer:
    addr = _address(moment, words[0])
    size = _count(words[1], _MOST_BYTES)
    data = _readable(read, addr, size)
    rows = [_hex_row(addr + at, data[at : at + 16]) for at in range(0, len(data), 16)]
    if len(data) < size:
        rows.append(f"{addr + len(data):#x}: no memory is mapped there")
    return Answer({"addr": addr, "bytes": data.hex()}, rows, good=len(data) == size)


def _hex_row(addr: int, data: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{addr:#018x}  {data[:8].hex(' '):<23}  {data[8:].hex(' '):<23}  {text}"


def _readable(read: Callable[[int, int], bytes], addr: int, size: int) -> bytes:
    """Return `size` bytes, or as many as there are before the first page that cannot be read."""
    data = bytearray()
    while len(data) < size:
        at = addr + len(data)
        try:
            data += read(at, min(size - len(data), _PAGE - at % _PAGE))
        except (IndexError, OverflowError):
            break
    return bytes(data)


def _disassemble(code: bytes, addr: int, bits: int, number: int) -> list[tuple[int, bytes, str]]:
    import capstone  # type: ignore[import-untyped]

    modes = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
    found = []
    for instruction in capstone.Cs(capstone.CS_ARCH_X86, modes[bits]).disasm(code, addr, number):
        text = f"{instruction.mnemonic} {instruction.op_str}".rstrip()
        found.append((int(instruction.address), bytes(instruction.bytes), text))
    return found


def _next_instruction(moment: Moment) -> int:
    engine = moment.machine.engine
    rip = engine.registers()["rip"]
    return rip if engine.bits == 64 else (rip + engine.segment("cs")[1]) & 0xFFFFFFFF


_ADDRESS = re.compile(r"(?:(?P<base>[a-z][a-z0-9_]*)(?P<sign>[+-]))?(?P<rest>[a-z0-9_]+)", re.IGNORECASE)


def _address(moment: Moment, text: str) -> int:
    """Return the address in `0x1000`, `4096`, `rsp` or `rsp+0x10`."""
    values = moment.machine.engine.registers()
    match = _ADDRESS.fullmatch(text)
    if match:
        rest = match["rest"].lower()
        base = match["base"]
        if rest in values and base is None:
            return values[rest]
        amount = _number(rest)
        if amount is not None and base is None:
            return amount
        if amount is not None and base is not None and base.lower() in values:
            return (values[base.lower()] + (amount if match["sign"] == "+" else -amount)) % (1 << 64)
    raise UsageError(
        f"{text!r} is no address: give 0x1000, a register, or a register and an offset (rsp+0x10)"
    )


def _number(text: str) -> int | None:
    try:
        value = int(text, 0)
    except ValueError:
        return None
    return value if 0 <= value < 1 << 64 else None


def _count(text: str, most: int) -> int:
    value = _number(text)
    if value is None or not 0 < value <= most:
        raise UsageError(f"{text!r}: give a number from 1 to {most:,}")
    return value


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(f"{prefix}{key}.", value)
        else:
            rows.append((f"{prefix}{key}", printable(str(value))))
    return rows
