"""tt's own commands in gdb: `monitor COMMAND`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tt import inspect
from tt.errors import TTError, UsageError
from tt.events import Kind
from tt.gdb.motion import Interrupted, Motion
from tt.log.bookmarks import remember
from tt.log.text import printable
from tt.position import GRAMMAR, format_tick
from tt.symbols import for_timeline, walk

if TYPE_CHECKING:
    from tt.travel import Timeline
    from tt.travel.branches.fork import Fork

_FLUSH = "type `maintenance flush register-cache`: gdb still shows where you were"
_MOST_EVENTS = 1000
_DEFAULT_EVENTS = 10
_MOST_DATA = 40  # bytes of an event's that are shown
_TEXT = {Kind.CONSOLE, Kind.INPUT, Kind.POWER}
_MOST_TICKS = 10**12

Run = Callable[["Monitor", Sequence[str]], Iterator[str]]


@dataclass(frozen=True)
class Command:
    """A monitor command: how it is typed, what it does, and how many words it takes."""

    usage: str
    about: str
    run: Run
    least: int = 0
    most: int = 0


class Monitor:
    """Runs commands on `timeline`."""

    def __init__(self, timeline: Timeline, motion: Motion) -> None:
        self.timeline = timeline
        self.motion = motion

    def run(self, text: str) -> Iterator[str]:
        """Yield the lines that a command prints; what was wrong with it is one of them."""
        origin = self.timeline.tick
        try:
            words = shlex.split(text)
            name = _full_name(words[0] if words else "help")
            command = COMMANDS[name]
            if not command.least <= len(words[1:]) <= command.most:
                raise UsageError(f"it is: monitor {command.usage}")
            yield from command.run(self, words[1:])
        except Interrupted:
            self.motion.back_to(origin)
            yield f"interrupted; still at tick {format_tick(origin)}"
        except (TTError, ValueError) as e:  # ValueError: shlex, an open quote
            yield f"tt: {printable(str(e))}"

    @property
    def moment(self) -> inspect.Moment:
        """What `tt.inspect` looks at."""
        timeline = self.timeline
        return inspect.Moment(timeline.machine, timeline.trace, timeline.tick == timeline.end_tick)

    def address(self, text: str) -> int:
        """Return the value of an expression: `0x1000`, `$rsp+8`, `jiffies`; raises `UsageError`."""
        from tt.travel.expressions import evaluate

        return evaluate(text, self.timeline, for_timeline(self.timeline))

    def name(self, addr: int) -> str:
        """Return an address, and its symbol if it has one."""
        described = for_timeline(self.timeline).describe(addr)
        return described if described.startswith("0x") else f"{addr:#x} <{described}>"


def _full_name(typed: str) -> str:
    """Return the command that `typed` is, or begins; raises `UsageError`."""
    if typed in COMMANDS:
        return typed
    found = [name for name in COMMANDS if name.startswith(typed)]
    if len(found) != 1:
        known = ", ".join(found or COMMANDS)
        raise UsageError(
            f"{typed!r} is {'several commands' if found else 'no command'} of tt: there are {known}"
        )
    return found[0]


# ---- the commands


def _help(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    if words:
        command = COMMANDS[_full_name(words[0])]
        yield f"monitor {command.usage}"
        yield f"    {command.about}"
        return
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        yield f"monitor {command.usage:<{width}}  {command.about.splitlines()[0]}"


def _when(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    yield from inspect.where(monitor.moment).lines


def _seek(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    before = monitor.timeline.tick
    monitor.timeline.seek(monitor.motion.resolve(words[0]))
    yield from _moved(monitor, before)


def _moved(monitor: Monitor, before: int) -> Iterator[str]:
    yield from _when(monitor, ())
    if monitor.timeline.tick != before:
        yield _FLUSH


def _digest(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    yield from inspect.digest(monitor.moment).lines


def _console(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    yield from inspect.console(monitor.moment, _count(words)).lines


def _events(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    timeline = monitor.timeline
    count = _count(words)
    coming = timeline.trace.numbered_events(timeline.tick)
    shown = False
    for number, event in islice(coming, count):
        shown = True
        data = event.data[:_MOST_DATA]
        text = printable(data.decode(errors="replace")) if event.kind in _TEXT else data.hex()
        kind = event.kind.name.lower().replace("_", "-")
        yield f"#{number}  {format_tick(event.tick)}  {kind}  {event.unit}  {event.value}  {text}".rstrip()
    if not shown:
        yield "nothing is recorded from here on"


def _bookmark(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    timeline = monitor.timeline
    note = remember(timeline.trace, words[0], timeline.tick)
    yield f"@{printable(words[0].removeprefix('@'))} is tick {format_tick(timeline.tick)}"
    if note:
        yield note


def _bookmarks(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    marks = monitor.timeline.trace.bookmarks
    for name, tick in sorted(marks.items(), key=lambda mark: mark[1]):
        yield f"{format_tick(tick)}  @{printable(name)}"
    if not marks:
        yield "there are no bookmarks: monitor bookmark NAME makes one"


def _last_write(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    timeline = monitor.timeline
    origin = timeline.tick
    addr = monitor.address(words[0])
    size = _number(words[1], 4096) if len(words) > 1 else 8
    written = timeline.last_write(addr, size, physical=monitor.motion.physical)
    if written is None:
        yield f"nothing wrote to {size} bytes at {monitor.name(addr)} before tick {format_tick(origin)}"
    else:
        yield f"tick {format_tick(written.tick)}: the instruction at {monitor.name(written.rip)}"
        yield f"old {written.old.hex(' ')}"
        yield f"new {written.new.hex(' ')}"
        yield f"monitor seek {written.tick - 1} goes to just before it"
    if timeline.tick != origin:
        monitor.motion.back_to(origin)


def _memory(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    if words:
        if words[0] not in ("virtual", "physical"):
            raise UsageError("it is: monitor memory virtual, or monitor memory physical")
        monitor.motion.physical = words[0] == "physical"
        yield "type `maintenance flush dcache`: gdb may still know what was read before"
    yield f"addresses in gdb are {'physical' if monitor.motion.physical else 'virtual'}"


def _regs(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    yield from inspect.registers(monitor.moment).lines


def _devices(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    yield from inspect.devices(monitor.moment, words[0] if words else None).lines


def _backtrace(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    timeline = monitor.timeline
    stack = walk(timeline.registers(), timeline.read, for_timeline(timeline))
    for number, frame in enumerate(stack.frames):
        yield f"#{number:<2} {frame.pc:#018x} {frame.name} ({frame.how})"
    yield stack.end


def _handlers(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    if words:
        if words[0] not in ("skip", "show"):
            raise UsageError("it is: monitor handlers skip, or monitor handlers show")
        monitor.motion.skips_handlers = words[0] == "skip"
    skips = monitor.motion.skips_handlers
    yield f"a step {'goes past' if skips else 'goes into'} the handler of an interrupt or a fault"


def _fork(monitor: Monitor, words: Sequence[str]) -> Iterator[str]:
    name, *edits = words
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(f"{name!r}: give a plain file name; it is written where `tt gdb` was started")
    path = Path(name if name.endswith(".tt") else f"{name}.tt")
    timeline = monitor.timeline
    steps = [_edit(monitor, edit) for edit in edits]
    branch = timeline.fork(path, name=path.stem, progress=timeline.progress)
    try:
        for step in steps:
            step(branch)
        reached = branch.tick
    except BaseException:
        branch.discard()
        raise
    branch.close()
    here = format_tick(timeline.tick)
    yield f"{path}: a branch from tick {here} to {format_tick(reached)}; this recording is unchanged"
    yield f"tt gdb {path} --to-tick {timeline.tick} looks into it"


def _edit(monitor: Monitor, text: str) -> Callable[[Fork], object]:
    """Return what an argument of `fork` does: rax=5, *ADDR=HEX, type=TEXT or run=TICKS."""
    what, equals, value = text.partition("=")
    if equals and what == "run":
        ticks = _number(value.replace("_", "").replace(",", ""), _MOST_TICKS)
        return lambda branch: branch.run(ticks)
    if equals and what == "type":
        return lambda branch: branch.type(value + "\n")
    if equals and what.startswith("*"):
        addr = monitor.address(what[1:])
        try:
            data = bytes.fromhex(value)
        except ValueError:
            raise UsageError(f"{value!r}: give the bytes in hex, as in *0x1000=00ff") from None
        return lambda branch: branch.write(addr, data, physical=monitor.motion.physical)
    if equals and what:
        number = monitor.address(value)
        return lambda branch: branch.set_register(what.removeprefix("$"), number)
    raise UsageError(f"{text!r}: give rax=5, *ADDR=HEXBYTES, type=TEXT or run=TICKS")


def _count(words: Sequence[str]) -> int:
    return _number(words[0], _MOST_EVENTS) if words else _DEFAULT_EVENTS


def _number(text: str, most: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise UsageError(f"{text!r}: give a number from 1 to {most:,}")
    return value


COMMANDS = {
    "help": Command("help [COMMAND]", "this list, or more of one command", _help, most=1),
    "when": Command("when", "the tick, the guest time, and what the machine does", _when),
    "seek": Command("seek POS", f"go to a position: {GRAMMAR}", _seek, 1, 1),
    "bookmark": Command("bookmark NAME", "name this tick; `monitor seek @NAME` comes back", _bookmark, 1, 1),
    "bookmarks": Command("bookmarks", "list the bookmarks", _bookmarks),
    "last-write": Command(
        "last-write ADDR [SIZE]", "who wrote these bytes last? one stays where one is", _last_write, 1, 2
    ),
    "events": Command("events [COUNT]", "what happened to the guest from here on", _events, most=1),
    "console": Command("console [LINES]", "the last lines that the guest had printed", _console, most=1),
    "backtrace": Command("backtrace", "who called whom, by tt's own unwinder", _backtrace),
    "registers": Command("registers", "the registers of the whole machine", _regs),
    "devices": Command("devices [NAME]", "what the devices hold", _devices, most=1),
    "memory": Command("memory [virtual|physical]", "what addresses in gdb mean", _memory, most=1),
    "handlers": Command(
        "handlers [skip|show]",
        "whether steps go past the handlers of interrupts and faults",
        _handlers,
        most=1,
    ),
    "fork": Command(
        "fork NAME [EDIT]...",
        "change history in a branch of its own, NAME.tt: rax=5, *ADDR=HEXBYTES, type=TEXT, run=TICKS",
        _fork,
        1,
        64,
    ),
    "digest": Command("digest", "the digest of the whole state: equal states have equal digests", _digest),
}
