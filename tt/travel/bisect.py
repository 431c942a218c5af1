"""Bisecting a recording: find the tick from which a condition holds, or no longer holds.

A predicate says whether a state is bad (True), good (False), or that it cannot tell
(None: a skip).  Between a tick where it is good and one where it is bad lies a tick
at which it changes; a binary search over the timeline's checkpoints, and then over
the ticks between two of them, finds one.  It is the only such tick if the predicate
changes once (is monotonic).  That cannot be known without asking at every tick: so a
few more ticks are asked about afterwards, and answers that contradict it are reported.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tt.bisection import halvings, narrow
from tt.errors import TTError, UsageError
from tt.events import Event
from tt.position import format_tick
from tt.travel.expressions import Condition
from tt.travel.interrupts import deferred
from tt.travel.search import arrive_at, proceed
from tt.travel.stops import Stops, Watchpoint
from tt.vmm.linear import linear_pc, readable

if TYPE_CHECKING:
    from tt.travel.expressions import MemoryRange
    from tt.travel.timeline import Timeline

Predicate = Callable[["Timeline"], bool | None]

CHECKS = 16
_SAYS = {False: "it is good", True: "it is bad"}
_LONGEST_INSTRUCTION = 15  # bytes


class BisectError(TTError):
    """There is nothing to find, as when the state at one end is not what the caller said (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class JudgedTick:
    """A look at one tick: `bad`, or None for a skip; roughly how many looks are `left`."""

    tick: int
    bad: bool | None
    left: int = 0


@dataclass(frozen=True)
class BisectResult:
    """What a bisection found.

    The predicate changes at `tick`, the first of its new state: to bad where `becomes_bad`,
    else to good (`good` lay after `bad`).  Where skips are in the way `tick` is None, and
    the change lies somewhere from `earliest` to `latest`.  `contradictions` are looks
    that a predicate which changes only once would have answered otherwise.
    """

    good: int
    bad: int
    becomes_bad: bool
    earliest: int
    latest: int
    probes: tuple[JudgedTick, ...]
    contradictions: tuple[JudgedTick, ...] = ()

    @property
    def tick(self) -> int | None:
        """The first tick of the new state, or None."""
        return self.latest if self.earliest == self.latest else None

    @property
    def monotonic(self) -> bool:
        """Whether all answers fit a predicate that changes only once."""
        return not self.contradictions


@dataclass(frozen=True)
class Change:
    """The predicate is `bad` (or good) from tick `latest` on, or already from `earliest` if skips hid it."""

    bad: bool
    earliest: int
    latest: int


@dataclass(frozen=True)
class Cause:
    """What happened on the way to a tick: in the step from `tick` - 1 to `tick`.

    The next instruction was the one at linear address `addr`: `code` is the bytes there, `bits` the
    size of the code.  `events` were recorded at tick - 1, as (number, event): devices caused them.  If
    one of them is an interrupt, the first instruction of its handler ran instead of this one.
    """

    tick: int
    addr: int
    code: bytes
    bits: int
    events: tuple[tuple[int, Event], ...]


@dataclass(frozen=True)
class Transitions:
    """All changes from `first` to `last` that were found.

    `starts_bad` is the state at the first tick that was not skipped.  With `every` None these are all
    changes that a store to the memory in question made.  Otherwise the predicate was asked each `every`
    ticks, and two changes that undo each other between two such ticks are missed.
    """

    first: int
    last: int
    every: int | None
    starts_bad: bool
    changes: tuple[Change, ...]
    looks: int
    skipped: int


def bisect(
    timeline: Timeline,
    good: int,
    bad: int,
    predicate: Predicate,
    *,
    checks: int = CHECKS,
    says: Mapping[bool, str] = _SAYS,
    on_probe: Callable[[JudgedTick], None] | None = None,
) -> BisectResult:
    """Find the first tick at which `predicate` is bad, or, with `bad` before `good`, no longer bad.

    `checks` more places are looked at afterwards.  `says` words a good and a bad answer in
    errors.  Leaves the timeline at the tick that was found (at `latest`, if skips are in the way).  Raises
    `UsageError` where the ends are the same or not in the recording, `BisectError` where an end
    is not what it should be, and what the predicate raises; then the cursor is where it was.
    """
    if good == bad:
        raise UsageError(f"good and bad are the same tick, {format_tick(good)}: there is nothing in between")
    with _returning(timeline):
        looks = _Looks(timeline, predicate, on_probe)
        low, high = sorted((good, bad))
        _check_ends(looks, good, bad, checks, says)
        before, after = _narrow(looks, low, high)
        contradictions = tuple(_contradictions(looks, (low, before), (after, high), bad > good, checks))
        timeline.seek(after)
    return BisectResult(good, bad, bad > good, before + 1, after, tuple(looks.log), contradictions)


def all_transitions(
    timeline: Timeline,
    first: int,
    last: int,
    predicate: Predicate,
    *,
    every: int,
    on_probe: Callable[[JudgedTick], None] | None = None,
) -> Transitions:
    """Find every change of `predicate` from tick `first` to `last` that a look each `every` ticks shows.

    The ticks are exact.  The cursor stays where it is.  Raises `UsageError` for ticks that
    make no sense, `BisectError` where every look was skipped, and what the predicate raises.
    """
    if every < 1 or first > last:
        raise UsageError("give a first tick, a later last one, and a step of at least 1 tick")
    with _returning(timeline, always=True):
        looks = _Looks(timeline, predicate, on_probe)
        places = [*range(first, last, every), last]
        answers = []
        for at, tick in enumerate(places):
            if (answer := looks.ask(tick, len(places) - at - 1)) is not None:
                answers.append((tick, answer))
        if not answers:
            raise BisectError("every look was skipped: nothing is known")
        changes = []
        for (low, was), (high, now) in zip(answers, answers[1:], strict=False):
            if was != now:
                before, after = _narrow(looks, low, high)
                changes.append(Change(now, before + 1, after))
    skipped = sum(probe.bad is None for probe in looks.log)
    return Transitions(first, last, every, answers[0][1], tuple(changes), len(looks.log), skipped)


def cause(timeline: Timeline, tick: int) -> Cause:
    """Tell what led from `tick` - 1 to `tick` (at least 1); leaves the timeline at `tick`."""
    timeline.seek(tick - 1)
    engine = timeline.machine.engine
    addr, bits = linear_pc(engine), engine.bits
    code = readable(timeline.read, addr, _LONGEST_INSTRUCTION)
    events = tuple(timeline.trace.numbered_events(tick - 1, tick - 1))
    timeline.seek(tick)
    return Cause(tick, addr, code, bits, events)


def watched_transitions(
    timeline: Timeline,
    first: int,
    last: int,
    predicate: Predicate,
    places: Sequence[MemoryRange],
) -> Transitions:
    """Find every change of `predicate` from tick `first` to `last`, looking after each store to `places`.

    For predicates that depend on that memory alone.  The cursor stays where it is.  Raises
    `UsageError` for ticks that make no sense, and what the predicate raises.
    """
    if first > last:
        raise UsageError("give a first tick, and a later last one")
    with _returning(timeline, always=True):
        looks = _Looks(timeline, predicate, None)
        starts_bad = state = bool(looks.ask(first, 0))
        known, changes = first, []
        for tick in [*_stored(timeline, predicate, places, last, state), last]:
            now = bool(looks.ask(tick, 0))
            if now != state:
                # A change need not come from a store: in another address space the memory differs.
                before = tick - 1 if looks.ask(tick - 1, 0) is state else None
                low, high = (before, tick) if before is not None else _narrow(looks, known, tick)
                changes.append(Change(now, low + 1, high))
            known, state = tick, now
    return Transitions(first, last, None, starts_bad, tuple(changes), len(looks.log), 0)


# ---- how


def _stored(
    timeline: Timeline, predicate: Predicate, places: Sequence[MemoryRange], last: int, state: bool
) -> list[int]:
    """Return the ticks after here and before `last` where a store to `places` changed the predicate."""
    ticks: list[int] = []

    def changed(here: Timeline) -> bool:
        nonlocal state
        was, state = state, bool(predicate(here))
        return was != state

    points = [
        Watchpoint(place.addr, place.size, physical=place.physical, condition=changed)
        for place in dict.fromkeys(places)
    ]
    theirs, timeline.stops = timeline.stops, Stops()
    try:
        while timeline.tick < last:
            arrival = proceed(timeline, points, until=last)
            if arrival.tick < last:
                ticks.append(arrival.tick)
    finally:
        timeline.stops = theirs
    return ticks


class _Looks:
    """What the predicate said, tick by tick; no tick is asked twice."""

    def __init__(
        self, timeline: Timeline, predicate: Predicate, on_probe: Callable[[JudgedTick], None] | None
    ) -> None:
        self.timeline = timeline
        self.log: list[JudgedTick] = []
        self._predicate = _exactly(predicate)
        self._on_probe = on_probe
        self._answers: dict[int, bool | None] = {}

    def ask(self, tick: int, left: int) -> bool | None:
        if tick not in self._answers:
            self.timeline.seek(tick)
            if self.timeline.progress is not None:
                self.timeline.progress(tick)  # it may raise KeyboardInterrupt: call it at each look
            answer = self._predicate(self.timeline)
            self._answers[tick] = answer if answer is None else bool(answer)
            self.log.append(JudgedTick(tick, self._answers[tick], left))
            if self._on_probe is not None:
                self._on_probe(self.log[-1])
        return self._answers[tick]


def _exactly(predicate: Predicate) -> Predicate:
    """Have a condition look at printed text to the exact byte: moving the timeline is allowed here."""
    if not isinstance(predicate, Condition):
        return predicate
    condition = predicate
    return lambda timeline: condition.holds(timeline, exact=True)


@contextmanager
def _returning(timeline: Timeline, always: bool = False) -> Iterator[None]:
    """Go back to the tick at entry when the body raises (Ctrl-C included), or in any case with `always`."""
    here = timeline.tick
    with deferred(timeline):
        try:
            yield
        except BaseException:
            _go_back(timeline, here)
            raise
        if always:
            _go_back(timeline, here)


def _go_back(timeline: Timeline, tick: int) -> None:
    # `progress` may raise a second KeyboardInterrupt, which must not stop the way back halfway.
    watching, timeline.progress = timeline.progress, None
    try:
        arrive_at(timeline, tick)
    finally:
        timeline.progress = watching


def _check_ends(looks: _Looks, good: int, bad: int, checks: int, says: Mapping[bool, str]) -> None:
    """Check that both ends are what the caller said they are; raises `BisectError`."""
    left = halvings(abs(bad - good))
    answers = {tick: looks.ask(tick, left) for tick in sorted((good, bad))}
    for name, tick in (("good", good), ("bad", bad)):
        if answers[tick] is None:
            raise BisectError(f"tick {format_tick(tick)}, given as {name}, was skipped: give another one")
    if answers[good] and not answers[bad]:
        raise BisectError(
            f"good and bad are the wrong way round: at tick {format_tick(good)} {says[True]}, "
            f"at tick {format_tick(bad)} {says[False]}"
        )
    for name, tick, wrong in (("good", good, True), ("bad", bad, False)):
        if answers[tick] is wrong:
            raise BisectError(
                f"at tick {format_tick(tick)}, given as {name}, {says[wrong]}: "
                f"{_elsewhere(looks, name, tuple(sorted((good, bad))), not wrong, checks)}"
            )


def _elsewhere(looks: _Looks, name: str, ends: tuple[int, ...], wanted: bool, checks: int) -> str:
    """Return advice in words: a tick between the ends that can replace the wrong one, or what else to do."""
    places = _spread(looks.timeline, ends[0], ends[1], checks)
    for tick in places:
        if looks.ask(tick, 0) is wanted:
            return f"tick {format_tick(tick)} would do, try --{name} {tick}"
    seen = f"nor would any of the {len(places)} places in between that were looked at do, " if places else ""
    return f"{seen}give another --{name}, or look everywhere with --all"


def _narrow(looks: _Looks, low: int, high: int) -> tuple[int, int]:
    """Return the last tick known to be as `low` is, and the first known to be as `high` is.

    They are neighbours, unless only skips lie between.
    """
    state_after = not looks.ask(low, 0)
    bounds = [low, high]  # of the ticks whose state is not known yet

    def ask(ticks: Sequence[int]) -> Iterator[tuple[int, bool | None]]:
        for tick in ticks:
            answer = looks.ask(tick, halvings(bounds[1] - bounds[0]) - 1)
            if answer is not None:
                bounds[answer == state_after] = tick
            yield tick, answer

    found = narrow(low, high, state_after, ask, middle=partial(_cheap_middle, looks.timeline))
    return found.before, found.after


def _cheap_middle(timeline: Timeline, low: int, high: int) -> int:
    """Return the middle checkpoint between two ticks, or the middle tick where there is none."""
    ticks = timeline.checkpoint_ticks
    begin, end = bisect_right(ticks, low), bisect_left(ticks, high)
    return ticks[(begin + end) // 2] if begin < end else (low + high) // 2


def _contradictions(
    looks: _Looks, early: tuple[int, int], late: tuple[int, int], becomes_bad: bool, checks: int
) -> Iterator[JudgedTick]:
    """Look at ticks in ranges that should have one answer throughout; yield those that differ."""
    places = [(tick, not becomes_bad) for tick in _spread(looks.timeline, *early, checks // 2)]
    places += [(tick, becomes_bad) for tick in _spread(looks.timeline, *late, checks - checks // 2)]
    for at, (tick, expected) in enumerate(places):
        answer = looks.ask(tick, len(places) - at - 1)
        if answer is not None and answer != expected:
            yield JudgedTick(tick, answer)


def _spread(timeline: Timeline, low: int, high: int, count: int) -> list[int]:
    """Return at most `count` ticks between `low` and `high`, checkpoints where there are some close by."""
    ticks = timeline.checkpoint_ticks
    spacing = (high - low) // (count + 1)
    places = set()
    for number in range(1, count + 1):
        tick = low + (high - low) * number // (count + 1)
        nearest = bisect_right(ticks, tick) - 1
        if nearest >= 0 and tick - ticks[nearest] < spacing:
            tick = ticks[nearest]
        if low < tick < high:
            places.add(tick)
    return sorted(places)
