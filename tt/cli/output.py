"""How facts are printed: tables, sizes, times, events and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from tt.events import FRAMES, Event, Kind
from tt.log.text import printable
from tt.position import format_tick

_LOOK_AHEAD = 1000  # rows that decide a table's widths, so that long tables stream
_LONGEST_DATA = 60  # characters of an event's data in a list
_TEXT = {Kind.CONSOLE, Kind.INPUT, Kind.POWER, Kind.EDIT_REGISTER}


def print_json(value: Any) -> None:
    """Print one JSON value on one line; bytes become hex strings."""
    print(json.dumps(value, default=_jsonable, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> None:
    """Print rows under `headers`, streaming; the columns numbered in `right` are flush right."""
    rest = iter(rows)
    first = [[cell(value) for value in row] for row in islice(rest, _LOOK_AHEAD)]
    widths = [max(map(len, column)) for column in zip(headers, *first, strict=True)] if headers else []
    flush_right = set(right)
    for row in chain([headers], first, ([cell(value) for value in row] for row in rest)):
        cells = (
            text.rjust(width) if at in flush_right else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, the latter in one column."""
    listed = list(facts)
    width = max((len(name) for name, _text in listed), default=0)
    for name, text in listed:
        print(f"{name:<{width}}  {text}".rstrip())


def cell(value: Any) -> str:
    """Return a value as a table shows it: NULL empty, bytes in hex, text on one line."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    return printable(value) if isinstance(value, str) else str(value)


def frame_counts(cards: Any) -> list[str]:
    """Return what became of the frames of each network card, in words; a trace may say anything there."""
    return [
        cell(", ".join(f"{number} {what}" for what, number in counts.items()))
        for counts in (cards if isinstance(cards, list) else [])
        if isinstance(counts, dict)
    ]


def format_size(size: int) -> str:
    """Return a number of bytes as people read it: 1.5 MB (1 MB is 2**20 bytes)."""
    if size < 1024:
        return f"{size} B"
    scaled = float(size)
    for unit in ("KB", "MB", "GB", "TB"):
        scaled /= 1024
        if scaled < 1024 or unit == "TB":
            break
    return f"{scaled:.1f} {unit}"


def format_count(number: int, what: str) -> str:
    """Return how many there are of something: 1 event, 1,234 events."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def format_ns(ns: int) -> str:
    """Return guest time as people read it: 12.345678 s."""
    return f"{ns / 1e9:,.6f} s"


def event_row(number: int, event: Event) -> list[str]:
    """Return an event as a row of a list: number, tick, kind, unit, value, data."""
    text = printable(event.data.decode(errors="replace")) if event.kind in _TEXT else event.data.hex()
    if event.kind in FRAMES:
        from tt.frames.dissect import in_words

        text = in_words(event)
    if len(text) > _LONGEST_DATA:
        text = text[: _LONGEST_DATA - 3] + "..."
    where = [f"#{number}", format_tick(event.tick), kind_name(event.kind)]
    return [*where, str(event.unit), str(event.value), text]


def event_json(number: int, event: Event) -> dict[str, Any]:
    """Return an event as plain data; its data in hex, and as text where it is text."""
    fact = {
        "number": number,
        "tick": event.tick,
        "kind": kind_name(event.kind),
        "unit": event.unit,
        "value": event.value,
        "data": event.data.hex(),
    }
    if event.kind in _TEXT:
        fact["text"] = event.data.decode(errors="replace")
    return fact


def kind_name(kind: Kind) -> str:
    """Return the name by which people know a kind of event: disk-write."""
    return kind.name.lower().replace("_", "-")


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout as they are, now."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} is not JSON")
