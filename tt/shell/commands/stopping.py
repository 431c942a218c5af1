"""Break-, watch- and catchpoints: setting, changing and listing them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tt.errors import TTError, UsageError
from tt.inspect import Answer
from tt.shell.command import Arguments, command, shorten
from tt.shell.commands import catching
from tt.shell.targets import compiled, count, location, memory_range

if TYPE_CHECKING:
    from tt.shell.session import Session
    from tt.travel.stops import StopPoint

_IF = re.compile(r"(?:^|\s)if(?=[\s(])")
_LARGEST_WATCH = 4096


@command(
    "break", "b", "br", "hbreak",
    usage="[LOCATION] [if EXPR]", theme="stopping", most=None, completes=("symbol",),
    examples=(
        ("break vfs_read", "a symbol"),
        ("b *0xffffffff81000000", "an address"),
        ("b vfs_read+0x12 if $rdx > 4096", "with a condition"),
        ("b", "here"),
    ),
)  # fmt: skip
def break_(session: Session, arguments: Arguments) -> Answer:
    """Stop before the instruction at a location, or here.

    It counts in both directions.  With `if EXPR` only where the expression holds.
    """
    return _add_breakpoint(session, arguments, temporary=False)


@command(
    "tbreak", "tb", "thbreak",
    usage="[LOCATION] [if EXPR]", theme="stopping", most=None, completes=("symbol",),
    examples=(("tbreak do_exit", "once"),),
)  # fmt: skip
def tbreak(session: Session, arguments: Arguments) -> Answer:
    """Set a breakpoint that is gone after it stopped once."""
    return _add_breakpoint(session, arguments, temporary=True)


@command(
    "watch", "w",
    usage="ADDR [SIZE] [if EXPR]", theme="stopping", least=1, most=None, form=True, completes=("expression",),
    examples=(
        ("watch jiffies", "the 8 bytes of a symbol"),
        ("watch u32[$rsp+8]", "4 bytes at an address computed now"),
        ("watch 0x1000 16", "16 bytes"),
        ("watch/p 0x1000 4", "at a physical address, however it is mapped"),
        ("watch *(int*)0x601040 if *(int*)0x601040 == 3", "only when it becomes 3"),
    ),
)  # fmt: skip
def watch(session: Session, arguments: Arguments) -> Answer:
    """Stop after an instruction that writes to memory.

    The address is computed now.  Without SIZE it is 8 bytes, or what `u32[...]` or `*(int*)...` say.
    Going back ends right after the last write before here; `last-write` asks that just once.
    """
    return _add_watchpoint(session, arguments, reads=False, writes=True)


@command(
    "rwatch", "rw",
    usage="ADDR [SIZE] [if EXPR]", theme="stopping", least=1, most=None, form=True, completes=("expression",),
    examples=(("rwatch jiffies", "all that read it"),),
)  # fmt: skip
def rwatch(session: Session, arguments: Arguments) -> Answer:
    """Stop after an instruction that reads memory."""
    return _add_watchpoint(session, arguments, reads=True, writes=False)


@command(
    "awatch", "aw",
    usage="ADDR [SIZE] [if EXPR]", theme="stopping", least=1, most=None, form=True, completes=("expression",),
    examples=(("awatch 0xb8000 4096", "all that touch the page"),),
)  # fmt: skip
def awatch(session: Session, arguments: Arguments) -> Answer:
    """Stop after an instruction that reads or writes memory."""
    return _add_watchpoint(session, arguments, reads=True, writes=True)


@command(
    "catch",
    usage="WHAT [...] [if EXPR]", theme="stopping", least=1, most=None, completes=("catch",),
    examples=(
        ("catch interrupt", "any interrupt; `catch interrupt 0x30` one vector"),
        ("catch disk", "any disk write; `catch disk 2048-4095` one to these sectors"),
        ("catch console 'panic|BUG'", "the guest prints what the regular expression matches"),
        ("catch syscall openat", "a system call, by name or number; without one, any"),
        ("catch exception PF", "an exception of the CPU: PF, GP, UD ... or its number"),
        ("catch input", "something is typed into the guest"),
        ("catch net", "any frame; `catch net in tcp port 80 \"GET /\"` such as these"),
        ("catch power", "the machine ends"),
    ),
)  # fmt: skip
def catch(session: Session, arguments: Arguments) -> Answer:
    """Stop at an event of the machine.

    The machine stops right before it.  Devices are timer, disk, console, input, entropy and clock,
    with a number or without.
    """
    text, condition, told = _condition(session, arguments.text)
    point = catching.catchpoint(text)
    point.condition, point.condition_text = condition, told
    return _added(session, point)


@command(
    "delete", "d", "del",
    usage="[N ...]", theme="stopping", most=None, completes=("stop",),
    examples=(("delete 2", "number 2"), ("delete", "all of them"), ("delete bookmark boot", "a bookmark"),
              ("delete display 1", "an expression that `display` shows")),
)  # fmt: skip
def delete(session: Session, arguments: Arguments) -> Answer:
    """Delete stops, all or by number; or a bookmark or a display."""
    words = arguments.words
    if words and len(words[0]) > 1 and any(kind.startswith(words[0]) for kind in ("bookmarks", "checkpoint")):
        from tt.shell.commands.marks import remove_bookmarks

        return remove_bookmarks(session, words[1:])
    if words and words[0] in ("display", "displays"):
        gone = {count(word) for word in words[1:]} or {each.number for each in session.displays}
        session.displays = [each for each in session.displays if each.number not in gone]
        return Answer({"deleted": sorted(gone)})
    if words and words[0] in ("breakpoints", "breakpoint"):
        words = words[1:]
    stops = session.timeline.stops
    if not words:
        number = len(stops)
        stops.clear()
        return Answer(
            {"deleted": number}, [f"{number} deleted"] if number else ["there is nothing to delete"]
        )
    for point in _points(session, words):
        stops.remove(point.number)
    return Answer({"deleted": words})


@command(
    "enable",
    usage="[N ...]", theme="stopping", most=None, completes=("stop",),
    examples=(("enable 2", "number 2 stops again"),),
)  # fmt: skip
def enable(session: Session, arguments: Arguments) -> Answer:
    """Let stops stop again, all or by number."""
    return _switch(session, arguments, True)


@command(
    "disable", "dis",
    usage="[N ...]", theme="stopping", most=None, completes=("stop",),
    examples=(("disable 2", "keep number 2, but do not stop there"),),
)  # fmt: skip
def disable(session: Session, arguments: Arguments) -> Answer:
    """Keep stops without stopping there, all or by number."""
    return _switch(session, arguments, False)


@command(
    "condition", "cond",
    usage="N [EXPR]", theme="stopping", least=1, most=None, completes=("stop", "expression"),
    examples=(("condition 1 $rax < 0", "stop only there"), ("condition 1", "always")),
)  # fmt: skip
def condition(session: Session, arguments: Arguments) -> Answer:
    """Give a stop a condition, or take it away."""
    number, _, text = arguments.text.partition(" ")
    (point,) = _points(session, [number])
    point.condition = compiled(session, text.strip()) if text.strip() else None
    point.condition_text = text.strip()
    return Answer(_facts(point), [_line(session, point)])


@command(
    "ignore",
    usage="N COUNT", theme="stopping", least=2, most=2, completes=("stop",),
    examples=(("ignore 1 99", "the 100th time stops"),),
)  # fmt: skip
def ignore(session: Session, arguments: Arguments) -> Answer:
    """Pass a stop so many times before it stops."""
    number, times = arguments.words
    (point,) = _points(session, [number])
    point.ignore = 0 if times == "0" else count(times, 1 << 40)
    return Answer(_facts(point), [_line(session, point)])


def listing(session: Session) -> Answer:
    """Return the stops that are set: `info breakpoints`."""
    points = list(session.timeline.stops)
    lines = [_line(session, point) for point in points] or ["no break-, watch- or catchpoints are set"]
    return Answer({"stops": [_facts(point) for point in points]}, lines)


# ---- how


def _add_breakpoint(session: Session, arguments: Arguments, *, temporary: bool) -> Answer:
    from tt.travel.stops import Breakpoint

    text, condition, told = _condition(session, arguments.text)
    addr = location(session, text)
    shown = text or session.symbol(addr) or f"{addr:#x}"
    point = Breakpoint(addr, temporary=temporary, condition=condition, condition_text=told, text=shown)
    return _added(session, point)


def _add_watchpoint(session: Session, arguments: Arguments, *, reads: bool, writes: bool) -> Answer:
    from tt.travel.stops import Watchpoint

    if arguments.form not in ("", "p"):
        raise UsageError(f"/{shorten(arguments.form, False)}: only /p is known here, for a physical address")
    given = arguments.text.removeprefix("-l ").removeprefix("-location ")
    text, condition, told = _condition(session, given)
    addr, size, physical, shown = memory_range(session, text)
    physical = physical or arguments.form == "p"
    if not 0 < size <= _LARGEST_WATCH:
        raise UsageError(f"{size:,} bytes: give a size from 1 to {_LARGEST_WATCH:,}")
    if addr + size > 1 << 64:
        raise UsageError(f"{addr:#x} and {size} bytes: that is past the last address")
    point = Watchpoint(
        addr, size, reads, writes, physical, condition=condition, condition_text=told, text=shown
    )
    return _added(session, point)


def _condition(session: Session, text: str) -> tuple[str, Any, str]:
    """Split `LOCATION if EXPR`: the location, the compiled condition or None, and its text."""
    match = _IF.search(text)
    if match is None:
        return text.strip(), None, ""
    told = text[match.end() :].strip()
    return text[: match.start()].strip(), compiled(session, told), told


def _added(session: Session, point: StopPoint) -> Answer:
    if session.live is not None:
        raise UsageError("a live branch runs on without stops: `close` seals it, then set them")
    session.timeline.stops.add(point)
    return Answer(_facts(point), [_line(session, point)])


def _points(session: Session, words: list[str]) -> list[StopPoint]:
    known = {point.number: point for point in session.timeline.stops}
    points = []
    for word in words:
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0
        if number not in known:
            numbers = ", ".join(map(str, known)) or "none"
            raise UsageError(f"there is no breakpoint {shorten(word, False)}: there are {numbers}")
        points.append(known[number])
    return points


def _switch(session: Session, arguments: Arguments, enabled: bool) -> Answer:
    words = arguments.words
    points = _points(session, words) if words else list(session.timeline.stops)
    for point in points:
        point.enabled = enabled
    return Answer({"stops": [_facts(each) for each in points]}, [_line(session, each) for each in points])


def _kind(point: StopPoint) -> str:
    from tt.travel.stops import Breakpoint, Watchpoint

    if isinstance(point, Watchpoint):
        return {(False, True): "watchpoint", (True, False): "read watchpoint"}.get(
            (point.reads, point.writes), "access watchpoint"
        )
    if isinstance(point, Breakpoint):
        return "temporary breakpoint" if point.temporary else "breakpoint"
    return "catchpoint"


def _facts(point: StopPoint) -> dict[str, Any]:
    facts = {"number": point.number, "kind": _kind(point), "text": point.text, "enabled": point.enabled}
    facts["condition"] = point.condition_text or None
    facts |= {"hits": point.hits, "ignore": point.ignore, "temporary": point.temporary}
    for name in ("addr", "size", "physical"):
        if hasattr(point, name):
            facts[name] = getattr(point, name)
    return facts


def _line(session: Session, point: StopPoint) -> str:
    from tt.travel.stops import Breakpoint, Watchpoint

    where = ""
    if isinstance(point, Breakpoint):
        where = f" at {point.addr:#x}"
        named = session.symbol(point.addr)
        if named and named != point.text:
            where += f" {named}"
    elif isinstance(point, Watchpoint):
        where = f" {point.size} bytes at {'physical ' if point.physical else ''}{point.addr:#x}"
        try:
            session.read(point.addr, 1) if not point.physical else session.machine.engine.read(point.addr, 1)
        except (IndexError, TTError):
            where += " (not mapped now)"
    if point.condition_text:
        where += f" if {shorten(point.condition_text, False)}"
    notes = [] if point.enabled else ["disabled"]
    if point.hits:
        notes.append(f"hit {point.hits:,} time{'' if point.hits == 1 else 's'}")
    if point.ignore:
        notes.append(f"passes {point.ignore:,} more")
    shown = "" if point.text == f"{getattr(point, 'addr', 0):#x}" else f" {shorten(point.text, False)}"
    noted = f"   [{', '.join(notes)}]" if notes else ""
    return f"{point.number:>2}  {_kind(point)}{shown}{where}{noted}"
