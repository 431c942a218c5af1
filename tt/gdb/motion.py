"""How gdb moves a timeline: steps and runs both ways, and why each of them stopped.

gdb has rules of its own about the place where a motion ends.  At a watchpoint going forward
that is right after the access, as in `tt.travel`; going backward it is right
before it, for gdb tells a change by comparing with the value that it saw last.
(`bpstat_check_watchpoint` in gdb: a hardware watchpoint whose value is as before
does not stop.)  So going backward undoes one more instruction, and the next
search begins with the instruction before where one stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tt.gdb.handlers import LONGEST_TICKS, Context, broke_in, interrupted_at, is_return, successor
from tt.travel import Timeline
from tt.travel.interrupts import deferred
from tt.travel.search import arrive_at, reverse_proceed
from tt.travel.stops import Arrival, Breakpoint, StopPoint, Stops, Watchpoint
from tt.travel.traps import Traps
from tt.vmm.linear import linear_pc

SIGINT, SIGTRAP = 2, 5
_SOFTWARE, _HARDWARE, _WRITE, _READ, _ACCESS = range(5)  # the kinds of Z packets
_BREAK_REASONS = {_SOFTWARE: b"swbreak", _HARDWARE: b"hwbreak"}
_WATCH_REASONS = {_WRITE: b"watch", _READ: b"rwatch", _ACCESS: b"awatch"}
_BEGIN, _END = b"begin", b"end"
_LOOK_EVERY = 256  # steps between two looks at the client


class Interrupted(Exception):
    """The client wants the guest to stop; raised out of `Timeline.progress`."""


@dataclass(frozen=True)
class Halt:
    """Why the guest stands still, in gdb's words: `reason` and `detail` go into the stop reply.

    `notes` are lines for the user.
    """

    reason: bytes = b""
    detail: bytes = b""
    signal: int = SIGTRAP
    notes: list[str] = field(default_factory=list)


class Motion:
    """Move `timeline` for gdb; it has stops of its own, which `close` takes away again.

    The owner sets `timeline.progress`, and raises `Interrupted` from there.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._others = timeline.stops
        self._numbers: dict[tuple[int, int, int], int] = {}
        self._kinds: dict[int, int] = {}
        self.physical = False  # what addresses are in `read`
        self.skips_handlers = True  # in steps
        timeline.stops = Stops()

    def close(self) -> None:
        """Give the timeline the stops back that it had."""
        self._timeline.stops = self._others

    # ---- breakpoints and watchpoints

    def insert(self, kind: int, addr: int, size: int) -> None:
        """Add a stop of a Z packet's kind; one that is there already stays.  Raises `UsageError`."""
        key = kind, addr, size
        if key in self._numbers:
            return
        point: StopPoint
        if kind in _BREAK_REASONS:
            point = Breakpoint(addr)
        else:
            point = Watchpoint(addr, size, reads=kind != _WRITE, writes=kind != _READ)
        number = self._timeline.stops.add(point)
        self._numbers[key] = number
        self._kinds[number] = kind

    def remove(self, kind: int, addr: int, size: int) -> None:
        """Take a stop away, if there is such a stop."""
        number = self._numbers.pop((kind, addr, size), None)
        if number is not None:
            self._timeline.stops.remove(number)
            del self._kinds[number]

    # ---- forward

    def step(self) -> Halt:
        """Execute one instruction."""
        return self._forward(lambda: self._steps(lambda _pc: False))

    def step_range(self, first: int, end: int) -> Halt:
        """Execute instructions until RIP leaves `first` to `end`, a range without its end."""
        return self._forward(lambda: self._steps(lambda pc: first <= pc < end))

    def go(self) -> Halt:
        """Run to the next stop, or to the end."""
        return self._forward(self._go)

    def seek(self, tick: int) -> Halt:
        """Go to `tick`."""
        return self._guarded(lambda: self._timeline.seek(tick))

    def back_to(self, tick: int) -> None:
        """Go to a known place; an interrupt that ended a search does not end this."""
        timeline = self._timeline
        report, timeline.progress = timeline.progress, None
        try:
            arrive_at(timeline, tick)
        finally:
            timeline.progress = report

    # ---- backward

    def reverse_step(self) -> Halt:
        """Undo one instruction."""
        return self._guarded(self._reverse_step)

    def reverse_go(self) -> Halt:
        """Go back to the last stop before here, or to the beginning."""
        return self._guarded(self._reverse_go)

    # ---- inside

    def _guarded(self, move: Callable[[], Halt | None]) -> Halt:
        """Run `move`; if it is interrupted, it has no effect."""
        origin = self._timeline.tick
        try:
            with deferred(self._timeline):
                return move() or Halt()
        except Interrupted:
            self.back_to(origin)
            return Halt(signal=SIGINT, notes=[f"tt: interrupted; still at tick {origin:,}"])

    def _forward(self, move: Callable[[], Halt]) -> Halt:
        """Run `move`; if it is interrupted, the timeline stays where it had come to."""
        timeline = self._timeline
        report = timeline.progress
        reached = timeline.tick

        def note(tick: int) -> None:
            nonlocal reached
            reached = max(reached, tick)
            if report is not None:
                report(tick)

        timeline.progress = note
        try:
            with deferred(timeline):
                return move()
        except Interrupted:
            self.back_to(reached)
            return Halt(signal=SIGINT)
        finally:
            timeline.progress = report

    def _go(self) -> Halt:
        timeline = self._timeline
        while timeline.tick < timeline.end_tick:
            arrival = timeline.proceed()
            if arrival.point is None:
                break
            if not self._passes(arrival):
                # gdb finds breakpoints by their address anyway; of watchpoints it must be told.
                return self._halt(_first(arrival, Watchpoint), arrival)
        return Halt(b"replaylog", _END)

    def _reverse_go(self) -> Halt:
        timeline = self._timeline
        if timeline.tick > 0 and self._watches:
            origin = timeline.tick
            halt = self._undo()
            if halt is not None:
                return halt
            arrive_at(timeline, origin)
        while timeline.tick > 0:
            arrival = timeline.reverse_proceed()
            if arrival.point is None:
                break
            if not self._passes(arrival):
                return self._arrived_back(arrival)
        return Halt(b"replaylog", _BEGIN)

    def _arrived_back(self, arrival: Arrival) -> Halt:
        """Return the answer to going back to `arrival`, and go to before an access.

        Where both are, the breakpoint comes first: it is before the next instruction, the
        access was in the one before.
        """
        point = _first(arrival, Breakpoint)
        if isinstance(point, Watchpoint):
            self._timeline.seek(arrival.tick - 1)
        return self._halt(point, arrival)

    def _reverse_step(self) -> Halt:
        """Undo one instruction, and with it the handler that came after it, if one did."""
        timeline = self._timeline
        while timeline.tick > 0:
            origin = timeline.tick
            halt = self._undo()
            if halt is not None:
                return halt
            if not self.skips_handlers or not is_return(timeline):
                return Halt()
            arrive_at(timeline, origin)
            halt = self._undo_handler()
            if halt is not None:
                return halt
        return Halt(b"replaylog", _BEGIN)

    def _undo(self) -> Halt | None:
        """Undo one instruction; tell of a watchpoint that it touched."""
        timeline = self._timeline
        timeline.reverse_step()
        if not self._watches:
            return None
        before = timeline.tick
        with self._armed(self._watches) as traps:
            touched = self._touched(traps)
        arrive_at(timeline, before)
        return touched

    def _undo_handler(self) -> Halt | None:
        """Go back to where a handler that ends here broke in; None if that was done.

        Else the answer to the step: a stop of the user's in the handler, or the handler's
        last instruction, where it did not break in here.
        """
        timeline = self._timeline
        origin = timeline.tick
        context = Context.of(timeline)
        own = context.breakpoint()
        until = max(0, origin - LONGEST_TICKS)
        interrupted = interrupted_at(timeline, context, until)
        arrive_at(timeline, origin)
        if interrupted is not None:
            until = interrupted
        arrival = reverse_proceed(timeline, [own], until=until)
        while arrival.point is not None and self._passes(arrival):
            arrival = reverse_proceed(timeline, [own], until=until)
        if arrival.point is not None:
            return self._arrived_back(arrival)
        if arrival.reason == "step":
            before = timeline.tick
            timeline.step()
            if broke_in(timeline, context):
                arrive_at(timeline, before)
                return None
        if interrupted is not None:
            arrive_at(timeline, interrupted)
            return None
        arrive_at(timeline, origin)
        timeline.reverse_step()
        return Halt()

    def _steps(self, goes_on: Callable[[int], bool]) -> Halt:
        """Execute one instruction, and more while `goes_on(pc)`."""
        timeline = self._timeline
        if timeline.tick == timeline.end_tick:
            return Halt(b"replaylog", _END)
        breaks = {point.addr: point for point in timeline.stops.active if isinstance(point, Breakpoint)}
        count = 0
        halt = None
        before = Context.of(timeline)
        while halt is None and timeline.tick < timeline.end_tick:
            touched = False
            with self._armed(self._watches) as traps:
                while timeline.tick < timeline.end_tick:
                    halt = self._touched(traps)
                    touched = halt is not None
                    if touched or (self.skips_handlers and broke_in(timeline, before)):
                        break
                    before = Context.of(timeline)
                    if before.pc in breaks:
                        halt = self._halt(breaks[before.pc])
                    elif not goes_on(before.pc):
                        halt = Halt()
                    if halt is not None:
                        break
                    count += 1
                    if count % _LOOK_EVERY == 0:
                        timeline.passing()
            if touched:
                arrive_at(timeline, timeline.tick)  # one may be on the way into a handler
            elif halt is None and timeline.tick < timeline.end_tick:
                halt = self._finish_handler(before)
                pc = linear_pc(timeline.machine.engine)
                if halt is None and pc != before.pc and not goes_on(pc):
                    halt = Halt()  # the handler did the instruction's work
                before = Context.of(timeline)
        return halt or Halt()

    def _finish_handler(self, before: Context) -> Halt | None:
        """Run a handler to its end, back to `before` or the instruction after it.

        None if that was done; else the answer to the step: a stop of the user's in the
        handler, or the beginning of the handler if there is no end of it.
        """
        timeline = self._timeline
        origin = timeline.tick
        last = min(origin + LONGEST_TICKS, timeline.end_tick)
        goals = {before.pc, successor(timeline, before)}
        own = [Breakpoint(pc) for pc in goals if pc is not None]
        users = timeline.stops.active
        arrived = None
        with self._armed([*own, *users]) as traps:
            while traps is not None and timeline.tick < last and arrived is None:
                stop = traps.run(last)
                for found in traps.found(stop):
                    if found.point in own:
                        if timeline.registers()["rsp"] == before.rsp:
                            arrived = found  # also where the user has a breakpoint: one began there
                            break
                    elif not self._is_silent(found.point, found.old, found.new):
                        arrived = arrived or found
        if arrived is None:
            arrive_at(timeline, origin)
            return Halt(notes=["tt: this is a handler that did not return soon"])
        arrive_at(timeline, timeline.tick)
        return None if arrived.point in own else self._halt(arrived.point)

    def _touched(self, traps: Traps | None) -> Halt | None:
        """Execute one instruction; tell of a watchpoint that it touched."""
        timeline = self._timeline
        machine = timeline.machine
        target = timeline.tick + 1
        halt = None
        while machine.tick < target:
            stop = timeline.run_on(target)
            if stop.reason == "watch" and traps is not None:
                for found in traps.found(stop):
                    if halt is None and not self._is_silent(found.point, found.old, found.new):
                        halt = self._halt(found.point)
        return halt

    @contextmanager
    def _armed(self, points: Sequence[StopPoint]) -> Iterator[Traps | None]:
        """Have the engine look at `points`, if there are any."""
        if not points:
            yield None
            return
        traps = Traps(self._timeline, points)
        with traps.armed():
            yield traps

    @property
    def _watches(self) -> list[Watchpoint]:
        return [point for point in self._timeline.stops.active if isinstance(point, Watchpoint)]

    def _passes(self, arrival: Arrival) -> bool:
        """Whether gdb would pass this stop anyway; of several at one tick it is asked."""
        points = arrival.points or (arrival.point,)
        return len(points) == 1 and self._is_silent(points[0], arrival.old, arrival.new)

    def _is_silent(self, point: StopPoint | None, old: bytes | None, new: bytes | None) -> bool:
        """Whether this was a store that left the watched bytes as they were."""
        return (
            point is not None and self._kinds.get(point.number) == _WRITE and old is not None and old == new
        )

    def _halt(self, point: StopPoint | None, arrival: Arrival | None = None) -> Halt:
        kind = self._kinds.get(point.number) if point is not None else None
        if isinstance(point, Watchpoint) and kind in _WATCH_REASONS:
            return Halt(_WATCH_REASONS[kind], b"%x" % point.addr)
        if kind in _BREAK_REASONS:
            return Halt(_BREAK_REASONS[kind])
        return Halt(notes=[f"tt: {arrival.detail}"] if arrival is not None and arrival.detail else [])

    # ---- looking

    def read(self, addr: int, size: int) -> bytes:
        """Return guest memory, virtual or (`physical`) physical; raises `IndexError` where there is none."""
        if self.physical:
            return self._timeline.machine.engine.read(addr, size)
        return self._timeline.read(addr, size)

    def resolve(self, text: str) -> int:
        """Return the tick that a typed position names; raises `UsageError`."""
        return self._timeline.trace.resolve(text, self._timeline.tick)


def _first(arrival: Arrival, kind: type[StopPoint]) -> StopPoint | None:
    """Return what stopped there, one of `kind` rather than another."""
    return next((point for point in arrival.points if isinstance(point, kind)), arrival.point)
