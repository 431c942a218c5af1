"""Catchpoints whose events the trace holds: found by reading it, without running anything."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tt.events import Event, Kind
from tt.log import Trace
from tt.travel.stops import Catchpoint, split_device

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

SECTOR = 512
_OF_DEVICE = {
    "timer": {Kind.TIMER},
    "disk": {Kind.DISK_WRITE, Kind.DISK_FLUSH},
    "console": {Kind.CONSOLE},
    "input": {Kind.INPUT},
    "entropy": {Kind.ENTROPY},
    "clock": {Kind.CLOCK},
    "ethernet": {Kind.FRAME_IN, Kind.FRAME_OUT, Kind.LINK},
}


@dataclass(frozen=True)
class Happening:
    """An event that `point` catches, at `tick`; `detail` says which in a few words."""

    tick: int
    point: Catchpoint
    detail: str


def happenings(
    timeline: Timeline, points: Sequence[Catchpoint], first: int, last: int
) -> Iterator[Happening]:
    """Yield what `points` catch from tick `first` to `last`, by tick, each point at most once a tick."""
    return merge(*(_once_a_tick(_of(timeline, point, first, last)) for point in points), key=lambda h: h.tick)


def _once_a_tick(found: Iterator[Happening]) -> Iterator[Happening]:
    before = -1
    for one in found:
        if one.tick != before:
            yield one
        before = one.tick


def _of(timeline: Timeline, point: Catchpoint, first: int, last: int) -> Iterator[Happening]:
    trace = timeline.trace
    if point.what == "console":
        yield from _printed(trace, point, first, last)
        return
    if point.what == "net":
        yield from _framed(trace, point, first, last)
        return
    if point.what == "disk-write":
        yield from _written(trace, point, first, last)
        return
    matches, kinds = _matcher(timeline, point)
    for event in trace.events(first, last, kinds):
        if matches(event):
            yield Happening(event.tick, point, in_words(event))


def _matcher(timeline: Timeline, point: Catchpoint) -> tuple[Callable[[Event], bool], set[Kind]]:
    if point.what == "power":
        return (lambda event: True), {Kind.POWER}
    if point.what == "device":
        if point.device is None:
            return (lambda event: True), set().union(*_OF_DEVICE.values())
        name, unit = split_device(point.device)
        return (lambda event: unit is None or event.unit == unit), _OF_DEVICE[name]
    vector = point.number_wanted
    if point.line is not None:
        vector = vector_of_line(timeline, point.line)

    def interrupts(event: Event) -> bool:
        if vector is None:
            return True
        return bool(event.value >> vector & 1) if event.kind is Kind.BATCH else event.value == vector

    return interrupts, {Kind.IRQ, Kind.BATCH}


def vector_of_line(timeline: Timeline, line: int) -> int:
    """Return the vector for input `line` of the interrupt controller, as the guest has it set up now.

    A Denali guest has events instead: the bit of that number.
    """
    board: Any = timeline.machine.board
    pic = getattr(board, "pic", None)
    if pic is None:
        return line
    half = pic.master if line < 8 else pic.slave
    return int(half.state.base) | (line & 7)


def in_words(event: Event) -> str:
    """Return an event in a few words."""
    match event.kind:
        case Kind.IRQ:
            return f"interrupt, vector {event.value:#x}"
        case Kind.BATCH:
            return f"events {event.value:#x} handed over"
        case Kind.TIMER:
            return f"timer {event.unit} expires"
        case Kind.DISK_WRITE:
            return f"disk {event.unit} is written from block {event.value}"
        case Kind.CONSOLE | Kind.INPUT:
            what = "prints" if event.kind is Kind.CONSOLE else "gets"
            return f"console {event.unit} {what} {_quoted(event.data)}"
        case Kind.FRAME_IN | Kind.FRAME_OUT:
            from tt.frames.dissect import in_words as frame_in_words

            way = "gets" if event.kind is Kind.FRAME_IN else "sends"
            return f"ethernet{event.unit} {way} {frame_in_words(event)}"
        case Kind.LINK:
            return f"the cable of ethernet{event.unit} is {'plugged in' if event.value else 'pulled out'}"
        case Kind.POWER:
            return f"the machine stops: {event.data.decode(errors='replace')}"
    return f"{event.kind.name.lower().replace('_', ' ')} of unit {event.unit}"


# ---- networks


def _framed(trace: Trace, point: Catchpoint, first: int, last: int) -> Iterator[Happening]:
    from tt.frames.dissect import Dissector

    dissect = Dissector(counting=False)
    for frame in trace.frames(first, last):
        packet = dissect(frame)
        if point.frames is None or point.frames(packet):
            way = "comes" if frame.incoming else "is sent"
            yield Happening(frame.tick, point, f"frame {frame.number} {way}: {packet.summary}")


# ---- disks


def _written(trace: Trace, point: Catchpoint, first: int, last: int) -> Iterator[Happening]:
    from_lba = point.lba or 0
    to_lba = point.last_lba if point.last_lba is not None else point.lba
    writes = _disk_writes(trace)
    for tick, disk, lba, sectors in writes[bisect_left(writes, (first,)) :]:
        if tick > last:
            return
        if point.disk not in (None, disk):
            continue
        if lba + sectors > from_lba and (to_lba is None or lba <= to_lba):
            blocks = f"block {lba}" if sectors == 1 else f"blocks {lba} to {lba + sectors - 1}"
            yield Happening(tick, point, f"disk {disk} is written: {blocks}")


_writes: WeakKeyDictionary[Trace, list[tuple[int, int, int, int]]] = WeakKeyDictionary()


def _disk_writes(trace: Trace) -> list[tuple[int, int, int, int]]:
    if trace not in _writes:
        _writes[trace] = [(w.tick, w.disk, w.lba, w.sectors) for w in trace.disk_writes()]
    return _writes[trace]


# ---- consoles


@dataclass
class _Printed:
    """All that one console printed: the text, and where in it each piece of the log ends."""

    text: bytes
    ends: list[int]
    ticks: list[int]


_consoles: WeakKeyDictionary[Trace, dict[int, _Printed]] = WeakKeyDictionary()
_matches: WeakKeyDictionary[Trace, dict[tuple[int, bytes], list[tuple[int, str]]]] = WeakKeyDictionary()


def _printed(trace: Trace, point: Catchpoint, first: int, last: int) -> Iterator[Happening]:
    found = []
    for unit in _texts(trace):
        if point.unit in (None, unit):
            hits = _matches_of(trace, unit, point.regex)
            for tick, text in hits[bisect_left(hits, (first,)) :]:
                if tick > last:
                    break
                found.append(Happening(tick, point, f"console {unit} prints {text}"))
    yield from sorted(found, key=lambda h: h.tick)


def _matches_of(trace: Trace, unit: int, regex: re.Pattern[bytes]) -> list[tuple[int, str]]:
    """Return (tick, matched text) of each match: the tick of the piece of output that completes it."""
    known = _matches.setdefault(trace, {})
    if (unit, regex.pattern) not in known:
        printed = _texts(trace)[unit]
        hits = []
        for match in regex.finditer(printed.text):
            if match.end() > match.start():
                hits.append((printed.ticks[bisect_left(printed.ends, match.end())], _quoted(match[0])))
        known[unit, regex.pattern] = hits
    return known[unit, regex.pattern]


def _texts(trace: Trace) -> dict[int, _Printed]:
    if trace not in _consoles:
        parts: dict[int, list[bytes]] = {}
        texts: dict[int, _Printed] = {}
        for tick, unit, data in trace.console():
            printed = texts.setdefault(unit, _Printed(b"", [], []))
            parts.setdefault(unit, []).append(data)
            printed.ends.append((printed.ends[-1] if printed.ends else 0) + len(data))
            printed.ticks.append(tick)
        for unit, printed in texts.items():
            printed.text = b"".join(parts[unit])
        _consoles[trace] = texts
    return _consoles[trace]


def _quoted(data: bytes) -> str:
    text = data.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "...")
