"""Looking at the machine where it stands: registers, expressions, the stack, code, devices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tt import inspect
from tt.errors import UsageError
from tt.inspect import Answer
from tt.shell.command import Arguments, command, host_path, shorten
from tt.shell.session import Display
from tt.shell.targets import count
from tt.shell.values import MASK, parse_form, show
from tt.vmm.linear import linear_sp, readable

if TYPE_CHECKING:
    from tt.shell.session import Session

_MOST_INSTRUCTIONS = 1000
_MOST_FRAMES = 1000
_MOST_WORDS = 10_000
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9_]+")
_SHORT_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,3}|[0-9]{1,4}")


@command(
    "regs", "registers",
    usage="[NAME ...]", theme="looking", most=None, completes=("register",),
    examples=(("regs", "all"), ("regs rip rax", "these")),
)  # fmt: skip
def regs(session: Session, arguments: Arguments) -> Answer:
    """Show the registers, or some of them."""
    words = arguments.words
    if not words:
        return inspect.registers(session.moment)
    values, lines = {}, []
    for word in words:
        name = word.removeprefix("$")
        value = session.evaluate(f"${name}") & MASK
        values[name] = value
        named = session.symbol(value) if value >= 1 << 16 else ""
        lines.append(
            f"{name:>8} {value:#018x}  {f'<{named}>' if named else f'{value:,}' if value < 1 << 48 else ''}"
        )
    return Answer({"registers": values}, lines)


@command(
    "print", "p", "inspect",
    usage="EXPR", theme="looking", least=1, most=None, form=True, completes=("expression",),
    examples=(
        ("print $rax + 8", "a number"),
        ("p *jiffies", "the 8 bytes at a symbol"),
        ("p/d *(int*)($rsp+8)", "as a signed number; x d u o t a c f as in gdb"),
        ("p str[$rdi]", "the text at an address"),
        ("p tick", "also ns, halted, cpl"),
    ),
)  # fmt: skip
def print_(session: Session, arguments: Arguments) -> Answer:
    """Show the value of an expression.

    C's operators; `$rax` is a register, `name` the address of a symbol, `*name` or `u64[name]` the 8 bytes
    there, `u8[] u16[] u32[]` fewer, `s8[]` ... signed, `p8[]` ... at a physical address, `str[a]` a text.
    """
    form = parse_form(arguments.form)
    value = session.value(arguments.text)
    if form.letter == "s" and isinstance(value, int):
        value = session.value(f"str[{value & MASK}]")
    plain = value.decode(errors="replace") if isinstance(value, bytes) else value
    shown = show(value, form.letter, session, form.size or 8)
    name = arguments.text.strip()
    if not form.letter and isinstance(value, int) and session.symbols.is_data(name):
        held = int.from_bytes(readable(session.read, value, 8), "little")
        shown += f"; *{name} is {show(held, '', session)}"
    return Answer({"value": plain}, [shown])


@command(
    "display",
    usage="[EXPR]", theme="looking", most=None, form=True, completes=("expression",),
    examples=(("display *jiffies", "after each motion"), ("display/x $rax", "in hexadecimal")),
)  # fmt: skip
def display(session: Session, arguments: Arguments) -> Answer:
    """Show an expression now and after each motion."""
    if arguments.text:
        form = parse_form(arguments.form)
        value = session.value(arguments.text)
        number = max((each.number for each in session.displays), default=0) + 1
        session.displays.append(Display(number, form.letter, arguments.text))
        return Answer(
            {"number": number}, [f"{number}: {arguments.text} = {show(value, form.letter, session)}"]
        )
    lines = [f"{each.number}: {each.text}" for each in session.displays] or ["nothing is displayed"]
    return Answer(
        {"displays": [{"number": each.number, "text": each.text} for each in session.displays]}, lines
    )


@command(
    "undisplay",
    usage="[N ...]", theme="looking", most=None, examples=(("undisplay 1", "that one"), ("undisplay", "all")),
)  # fmt: skip
def undisplay(session: Session, arguments: Arguments) -> Answer:
    """Show an expression no longer."""
    gone = {count(word) for word in arguments.words} or {each.number for each in session.displays}
    session.displays = [each for each in session.displays if each.number not in gone]
    return Answer({"deleted": sorted(gone)})


@command(
    "disas", "disassemble", "u-", "l", "list",
    usage="[N [ADDR]]", theme="looking", most=None, completes=("expression",), repeats=False,
    examples=(("disas", "five instructions from here"), ("disas 20", "twenty"),
              ("disas 8 schedule", "eight at a symbol"), ("disas vfs_read", "the same without a number")),
)  # fmt: skip
def disas(session: Session, arguments: Arguments) -> Answer:
    """Show the instructions that come next, or those at an address."""
    first, _, rest = arguments.text.partition(" ")
    number, addr = 5, None
    if _SHORT_NUMBER.fullmatch(first):
        number = count(first, _MOST_INSTRUCTIONS)
        if rest.strip():
            addr = session.address(rest.strip().removeprefix("*"))
    elif arguments.text:
        addr = session.address(arguments.text.removeprefix("*"))
        number = 10
    return inspect.disassembly(session.moment, number, addr, session.symbol, session.destination)


@command(
    "bt", "backtrace",
    usage="[N]", theme="looking", most=1, examples=(("bt", "who called whom"), ("bt 5", "the inmost five")),
)  # fmt: skip
def bt(session: Session, arguments: Arguments) -> Answer:
    """Show who called whom, the inmost first.

    By the kernel's own unwind tables (ORC) where it has them, by frame pointers, or by guessing.
    """
    from tt.symbols import unwind

    number = count(arguments.words[0], _MOST_FRAMES) if arguments.words else 50
    machine = session.machine
    frames = unwind(machine.engine.registers(), machine.engine.read_virtual, session.symbols.table)
    shown = frames[:number]
    lines = [f"#{at:<2} {frame.pc:#018x}  {frame.name:<40}  {frame.how}" for at, frame in enumerate(shown)]
    if len(frames) > number:
        lines.append(f"... and {len(frames) - number} more")
    data = [
        {"pc": frame.pc, "sp": frame.sp, "fp": frame.fp, "name": frame.name, "how": frame.how}
        for frame in shown
    ]
    return Answer({"frames": data}, [line.rstrip() for line in lines], good=bool(frames))


@command(
    "stack",
    usage="[N]", theme="looking", most=1, examples=(("stack", "sixteen words"), ("stack 64", "more")),
)  # fmt: skip
def stack(session: Session, arguments: Arguments) -> Answer:
    """Show the words on the stack, with symbols."""
    number = count(arguments.words[0], _MOST_WORDS) if arguments.words else 16
    engine = session.machine.engine
    size = {64: 8, 32: 4, 16: 2}[engine.bits]
    addr = linear_sp(engine)
    data = readable(engine.read_virtual, addr, number * size)
    words, lines = [], []
    for at in range(0, len(data) - size + 1, size):
        value = int.from_bytes(data[at : at + size], "little")
        named = session.symbol(value) if value >= 1 << 16 else ""
        words.append({"addr": addr + at, "value": value, "symbol": named or None})
        lines.append(
            f"{addr + at:#018x}  +{at:<#6x} {value:0{2 * size}x}  {f'<{named}>' if named else ''}".rstrip()
        )
    if len(data) < number * size:
        lines.append(f"{addr + len(data):#x}: no memory is mapped there")
    return Answer({"stack": words}, lines, good=bool(words), look="memory")


@command(
    "set",
    usage="WHERE = VALUE", theme="looking", least=1, most=None, completes=("register",),
    examples=(("set $rax = 5", "a register"), ("set u8[0x1000] = 1", "memory"),
              ("set u32[$rsp+8] = $rax", "anything that `watch` can name")),
)  # fmt: skip
def set_(session: Session, arguments: Arguments) -> Answer:
    """Change a register or memory, in a live branch.

    What is recorded cannot be changed: `fork` first.
    """
    text = arguments.text.removeprefix("var ").strip()
    target, equals, value = _assignment(text)
    if not equals:
        raise UsageError(f"{shorten(text)}: it is set $rax = 5, or set u8[0x1000] = 1")
    if session.live is None:
        raise UsageError(
            "what is recorded cannot be changed: `fork` makes a live branch here, and there `set` works"
        )
    return session.live.assign(session, target, session.evaluate(value))


@command(
    "devices",
    usage="[NAME]", theme="looking", most=1, completes=("device",),
    examples=(("devices", "all"), ("devices clock", "the clock and its timers")),
)  # fmt: skip
def devices(session: Session, arguments: Arguments) -> Answer:
    """Show what the devices hold."""
    words = arguments.words
    return inspect.devices(session.moment, words[0] if words else None)


@command("digest", theme="looking", examples=(("digest", "equal digests are equal states"),))
def digest(session: Session, arguments: Arguments) -> Answer:
    """Show the digest of the whole state, and of its parts."""
    return inspect.digest(session.moment)


@command(
    "symbols", "symbol-file", "add-symbol-file", "file",
    usage="[FILE [BIAS]]", theme="looking", most=2, completes=("path",),
    examples=(("symbols vmlinux", "an ELF file"), ("symbols System.map-6.1.0", "a System.map"),
              ("symbols ./busybox 0x55550000", "a program, moved to where it was loaded"),
              ("symbols", "how many are known")),
)  # fmt: skip
def symbols(session: Session, arguments: Arguments) -> Answer:
    """Add the symbols of a file, or tell what is known.

    A Linux guest's own table (kallsyms) is found in its memory without being asked.
    """
    words = arguments.words
    known = session.symbols
    if words:
        bias = session.address(words[1]) if len(words) > 1 else 0
        added = known.load(host_path(words[0]), bias)
        return Answer(
            {"added": added, "symbols": len(known)}, [f"{added:,} symbols added, {len(known):,} in all"]
        )
    known.names("no such name")  # has the guest's memory looked at
    lines = [f"{len(known):,} symbols"] + [
        f"  {len(each.names):>8,}  {each.label}" for each in known.table.sources
    ]
    return Answer({"symbols": len(known), "sources": [each.label for each in known.table.sources]}, lines)


@command(
    "info", "i",
    usage="[WHAT]", theme="shell", most=None, completes=("info",),
    examples=(("info", "the recording, and where in it this is"), ("info breakpoints", "`i b`: the stops"),
              ("info registers rip", "`i r rip`"), ("info symbol 0xffffffff81000123", "the symbol there"),
              ("info address vfs_read", "where a symbol is")),
)  # fmt: skip
def info(session: Session, arguments: Arguments) -> Answer:
    """Tell about the recording, stops, registers, events, symbols and more.

    `info` with trace, breakpoints, registers, events, checkpoints, symbols, display, devices, symbol ADDR,
    address NAME, stack or frame.
    """
    from tt.shell.commands import marks, recorded, stopping

    what, _, rest = arguments.text.partition(" ")
    rest = rest.strip()
    tables: dict[str, Any] = {
        "trace": lambda: inspect.info(session.moment),
        "breakpoints": lambda: stopping.listing(session),
        "watchpoints": lambda: stopping.listing(session),
        "registers": lambda: regs(session, Arguments(rest)),
        "all-registers": lambda: regs(session, Arguments(rest)),
        "events": lambda: recorded.events(session, Arguments(rest)),
        "checkpoints": lambda: marks.listing(session),
        "bookmarks": lambda: marks.listing(session),
        "symbols": lambda: symbols(session, Arguments()),
        "files": lambda: symbols(session, Arguments()),
        "display": lambda: display(session, Arguments()),
        "stack": lambda: bt(session, Arguments(rest)),
        "frame": lambda: session.arrive(),
        "program": lambda: inspect.where(session.moment),
        "devices": lambda: inspect.devices(session.moment, rest or None),
        "symbol": lambda: _symbol(session, rest),
        "address": lambda: _address(session, rest),
    }
    if not what:
        return inspect.info(session.moment)
    chosen = [what] if what in tables else [name for name in tables if name.startswith(what)]
    if what in ("b", "r", "s", "d"):  # as gdb reads them
        chosen = [{"b": "breakpoints", "r": "registers", "s": "stack", "d": "display"}[what]]
    if not chosen:
        raise UsageError(f"info {shorten(what, False)}: there are {', '.join(tables)}")
    answer: Answer = tables[chosen[0]]()
    return answer


INFO = (
    "trace", "breakpoints", "registers", "events", "checkpoints", "symbols", "display", "devices", "symbol",
    "address", "stack", "frame",
)  # fmt: skip
"""What `info` can tell, for completion."""


# ---- how


def _symbol(session: Session, text: str) -> Answer:
    addr = session.address(text)
    named = session.symbol(addr)
    return Answer(
        {"addr": addr, "symbol": named or None}, [f"{addr:#x} is {named or 'in no symbol'}"], good=bool(named)
    )


def _address(session: Session, text: str) -> Answer:
    addr = session.address(text)
    physical = session.machine.engine.translate(addr)
    mapped = "not mapped now" if physical is None else f"physical {physical:#x}"
    return Answer({"addr": addr, "physical": physical}, [f"{shorten(text, False)} is {addr:#x}, {mapped}"])


def _assignment(text: str) -> tuple[str, bool, str]:
    """Split at the first `=` that is not part of `==`, `!=`, `<=` or `>=`."""
    match = re.search(r"(?<![=!<>])=(?!=)", text)
    if match is None:
        return text, False, ""
    return text[: match.start()].strip(), True, text[match.end() :].strip()
