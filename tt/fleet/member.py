"""One machine among several: it runs to a horizon of guest time, and stands still where it only waits."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tt.net.port import Ports
from tt.vmm.live import LiveSource


class Member(LiveSource):
    """The source of a machine that others may send frames to.

    It runs while its time is before `horizon_ns`: all frames that arrive before that are known.  A
    guest that idles beyond it is `parked`: its time stands still where it is, so that hours of
    idling are one event, however short the windows are.
    """

    def __init__(self, ports: Ports, script: Sequence[bytes] = (), prompts: bool = True) -> None:
        super().__init__(script=script, prompts=prompts, network=ports)
        self.ports = ports
        self.horizon_ns = 0
        self.parked = False
        self.wakes_ns: int | None = None
        """When a parked machine goes on by itself or gets a frame, None: never."""
        self.over = False
        """Whether the guest stood at a prompt with no line of the script left."""

    def open(self, horizon_ns: int) -> bool:
        """Let the machine run to `horizon_ns`; return whether it has anything to do before that."""
        self.horizon_ns = horizon_ns
        if self.parked:
            wakes = [at for at in (self.wakes_ns, self.ports.due_ns(self.now_ns())) if at is not None]
            self.wakes_ns = min(wakes, default=None)
            if self.wakes_ns is None or self.wakes_ns > horizon_ns:
                return False
        self.parked = False
        self.ports.open()
        return True

    @property
    def reached(self) -> bool:
        """Whether the machine has nothing more to do before the horizon."""
        return self.parked or self.now_ns() >= self.horizon_ns

    @property
    def next_ns(self) -> int | None:
        """The guest time before which this machine sends nothing, None: it never will by itself."""
        return self.wakes_ns if self.parked else self.now_ns()

    @property
    def wants_air(self) -> bool:
        """Whether it is time to commit."""
        return time.monotonic() >= self._air_at

    # ---- from the machine

    def next_input(self, tick: int) -> int | None:
        """Return the tick of the next frame or line, or of the horizon."""
        due = super().next_input(tick)
        horizon = max(tick, self.ticks_until(self.horizon_ns))
        return horizon if due is None else min(due, horizon)

    def wants_pause(self, tick: int) -> bool:
        """Whether the horizon is reached, or it is time to commit."""
        return self.reached or super().wants_pause(tick)

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Let time pass to what comes next, if that is before the horizon."""
        now = self.now_ns()
        if now >= self.horizon_ns:
            return None
        if self.ports.blocked:
            self.ports.open()  # the guest has run since
        if self.ports.poll(now):
            return 0
        due = self.ports.due_ns(now)
        wakes = [at for at in (due, None if most_ns is None else now + most_ns) if at is not None]
        next_ns = min(wakes, default=None)
        left_ns = None if next_ns is None else next_ns - now
        if self._waits(left_ns if tick != self._polled_at else None):
            self._serve_prompt()
            return 0
        if left_ns is None or now + left_ns > self.horizon_ns:
            self.parked, self.wakes_ns = True, next_ns
            return None
        return left_ns

    def _serve_prompt(self) -> None:
        if self._script:
            super()._serve_prompt()
        else:  # it goes on for the others: whether all are over, their owner sees
            self.over = self.forever = True
