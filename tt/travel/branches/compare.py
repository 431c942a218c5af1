"""Where two states, or two timelines, first differ.

Two replays of one machine are the same as long as they get the same inputs.  So
timelines part at an event that came from outside: an edit, a key, random bytes.
The logs tell which event; digests of both states, each brought to the same tick,
prove the tick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from tt.differences import Difference, machine_differences, shown_bytes
from tt.errors import BadInput
from tt.events import FRAMES, FROM_OUTSIDE, Event, Kind
from tt.log.text import printable
from tt.position import format_tick
from tt.travel.branches.family import family, trace_id
from tt.travel.branches.fork import Fork
from tt.travel.timeline import Timeline
from tt.vmm.machine import Machine

State = Timeline | Fork | Machine


def diff_states(left: State, right: State, limit: int | None = None) -> list[Difference]:
    """Return how two states differ: registers, memory, devices, disks; at most `limit` of each.

    Memory comes in ranges of bytes that differ, by guest-physical address; disks
    in sectors.  An empty list means that the digests agree too.
    """
    return machine_differences(_machine(left), _machine(right), limit)


@dataclass(frozen=True)
class Parting:
    """Where two timelines part.

    `same_until` is the last tick known to be the same in both; `tick` the first one
    where the states differ, or None where they never do as far as both go
    (`compared_to`).  `left_event` and `right_event` are the events, with their
    numbers, that made the difference, or else the first in which the logs differ;
    None where one has nothing more.
    """

    names: tuple[str, str]
    tick: int | None
    same_until: int
    compared_to: int
    left_event: tuple[int, Event] | None = None
    right_event: tuple[int, Event] | None = None
    differences: tuple[Difference, ...] = ()
    forked: str = ""

    def lines(self) -> list[str]:
        """Return it in words, a line each."""
        left, right = self.names
        told = [self.forked] if self.forked else []
        if self.tick is None:
            told.append(f"{left} and {right} are the same up to tick {format_tick(self.compared_to)}")
        elif self.tick == 0:
            told.append(f"{left} and {right} differ from power-on")
        else:
            told.append(f"{left} and {right} are the same up to tick {format_tick(self.same_until)}")
        told += self._events()
        if self.tick is not None:
            told.append(f"the states first differ at tick {format_tick(self.tick)} ({left} | {right}):")
            told += [f"  {difference}" for difference in self.differences]
        return told

    def _events(self) -> Iterator[str]:
        """Yield what each has where the logs differ."""
        both = self.left_event, self.right_event
        first = min((found[1].tick for found in both if found is not None), default=None)
        if first is None:
            return
        for name, found in zip(self.names, both, strict=True):
            there = found is not None and found[1].tick == first
            what = f"#{found[0]}, {_in_words(found[1])}" if found is not None and there else "nothing"
            yield f"  at tick {format_tick(first)}, {name} has {what}"


def first_difference(
    left: Timeline, right: Timeline, limit: int = 10, progress: Callable[[int], None] | None = None
) -> Parting:
    """Find the first tick at which two timelines' states differ, and say how: at most `limit` things a kind.

    Both are left where they first differ, or at the last tick of both.
    """
    search = _Search(left, right, progress)
    tick = search.first()
    names = _names(left, right)
    found: list[Difference] = []
    if tick is not None:
        search.differ(tick)  # both stand there
        found = diff_states(left, right, limit)
    return Parting(
        names=names,
        tick=tick,
        same_until=search.same if tick is None else max(tick - 1, 0),
        compared_to=search.end,
        left_event=search.events[0],
        right_event=search.events[1],
        differences=tuple(found),
        forked=_kinship(left, right),
    )


class _Search:
    """The search for the first tick that differs."""

    def __init__(self, left: Timeline, right: Timeline, progress: Callable[[int], None] | None) -> None:
        self.left, self.right = left, right
        self.progress = progress
        self.end = min(left.end_tick, right.end_tick)
        self.same = 0
        self.events: tuple[tuple[int, Event] | None, tuple[int, Event] | None] = (None, None)

    def first(self) -> int | None:
        """Return the first tick that differs, or None."""
        if self.differ(0):
            return 0
        unlike = self.events
        for tick, both in self._suspects():
            unlike = both if unlike == (None, None) else unlike
            self.events = both
            # An input comes after the arrival at its tick; an answer may be part of the state there already.
            for suspect in (tick, tick + 1):
                if self.same < suspect <= self.end and self.differ(suspect):
                    return self._narrow(suspect)
        if self.same < self.end and self.differ(self.end):
            return self._narrow(self.end)
        self.events = unlike
        return None

    def differ(self, tick: int) -> bool:
        """Bring both to `tick` and compare them."""
        self.left.seek(tick)
        self.right.seek(tick)
        if self.progress is not None:
            self.progress(tick)
        differ = self.left.digest() != self.right.digest()
        if not differ:
            self.same = max(self.same, tick)
        return differ

    def _narrow(self, bad: int) -> int:
        """Return the first tick that differs between the last that is the same and `bad`."""
        good = self.same
        while bad - good > 1:
            middle = (good + bad) // 2
            if self.differ(middle):
                bad = middle
            else:
                good = middle
        return bad

    def _suspects(self) -> Iterator[tuple[int, tuple[tuple[int, Event] | None, tuple[int, Event] | None]]]:
        """Yield the ticks of events from outside that the logs do not share, and the events there.

        The first of all differing events comes first, whatever its kind; after it only
        events from outside count, since all others follow from those.
        """
        logs = self.left.trace.numbered_events(), self.right.trace.numbered_events()
        for one, two in zip_longest(*logs):
            if one is None or two is None or one[1] != two[1]:
                ticks = [event[1].tick for event in (one, two) if event is not None]
                if min(ticks) >= self.end and (one is None or two is None):
                    break  # one simply goes on where the other ended
                if self._cut_short(one, two):
                    break
                yield min(ticks), (one, two)
                break
        else:
            return
        begin = max(min(ticks) - 1, 0)
        left, right = (
            line.trace.numbered_events(begin, self.end, FROM_OUTSIDE) for line in (self.left, self.right)
        )
        one, two = next(left, None), next(right, None)
        while one is not None or two is not None:
            if one is not None and two is not None and one[1] == two[1]:
                one, two = next(left, None), next(right, None)
                continue
            tick = min(event[1].tick for event in (one, two) if event is not None)
            yield tick, (one, two)
            # It made no difference to the state: skip the events of both up to there.
            while one is not None and one[1].tick <= tick:
                one = next(left, None)
            while two is not None and two[1].tick <= tick:
                two = next(right, None)

    def _cut_short(self, one: tuple[int, Event] | None, two: tuple[int, Event] | None) -> bool:
        """Whether the two are the same run of console bytes, one cut short by the end of its trace."""
        if one is None or two is None or one[1].kind is not Kind.CONSOLE:
            return False
        for found, other, line in ((one, two, self.left), (two, one, self.right)):
            last = found[0] == line.trace.event_count - 1
            same = found[1]._replace(data=b"") == other[1]._replace(data=b"")
            if last and same and other[1].data.startswith(found[1].data):
                return True
        return False


def _kinship(left: Timeline, right: Timeline) -> str:
    """Return in words where the one leaves the other, if they are related."""
    try:
        node = family(left.trace.path)
    except BadInput:
        return ""
    ids = trace_id(left.trace), trace_id(right.trace)
    nodes = {n.id: n for n in node.root.walk()}
    if ids[0] == ids[1] or ids[0] not in nodes or ids[1] not in nodes:
        return ""
    chains = nodes[ids[0]].ancestors, nodes[ids[1]].ancestors
    common = next((n for n in chains[0] if n in chains[1]), None)
    if common is None:
        return ""
    told = []
    for name, chain in zip(_names(left, right), chains, strict=True):
        at = chain.index(common)
        if at:
            tick = chain[at - 1].fork_tick or 0
            told.append(f"{name} leaves {common.name} at tick {format_tick(tick)}")
    return ", ".join(told)


def _names(left: Timeline, right: Timeline) -> tuple[str, str]:
    one, two = left.trace.path, right.trace.path
    return (one.name, two.name) if one.name != two.name else (str(one), str(two))


def _machine(state: State) -> Machine:
    return state if isinstance(state, Machine) else state.machine


def _in_words(event: Event) -> str:
    """Return an event in words, without its tick."""
    kind = event.kind.name.lower().replace("_", "-")
    if event.kind is Kind.EDIT_REGISTER:
        return f"{kind} {printable(event.data.decode(errors='replace'))} = {event.value:#x}"
    if event.kind in (Kind.INPUT, Kind.CONSOLE, Kind.POWER):
        return f"{kind} {printable(event.data[:60].decode(errors='replace'))!r}"
    if event.kind in FRAMES:
        from tt.frames.dissect import in_words

        return f"{kind} {in_words(event)}"
    data = f", {shown_bytes(event.data)}" if event.data else ""
    return f"{kind} (unit {event.unit}, value {event.value:#x}{data})"
