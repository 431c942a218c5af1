"""The events of some kinds that lie ahead of a tick, unpacked only as far as they are needed."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

from tt.events import Event, Kind

if TYPE_CHECKING:
    from tt.log.reader import Trace


class EventsAhead:
    """The events of `kinds` from `first_tick` on, in order, taken one by one."""

    def __init__(self, trace: Trace, kinds: frozenset[Kind], first_tick: int = 0) -> None:
        self._trace = trace
        self._kinds = kinds
        self._chunks = trace.chunks
        self._at = bisect_left(self._chunks, first_tick, key=lambda chunk: chunk.last_tick)
        self._first_tick = first_tick
        self._known: deque[Event] = deque()

    def due(self, tick: int) -> int | None:
        """Return the tick of the next event, or one after `tick` before which no event comes."""
        self._look_to(tick)
        if self._known:
            return self._known[0].tick
        return self._chunks[self._at].first_tick if self._at < len(self._chunks) else None

    def peek(self, tick: int | None = None) -> Event | None:
        """Return the next event without taking it; only if it is not after `tick`, where that is given."""
        self._look_to(tick)
        if self._known and (tick is None or self._known[0].tick <= tick):
            return self._known[0]
        return None

    def take(self) -> Event | None:
        """Return the next event and go on behind it, or None at the end."""
        self._look_to(None)
        return self._known.popleft() if self._known else None

    def _look_to(self, tick: int | None) -> None:
        """Unpack until the next event is known, or it is certain that none comes up to `tick`."""
        while (
            not self._known
            and self._at < len(self._chunks)
            and (tick is None or self._chunks[self._at].first_tick <= tick)
        ):
            for event in self._trace.events_in(self._at, self._kinds):
                if event.tick >= self._first_tick:
                    self._known.append(event)
            self._at += 1
