"""The one door: whatever the guest could not have computed by itself passes here.

This is µDenali's third interface (Whitaker et al., NSDI'04, section 3: "tracking
nondeterminism"): anyone can subscribe, and is told of every nondeterministic
event with the exact tick at which it happened.  The recorder is one subscriber.

Three kinds of traffic:

- *notes*: something happened to the guest that virtual time would let us
  recompute (a timer interrupt, a batch of events, a disk write).  They are
  logged all the same, so that a replay can check itself against them.
- *answers*: the guest asked for something from outside (entropy, a host clock).
- *inputs*: something happened outside and reaches the guest at a tick (a key).

What the parents of a machine do (`tt.vmm.router`) is told here too.

A `Source` is where answers and inputs come from: the live host, or a trace.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Protocol

from tt.events import Event, Kind
from tt.vmm.clock import Clock

Subscriber = Callable[[Event], None]


class Source(Protocol):
    """Where answers and inputs come from."""

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return the answer to a question the guest asks at `tick`."""
        ...

    def next_input(self, tick: int) -> int | None:
        """Return the tick at which the next input is due (>= `tick`), or None."""
        ...

    def take_inputs(self, tick: int) -> list[Event]:
        """Return, and forget, the inputs that are due at `tick`."""
        ...

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Say how much of an idle guest's time passes now; may sleep meanwhile.

        `most_ns` is the guest time until it wakes by itself, None if it never
        does.  Returns ns (fewer than `most_ns` if an input came first), or None
        where none passes: its owner wants it back, or nothing will ever wake it.
        """
        ...

    def polled(self, tick: int) -> bool:
        """Whether a guest that looks for input again and again, in vain, is to be taken for an idle one.

        `idle` is asked then; time that passes must not be recorded, for no replay stops there.
        """
        ...

    def wants_pause(self, tick: int) -> bool:
        """Whether the machine is to stop running and return to its owner."""
        ...


class Quiet:
    """A source with no inputs; questions are answered live."""

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        return live()

    def next_input(self, tick: int) -> int | None:
        return None

    def take_inputs(self, tick: int) -> list[Event]:
        return []

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        return most_ns

    def polled(self, tick: int) -> bool:
        return False

    def wants_pause(self, tick: int) -> bool:
        return False


class Door:
    """The door of one machine.

    `tick` answers the exact instruction count at the moment of the call; `clock` is
    the machine's (needed only where something is to be done `after` some time).
    """

    def __init__(
        self, tick: Callable[[], int], source: Source | None = None, clock: Clock | None = None
    ) -> None:
        self.source: Source = source or Quiet()
        self.on_after: Callable[[], None] = lambda: None
        """Told when there is something to do between two instructions: the machine comes back soon."""
        self.between_instructions = False
        """Whether things that were put off with `after` are being done."""
        self._tick = tick
        self._clock = clock
        self._subscribers: list[Subscriber] = []
        self._later: list[tuple[int, int, Callable[[], None]]] = []  # a heap of (guest ns, order, what)
        self._order = 0
        self._looked: int | None = None  # the tick at which inputs were taken last, and no time passed since

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of every event from now on."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop telling `subscriber`."""
        self._subscribers.remove(subscriber)

    def note(self, kind: Kind, unit: int = 0, value: int = 0, data: bytes = b"") -> None:
        """Tell the subscribers that something happened now."""
        if self._subscribers:
            self._tell(Event(self._tick(), kind, unit, value, data))

    def ask(self, kind: Kind, live: Callable[[], bytes], unit: int = 0) -> bytes:
        """Return an answer from outside: `live()` on a live machine, the record in replay."""
        tick = self._tick()
        data = self.source.answer(tick, kind, unit, live)
        self._tell(Event(tick, kind, unit, 0, data))
        return data

    def recall(self, kind: Kind, unit: int) -> bytes:
        """Return what the record says came from outside now, and tell it; empty on a live machine."""
        tick = self._tick()
        data = self.source.answer(tick, kind, unit, lambda: b"")
        if data:
            self._tell(Event(tick, kind, unit, 0, data))
        return data

    def after(self, ns: int, do: Callable[[], None]) -> None:
        """Call `do` where the machine takes inputs, once `ns` of guest time have passed.

        For parents on a live machine: what they do then is told as events of their own.
        """
        when = self._clock.now() + ns if self._clock is not None and ns > 0 else 0
        self._order += 1
        heapq.heappush(self._later, (when, self._order, do))
        self.on_after()

    @property
    def has_later(self) -> bool:
        """Whether something was put off with `after`."""
        return bool(self._later)

    def next_later(self) -> int | None:
        """Return the tick at which something that was put off with `after` can be done, or None."""
        if not self._later:
            return None
        tick = self._tick()
        due = self._clock.ticks_until(self._later[0][0]) if self._clock is not None else tick
        return max(due, tick if self._looked != tick else tick + 1)

    def next_input(self) -> int | None:
        """Return the tick at which the next input is due, or None."""
        tick = self._tick()
        due, later = self.source.next_input(tick), self.next_later()
        if due is not None and self._looked == tick:
            due = max(due, tick + 1)  # typed since: a replay would give it before what has happened here
        return due if later is None else later if due is None else min(due, later)

    def take_inputs(self) -> Iterator[Event]:
        """Yield the inputs due now, having told the subscribers of each.

        One after the other, so that what an input does at once is told before the next.
        Once a tick, first of all, and again when time has passed: a replay takes what is
        recorded at a tick as soon as it is there, and has to find the machine as it was.
        """
        tick = self._tick()
        if self._looked == tick:
            return
        self._looked = tick
        self._do_later()
        for event in self.source.take_inputs(tick):
            event = event._replace(tick=tick)
            self._tell(event)
            yield event

    def within(self, most_ns: int | None) -> int | None:
        """Return how long an idle guest may sleep at most (ns), where it would sleep for `most_ns`.

        What was put off with `after` ends it, too; what could not be done at this
        tick any more is done a moment later.
        """
        if not self._later:
            return most_ns
        now = self._clock.now() if self._clock is not None else 0
        wait = max(self._later[0][0] - now, 1)
        return wait if most_ns is None else min(most_ns, wait)

    def look_again(self) -> None:
        """Take inputs at this tick once more: time has passed, or the machine was put here."""
        self._looked = None

    def wants_pause(self) -> bool:
        """Whether the machine is to stop running and return to its owner."""
        return self.source.wants_pause(self._tick())

    def _do_later(self) -> None:
        now = self._clock.now() if self._clock is not None else 0
        self.between_instructions = True
        try:
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
        finally:
            self.between_instructions = False

    def _tell(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)
