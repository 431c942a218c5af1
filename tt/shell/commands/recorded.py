"""Looking at the recording: its events, what the guest printed, and the strip of all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from tt import inspect
from tt.errors import UsageError
from tt.events import FRAMES, Event, Kind
from tt.inspect import Answer
from tt.log.text import printable
from tt.position import format_tick
from tt.shell import strip
from tt.shell.command import Arguments, command, shorten
from tt.shell.targets import count

if TYPE_CHECKING:
    from tt.shell.session import Session

T = TypeVar("T")

_MOST_LINES = 10_000
_LONGEST_DATA = 60
_FIRST_SPAN = 1_000_000  # ticks
_TEXT = {Kind.CONSOLE, Kind.INPUT, Kind.POWER}
_ROWS = (
    ("interrupts", (Kind.IRQ, Kind.BATCH)),
    ("disk writes", (Kind.DISK_WRITE,)),
    ("console", (Kind.CONSOLE,)),
    ("input", (Kind.INPUT,)),
    ("frames", (Kind.FRAME_IN, Kind.FRAME_OUT)),
    ("idle", (Kind.WAKE,)),
)


@command(
    "events",
    usage="[KIND ...] [N]", theme="recording", most=None, completes=("kind",),
    examples=(("events", "the ten around here"), ("events irq 20", "twenty interrupts"),
              ("events disk-write", "writes to disks")),
)  # fmt: skip
def events(session: Session, arguments: Arguments) -> Answer:
    """List the recorded events around here.

    Half of them are before here, half from here on.  `goto #NUMBER` goes to one.
    """
    words = arguments.words
    number = count(words.pop(), _MOST_LINES) if words and words[-1][0].isdigit() else 10
    known = {kind_name(kind): kind for kind in Kind}
    kinds: set[Kind] = set()
    for word in words:
        meant = [name for name in known if name.startswith(word.lower().replace("_", "-"))]
        if not meant:
            raise UsageError(f"{shorten(word)} is no kind of event: there are {', '.join(known)}")
        kinds.update(known[name] for name in meant)
    trace, tick = session.trace, session.tick
    wanted = kinds or None
    after = list(islice(heeded(session, trace.numbered_events(tick, kinds=wanted)), number))
    before = _before(session, number, wanted)
    half = min(len(before), max(number // 2, number - len(after)))
    chosen = [*before[len(before) - half :], *after[: number - half]]
    rows = [_row(number_, event) for number_, event in chosen]
    lines = _table(rows)
    lines.insert(
        half, f"{'---':>{max((len(row[0]) for row in rows), default=3)}}  here, at {format_tick(tick)}"
    )
    data = [_plain(number_, event) for number_, event in chosen]
    return Answer({"tick": tick, "events": data}, lines)


@command(
    "console",
    usage="[N]", theme="recording", most=1,
    examples=(("console", "the last ten lines before here"), ("console 100", "more")),
)  # fmt: skip
def console(session: Session, arguments: Arguments) -> Answer:
    """Show the last lines that the guest had printed, and when each began."""
    number = count(arguments.words[0], _MOST_LINES) if arguments.words else 10
    if session.live is not None:
        return session.live.console(number)
    return inspect.console(session.moment, number)


@command(
    "timeline", "strip", "tl",
    theme="recording", examples=(("timeline", "the recording at a glance"),),
)  # fmt: skip
def timeline(session: Session, arguments: Arguments) -> Answer:
    """Draw the whole recording, and where you are in it.

    Where interrupts, disk writes, console output, input, idling and checkpoints lie.  The darker a column,
    the more of it happened there.
    """
    trace = session.trace
    end = trace.end_tick
    ticks: dict[str, list[int]] = {name: [] for name, _kinds in _ROWS}
    row_of = {kind: name for name, kinds in _ROWS for kind in kinds}
    for _number, event in heeded(session, trace.numbered_events(kinds=set(row_of))):
        ticks[row_of[event.kind]].append(event.tick)
    ticks["checkpoints"] = session.timeline.checkpoint_ticks
    ticks["bookmarks"] = list(session.bookmarks.values())
    ticks = {name: found for name, found in ticks.items() if found or name in ("interrupts", "console")}
    screen = session.screen
    width = strip.inner_width(list(ticks), [len(found) for found in ticks.values()], screen.width)
    rows = [strip.Row(name, strip.spread(found, end, width)) for name, found in ticks.items()]
    last_ns = int(trace.summary.get("guest_ns") or trace.ns_at_tick(end))
    times = ("0 s", _seconds(session.machine.now_ns), _seconds(last_ns))
    lines = strip.draw(rows, session.tick, end, times, screen.width, screen.blocks)
    data: dict[str, Any] = {"tick": session.tick, "end_tick": end, "guest_ns": last_ns, "columns": width}
    data["rows"] = {row.name: list(row.counts) for row in rows}
    return Answer(data, lines)


def kind_name(kind: Kind) -> str:
    """Return the name by which people know a kind of event: disk-write."""
    return kind.name.lower().replace("_", "-")


# ---- how


def heeded(session: Session, found: Iterable[T]) -> Iterator[T]:
    """Yield the same, listening for Ctrl-C."""
    for at, each in enumerate(found):
        if at % 4096 == 0:
            session.heed(session.tick)
        yield each


def _before(session: Session, number: int, kinds: set[Kind] | None) -> list[tuple[int, Event]]:
    """Return the last so many events before here, looked for in longer and longer stretches."""
    trace, end, found = session.trace, session.tick, list[tuple[int, Event]]()
    span = _FIRST_SPAN
    while end > 0 and len(found) < number:
        begin = max(0, end - span)
        stretch = heeded(session, trace.numbered_events(begin, end - 1, kinds))
        found = [*deque(stretch, maxlen=number - len(found)), *found]
        end, span = begin, 4 * span
    return found


def _row(number: int, event: Event) -> tuple[str, ...]:
    text = printable(event.data.decode(errors="replace")) if event.kind in _TEXT else event.data.hex()
    if event.kind in FRAMES:
        from tt.frames.dissect import in_words

        text = in_words(event)
    if len(text) > _LONGEST_DATA:
        text = text[: _LONGEST_DATA - 3] + "..."
    text = "" if event.kind is Kind.IRQ else text  # a checksum of the registers
    value = f"{event.value:#x}" if event.kind in (Kind.IRQ, Kind.BATCH) else f"{event.value:,}"
    return f"#{number}", format_tick(event.tick), kind_name(event.kind), str(event.unit), value, text


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if at in (2, 5) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _plain(number: int, event: Event) -> dict[str, Any]:
    fact: dict[str, Any] = {"number": number, "tick": event.tick, "kind": kind_name(event.kind)}
    fact |= {"unit": event.unit, "value": event.value, "data": event.data.hex()}
    if event.kind in _TEXT:
        fact["text"] = event.data.decode(errors="replace")
    return fact


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:,.3f} s"
