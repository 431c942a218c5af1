"""Ticks, and the grammar in which people name them: the only notion of time.

A tick is the number of instructions retired since power-on.  A position is what
somebody typed:

    1234567  1_234_567  1,234,567     that tick
    +N  -N                            relative to where one stands
    50%  12.5%                        of the whole trace
    start  end                        its two ends
    @name                             a bookmark
    #17                               the tick of event 17
    12.5s  300ms  40us                when guest time reaches that
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Protocol

from tt.errors import UsageError


class Anchor(Enum):
    """What a position is relative to."""

    TICK = "tick"
    HERE = "here"
    PERCENT = "percent"
    START = "start"
    END = "end"
    BOOKMARK = "bookmark"
    EVENT = "event"
    TIME = "time"


@dataclass(frozen=True)
class Position:
    """A place in a trace as it was typed.

    `amount` is ticks (TICK, HERE), percent (PERCENT), an event's number (EVENT)
    or guest nanoseconds (TIME); `name` is a bookmark's.
    """

    anchor: Anchor
    amount: Fraction = Fraction(0)
    name: str = ""


class Context(Protocol):
    """Where one stands, and what is needed to find other places from there."""

    @property
    def tick(self) -> int:
        """Where one stands."""
        ...

    @property
    def end_tick(self) -> int:
        """The last tick of the trace."""
        ...

    @property
    def bookmarks(self) -> Mapping[str, int]:
        """Ticks that have names."""
        ...

    def event_tick(self, number: int) -> int:
        """Return the tick of an event; raises `UsageError` when there is none of that number."""
        ...

    def tick_at_ns(self, ns: int) -> int:
        """Return the first tick at which guest time has reached `ns`."""
        ...


_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*"
_NUMBER = re.compile(rf"([+-]?)({_WHOLE})")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|ms|us|ns)")
_EVENT = re.compile(rf"#({_WHOLE})")
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LONGEST = 60  # characters; a number of more digits is nonsense, and slow to convert

GRAMMAR = "give a tick (1_234_567), +N, -N, 50%, start, end, @bookmark, #event or guest time (12.5s)"


def parse(text: str) -> Position:
    """Return the position that `text` names; raises `UsageError`."""
    typed = text.strip()
    if typed in ("start", "end"):
        return Position(Anchor(typed))
    if typed.startswith("@") and len(typed) > 1:
        return Position(Anchor.BOOKMARK, name=typed[1:])
    if len(typed) <= _LONGEST:
        if match := _NUMBER.fullmatch(typed):
            sign, digits = match.groups()
            ticks = _whole(digits)
            return Position(Anchor.HERE if sign else Anchor.TICK, -ticks if sign == "-" else ticks)
        if match := _PERCENT.fullmatch(typed):
            return Position(Anchor.PERCENT, Fraction(match[1]))
        if match := _TIME.fullmatch(typed):
            return Position(Anchor.TIME, Fraction(match[1]) * _NS[match[2]])
        if match := _EVENT.fullmatch(typed):
            return Position(Anchor.EVENT, _whole(match[1]))
    raise UsageError(f"{typed[:_LONGEST]!r} is not a position: {GRAMMAR}")


def resolve(position: Position, context: Context) -> int:
    """Return the tick of a position; raises `UsageError` when the trace has no such place."""
    tick = _find(position, context)
    if tick < 0:
        raise UsageError(f"that is {format_tick(-tick)} ticks before the start of the trace")
    if tick > context.end_tick:
        end = format_tick(context.end_tick)
        raise UsageError(f"tick {format_tick(tick)} is past the end of the trace, {end}")
    return tick


def format_tick(tick: int) -> str:
    """Return a tick as people read it: 1,234,567."""
    return f"{tick:,}"


def _find(position: Position, context: Context) -> int:
    whole = int(position.amount)
    match position.anchor:
        case Anchor.TICK:
            return whole
        case Anchor.HERE:
            return context.tick + whole
        case Anchor.START:
            return 0
        case Anchor.END:
            return context.end_tick
        case Anchor.PERCENT:
            if position.amount > 100:
                raise UsageError(f"{float(position.amount):g}% is more than the whole trace")
            return int(context.end_tick * position.amount / 100)
        case Anchor.EVENT:
            return context.event_tick(whole)
        case Anchor.TIME:
            return context.tick_at_ns(whole)
        case Anchor.BOOKMARK:
            if position.name in context.bookmarks:
                return context.bookmarks[position.name]
            known = ", ".join(sorted(context.bookmarks)) or "none"
            raise UsageError(f"there is no bookmark {position.name!r}: the trace has {known}")


def _whole(digits: str) -> Fraction:
    return Fraction(int(digits.replace(",", "").replace("_", "")))
