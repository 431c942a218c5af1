"""The names of instants: the positions of `tt.position`, and those that only a disk has.

    w17                               after write 17; w0 and `base` are the base image
    b3                                after burst 3 of `chronus log`
    2026-11-22  2026-11-22T14:03:10   the host's clock then (local time; 14:03 is today)
    -2h  -3d  "2 hours ago"           so long before the newest write's host time
    N  +N  -N  50%  start  end  @bookmark  #event  12.5s    as everywhere in tt

A bare number is a tick where the trace is a recording of a machine, and a write where it is not;
+N, -N and percent count writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, time
from typing import Protocol

from tt import position
from tt.chronus.store.bursts import Burst
from tt.chronus.store.images import ImageSpan
from tt.chronus.store.write import Write
from tt.errors import UsageError
from tt.log import Trace
from tt.position import Anchor, format_tick

GRAMMAR = (
    "give w17 (a write), b3 (a burst), a tick (1_234_567), +N, -N, 50%, start, end, @bookmark, #event, "
    "guest time (12.5s), host time (2026-11-22T14:03), or -2h"
)
_WRITE = re.compile(r"w([0-9]{1,15})")
_BURST = re.compile(r"b([0-9]{1,15})")
_AGO = re.compile(r"(?:-([0-9]{1,9})(s|m|min|h|d|w)|([0-9]{1,9}) ?(second|minute|hour|day|week)s? ago)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_WORDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.+Z-]+)?")


class Past(Protocol):
    """What names of instants are looked up in: `tt.chronus.store.history.History`."""

    name: str
    trace: Trace

    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def has_machine(self) -> bool: ...
    @property
    def bookmarks(self) -> Mapping[str, int]: ...
    @property
    def starts_empty(self) -> bool: ...
    def inside_image(self, instant: int) -> ImageSpan | None: ...
    def check(self, instant: int) -> int: ...
    def write(self, number: int) -> Write: ...
    def bursts(self) -> list[Burst]: ...
    def instant_at_tick(self, tick: int) -> int: ...
    def instant_at_host_ns(self, host_ns: int) -> int: ...


def resolve(history: Past, text: str, current: int) -> int:
    """Return the instant that `text` names, standing at instant `current`; raises `UsageError`."""
    typed = text.strip()
    if typed == "start":
        return history.first
    if typed == "base":
        return history.check(0)
    if typed == "end":
        return history.count
    if match := _WRITE.fullmatch(typed):
        return history.check(int(match[1]))
    if match := _BURST.fullmatch(typed):
        return _burst(history, int(match[1]))
    if match := _AGO.fullmatch(typed):
        seconds = int(match[1]) * _SECONDS[match[2]] if match[1] else int(match[3]) * _WORDS[match[4]]
        return _host(history, _newest(history, typed) - seconds * 10**9, typed)
    if _CLOCK.fullmatch(typed) or _DATE.fullmatch(typed):
        return _host(history, _clock(typed), typed)
    try:
        where = position.parse(typed)
    except UsageError:
        raise UsageError(f"{typed[:60]!r} is no instant of a disk: {GRAMMAR}") from None
    match where.anchor:
        case Anchor.HERE:
            return history.check(current + int(where.amount))
        case Anchor.PERCENT if where.amount <= 100:
            return history.first + int((history.count - history.first) * where.amount / 100)
        case Anchor.TICK if not history.has_machine:
            return history.check(int(where.amount))
        case Anchor.BOOKMARK if where.name in history.bookmarks:
            return history.bookmarks[where.name]
    return max(history.first, history.instant_at_tick(history.trace.resolve(typed)))


def describe(history: Past, instant: int) -> str:
    """Return an instant as people read it: `w17 · tick 1,234 · 12.3 s · 2026-11-22 14:03:10`."""
    if not instant:
        return "w0 · an empty disk, before the first image" if history.starts_empty else "w0 · the base image"
    if instant == history.first:
        return f"w{instant} · the oldest instant, after squashing"
    write = history.write(instant)
    parts = [f"w{instant}"]
    if history.has_machine:
        parts.append(f"tick {format_tick(write.tick)}")
    if write.guest_ns is not None:
        parts.append(f"{write.guest_ns / 1e9:,.3f} s")
    if write.host_ns is not None:
        parts.append(format_host(write.host_ns))
    if span := history.inside_image(instant):
        parts.append(f"inside the image @{span.name}")
    return " · ".join(parts)


def format_host(host_ns: int) -> str:
    """Return a time of the host's clock in local time."""
    return datetime.fromtimestamp(host_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def _burst(history: Past, index: int) -> int:
    groups = history.bursts()
    if not 0 <= index <= len(groups):
        raise UsageError(f"there is no burst b{index}: {history.name} has b1 to b{len(groups)}")
    return groups[index - 1].after if index else history.first


def _newest(history: Past, typed: str) -> int:
    newest = history.write(history.count).host_ns if history.count else None
    if newest is None:
        raise UsageError(
            f"{typed!r}: {history.name} does not know the host's time of its writes: give w17 or a tick"
        )
    return newest


def _host(history: Past, host_ns: int, typed: str) -> int:
    _newest(history, typed)
    return history.instant_at_host_ns(host_ns)


def _clock(typed: str) -> int:
    try:
        if _CLOCK.fullmatch(typed):
            hour, _, rest = typed.partition(":")
            when = datetime.combine(datetime.now().date(), time.fromisoformat(f"{int(hour):02}:{rest}"))
        else:
            when = datetime.fromisoformat(typed)
    except ValueError:
        raise UsageError(f"{typed!r} is no time: give 2026-11-22T14:03:10, 2026-11-22 or 14:03") from None
    return int(when.timestamp() * 1e9)
