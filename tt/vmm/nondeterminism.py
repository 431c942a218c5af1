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

A `Source` is where answers and inputs come from: the live host, or a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from tt.events import Event, Kind

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

    def wants_pause(self, tick: int) -> bool:
        return False


class Door:
    """The door of one machine.

    `tick` answers the exact instruction count at the moment of the call.
    """

    def __init__(self, tick: Callable[[], int], source: Source | None = None) -> None:
        self.source: Source = source or Quiet()
        self._tick = tick
        self._subscribers: list[Subscriber] = []

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

    def next_input(self) -> int | None:
        """Return the tick at which the next input is due, or None."""
        return self.source.next_input(self._tick())

    def take_inputs(self) -> Iterator[Event]:
        """Yield the inputs due now, having told the subscribers of each.

        One after the other, so that what an input does at once is told before the next.
        """
        tick = self._tick()
        for event in self.source.take_inputs(tick):
            event = event._replace(tick=tick)
            self._tell(event)
            yield event

    def wants_pause(self) -> bool:
        """Whether the machine is to stop running and return to its owner."""
        return self.source.wants_pause(self._tick())

    def _tell(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)
