"""Places to go back to: those that the trace holds, and finer ones kept in memory.

A checkpoint is the machine's small state and the pages of RAM that changed since
the checkpoint before it.  A page at checkpoint k has the contents in the last
checkpoint up to k that holds it, or is zeros.  Going back only marks the pages that
may differ; the engine fetches each when it is first looked at
(`tt/vmm/engine/revert.c`), so going back costs as much as the pages used afterwards.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tt.checker import Progress
from tt.errors import BadInput, BadState
from tt.log._pages import ChangeIndex
from tt.log.checkpoints import StoredCheckpoint
from tt.travel.disks import RecordedDisk
from tt.vmm.machine import Machine

PAGE = 4096
_ZEROS = bytes(PAGE)
_STATE_SIZE = 60_000  # bytes that a state takes in memory, roughly


class Checkpoint(Protocol):
    """The machine at `tick`, on first arrival; `digest` is of RAM, `changed` has a bit for each page."""

    @property
    def tick(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def changed(self) -> bytes: ...
    @property
    def state(self) -> dict[str, Any]: ...
    def page(self, number: int) -> bytes | memoryview:
        """Return what a page that changed held."""
        ...


@dataclass
class KeptCheckpoint:
    """A checkpoint in memory."""

    tick: int
    digest: bytes
    state: dict[str, Any]
    pages: dict[int, bytes | memoryview]
    changed: bytes
    progress: tuple[Progress, ...]

    def page(self, number: int) -> bytes | memoryview:
        """Return what a page that changed held."""
        return self.pages[number]

    @property
    def size(self) -> int:
        """Roughly the bytes it takes."""
        return PAGE * len(self.pages) + _STATE_SIZE


class CheckpointStore:
    """The checkpoints of one machine, given at power-on; those in memory take at most `budget` bytes.

    The machine must be changed only by running it and through this store, for
    the engine's dirty pages tell what to put back.
    """

    def __init__(
        self,
        machine: Machine,
        disks: Sequence[RecordedDisk],
        stored: Sequence[StoredCheckpoint],
        budget: int,
        progress: Callable[[], tuple[Progress, ...]],
    ) -> None:
        self.budget = budget
        self._machine = machine
        self._disks = disks
        self._progress = progress  # of the comparison with the record
        self._bitmap_size = (machine.engine.size // PAGE + 7) // 8
        first = self._first = self._capture()
        self._base = first.tick  # the checkpoint that the machine last was at
        self._stored = [c for c in stored if c.tick > first.tick]
        self._arrange()
        machine.engine.fetch_page = self._fetch

    def _arrange(self) -> None:
        """Begin with what the trace holds, and power-on."""
        self._checkpoints: list[Checkpoint] = [self._first, *self._stored]
        self._bits = [int.from_bytes(c.changed, "little") for c in self._checkpoints]
        self._ticks = [c.tick for c in self._checkpoints]
        self._index = ChangeIndex((c.changed for c in self._stored), 8 * self._bitmap_size)
        self._kept_size = 0
        self._look_from(self._base)

    @property
    def ticks(self) -> list[int]:
        """The ticks of all checkpoints, rising."""
        return list(self._ticks)

    def nearest(self, tick: int) -> int:
        """Return the last checkpoint's tick that is not after `tick`."""
        return self._ticks[bisect_right(self._ticks, tick) - 1]

    def unchanged(self, tick: int, pages: Collection[int], step: int) -> int:
        """Return how far from the last checkpoint up to `tick` one can go and see none of `pages` stored to.

        `step` is -1 to go back, 1 to go on; the answer is a checkpoint's tick.
        """
        at = bisect_right(self._ticks, tick) - 1
        mask = sum(1 << page for page in pages)
        while step < 0 < at and not self._bits[at] & mask:
            at -= 1
        while step > 0 and at + 1 < len(self._ticks) and not self._bits[at + 1] & mask:
            at += 1
        return self._ticks[at]

    def stretches(self, begin: int, end: int, pages: Collection[int]) -> list[tuple[int, int]]:
        """Return where in ticks (`begin`, `end`) one of `pages` may be stored to, the latest first.

        A stretch (a, b) is the ticks between a and b; a is `begin` or a checkpoint's tick.
        """
        mask = sum(1 << page for page in pages)
        found: list[tuple[int, int]] = []
        at = bisect_right(self._ticks, begin)
        while begin + 1 < end:
            last = at == len(self._ticks)
            until = end if last else min(end, self._ticks[at] + 1)  # what changed came up to its tick
            if last or self._bits[at] & mask:
                if found and found[-1][1] == begin + 1:
                    found[-1] = (found[-1][0], until)
                else:
                    found.append((begin, until))
            begin, at = until - 1, at + 1
        return found[::-1]

    def take(self) -> None:
        """Keep the machine as it is now; it must just have arrived at its tick."""
        tick = self._machine.tick
        at = bisect_left(self._ticks, tick)
        if at < len(self._ticks) and self._ticks[at] == tick:
            return
        kept = self._capture()
        self._checkpoints.insert(at, kept)
        self._bits.insert(at, int.from_bytes(kept.changed, "little"))
        self._ticks.insert(at, tick)
        self._base = tick
        self._kept_size += kept.size
        self._thin()
        self._look_from(tick)

    def restore(self, tick: int) -> tuple[Progress, ...] | None:
        """Put the machine back to the checkpoint at `tick`; raises `BadInput` when that is damaged.

        Return how far the comparison with the record was there, where that is known.
        """
        machine = self._machine
        to, base = bisect_left(self._ticks, tick), bisect_left(self._ticks, self._base)
        checkpoint = self._checkpoints[to]
        state = checkpoint.state
        bits = 0
        for between in self._bits[min(to, base) + 1 : max(to, base) + 1]:
            bits |= between
        self._look_from(tick)
        machine.engine.revert(bits.to_bytes(self._bitmap_size, "little"), checkpoint.digest)
        for disk in self._disks:
            disk.go_to(tick)
        try:
            machine.load(state)
        except BadState as e:
            if isinstance(checkpoint, KeptCheckpoint):
                raise
            raise BadInput(f"the checkpoint at tick {tick:,} is damaged ({e})") from None
        return checkpoint.progress if isinstance(checkpoint, KeptCheckpoint) else None

    def forget_stored(self) -> bool:
        """Use the trace's checkpoints no more and go to power-on; return false if it has none.

        Those in memory are dropped, too: they may have been made from damaged ones.
        """
        if all(isinstance(checkpoint, KeptCheckpoint) for checkpoint in self._checkpoints):
            return False
        self._stored, self._base = [], self._first.tick
        self._arrange()
        everything = b"\xff" * self._bitmap_size
        self._machine.engine.revert(everything, self._first.digest)
        self.restore(self._base)
        return True

    # ---- inside

    def _capture(self) -> KeptCheckpoint:
        engine = self._machine.engine
        numbers, contents = engine.take_changes()
        view = memoryview(contents)
        changed = bytearray(self._bitmap_size)
        pages: dict[int, bytes | memoryview] = {}
        for i, number in enumerate(memoryview(numbers).cast("I")):
            changed[number >> 3] |= 1 << (number & 7)
            pages[number] = view[i * PAGE : (i + 1) * PAGE]
        return KeptCheckpoint(
            self._machine.tick,
            engine.ram_digest(),
            self._machine.save(),
            pages,
            bytes(changed),
            self._progress(),
        )

    def _look_from(self, tick: int) -> None:
        """Have pages fetched as they were at the checkpoint of `tick`."""
        self._base = tick
        self._stored_at = bisect_right(self._stored, tick, key=lambda c: c.tick) - 1
        # A stored checkpoint needs none of those in memory: only the ones after the last stored count.
        since = self._stored[self._stored_at].tick if self._stored_at >= 0 else self._first.tick
        between = slice(bisect_right(self._ticks, since), bisect_right(self._ticks, tick))
        self._newest = [c for c in reversed(self._checkpoints[between]) if isinstance(c, KeptCheckpoint)]

    def _fetch(self, number: int) -> bytes | memoryview:
        """Return what the page held at the checkpoint that the machine was last at."""
        for kept in self._newest:
            page = kept.pages.get(number)
            if page is not None:
                return page
        at = self._index.last(number, self._stored_at)
        return self._stored[at].page(number) if at >= 0 else self._first.pages.get(number, _ZEROS)

    def _thin(self) -> None:
        """Drop checkpoints in memory until the rest fit the budget, keeping them dense around the last."""
        while self._kept_size > self.budget:
            candidates = [
                i
                for i in range(1, len(self._ticks) - 1)
                if isinstance(self._checkpoints[i], KeptCheckpoint) and self._ticks[i] != self._base
            ]
            if not candidates:
                return
            self._drop(min(candidates, key=self._worth))

    def _worth(self, at: int) -> float:
        gap = self._ticks[at + 1] - self._ticks[at - 1]
        return gap / (1 + abs(self._ticks[at] - self._base))

    def _drop(self, at: int) -> None:
        dropped, following = self._checkpoints[at], self._checkpoints[at + 1]
        assert isinstance(dropped, KeptCheckpoint)
        self._kept_size -= dropped.size
        # A stored checkpoint has all that changed since the stored one before it.
        if isinstance(following, KeptCheckpoint):
            self._kept_size -= following.size
            following.pages = dropped.pages | following.pages
            self._kept_size += following.size
            self._bits[at + 1] |= self._bits[at]
            following.changed = self._bits[at + 1].to_bytes(self._bitmap_size, "little")
        del self._checkpoints[at], self._bits[at], self._ticks[at]
