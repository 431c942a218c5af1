"""Random walks through a recording, every place on the way compared with one straight replay."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tt.errors import TTError, UsageError
from tt.log import Trace
from tt.replay import Replay
from tt.travel import Timeline, search
from tt.travel.sources import Origin
from tt.travel.stops import Arrival, Breakpoint, Catchpoint, StopPoint, Watchpoint
from tt.travel.writes import Write
from tt.vmm.linear import linear_pc

ADDRESS_REGISTERS = ("rsp", "rbp", "rsi", "rdi", "rbx", "rax", "rdx", "r12")
EDITED_REGISTERS = ("rax", "rbx", "rcx", "r9", "rip", "rflags", "rsp")


class Interrupted(Exception):
    """What a person's Ctrl-C would raise, out of `progress`."""


@dataclass
class Reference:
    """What a straight replay without any travel shows: digests by tick, and places to stop at.

    `seen` are the digests of ticks that only walks were at; `confirm` replays those too.
    """

    trace: Trace
    digests: dict[int, bytes] = field(default_factory=dict)
    ticks: list[int] = field(default_factory=list)
    pcs: list[int] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)
    seen: dict[int, bytes] = field(default_factory=dict)

    def check(self, tick: int, digest: bytes) -> None:
        """Compare with the replay, or with the last time that somebody was there."""
        known = self.digests.get(tick) or self.seen.setdefault(tick, digest)
        assert digest == known, f"at tick {tick:,} the state is {digest.hex()}, it was {known.hex()}"

    def confirm(self) -> int:
        """Replay once through all that was seen since the last time; return how many ticks."""
        fresh = sorted(self.seen)
        replay = Replay(self.trace)
        for tick in fresh:
            replay.run_to(tick)
            digest = replay.machine.digest()
            assert self.seen[tick] == digest, f"walks agree on tick {tick:,}, a straight replay does not"
            self.digests[tick] = digest
        self.seen.clear()
        return len(fresh)


def reference(trace: Trace, count: int, events: int) -> Reference:
    """Replay `trace` once, noting the state at `count` random ticks and around `events` events."""
    chance = random.Random(f"{trace.end_tick} {count}")
    happened = sorted({event.tick for event in trace.events()})
    chosen = happened if len(happened) <= events else chance.sample(happened, events)
    ticks = {0, 1, trace.end_tick - 1, trace.end_tick}
    ticks |= {chance.randrange(trace.end_tick) for _ in range(count)}
    ticks |= {tick + near for tick in chosen for near in (-1, 0, 1)}
    found = Reference(trace, ticks=sorted(tick for tick in ticks if 0 <= tick <= trace.end_tick))
    replay = Replay(trace)
    pcs: dict[int, None] = {}
    addresses: dict[int, None] = {}
    for tick in found.ticks:
        replay.run_to(tick)
        found.digests[tick] = replay.machine.digest()
        registers = replay.machine.engine.registers()
        pcs[registers["rip"]] = None
        addresses[registers[chance.choice(ADDRESS_REGISTERS)]] = None
    found.pcs, found.addresses = list(pcs), list(addresses)
    return found


