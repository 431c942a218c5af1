"""Guest time, and the timers that devices hang on it.

Guest time is virtual: `tick * period_ns + idle_ns`.  Nothing here reads a host
clock; with `--clock host` the *answers* of guest clocks change, not this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tt.vmm.state import Ns, misfit, unpack


class Timer:
    """A one-shot timer: `fire` is called once guest time reaches `deadline` (ns)."""

    __slots__ = ("name", "index", "deadline", "_clock", "_fire")

    def __init__(self, clock: Clock, name: str, index: int, fire: Callable[[], None]) -> None:
        self.name = name
        self.index = index
        self.deadline: int | None = None
        self._clock = clock
        self._fire = fire

    def arm(self, when_ns: int) -> None:
        """Fire at guest time `when_ns`; a time already past fires at the next chance."""
        self.deadline = when_ns
        self._clock.changed()

    def disarm(self) -> None:
        """Do not fire."""
        if self.deadline is not None:
            self.deadline = None
            self._clock.changed()

    def fire(self) -> None:
        """Disarm, then do what the timer is for."""
        self.deadline = None
        self._clock.changed()
        self._fire()


@dataclass
class State:
    """What a saved clock has beside its timers."""

    period_ns: Ns = 4
    idle_ns: Ns = 0


@dataclass
class Deadline:
    """Guest time at which a timer expires; None: it is not armed."""

    ns: Ns | None = None


class Clock:
    """Guest time for one machine.

    `tick` answers the exact instruction count at the moment of the call;
    `on_change` is told whenever the earliest deadline may have moved.
    """

    def __init__(self, tick: Callable[[], int], period_ns: int = 4) -> None:
        self.period_ns = period_ns
        self.idle_ns = 0
        self.timers: list[Timer] = []
        self.on_change: Callable[[], None] = lambda: None
        self._tick = tick

    def now(self) -> int:
        """Return guest time in ns since power-on."""
        return self._tick() * self.period_ns + self.idle_ns

    def timer(self, name: str, fire: Callable[[], None]) -> Timer:
        """Create a timer; `name` must be unique in the machine."""
        timer = Timer(self, name, len(self.timers), fire)
        self.timers.append(timer)
        return timer

    def changed(self) -> None:
        """Tell the machine that the earliest deadline may have moved."""
        self.on_change()

    def next_deadline(self) -> int | None:
        """Return the earliest armed deadline in guest ns, or None."""
        return min((t.deadline for t in self.timers if t.deadline is not None), default=None)

    def due(self) -> list[Timer]:
        """Return the timers whose deadline has passed, earliest first (ties by creation order)."""
        now = self.now()
        late = [t for t in self.timers if t.deadline is not None and t.deadline <= now]
        return sorted(late, key=lambda t: (t.deadline, t.index))

    def ticks_until(self, when_ns: int) -> int:
        """Return the first tick at which guest time has reached `when_ns`."""
        return max(0, -(-(when_ns - self.idle_ns) // self.period_ns))

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "period_ns": self.period_ns,
            "idle_ns": self.idle_ns,
            "timers": {t.name: t.deadline for t in self.timers},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState` when it is not one of this clock."""
        if not isinstance(state, dict) or not isinstance(timers := state.get("timers"), dict):
            raise misfit("the clock", "a table with timers was expected")
        saved = unpack(State, {name: state[name] for name in state if name != "timers"}, "the clock")
        if saved.period_ns != self.period_ns:
            raise misfit("the clock.period_ns", f"{saved.period_ns} instead of {self.period_ns}")
        if timers.keys() != {t.name for t in self.timers}:
            raise misfit("the clock.timers", "one deadline for each timer was expected")
        deadlines = {
            name: unpack(Deadline, {"ns": value}, f"the clock.timers.{name}").ns
            for name, value in timers.items()
        }
        self.idle_ns = saved.idle_ns
        for t in self.timers:
            t.deadline = deadlines[t.name]
        self.changed()
