"""Memory: showing it in gdb's formats, and searching it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tt import inspect
from tt.errors import UsageError
from tt.inspect import Answer
from tt.log.text import printable
from tt.shell.command import Arguments, Call, command, find, shorten
from tt.shell.targets import count
from tt.shell.values import MASK, Form, parse_form, show
from tt.vmm.linear import readable

if TYPE_CHECKING:
    from tt.shell.session import Session

_MOST_BYTES = 1 << 20
_PIECE = 4 << 20  # bytes searched at a time
_MOST_FOUND = 100
_LONGEST_TEXT = 256
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2}\s*)+)")
_LAST_WORD = re.compile(r"(.*\S)\s+(\S+)", re.S)
_IN = re.compile(r"\s+in\s+(\S+?)\s*\.\.\s*(\S+)$")


@command(
    "x",
    usage="ADDR [LEN]", theme="looking", least=1, most=None, form=True,
    completes=("expression",), repeats=True,
    examples=(
        ("x $rsp 64", "64 bytes"),
        ("x/8xg $rsp", "8 words of 8 bytes, in hexadecimal"),
        ("x/10i $pc", "10 instructions"),
        ("x/s $rdi", "a text"),
        ("x/4xw jiffies+8", "x d u o t a c f s i, with b h w g for 1 2 4 8 bytes"),
    ),
)  # fmt: skip
def x(session: Session, arguments: Arguments) -> Answer:
    """Show memory at a virtual address.

    An empty line shows what follows.
    """
    return _examine(session, arguments, "x", physical=False)


@command(
    "xp",
    usage="ADDR [LEN]", theme="looking", least=1, most=None, form=True,
    completes=("expression",), repeats=True,
    examples=(("xp 0x1000 64", "64 bytes"), ("xp/4xg $cr3", "the top page table")),
)  # fmt: skip
def xp(session: Session, arguments: Arguments) -> Answer:
    """Show memory at a physical address.

    An empty line shows what follows.
    """
    return _examine(session, arguments, "xp", physical=True)


@command(
    "search", "find",
    usage='HEX|"TEXT" [in ADDR..ADDR]', theme="looking", least=1, most=None,
    examples=(
        ('search "root:x:0"', "a text, in all physical memory"),
        ("search 7f454c46", "bytes"),
        ("search 7f454c46 in 0x1000000..0x2000000", "between two physical addresses"),
    ),
)  # fmt: skip
def search(session: Session, arguments: Arguments) -> Answer:
    """Find bytes or a text in the guest's physical memory.

    Where Linux maps all memory at once, the virtual address there is told too.
    """
    text = arguments.text
    engine = session.machine.engine
    begin, end = 0, engine.size
    if match := _IN.search(text):
        begin, end = session.address(match[1]), min(session.address(match[2]), engine.size)
        text = text[: match.start()]
        if begin >= end:
            raise UsageError(f"nothing lies in {match[1]}..{match[2]}: RAM has {engine.size:#x} bytes")
    wanted = pattern(text)
    found = []
    for addr in _occurrences(session, wanted, begin, end):
        found.append(addr)
        if len(found) > _MOST_FOUND:
            break
    shown = found[:_MOST_FOUND]
    data, lines = [], []
    for addr in shown:
        virtual = _virtual(session, addr)
        context = engine.read(addr, min(32, engine.size - addr))
        data.append({"addr": addr, "virtual": virtual})
        told = "" if virtual is None else f"  virtual {virtual:#x} {session.symbol(virtual)}".rstrip()
        seen = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in context)
        lines.append(f"{addr:#012x}  {seen}{told}")
    if len(found) > _MOST_FOUND:
        lines.append(f"... and more: these are the first {_MOST_FOUND}; `in ADDR..ADDR` narrows it down")
    return Answer({"found": data}, lines or ["not found"], good=bool(found))


# ---- how


def _examine(session: Session, arguments: Arguments, name: str, physical: bool) -> Answer:
    engine = session.machine.engine
    read = engine.read if physical else engine.read_virtual
    if not arguments.form:
        addr, size = _dumped(session, arguments.text)
        session.follow(Call(find(name), Arguments(f"{addr + size:#x} {size}")))
        return (inspect.physical_memory if physical else inspect.memory)(session.moment, addr, size)
    form = parse_form(arguments.form)
    addr = session.address(arguments.text)
    if form.letter == "i":
        return _instructions(session, addr, form, read, name)
    if form.letter == "s":
        return _texts(session, addr, form, read, name)
    size = form.size or (8 if form.letter in ("a", "f") else 1 if form.letter == "c" else 8)
    total = form.number * size
    if total > _MOST_BYTES:
        raise UsageError(f"/{arguments.form}: that is {total:,} bytes, at most {_MOST_BYTES:,}")
    data = readable(read, addr, total)
    per_row = {"c": 8, "a": 2, "t": max(1, 8 // size), "f": 2}.get(form.letter, max(2, 16 // size))
    values = [
        int.from_bytes(data[at : at + size], "little") for at in range(0, len(data) - len(data) % size, size)
    ]
    lines = []
    for at in range(0, len(values), per_row):
        here = addr + at * size
        cells = [_cell(value, form, size, session) for value in values[at : at + per_row]]
        named = session.symbol(here) if not physical else ""
        where = f"{here:#018x}{f' <{named}>' if named else ''}"
        lines.append(f"{where}:  {'  '.join(cells)}")
    if len(data) < total:
        lines.append(f"{addr + len(data):#x}: no memory is mapped there")
    session.follow(Call(find(name), Arguments(f"{(addr + total) & MASK:#x}", arguments.form)))
    answer = {"addr": addr, "size": size, "values": values}
    return Answer(answer, lines, good=len(data) == total, look="memory")


def _cell(value: int, form: Form, size: int, session: Session) -> str:
    if form.letter in ("", "x"):
        return f"0x{value:0{2 * size}x}"
    if form.letter == "t":
        return f"{value:0{8 * size}b}"
    return show(value, form.letter, session, size)


def _dumped(session: Session, text: str) -> tuple[int, int]:
    """Return the address and the size in `ADDR [LEN]`, where ADDR may hold blanks."""
    if match := _LAST_WORD.fullmatch(text):
        addr, size = match.groups()
        try:
            return session.address(addr), count(size, _MOST_BYTES)
        except UsageError:
            if re.fullmatch(r"[0-9][0-9a-fA-Fx_]*", size) and re.search(r"[\w\])]$", addr):
                raise
    return session.address(text), 64


def _instructions(session: Session, addr: int, form: Form, read: Any, name: str) -> Answer:
    number = min(form.number, 10_000)
    code = readable(read, addr, number * 15)
    found = inspect.disassemble(code, addr, session.machine.engine.bits, number)
    if name == "x":
        answer = inspect.disassembly(session.moment, number, addr, session.symbol, session.destination)
    else:
        rows = [f"   {a:#018x}  {raw.hex():<20}  {text}" for a, raw, text in found]
        data = [{"addr": a, "bytes": raw.hex(), "text": text} for a, raw, text in found]
        answer = Answer({"instructions": data}, rows or [f"{addr:#x}: no instruction"], bool(found), "code")
    if found:
        last = found[-1]
        session.follow(Call(find(name), Arguments(f"{last[0] + len(last[1]):#x}", f"{form.number}i")))
    return answer


def _texts(session: Session, addr: int, form: Form, read: Any, name: str) -> Answer:
    texts, lines = [], []
    at = addr
    for _ in range(min(form.number, 1000)):
        data = readable(read, at, _LONGEST_TEXT)
        if not data:
            lines.append(f"{at:#x}: no memory is mapped there")
            break
        raw, end, _rest = data.partition(b"\0")
        text = raw.decode(errors="replace")
        texts.append({"addr": at, "text": text})
        lines.append(f'{at:#018x}:  "{printable(text)}"{"" if end else "..."}')
        at += len(raw) + len(end)
    session.follow(Call(find(name), Arguments(f"{at & MASK:#x}", arguments_form(form))))
    return Answer({"texts": texts}, lines, good=bool(texts), look="memory")


def arguments_form(form: Form) -> str:
    """Return a form as it was typed: `8xg`."""
    return f"{form.number}{form.letter}" + {1: "b", 2: "h", 4: "w", 8: "g"}.get(form.size, "")


def pattern(text: str) -> bytes:
    """Return bytes from hexadecimal, or from a text in quotes; raises `UsageError`."""
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
        from tt.travel.expressions.tokens import unescape

        return unescape(text[1:-1])
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1])
    raise UsageError(f'{shorten(text)}: give bytes in hexadecimal (7f454c46), or a text in quotes ("root:")')


def _occurrences(session: Session, wanted: bytes, begin: int, end: int) -> Iterator[int]:
    """Yield where bytes lie in physical memory; pieces overlap so that none is cut through."""
    engine = session.machine.engine
    for start in range(begin, end, _PIECE):
        session.heed(session.tick)
        data = engine.read(start, min(_PIECE + len(wanted) - 1, end - start))
        at = data.find(wanted)
        while at >= 0:
            yield start + at
            at = data.find(wanted, at + 1)


def _virtual(session: Session, addr: int) -> int | None:
    """Return where Linux's map of all memory has a physical address, if it is there."""
    engine = session.machine.engine
    base = session.symbols.find("page_offset_base")
    offsets = [0xFFFF888000000000, 0xC0000000, 0]
    if base is not None:
        known = readable(engine.read_virtual, base, 8)
        offsets.insert(0, int.from_bytes(known, "little"))
    for offset in offsets:
        if addr + offset < 1 << 64 and engine.translate(addr + offset) == addr:
            return addr + offset
    return None