class Walker:
    """A timeline that goes about at random, looking hard at every place.

    `openings` are ways to open one (a trace, and the options of `Timeline`), changed
    now and then.  Searches go at most `span` ticks far.
    """

    def __init__(
        self,
        reference: Reference,
        openings: Sequence[tuple[Trace, dict[str, Any]]],
        seed: int,
        folder: Path,
        *,
        span: int,
        bases: dict[int, Path] | None = None,
        forks: int = 2,
    ) -> None:
        self.reference = reference
        self.span = span
        self.did: Counter[str] = Counter()
        self._openings = openings
        self._bases = bases
        self._seed = seed
        self._folder = folder
        self._chance = random.Random(seed)
        self._story: deque[str] = deque(maxlen=25)
        self._end = reference.trace.end_tick
        self._cycles: dict[Callable[[], None], int] = {
            self.far: 12,
            self.near: 12,
            self.step: 10,
            self.reverse_step: 12,
            self.proceed: 12,
            self.reverse_proceed: 12,
            self.steps_of_a_person: 10,
            self.who_wrote: 6,
            self.interrupted: 4,
            self.look_about: 4,
            self.keep: 6,
            self.forget: 4,
            self.leave_stops: 3,
            self.reopen: 2,
            self.fork_unchanged: forks,
            self.fork_changed: forks,
        }
        self.timeline = self._open()

    def walk(self, cycles: int) -> None:
        """Make `cycles` random moves; raises `AssertionError` that tells the way there."""
        kinds, weights = list(self._cycles), list(self._cycles.values())
        for number in range(cycles):
            kind = self._chance.choices(kinds, weights)[0]
            self.did[kind.__name__] += 1
            self._note(f"#{number} {kind.__name__} from {self.timeline.tick:,}")
            try:
                kind()
                self.look()
                if self._chance.random() < 0.3:
                    self._to_known()
                    self.look()
            except Exception as e:
                way = "\n".join(self._story)
                raise AssertionError(
                    f"cycle {number} of seed {self._seed}: {type(e).__name__}: {e}\n{way}"
                ) from e

    def look(self) -> None:
        """Compare the state here."""
        self.reference.check(self.timeline.tick, self.timeline.digest())

    # ---- going

    def far(self) -> None:
        """Seek anywhere, mostly where the state is known."""
        known = self._chance.random() < 0.8
        self._seek(self._chance.choice(self.reference.ticks) if known else self._chance.randint(0, self._end))

    def near(self) -> None:
        """Seek close by, a few times."""
        for _ in range(self._chance.randint(1, 4)):
            reach = self._chance.choice((2, 50, 3_000, 200_000))
            self._seek(self._within(self.timeline.tick + self._chance.randint(-reach, reach)))
            self.look()

    def step(self) -> None:
        """Go some instructions forward."""
        before, count = self.timeline.tick, self._chance.choice((1, 1, 2, 7, 1_000, 70_000))
        self._note(f"step {count}")
        self.timeline.step(count)
        assert self.timeline.tick == self._within(before + count)

    def reverse_step(self) -> None:
        """Go back, some more, and some of it forward again."""
        for _ in range(self._chance.randint(1, 5)):
            before, count = self.timeline.tick, self._chance.choice((1, 1, 1, 3, 40, 5_000, 90_000))
            self._note(f"reverse_step {count}")
            self.timeline.reverse_step(count)
            assert self.timeline.tick == self._within(before - count)
            self.look()
        if self._chance.random() < 0.4:
            self.step()

    # ---- stops

    def proceed(self) -> None:
        """Search forward, and back again from just behind what was found."""
        before, simple = self.timeline.tick, self._set_stops()
        arrival = self._search(forward=True)
        assert arrival.tick > before or arrival.reason in ("end", "step")
        self.look()
        if simple and arrival.points and arrival.tick < self._end:
            self._seek(arrival.tick + 1)
            back = search.reverse_proceed(self.timeline, until=before)
            assert (back.tick, back.points) == (arrival.tick, arrival.points), (arrival, back)
        self._clear_stops()

    def reverse_proceed(self) -> None:
        """Search backward, and forward again from just before what was found."""
        before, simple = self.timeline.tick, self._set_stops()
        arrival = self._search(forward=False)
        assert arrival.tick < before or before == 0
        self.look()
        if simple and arrival.points and arrival.tick:
            self._seek(arrival.tick - 1)
            again = search.proceed(self.timeline, until=before)
            assert (again.tick, again.points) == (arrival.tick, arrival.points), (arrival, again)
        self._clear_stops()

    def leave_stops(self) -> None:
        """Set stops and go about with them there: only searches stop."""
        self._set_stops()
        self.look()
        for kind in self._chance.choices((self.far, self.near, self.step, self.reverse_step), k=3):
            kind()
            self.look()
        self._clear_stops()

    def steps_of_a_person(self) -> None:
        """Step over, out of, and back."""
        timeline = self.timeline
        for _ in range(self._chance.randint(1, 3)):
            name = self._chance.choice(("next", "next", "reverse_next", "finish", "reverse_finish"))
            before = timeline.tick
            self._note(name)
            try:
                arrival: Arrival = getattr(timeline, name)()
            except UsageError:
                assert "finish" in name and timeline.tick == before
                continue
            assert arrival.tick == timeline.tick
            assert timeline.tick in (0, self._end) or (timeline.tick < before) == name.startswith("reverse")
            self.look()

    def who_wrote(self) -> None:
        """Ask who wrote something, and where that came from."""
        timeline, before = self.timeline, self.timeline.tick
        physical = self._chance.random() < 0.5
        addr = self._address(physical)
        self._note(f"last_write {addr:#x} physical={physical}")
        try:
            found: Write | Origin | None = timeline.last_write(addr, 8, physical=physical)
        except UsageError:
            assert timeline.tick == before
            return
        for _ in range(3):
            if not isinstance(found, Write):
                return
            assert found.tick == timeline.tick <= before
            self.look()
            if self._chance.random() < 0.5:
                found = timeline.last_write(addr, 8, physical=physical)
            else:
                source = timeline.source_of(found)
                self.look()
                self._note(f"origin of {source}")
                try:
                    found = timeline.origin_of(source)
                except UsageError:
                    return

    def interrupted(self) -> None:
        """Have a search interrupted: one stays where one was."""
        timeline, before, left = self.timeline, self.timeline.tick, self._chance.randint(0, 3)

        def progress(tick: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted

        self._set_stops()
        timeline.progress = progress
        try:
            self._search(forward=self._chance.random() < 0.5)
        except Interrupted:
            self._note("was interrupted")
            assert timeline.tick == before
        finally:
            timeline.progress = None
        self.look()
        self._clear_stops()

    # ---- what must not matter

    def look_about(self) -> None:
        """Read all kinds of things."""
        timeline = self.timeline
        timeline.registers()
        for _ in range(5):
            try:
                timeline.read(self._address(physical=False), 64)
            except IndexError:
                continue
        timeline.machine.engine.page_hashes()
        timeline.machine.snapshot()

    def keep(self) -> None:
        """Keep this place, go away and come back."""
        here = self.timeline.tick
        self.timeline.keep_here()
        self.look()
        self.near()
        self._seek(here)

    def forget(self) -> None:
        """Have the engine translate everything anew."""
        self.timeline.machine.engine.forget_code()
        self.look()
        self.near()

    def reopen(self) -> None:
        """Begin again, maybe on another trace of the same run."""
        here = self.timeline.tick
        self.timeline = self._open()
        self.look()
        self._seek(here)

    def fork_unchanged(self) -> None:
        """Let a fork go its parent's way."""
        if self._has_ended():
            return
        before = self.timeline.tick
        fork = self.timeline.fork(self._folder / "same.tt", keep_inputs=True)
        try:
            self.reference.check(fork.tick, fork.digest())
            for _ in range(self._chance.randint(1, 3)):
                near = self._chance.random() < 0.7
                goal = self._known_after(fork.tick + self._chance.randint(0, 50_000 if near else self.span))
                self._note(f"the fork runs to {goal:,}")
                stop = fork.run(until=goal)
                assert (stop.reason, fork.tick) == ("tick", goal)
                self.reference.check(goal, fork.digest())
        finally:
            fork.discard()
        assert self.timeline.tick == before

    def fork_changed(self) -> None:
        """Let a fork go another way, and travel in its recording."""
        if self._has_ended():
            return
        before, path = self.timeline.tick, self._folder / "other.tt"
        fork = self.timeline.fork(path, keep_inputs=self._chance.random() < 0.5)
        try:
            states = {fork.tick: fork.digest()}
            self.reference.check(*next(iter(states.items())))
            for _ in range(self._chance.randint(1, 3)):
                self._edit(fork)
                try:
                    stop = fork.run(self._chance.choice((1, 10, 5_000, 300_000)))
                except TTError as e:
                    self._note(f"the fork breaks down: {e}")
                    break
                if stop.reason != "tick":
                    break
                states[fork.tick] = fork.digest()
            self.look()
            fork.close()
            with Trace.open(path) as child:
                timeline = Timeline(child, self._bases, spacing_ticks=100_000)
                ticks = self._chance.choices(list(states), k=2 * len(states))
                for tick in [*ticks, before]:
                    self._note(f"in the fork's trace to {tick:,}")
                    timeline.seek(tick)
                    assert timeline.digest() == states[tick], f"the fork's state at tick {tick:,}"
        finally:
            fork.discard()
        assert self.timeline.tick == before

    # ---- inside

    def _open(self) -> Timeline:
        trace, options = self._chance.choice(self._openings)
        self._note(f"open {trace.path.name} {options}")
        return Timeline(trace, self._bases, **options)

    def _note(self, what: str) -> None:
        self._story.append(what)

    def _has_ended(self) -> bool:
        """Whether the machine has ended here, for then there is nothing to fork."""
        ended = self.timeline.machine.ended is not None
        assert ended == (self.timeline.tick == self._end and bool(self.reference.trace.summary["ended"]))
        return ended

    def _within(self, tick: int) -> int:
        return min(max(tick, 0), self._end)

    def _known_after(self, tick: int) -> int:
        ticks = self.reference.ticks
        return ticks[min(bisect_left(ticks, tick), len(ticks) - 1)]

    def _seek(self, tick: int) -> None:
        self._note(f"seek {tick:,}")
        self.timeline.seek(tick)
        assert self.timeline.tick == tick

    def _to_known(self) -> None:
        """Go by steps to the next tick whose state is known, or the one before."""
        timeline, ticks = self.timeline, self.reference.ticks
        if self._chance.random() < 0.5:
            timeline.step(self._known_after(timeline.tick) - timeline.tick)
        else:
            timeline.reverse_step(timeline.tick - ticks[bisect_right(ticks, timeline.tick) - 1])

    def _search(self, *, forward: bool) -> Arrival:
        timeline, here = self.timeline, self.timeline.tick
        for point in timeline.stops:
            self._note(f"{point.name}: {point.describe()}, ignore {point.ignore}, if {point.condition_text}")
        far = self._chance.random() < 0.2 and self._end <= 4 * self.span
        span = self.span
        if any(point.condition for point in timeline.stops):
            far, span = False, 100_000  # it may be asked at every turn of a loop
        self._note("proceed" if forward else "reverse_proceed")
        if forward:
            until = None if far else min(here + span, self._end)
            arrival = search.proceed(timeline, until=until)
        else:
            arrival = search.reverse_proceed(timeline, until=0 if far else max(here - span, 0))
        self._note(f"... {arrival.reason} at {arrival.tick:,} {arrival.detail}")
        assert arrival.tick == timeline.tick
        if isinstance(arrival.point, Breakpoint) and "entered from here" not in arrival.detail:
            assert linear_pc(timeline.machine.engine) == arrival.point.addr
        return arrival

    def _set_stops(self) -> bool:
        """Set a few stops; return whether a search the other way must find what one finds."""
        simple = True
        for _ in range(self._chance.randint(1, 3)):
            point = self._stop()
            dice = self._chance.random()
            if dice < 0.15:
                bit = self._chance.randint(0, 4)
                point.condition = lambda timeline, bit=bit: bool(timeline.registers()["rcx"] >> bit & 1)
                point.condition_text = f"rcx >> {bit} & 1"
            elif dice < 0.25:
                point.ignore = self._chance.randint(1, 30)
            elif dice < 0.35:
                point.temporary = True
            simple = simple and dice >= 0.35
            self.timeline.stops.add(point)
        return simple

    def _clear_stops(self) -> None:
        self.timeline.stops.clear()
        self.look()

    def _stop(self) -> StopPoint:
        kind = self._chance.choice(("break", "break", "watch", "watch", "catch"))
        if kind == "break":
            here = self._chance.random() < 0.2
            pc = linear_pc(self.timeline.machine.engine)
            return Breakpoint(pc if here else self._chance.choice(self.reference.pcs))
        if kind == "watch":
            physical = self._chance.random() < 0.5
            reads = self._chance.random() < 0.3
            size = self._chance.choice((1, 4, 8, 16, 4096))
            addr = min(self._address(physical), (1 << 64) - size)
            return Watchpoint(addr, size, reads, not reads or self._chance.random() < 0.5, physical)
        what = self._chance.choice(("interrupt", "device", "disk-write", "console", "syscall", "exception"))
        if what == "console":
            return Catchpoint(what, pattern=self._chance.choice(("e", "[0-9]+", "disk", "\n")))
        return Catchpoint(what)

    def _address(self, physical: bool) -> int:
        """Return a likely place of data; virtual ones may not be mapped."""
        if self._chance.random() < 0.5:
            addr = self._chance.choice(self.reference.addresses)
        else:
            addr = self.timeline.registers()[self._chance.choice(ADDRESS_REGISTERS)]
        addr = (addr + 8 * self._chance.randint(-4, 4)) % (1 << 64)
        if not physical:
            return addr
        engine = self.timeline.machine.engine
        at = engine.translate(addr)
        size = engine.size - 8192
        return min(at, size) if at is not None else self._chance.randrange(0, size, 8)

    def _edit(self, fork: Any) -> None:
        kind = self._chance.choice(("register", "memory", "disk", "type", "nothing"))
        self._note(f"edit {kind} at {fork.tick:,}")
        try:
            if kind == "register":
                fork.set_register(self._chance.choice(EDITED_REGISTERS), self._chance.getrandbits(24))
            elif kind == "memory":
                addr = self._chance.randrange(fork.machine.engine.size - 64)
                fork.write(addr, self._chance.randbytes(self._chance.randint(1, 64)), physical=True)
            elif kind == "disk":
                fork.write_disk(0, self._chance.randrange(8), self._chance.randbytes(512))
            elif kind == "type":
                fork.type("x\n")
        except UsageError as e:
            self._note(f"refused: {e}")
