"""The engine's side of a search: where the engine must stop, and which stops it then stopped for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from tt.travel.stops import Breakpoint, Catchpoint, StopPoint, Watchpoint
from tt.vmm.linear import linear_pc
from tt.vmm.machine import Stop

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_MOST_NUMBERS = 64  # of system calls that the engine tells apart
_SLICE_S = 0.05  # how long to run before Ctrl-C is looked for: short enough that a person does not notice


@dataclass
class Found:
    """One stop for `point` at `tick`, its condition aside; see `Arrival` for the rest.

    `is_arrival`: the machine was in the state of the first arrival at the tick.
    """

    tick: int
    point: StopPoint
    detail: str = ""
    old: bytes | None = None
    new: bytes | None = None
    by: str = ""
    is_arrival: bool = True


class Traps:
    """Those of `points` that are found only by running the machine."""

    def __init__(self, timeline: Timeline, points: Sequence[StopPoint]) -> None:
        self._timeline = timeline
        self._breaks: dict[int, list[Breakpoint]] = {}
        self._watches = [p for p in points if isinstance(p, Watchpoint)]
        self._catches = [p for p in points if isinstance(p, Catchpoint) and not p.in_log]
        for point in points:
            if isinstance(point, Breakpoint):
                self._breaks.setdefault(point.addr, []).append(point)
        self._slice = 1_000_000

    @property
    def pages(self) -> set[int] | None:
        """The pages of RAM that must be stored to for any of them to stop; None where that cannot be told."""
        if self._breaks or self._catches or any(w.reads or not w.physical for w in self._watches):
            return None
        return {p for w in self._watches for p in range(w.addr >> 12, (w.addr + w.size - 1 >> 12) + 1)}

    def __bool__(self) -> bool:
        return bool(self._breaks or self._watches or self._catches)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Have the engine stop at them meanwhile; a stop at the current instruction counts as passed."""
        engine = self._timeline.machine.engine
        try:
            engine.set_breakpoints(sorted(self._breaks))
            engine.set_watchpoints([(w.addr, w.size, w.reads, w.writes, w.physical) for w in self._watches])
            engine.set_catches(self._numbers("syscall"), self._numbers("exception"))
            yield
        finally:
            disarm(self._timeline)

    def run(self, until: int) -> Stop:
        """Run forward to `until`, a stop, or for a short while; tell the timeline's progress."""
        timeline = self._timeline
        began, from_tick = perf_counter(), timeline.tick
        stop = timeline.run_on(min(until, from_tick + self._slice))
        took = perf_counter() - began
        if stop.reason == "tick":
            if stop.tick - from_tick == self._slice:
                self._slice = int(self._slice * min(4.0, max(0.25, _SLICE_S / (took + 1e-6)))) + 1000
            timeline.passing()
        elif timeline.progress is not None and took > _SLICE_S:
            timeline.progress(stop.tick)
        return stop

    def found(self, stop: Stop) -> Iterator[Found]:
        """Yield the points for which the machine stopped; it must still stand at the stop."""
        timeline = self._timeline
        if stop.reason == "watch":
            yield from self._watched(stop)
        elif stop.reason == "catch":
            yield from self._caught(stop)
        for point in self._breaks.get(linear_pc(timeline.machine.engine), ()) if self._breaks else ():
            detail = f"{point.name}, {point.describe()}"
            yield Found(stop.tick, point, detail, is_arrival=stop.is_arrival)

    def _watched(self, stop: Stop) -> Iterator[Found]:
        engine = self._timeline.machine.engine
        for index, was_read, was_written, old in engine.hits:
            watch = self._watches[index]
            new = self._value(watch)
            detail = _accessed(watch, was_read, was_written, old, new)
            yield Found(stop.tick, watch, detail, old, new, engine.hit_by, stop.is_arrival)

    def _caught(self, stop: Stop) -> Iterator[Found]:
        caught = self._timeline.machine.engine.caught
        assert caught is not None
        what, which = caught
        for point in self._catches:
            if point.what == what and point.number_wanted in (None, which):
                detail = f"{point.name}: {_called(what, which)}"
                yield Found(stop.tick, point, detail, is_arrival=stop.is_arrival and what == "syscall")

    def _numbers(self, what: str) -> list[int] | None:
        """Return what to catch, as `Engine.set_catches` takes it."""
        wanted = [point.number_wanted for point in self._catches if point.what == what]
        if not wanted:
            return None
        numbers = sorted({n for n in wanted if n is not None})
        return [] if None in wanted or len(numbers) > _MOST_NUMBERS else numbers

    def _value(self, watch: Watchpoint) -> bytes | None:
        try:
            if watch.physical:
                return self._timeline.machine.engine.read(watch.addr, watch.size)
            return self._timeline.read(watch.addr, watch.size)
        except IndexError:
            return None


def disarm(timeline: Timeline) -> None:
    """Have the engine stop at nothing."""
    engine = timeline.machine.engine
    engine.set_breakpoints([])
    engine.set_watchpoints([])
    engine.set_catches(None, None)


def number(value: bytes | None) -> str:
    """Return bytes as people read them: a number up to 8 of them, else hex."""
    if value is None:
        return "unreadable"
    return f"{int.from_bytes(value, 'little'):#x}" if len(value) <= 8 else value.hex()


def _accessed(
    watch: Watchpoint, was_read: bool, was_written: bool, old: bytes | None, new: bytes | None
) -> str:
    what = f"{watch.name}, {watch.describe()}"
    if not was_written:
        return f"{what}: read, {number(new)}"
    return f"{what}: {'read, ' if was_read else ''}{number(old)} -> {number(new)}"


_EXCEPTIONS = {
    0: "divide error", 1: "debug", 2: "non-maskable interrupt", 3: "breakpoint", 4: "overflow",
    5: "bound range", 6: "invalid opcode", 7: "device not available", 8: "double fault", 10: "invalid TSS",
    11: "segment not present", 12: "stack fault", 13: "general protection", 14: "page fault",
    16: "floating point", 17: "alignment check", 18: "machine check", 19: "SIMD floating point",
}  # fmt: skip


def _called(what: str, which: int) -> str:
    if what == "syscall":
        return f"system call {which}"
    name = _EXCEPTIONS.get(which)
    return f"exception {which} ({name})" if name else f"exception {which}"
