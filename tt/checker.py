"""Comparing every event at a machine's door with the record, from any tick on."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from tt.errors import Divergence
from tt.events import INPUTS, Event, Kind
from tt.log import ConsoleCoalescer, Trace, contents_digest
from tt.recording import with_checksum
from tt.vmm.machine import Machine

_ALL = frozenset(Kind)
_BY_THE_LOOP = INPUTS | {Kind.TIMER, Kind.IRQ, Kind.BATCH}
"""What happens between two instructions, so never before the arrival at its tick."""


@dataclass(frozen=True)
class Progress:
    """How far a comparison has come.

    `number` is that of the next event; `run` are the console bytes of `unit`, the first
    of them printed at `tick`, that are not yet an event.
    """

    number: int
    tick: int = 0
    unit: int = 0
    run: bytes = b""


class _Way:
    """A comparison from `start` on."""

    def __init__(self, checker: Checker, start: Progress) -> None:
        self.number = start.number
        self._checker = checker
        self._coalescer = ConsoleCoalescer(start.tick, start.unit, start.run)

    @property
    def progress(self) -> Progress:
        return Progress(self.number, *self._coalescer.pending)

    def see(self, event: Event) -> None:
        for whole in self._coalescer.add(event):
            self._compare(whole)

    def flush(self) -> None:
        for whole in self._coalescer.flush():
            self._compare(whole)

    def _compare(self, event: Event) -> None:
        expected = self._checker.recorded(self.number)
        if expected is None:
            if event.tick < self._checker.end_tick:
                raise Divergence(
                    f"replay diverges at tick {event.tick:,}: {describe(event)} happens, "
                    "the record has nothing more"
                )
            return
        if event != expected:
            raise Divergence(
                f"replay diverges at tick {min(event.tick, expected.tick):,}, event #{self.number}: "
                f"recorded {describe(expected)}, replayed {describe(event)}{_difference(event, expected)}"
            )
        self.number += 1


class Checker:
    """The subscriber that compares every event of a machine with the record; raises `Divergence`.

    It begins at power-on.  When the machine is put somewhere else, it is told by
    `go_to` or `go_back_to`.

    The log gathers console bytes into runs that carry the tick of their first byte,
    and at the arrival at a tick one may be under way.  `progress` knows how much of it
    was printed; a tick alone does not tell, so `go_to` follows each possibility until
    what the guest prints next has ruled out all but one.
    """

    def __init__(self, machine: Machine, trace: Trace) -> None:
        self.checked = 0
        """Events that agreed, seen from one place on without a break."""
        self.end_tick = trace.end_tick
        self._machine = machine
        self._trace = trace
        self._ways = [_Way(self, Progress(0))]
        self._tick: int | None = None  # where `go_to` put it, until something happens there
        self._block: tuple[int, tuple[Event, ...]] = (0, ())  # recorded events, and the first one's number
        machine.door.subscribe(self.see)

    @property
    def progress(self) -> tuple[Progress, ...]:
        """How far it has come, as `go_back_to` takes it."""
        self._begin()
        return tuple(way.progress for way in self._ways)

    @property
    def is_through(self) -> bool:
        """Whether all that is recorded has been compared."""
        self._begin()
        return all(self.recorded(way.number) is None for way in self._ways)

    def go_to(self, tick: int) -> None:
        """Go on from the arrival at `tick`."""
        self._tick = tick

    def go_back_to(self, progress: tuple[Progress, ...]) -> None:
        """Go on from where `progress` was taken."""
        self._tick = None
        self._ways = [_Way(self, one) for one in progress]

    def see(self, event: Event) -> None:
        """Compare an event."""
        self._begin()
        event = with_checksum(self._machine, event)
        if event.kind is Kind.DISK_WRITE:
            event = event._replace(data=contents_digest(event.data))
        if len(self._ways) == 1:
            number = self._ways[0].number
            self._ways[0].see(event)
            self.checked += self._ways[0].number - number
        else:
            self._keep_those_that_agree(event)

    def finish(self) -> None:
        """Compare the end: the record has nothing more, and neither has the machine."""
        self.flush()
        for way in self._ways:
            missing = self.recorded(way.number)
            if missing is not None:
                raise Divergence(
                    f"replay diverges at tick {missing.tick:,}, event #{way.number}: recorded "
                    f"{describe(missing)}, and in the replay nothing more happens"
                )

    def flush(self) -> None:
        """Compare console bytes that the recording's end cut off from what would have followed them."""
        self._begin()
        for way in self._ways:
            number = way.number
            way.flush()
            self.checked += way.number - number

    def recorded(self, number: int) -> Event | None:
        """Return a recorded event by its number, or None after the last."""
        first, events = self._block
        if not first <= number < first + len(events):
            if not 0 <= number < self._trace.event_count:
                return None
            chunks = self._trace.chunks
            at = bisect_right(chunks, number, key=lambda chunk: chunk.number) - 1
            first, events = self._block = chunks[at].number, self._trace.events_in(at, _ALL)
        return events[number - first]

    # ---- inside

    def _begin(self) -> None:
        """Find all the places in the log where the machine may be on arrival at the tick."""
        if self._tick is None:
            return
        tick, self._tick = self._tick, None
        number = self._first_from(tick)
        starts = [number]
        if self._machine.retires_first:
            # Such a machine tells what an instruction did once it retired: before arriving at the next tick.
            while (event := self.recorded(number)) is not None and event.tick == tick:
                if event.kind in _BY_THE_LOOP:
                    break
                number += 1
                starts.append(number)
        self._ways = [_Way(self, progress) for start in starts for progress in self._progresses(start)]

    def _progresses(self, number: int) -> Iterator[Progress]:
        """Yield how much of the console run before event `number` may be printed, all of it first."""
        yield Progress(number)
        last = self.recorded(number - 1)
        if last is not None and last.kind is Kind.CONSOLE:
            for length in range(len(last.data), 0, -1):
                yield Progress(number - 1, last.tick, last.unit, last.data[:length])

    def _first_from(self, tick: int) -> int:
        """Return the number of the first event at or after `tick`."""
        chunks = self._trace.chunks
        at = bisect_left(chunks, tick, key=lambda chunk: chunk.last_tick)
        if at == len(chunks):
            return self._trace.event_count
        events = self._trace.events_in(at, _ALL)
        return chunks[at].number + bisect_left(events, tick, key=lambda event: event.tick)

    def _keep_those_that_agree(self, event: Event) -> None:
        kept: dict[Progress, _Way] = {}
        differs: Divergence | None = None
        for way in self._ways:
            try:
                way.see(event)
            except Divergence as e:
                differs = differs or e
            else:
                kept.setdefault(way.progress, way)
        if not kept:
            assert differs is not None
            raise differs
        self._ways = list(kept.values())


def describe(event: Event) -> str:
    """Return an event in words."""
    data = event.data[:16].hex() + ("..." if len(event.data) > 16 else "")
    return (
        f"{event.kind.name.lower().replace('_', ' ')} at tick {event.tick:,} "
        f"(unit {event.unit}, value {event.value:#x}{', data ' + data if data else ''})"
    )


def _difference(event: Event, expected: Event) -> str:
    if event.kind is Kind.IRQ and event._replace(data=b"") == expected._replace(data=b""):
        return ": the registers differ"
    return ""
