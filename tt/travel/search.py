"""Finding the next or the last stop, in either direction.

Forward, the machine runs to it.  Backward, the last stop is found by running
forward through intervals that end at the current tick: the nearest checkpoint's
first, longer and longer ones before that.  An interval with many stops is halved,
the later half first, so that a busy place costs little however many stops lie
before the last one.  Stops that the trace's events tell of (`tt.travel.happenings`)
are read from the trace instead, in both directions.

A stop is at a tick.  Stops at the tick where a search begins are passed over, and a
search arrives at a tick as `seek` does, before anything that happens at it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from tt.errors import Divergence, EngineError, UsageError
from tt.travel.happenings import Happening, happenings
from tt.travel.interrupts import deferred
from tt.travel.stops import Arrival, Breakpoint, Catchpoint, StopPoint
from tt.travel.traps import Found, Traps, disarm
from tt.vmm.linear import linear_pc
from tt.vmm.machine import Stop

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_FEW = 64  # stops in an interval, before it is worth halving
_SHORT_TICKS = 2_000  # an interval that is not worth halving
_FIRST_SPAN, _LONGEST_SPAN = 4_000_000, 64_000_000


def proceed(timeline: Timeline, own: Sequence[StopPoint] = (), *, until: int | None = None) -> Arrival:
    """Go forward to the next enabled stop of the timeline, or one of `own`, or to the end.

    With `until`, at most to that tick: arriving there has the reason `step`, if nothing stops there.
    `own` are the caller's, not in the timeline's list: arriving at one has the reason `step`.
    Any exception, `KeyboardInterrupt` too, leaves the timeline and its stops as they were.
    """
    with excursion(timeline):
        search = Search(timeline, [*timeline.stops.active, *own])
        last = timeline.end_tick if until is None else until
        accepted = _first_accepted(search.forward(last))
        if accepted is not None:
            return _arrive(timeline, *accepted)
        standing = timeline.tick
        timeline.seek(last)
        if until is not None and until > standing or last < timeline.end_tick:
            return Arrival("step", timeline.tick)
        return Arrival("end", timeline.tick, detail="the end of the recording")


def reverse_proceed(timeline: Timeline, own: Sequence[StopPoint] = (), *, until: int = 0) -> Arrival:
    """Go back to the last stop before here, or to tick `until`, power-on by default; see `proceed`."""
    with excursion(timeline):
        search = Search(timeline, [*timeline.stops.active, *own])
        accepted = _first_accepted(search.backward(until))
        if accepted is not None:
            return _arrive(timeline, *accepted)
        timeline.seek(until)
        if until == 0:
            return Arrival("start", 0, detail="the start of the recording")
        return Arrival("tick", until)


def _first_accepted(groups: Generator[list[Found], None, None]) -> tuple[Found, list[Found]] | None:
    with closing(groups):
        for group in groups:
            found = accept(group)
            if found is not None:
                return found, group
    return None


def accept(group: Sequence[Found]) -> Found | None:
    """Count a hit for each stop of one tick; return one that is not ignored, preferably a numbered one."""
    chosen = None
    for found in sorted(group, key=lambda f: f.point.number <= 0):
        point = found.point
        point.hits += 1
        if point.ignore > 0:
            point.ignore -= 1
        elif chosen is None:
            chosen = found
    return chosen


@contextmanager
def excursion(timeline: Timeline) -> Iterator[None]:
    """Come back here, stops as they were and nothing set in the engine, if the body raises."""
    start = timeline.tick
    counts = [(point, point.hits, point.ignore) for point in timeline.stops]
    with deferred(timeline):
        try:
            yield
        except BaseException:
            progress, timeline.progress = timeline.progress, None
            try:
                disarm(timeline)
                arrive_at(timeline, start)
            finally:
                timeline.progress = progress
                for point, hits, ignore in counts:
                    point.hits, point.ignore = hits, ignore
            raise


def arrive_at(timeline: Timeline, tick: int) -> None:
    """Go to `tick`, on first arrival, even from a later moment of the same tick."""
    if timeline.tick == tick:
        timeline.seek(tick - 1 if tick else min(1, timeline.end_tick))
    timeline.seek(tick)


class Search:
    """A search for any of `points`, from where the timeline stands.

    It yields groups: what stops at one tick, its conditions holding.
    """

    def __init__(self, timeline: Timeline, points: Sequence[StopPoint]) -> None:
        self._timeline = timeline
        self._logged = [p for p in points if isinstance(p, Catchpoint) and p.in_log]
        self._traps = Traps(timeline, points)

    def forward(self, last: int) -> Generator[list[Found], None, None]:
        """Yield the groups from here on, up to tick `last`; the timeline is at or before the tick of each."""
        timeline = self._timeline
        if self._traps:
            self._skip_forward(last)
            yield from (group for group in self._sweep(last + 1, last) if group)
        else:
            yield from map(self._weigh, self._told(timeline.tick + 1, last))

    def backward(self, until: int = 0) -> Generator[list[Found], None, None]:
        """Yield the groups before here and after tick `until`, the latest first; the timeline is anywhere."""
        timeline = self._timeline
        end, span, pages = timeline.tick, 0, self._traps.pages if self._traps else None
        while end > until + 1:
            begin = max(until, timeline.nearest(max(end - 1 - span, 0)))
            yield from self._where_stored_to(begin, end, pages)
            end, span = begin + 1, min(max(2 * span, _FIRST_SPAN), _LONGEST_SPAN)
            if pages is not None:
                quiet = max(until, timeline.unchanged(begin, pages, -1))
                yield from self._happened(quiet, end)
                end = min(end, quiet + 1)

    def _where_stored_to(
        self, begin: int, end: int, pages: set[int] | None
    ) -> Generator[list[Found], None, None]:
        """Yield the groups in ticks (`begin`, `end`), running only where one of `pages` is stored to."""
        if pages is None:
            yield from self._latest_first(begin, end)
            return
        for start, stop in self._timeline.stretches(begin, end, pages):
            yield from self._happened(stop - 1, end)
            yield from self._latest_first(start, stop)
            end = start + 1
        yield from self._happened(begin, end)

    def _skip_forward(self, last: int) -> None:
        """Go to where watched bytes of RAM may next be stored to, as far as checkpoints tell."""
        timeline, pages = self._timeline, self._traps.pages
        if pages is not None and not self._logged:
            quiet = min(timeline.unchanged(timeline.tick, pages, 1), last)
            if quiet > timeline.tick:
                timeline.seek(quiet)

    def _latest_first(self, begin: int, end: int, few: int = _FEW) -> Generator[list[Found], None, None]:
        """Yield the groups in ticks (`begin`, `end`), the latest first."""
        timeline = self._timeline
        if not self._traps:
            yield from self._happened(begin, end)
            return
        arrive_at(timeline, begin)
        groups: dict[int, list[Found]] = {}
        crowded = 0
        with closing(self._sweep(end, end)) as sweep:
            for count, group in enumerate(sweep):
                tick = timeline.tick
                if count >= few and end - tick > _SHORT_TICKS:
                    crowded = tick
                    break
                if group:
                    groups.setdefault(tick, []).extend(group)
        if crowded:
            groups.pop(crowded, None)
            middle = (crowded + end) // 2
            timeline.seek(middle)
            timeline.keep_here()
            yield from self._latest_first(middle, end, few)
            # No condition held there, so conditions seldom hold here: run longer stretches before halving.
            yield from self._latest_first(crowded - 1, middle + 1, 4 * few)
        for tick in sorted(groups, reverse=True):
            yield groups[tick]

    def _happened(self, begin: int, end: int) -> Iterator[list[Found]]:
        """Yield what the trace tells of ticks (`begin`, `end`), the latest first."""
        yield from map(self._weigh, reversed(list(self._told(begin + 1, end - 1))))

    def _told(self, first: int, last: int) -> Iterator[list[Found]]:
        """Yield what the trace tells of ticks `first` to `last`: a list for each tick."""
        told = happenings(self._timeline, self._logged, first, last)
        for _, happened in groupby(told, key=lambda happening: happening.tick):
            yield [_caught(happening) for happening in happened]

    def _sweep(self, end: int, limit: int) -> Generator[list[Found], None, None]:
        """Run forward to tick `limit`; yield what stops before `end`, an empty list where no condition holds.

        The timeline is then at that tick, maybe on the way into a handler; such stops are
        found only at ticks before `limit`.  Stops at the first tick are passed.  A tick may come twice.
        """
        timeline = self._timeline
        start, last = timeline.tick, min(limit, timeline.end_tick)
        logged = happenings(timeline, self._logged, start + 1, min(end - 1, last))
        happening = next(logged, None)
        seen: set[StopPoint] = set()
        seen_tick = start
        with self._traps.armed():
            while True:
                until = min(last, happening.tick) if happening is not None else last
                stop = self._traps.run(until) if timeline.tick < until else Stop("tick", timeline.tick)
                tick = timeline.tick
                if start < tick < end:
                    if tick != seen_tick:
                        seen, seen_tick = set(), tick
                    group = []
                    while happening is not None and happening.tick <= tick:
                        group.append(_caught(happening))
                        happening = next(logged, None)
                    if stop.reason != "tick" or tick in (until, last):
                        group += self._traps.found(stop)
                    fresh = [found for found in group if found.point not in seen]
                    seen.update(found.point for found in fresh)
                    if fresh:
                        yield self._weigh(fresh)
                if tick >= last and happening is None and stop.reason == "tick":
                    return

    def _weigh(self, group: list[Found]) -> list[Found]:
        """Return those of `group` whose conditions hold, standing at their tick.

        A condition that cannot be evaluated stops, and says so.
        """
        timeline = self._timeline
        held = []
        for found in group:
            if found.point.condition is not None and timeline.tick != found.tick:
                timeline.seek(found.tick)
            try:
                holds = found.point.holds(timeline)
            except (Divergence, EngineError):
                raise
            except Exception as e:
                holds = True
                found.detail = f"{found.point.name}: its condition fails here: {e or type(e).__name__}"
            if timeline.tick != found.tick and found.point.condition is not None:
                raise UsageError(f"the condition of {found.point.name} moved the timeline: it may only look")
            if holds:
                held.append(found)
        return held


def _caught(happening: Happening) -> Found:
    return Found(happening.tick, happening.point, f"{happening.point.name}: {happening.detail}")


def _arrive(timeline: Timeline, found: Found, group: Sequence[Found]) -> Arrival:
    if timeline.tick != found.tick or not all(one.is_arrival for one in group):
        arrive_at(timeline, found.tick)
    for one in group:
        if one.point.temporary and one.point.number in {point.number for point in timeline.stops}:
            timeline.stops.remove(one.point.number)
    own = found.point.number <= 0
    if isinstance(found.point, Breakpoint) and linear_pc(timeline.machine.engine) != found.point.addr:
        found.detail += ", which is entered from here by an interrupt or exception"
    return Arrival(
        "step" if own else found.point.reason,
        found.tick,
        None if own else found.point,
        "" if own else found.detail,
        found.old,
        found.new,
        found.by,
        tuple(one.point for one in group if one.point.number > 0),
    )
