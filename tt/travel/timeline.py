"""A place in a recording, and ways to other places: forwards, backwards, to whatever happened.

Everything that shows or searches a recording stands on this.  A timeline owns
a machine; going back means restoring a checkpoint and running forward again, so
every place is the same however it was reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tt.errors import Divergence, UsageError
from tt.log import Trace
from tt.record import state_digest
from tt.replay import TraceSource, config_of, extract_embedded
from tt.travel.checkpoints import CheckpointStore
from tt.vmm.config import build_machine, open_disks
from tt.vmm.machine import Machine, Stop

MEMORY_BUDGET = 1 << 30
SPACING_TICKS = 20_000_000
_FINEST_TICKS = 20_000


@dataclass(frozen=True)
class Write:
    """One store to watched bytes: the instruction at `rip` retired as tick `tick`.

    `old` and `new` are the watched bytes before and after it.
    """

    tick: int
    rip: int
    old: bytes
    new: bytes


class Timeline:
    """The whole of a recording, and one place in it.

    `tick` is where one stands.  With `checkpoints` False nothing is kept, and
    going back starts from power-on.  `progress(tick)` is told now and then
    during long ways.  Raises `BadInput` as opening the trace's disks does.
    """

    def __init__(
        self,
        trace: Trace,
        bases: dict[int, Path] | None = None,
        *,
        checkpoints: bool = True,
        memory_budget: int = MEMORY_BUDGET,
        spacing_ticks: int = SPACING_TICKS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.trace = trace
        self.breakpoints: set[int] = set()
        self.watchpoints: set[tuple[int, int, bool, bool, bool]] = set()
        config = config_of(trace)
        disks = open_disks(config, bases or extract_embedded(trace, config))
        self.machine: Machine = build_machine(config, disks, TraceSource(trace))
        self._keep = checkpoints
        self._spacing = spacing_ticks
        self._progress = progress
        self._store = CheckpointStore(self.machine, memory_budget)
        self._digests = dict(trace.digests())
        self._checked: set[int] = set()

    # ---- where one stands

    @property
    def tick(self) -> int:
        """The tick where one stands."""
        return self.machine.tick

    @property
    def end_tick(self) -> int:
        """The last tick of the recording."""
        return self.trace.end_tick

    @property
    def checkpoint_ticks(self) -> list[int]:
        """The ticks that are kept in memory."""
        return self._store.ticks

    def registers(self) -> dict[str, int]:
        """Return the CPU's registers by name."""
        return self.machine.engine.registers()

    def read(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at the guest's virtual `addr`; raises `IndexError` where nothing is mapped."""
        return self.machine.engine.read_virtual(addr, size)

    def digest(self) -> bytes:
        """Return the 16-byte digest of the whole state."""
        return self.machine.digest()

    # ---- going somewhere

    def seek(self, tick: int) -> None:
        """Go to `tick`, wherever it is; raises `UsageError` when the recording has no such tick."""
        if not 0 <= tick <= self.end_tick:
            raise UsageError(f"tick {tick:,} is not in the recording: it has 0 to {self.end_tick:,}")
        nearest = self._store.nearest(tick)
        if tick < self.tick or nearest > self.tick:
            self._restore(nearest)
        self._forward(tick)

    def step(self, count: int = 1) -> None:
        """Go `count` instructions forward, at most to the end."""
        self.seek(min(self.tick + count, self.end_tick))

    def reverse_step(self, count: int = 1) -> None:
        """Go `count` instructions back, at most to power-on."""
        target = max(self.tick - count, 0)
        nearest = self._store.nearest(target)
        if self._keep and target - nearest > _FINEST_TICKS:
            # Whoever steps back once does it again: leave a place to stand close by.
            self.seek(max(nearest, target - _FINEST_TICKS // 2))
            self._store.take()
        self.seek(target)

    def run_until(self, predicate: Callable[[Timeline], bool], every_ticks: int = 1) -> bool:
        """Go forward until `predicate(self)` holds, asked each `every_ticks`; false if it never does."""
        while self.tick < self.end_tick:
            self.step(every_ticks)
            if predicate(self):
                return True
        return False

    # ---- breakpoints and watchpoints

    def proceed(self) -> Stop:
        """Go forward to the next breakpoint or watchpoint, or to the end."""
        return self._trapped(self.end_tick) or Stop("tick", self.tick)

    def reverse_proceed(self) -> Stop:
        """Go back to the last breakpoint or watchpoint before here, or to power-on.

        At a breakpoint one stands before its instruction; at a watchpoint right
        after the one that touched the bytes.
        """
        end = self.tick
        while end > 0:
            begin = self._store.nearest(end - 1)
            found = self._last_in(begin, end)
            if found is not None:
                self.seek(found.tick)
                return found
            end = begin
        self.seek(0)
        return Stop("tick", 0)

    def last_write(self, addr: int, size: int = 8, *, physical: bool = False) -> Write | None:
        """Return the last store to `size` bytes at `addr` before here, and go to right after it.

        None, standing at power-on, if nothing wrote there.
        """
        watches, breaks = self.watchpoints, self.breakpoints
        self.watchpoints, self.breakpoints = {(addr, size, False, True, physical)}, set()
        try:
            found = self.reverse_proceed()
        finally:
            self.watchpoints, self.breakpoints = watches, breaks
        if found.reason != "watch":
            return None
        read = self.machine.engine.read if physical else self.machine.engine.read_virtual
        tick, new = self.tick, read(addr, size)
        self.seek(tick - 1)
        old, rip = read(addr, size), self.registers()["rip"]
        self.seek(tick)
        return Write(tick, rip, old, new)

    # ---- inside

    def _restore(self, tick: int) -> None:
        self._store.restore(tick)
        self.machine.door.source = TraceSource(self.trace, tick)

    def _forward(self, tick: int) -> None:
        """Run to `tick` with nothing to stop at, leaving checkpoints on new ground."""
        while self.tick < tick:
            known = self._store.nearest(self.tick)
            target = min(tick, known + self._spacing) if self._keep else tick
            if target <= self.tick:
                target = min(tick, self.tick + self._spacing)
            checked = [t for t in self._digests if self.tick < t <= target and t not in self._checked]
            target = min([target, *checked])
            stop = self.machine.run(target)
            if stop.reason != "tick":
                raise Divergence(
                    f"replay diverges at tick {stop.tick:,}: the machine stops "
                    f"({stop.detail or stop.reason}), the record goes on to {tick:,}"
                )
            self._check_digest()
            if self._keep and self.tick - self._store.nearest(self.tick) >= self._spacing:
                self._store.take()
            if self._progress is not None:
                self._progress(self.tick)

    def _check_digest(self) -> None:
        """Compare with the record's digest of this tick, once."""
        tick = self.tick
        is_final = tick == self.end_tick and bool(self.trace.summary.get("ended"))
        if tick not in self._digests or tick in self._checked or is_final:
            return
        if state_digest(self.machine) != self._digests[tick]:
            raise Divergence(f"replay diverges before tick {tick:,}: the state's digest differs")
        self._checked.add(tick)

    def _trapped(self, until: int) -> Stop | None:
        """Run to a breakpoint or watchpoint, at most to `until`; None if there was none."""
        engine = self.machine.engine
        engine.set_breakpoints(sorted(self.breakpoints))
        engine.set_watchpoints(sorted(self.watchpoints))
        try:
            while self.tick < until:
                stop = self.machine.run(min(until, self.tick + self._spacing))
                if stop.reason in ("break", "watch"):
                    return stop
                if stop.reason != "tick":
                    return None
                if self._progress is not None:
                    self._progress(self.tick)
        finally:
            engine.set_breakpoints([])
            engine.set_watchpoints([])
        return None

    def _last_in(self, begin: int, end: int) -> Stop | None:
        """Find the last stop in ticks (`begin`, `end`): later halves first, so busy places cost little."""
        if end - begin > _FINEST_TICKS:
            middle = (begin + end) // 2
            self.seek(middle)
            if self._keep:
                self._store.take()
            return self._last_in(middle, end) or self._last_in(begin, middle + 1)
        self.seek(begin)
        found = None
        while (stop := self._trapped(end)) is not None and stop.tick < end:
            found = stop
        return found
