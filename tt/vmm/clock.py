"""Guest time, and the timers that devices hang on it.

Guest time is virtual: `tick * period_ns + idle_ns`.  Nothing here reads a host
clock; with `--clock host` the *answers* of guest clocks change, not this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
        """Put a saved state back."""
        self.period_ns = state["period_ns"]
        self.idle_ns = state["idle_ns"]
        for t in self.timers:
            t.deadline = state["timers"][t.name]
        self.changed()
