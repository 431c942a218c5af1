"""A place in a recording, and ways to other places: forwards, backwards, to whatever happened.

Everything that shows or searches a recording is built on this.  A timeline owns
a machine; going back means restoring a checkpoint and running forward again, so
every place is the same however it was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tt.checker import Checker
from tt.errors import BadInput, Divergence, UsageError
from tt.log import Trace
from tt.log.checkpoints import StoredCheckpoint
from tt.recording import state_digest
from tt.replay import TraceSource, config_of, extract_embedded, run_on
from tt.travel import search, writes
from tt.travel.checkpoints import CheckpointStore
from tt.travel.disks import RecordedDisk, histories
from tt.travel.stops import Arrival, Stops
from tt.travel.writes import Write
from tt.vmm.build import build_machine
from tt.vmm.disk_images import open_disks
from tt.vmm.machine import Machine, Stop

if TYPE_CHECKING:
    from tt.travel.branches.fork import Fork
    from tt.travel.sources import Origin
    from tt.vmm.live import Network

MEMORY_BUDGET = 1 << 30
SPACING_TICKS = 10_000_000
_FINEST_TICKS = 20_000


class Timeline:
    """The whole of a recording, and one place in it.

    `tick` is the current tick.  With `checkpoints` False nothing is kept, and
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
        self.damage = ""
        """What was found damaged in the trace's checkpoints, which are not used any more then."""
        self.stops = Stops()
        config = config_of(trace)
        bare = open_disks(config, bases or extract_embedded(trace, config))
        written = histories(trace, len(bare))
        disks = [
            RecordedDisk(disk.base, trace, history, number)
            for number, (disk, history) in enumerate(zip(bare, written, strict=True))
        ]
        self.machine: Machine = build_machine(config, disks, TraceSource(trace))
        self._keep = checkpoints
        self._spacing = spacing_ticks
        self.progress = progress
        stored: list[StoredCheckpoint] = []
        try:
            stored = trace.checkpoints if checkpoints else []
        except BadInput as e:
            self.damage = str(e)
        self._checker = Checker(self.machine, trace)
        self._store = CheckpointStore(
            self.machine, disks, stored, memory_budget, lambda: self._checker.progress
        )
        self._astray = False  # a run was cut off: the machine is not in a consistent state
        self._digests = dict(trace.digests())
        self._checked: set[int] = set()

    # ---- the current place

    @property
    def tick(self) -> int:
        """The current tick."""
        return self.machine.tick

    @property
    def end_tick(self) -> int:
        """The last tick of the recording."""
        return self.trace.end_tick

    @property
    def checkpoint_ticks(self) -> list[int]:
        """The ticks of all checkpoints, from which later ticks are reached quickly."""
        return self._store.ticks

    def registers(self) -> dict[str, int]:
        """Return the CPU's registers by name."""
        return self.machine.engine.registers()

    def read(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at the guest's virtual `addr`; raises `IndexError` where nothing is mapped."""
        return self.machine.engine.read_virtual(addr, size)

    def read_physical(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at guest-physical `addr`; raises `IndexError` outside RAM."""
        return self.machine.engine.read(addr, size)

    def translate(self, addr: int) -> int | None:
        """Return the guest-physical address behind a virtual one, or None where nothing is mapped."""
        return self.machine.engine.translate(addr)

    def digest(self) -> bytes:
        """Return the 16-byte digest of the whole state."""
        return self.machine.digest()

    # ---- going somewhere

    def seek(self, position: int | str) -> None:
        """Go to a tick, or to what a position names (`tt.position`), wherever it is.

        Raises `UsageError` when the recording has no such place.
        """
        tick = self.trace.resolve(position, self.tick) if isinstance(position, str) else position
        if not 0 <= tick <= self.end_tick:
            raise UsageError(f"tick {tick:,} is not in the recording: it has 0 to {self.end_tick:,}")
        try:
            self._go(tick)
        except BadInput as e:
            # The events are enough to go anywhere; checkpoints only shorten the way.
            if not self._store.forget_stored():
                raise
            self.damage = str(e)
            self._restore(self.tick)
            self._go(tick)

    def step(self, count: int = 1) -> None:
        """Go `count` instructions forward, at most to the end."""
        self.seek(min(self.tick + count, self.end_tick))

    def reverse_step(self, count: int = 1) -> None:
        """Go `count` instructions back, at most to power-on."""
        target = max(self.tick - count, 0)
        nearest = self._store.nearest(target)
        if self._keep and target - nearest > _FINEST_TICKS:
            # A step back is often followed by more of them: keep a checkpoint close by.
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

    # ---- stops: breakpoints, watchpoints, catchpoints

    def proceed(self) -> Arrival:
        """Go forward to the next of `stops`, or to the end."""
        return search.proceed(self)

    def reverse_proceed(self) -> Arrival:
        """Go back to the last of `stops` before here, or to power-on."""
        return search.reverse_proceed(self)

    def next(self) -> Arrival:
        """Go to the next instruction of this function, over calls; see `tt.travel.stepping`."""
        from tt.travel import stepping

        return stepping.next_instruction(self)

    def reverse_next(self) -> Arrival:
        """Go to the instruction of this function before here, over calls."""
        from tt.travel import stepping

        return stepping.reverse_next(self)

    def finish(self, frame: tuple[int, int] | None = None) -> Arrival:
        """Run until this function has returned; `frame` as in `tt.travel.stepping.finish`."""
        from tt.travel import stepping

        return stepping.finish(self, frame)

    def reverse_finish(self, frame: tuple[int, int] | None = None) -> Arrival:
        """Go back to just before the call of this function."""
        from tt.travel import stepping

        return stepping.reverse_finish(self, frame)

    def last_write(
        self, addr: int, size: int = 8, *, physical: bool = False, before: int | None = None
    ) -> Write | None:
        """Return the last store to `size` bytes at `addr` before here (or tick `before`), and go there."""
        return writes.last_write(self, addr, size, physical=physical, before=before)

    def source_of(self, write: Write) -> Origin:
        """Say where the value of a write came from, and what to ask next."""
        from tt.travel import sources

        return sources.source_of(self, write)

    def origin_of(self, source: Origin, which: int = 0) -> Write | Origin | None:
        """Say what made input number `which` of a source, and go to right after that."""
        from tt.travel import sources

        return sources.origin_of(self, source, which)

    # ---- what searches need of the checkpoints

    def nearest(self, tick: int) -> int:
        """Return the tick of the last checkpoint that is not after `tick`."""
        return self._store.nearest(tick)

    def unchanged(self, tick: int, pages: Collection[int], step: int) -> int:
        """Return how far from `nearest(tick)` none of the pages of RAM is stored to: a checkpoint's tick.

        `step` is -1 to look back, 1 to look on.  Nothing is run.
        """
        return self._store.unchanged(tick, pages, step)

    def stretches(self, begin: int, end: int, pages: Collection[int]) -> list[tuple[int, int]]:
        """Return where in ticks (`begin`, `end`) a page of RAM may be stored to, the latest first."""
        return self._store.stretches(begin, end, pages)

    def keep_here(self) -> None:
        """Keep a checkpoint for a search that will come back; the machine must have just arrived here."""
        if self._keep:
            self._store.take()

    def run_on(self, until: int) -> Stop:
        """Run to tick `until`, or to what the engine was told to stop at, comparing all that happens.

        Raises `Divergence`; then the machine must not be used until the next `seek` puts it back.
        """
        try:
            return run_on(self.machine, until)
        except BaseException:
            self._astray = True
            raise

    def passing(self) -> None:
        """Note that the machine has run up to here: keep a checkpoint if one is due, call `progress`."""
        if self._keep and self.tick - self._store.nearest(self.tick) >= self._spacing:
            self._store.take()
        if self.progress is not None:
            self.progress(self.tick)

    # ---- another way from here

    def fork(
        self,
        path: Path | None = None,
        name: str = "",
        *,
        keep_inputs: bool = False,
        script: Sequence[bytes] = (),
        network: Sequence[str] | Network | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Fork:
        """Return a live machine that stands here, its run recorded at `path`: see `Fork`."""
        from tt.travel.branches.fork import Fork

        return Fork(
            self, path, name, keep_inputs=keep_inputs, script=script, network=network, progress=progress
        )

    # ---- inside

    def _go(self, tick: int) -> None:
        nearest = self._store.nearest(tick)
        if tick < self.tick or nearest > self.tick or self._astray:
            self._restore(nearest)
        self._forward(tick)

    def _restore(self, tick: int) -> None:
        progress = self._store.restore(tick)
        self.machine.door.source = TraceSource(self.trace, tick)
        if progress is None:
            self._checker.go_to(tick)
        else:
            self._checker.go_back_to(progress)
        self._astray = False

    def _forward(self, tick: int) -> None:
        """Run to `tick` with nothing to stop at, keeping checkpoints where it has not been before."""
        while self.tick < tick:
            known = self._store.nearest(self.tick)
            target = min(tick, known + self._spacing) if self._keep else tick
            if target <= self.tick:
                target = min(tick, self.tick + self._spacing)
            checked = [t for t in self._digests if self.tick < t <= target and t not in self._checked]
            target = min([target, *checked])
            self.run_on(target)
            self._check_digest()
            self.passing()

    def _check_digest(self) -> None:
        """Compare with the record's digest of this tick, once."""
        tick = self.tick
        is_final = tick == self.end_tick and self.trace.end_state in ("idle", "power")
        if tick not in self._digests or tick in self._checked or is_final:
            return
        if state_digest(self.machine) != self._digests[tick]:
            raise Divergence(f"replay diverges before tick {tick:,}: the state's digest differs")
        self._checked.add(tick)
