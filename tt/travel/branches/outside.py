"""The outside of a fork: the live host, or what the parent recorded, or both."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from tt.events import ANSWERS, INPUTS, Event, Kind
from tt.log import Trace
from tt.vmm.live import LiveSource

BREATHE_EVERY_S = 0.1
"""How often a running fork pauses: for progress, Ctrl-C and commits."""
BY_NETWORK = frozenset({Kind.FRAME_IN, Kind.LINK})
"""The inputs that come by a network."""


class KeptInputs:
    """What a trace holds from `tick` on: its inputs, each at its tick, and its answers where they still fit.

    The first `answered` of the answers at `tick` itself were given already.  As long as the
    guest does what it did in the trace, all of it fits, and so does how long it idled.
    Without `frames`, what came by the network is left out.
    """

    def __init__(self, trace: Trace, tick: int, answered: int, frames: bool = True) -> None:
        self._inputs = trace.events(tick, kinds=INPUTS if frames else INPUTS - BY_NETWORK)
        self._answers: Iterator[Event] = islice(trace.events(tick, kinds=ANSWERS), answered, None)
        self._input = next(self._inputs, None)
        self._answer = next(self._answers, None)

    def answer(self, tick: int, kind: Kind, unit: int) -> bytes | None:
        """Return what was answered to this very question, or None."""
        while self._answer is not None and self._answer.tick < tick:
            self._answer = next(self._answers, None)
        event = self._answer
        if event is None or (event.tick, event.kind, event.unit) != (tick, kind, unit):
            return None
        self._answer = next(self._answers, None)
        return event.data

    def next_input(self, tick: int, *, past_idling: bool = False) -> int | None:
        """Return the tick of the next input, or None; `past_idling` also looks beyond recorded idling."""
        self._forget_idling(None if past_idling else tick)
        event = self._input
        return None if event is None or event.kind is Kind.WAKE else max(tick, event.tick)

    def take_input(self) -> Event:
        """Return the next input and forget it; only after `next_input` has returned a tick."""
        event = self._input
        assert event is not None and event.kind is not Kind.WAKE
        self._input = next(self._inputs, None)
        return event

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Return how long the guest idled at `tick`, or None where it did not."""
        self._forget_idling(tick)
        event = self._input
        if event is None or event.kind is not Kind.WAKE or event.tick != tick:
            return None
        self._input = next(self._inputs, None)
        return event.value if most_ns is None else min(event.value, most_ns)

    def _forget_idling(self, before: int | None) -> None:
        """Drop recorded idling before tick `before`: the guest did not repeat it; None: up to an input."""
        while self._input is not None and self._input.kind is Kind.WAKE:
            if before is not None and self._input.tick >= before:
                return
            self._input = next(self._inputs, None)


class BranchSource(LiveSource):
    """Answers and inputs of a fork: given now, typed at given ticks, and `kept` ones of the parent.

    The host never waits while the guest idles, unless it is told to `pace`.  If nothing
    wakes the guest, it gets the next input at once, whichever tick that was meant for.
    """

    def __init__(self, kept: KeptInputs | None = None, script: Sequence[bytes] = ()) -> None:
        super().__init__(script=script, forever=True)
        self._kept = kept
        self._given: deque[Event] = deque()
        self._later: list[tuple[int, int, bytes]] = []  # a heap of (tick, order, data)
        self._order = 0
        self._early: list[Event] = []
        self._breathe_at = 0.0

    def type_at(self, tick: int, data: bytes) -> None:
        """Type `data` at `tick`, or as soon as a later one is reached."""
        self._order += 1
        heapq.heappush(self._later, (tick, self._order, data))

    def give(self, event: Event) -> None:
        """Give the guest an input now."""
        self._given.append(event)

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return the parent's answer where it fits, else a live one."""
        fresh = live()
        kept = None if self._kept is None else self._kept.answer(tick, kind, unit)
        if kept is None or (len(kept) != len(fresh) and kind is not Kind.PARENT):
            return fresh
        return kept

    def next_input(self, tick: int) -> int | None:
        """Return the tick at which the next input is due, or None."""
        due = [super().next_input(tick), self._later[0][0] if self._later else None]
        if self._given:
            due.append(tick)
        if self._kept is not None:
            due.append(self._kept.next_input(tick))
        return min((max(tick, t) for t in due if t is not None), default=None)

    def take_inputs(self, tick: int) -> list[Event]:
        """Return the inputs due at `tick`: the parent's, those typed for a tick, those given or typed now."""
        inputs, self._early = self._early, []
        while self._kept is not None and self._kept.next_input(tick) == tick:
            inputs.append(self._kept.take_input())
        while self._later and self._later[0][0] <= tick:
            inputs.append(Event(tick, Kind.INPUT, 0, 0, heapq.heappop(self._later)[2]))
        while self._given:
            inputs.append(self._given.popleft())
        return inputs + super().take_inputs(tick)

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Jump to the next timer; see `Source.idle`."""
        kept = self._kept if tick != self._polled_at else None
        passed = None if kept is None else kept.idle(tick, most_ns)
        if passed is not None:
            return passed
        if most_ns is None and self._hurry(tick):
            return 0
        return super().idle(tick, most_ns)

    def wants_pause(self, tick: int) -> bool:
        """Whether it is time for the next pause."""
        return self.stop_requested or time.monotonic() >= self._breathe_at

    def breathed(self) -> None:
        """Note that the owner has done what a pause is for."""
        super().breathed()
        self._breathe_at = time.monotonic() + BREATHE_EVERY_S

    def _hurry(self, tick: int) -> bool:
        """Make the next input due now, since no tick will ever follow this one; false if there is none."""
        later = self._later[0][0] if self._later else None
        kept = None if self._kept is None else self._kept.next_input(tick, past_idling=True)
        if self._kept is not None and kept is not None and (later is None or kept <= later):
            self._early.append(self._kept.take_input())
        elif later is not None:
            self._early.append(Event(tick, Kind.INPUT, 0, 0, heapq.heappop(self._later)[2]))
        return bool(self._early)
