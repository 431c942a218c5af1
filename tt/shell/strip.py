"""The drawn strip of a whole recording: what happened where, as rows of blocks of growing darkness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p

from tt.position import format_tick

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_CARETS = ("▲", "^")
_ENDS = (("▕", "▏"), ("|", "|"))


@dataclass(frozen=True)
class Row:
    """A row of the strip: how often something happened, by column, and what to call it."""

    name: str
    counts: Sequence[int]

    @property
    def total(self) -> int:
        """How often in all."""
        return sum(self.counts)


def column(tick: int, end_tick: int, width: int) -> int:
    """Return the column, 0 to `width` - 1, in which a tick lies."""
    return min(tick * width // max(end_tick, 1), width - 1) if end_tick else 0


def spread(ticks: Sequence[int], end_tick: int, width: int) -> list[int]:
    """Return how many of `ticks` lie in each of `width` columns."""
    counts = [0] * width
    for tick in ticks:
        counts[column(tick, end_tick, width)] += 1
    return counts


def draw(
    rows: Sequence[Row], here: int, end_tick: int, times: tuple[str, str, str], width: int, blocks: bool
) -> list[str]:
    """Return the lines of the strip.

    `width` is that of the screen, `times` the guest times at the start, here and at the end.  A column is
    as dark as its count is large beside the largest of its row, by logarithms.
    """
    names = max(len(row.name) for row in rows)
    totals = max(len(f"{row.total:,}") for row in rows)
    inner = len(rows[0].counts)
    left, right = _ENDS[0 if blocks else 1]
    lines = [
        f"{row.name:>{names}} {left}{''.join(shades(row.counts, blocks))}{right} {row.total:>{totals},}"
        for row in rows
    ]
    at = column(here, end_tick, inner)
    lines.append(" " * (names + 2 + at) + _CARETS[0 if blocks else 1])
    pad = " " * (names + 2)
    between = 0 < here < end_tick
    tick, time = (format_tick(here), times[1]) if between else ("", "")
    lines.append(pad + _ruler("0", tick, format_tick(end_tick), at, inner))
    lines.append(pad + _ruler(times[0], time, times[2], at, inner))
    return [line[:width].rstrip() for line in lines]


def shades(counts: Sequence[int], blocks: bool) -> list[str]:
    """Return a character for each count; any count at all can be seen."""
    scale = _BLOCKS if blocks else _ASCII
    most = max(counts, default=0)
    steps = len(scale) - 1
    # By logarithms: beside a storm of interrupts one alone is still something.
    return [
        scale[0] if not count else scale[max(1, round(steps * log1p(count) / log1p(most)))]
        for count in counts
    ]


def inner_width(names: Sequence[str], totals: Sequence[int], width: int) -> int:
    """Return how many columns a strip of that screen width has."""
    used = max(map(len, names)) + max(len(f"{total:,}") for total in totals) + 4
    return max(10, width - used - 1)


def _ruler(first: str, here: str, last: str, at: int, width: int) -> str:
    """Return `first` at the left, `last` at the right and `here` under the caret, those that do not touch."""
    line = [" "] * width
    begin = max(0, width - len(last))
    line[begin:] = list(last)[:width]
    line[: len(first)] = list(first)[:width]
    middle = min(max(0, at - len(here) // 2), max(0, width - len(here)))
    around = line[max(0, middle - 2) : middle + len(here) + 2]
    if all(c == " " for c in around):
        line[middle : middle + len(here)] = list(here)
    elif at <= len(first) + 2 + len(here) // 2:
        at_left = len(first) + 2
        if all(c == " " for c in line[at_left - 1 : at_left + len(here) + 2]):
            line[at_left : at_left + len(here)] = list(here)
    else:
        at_right = begin - 2 - len(here)
        if at_right > 0 and all(c == " " for c in line[at_right - 2 : begin - 1]):
            line[at_right : at_right + len(here)] = list(here)
    return "".join(line[:width])
