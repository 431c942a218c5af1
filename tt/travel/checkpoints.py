"""Checkpoints in memory: what changed between them, and nothing twice.

A checkpoint is the machine's small state and the pages of RAM that changed since
the checkpoint before it.  A page at checkpoint k is what the last checkpoint up
to k has of it, or what it was at power-on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from typing import Any

from tt.vmm.machine import Machine

PAGE = 4096


@dataclass
class Checkpoint:
    """A place to go back to: the machine at `tick`, on first arrival."""

    tick: int
    state: dict[str, Any]
    disks: list[Any]
    pages: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Roughly the bytes it takes."""
        return PAGE * len(self.pages) + 20_000


class CheckpointStore:
    """The checkpoints of one machine, within `budget` bytes.

    The machine must be changed only by running it and through this store, for
    the engine's dirty pages tell what to put back.
    """

    def __init__(self, machine: Machine, budget: int) -> None:
        self.budget = budget
        self._machine = machine
        self._checkpoints: list[Checkpoint] = []
        self._history: dict[int, list[int]] = {}  # page -> ticks of the checkpoints that have it, rising
        self._base_tick = machine.tick  # the checkpoint that the machine last was at
        machine.engine.dirty_pages()
        self._keep_power_on()

    @property
    def ticks(self) -> list[int]:
        """The ticks that there are checkpoints of, rising."""
        return [checkpoint.tick for checkpoint in self._checkpoints]

    def nearest(self, tick: int) -> int:
        """Return the last checkpoint's tick that is not after `tick`."""
        return self._checkpoints[bisect_right(self._checkpoints, tick, key=lambda c: c.tick) - 1].tick

    def take(self) -> None:
        """Keep the machine as it is now; it must just have arrived at its tick."""
        machine = self._machine
        tick = machine.tick
        changed = (
            machine.engine.dirty_pages()
        )  # since the base: all that changed since the one before, or more
        self._base_tick = tick
        following = bisect_left(self._checkpoints, tick, key=lambda c: c.tick)
        if following < len(self._checkpoints) and self._checkpoints[following].tick == tick:
            return
        checkpoint = Checkpoint(tick, machine.save(), [disk.snapshot() for disk in machine.disks])
        for page in changed:
            self._put(checkpoint, page, machine.engine.read(page * PAGE, PAGE))
        self._checkpoints.insert(following, checkpoint)
        self._thin()

    def restore(self, tick: int) -> None:
        """Put the machine back to the checkpoint at `tick`."""
        machine = self._machine
        checkpoint = next(c for c in self._checkpoints if c.tick == tick)
        low, high = sorted((self._base_tick, tick))
        pages = set(machine.engine.dirty_pages())
        for between in self._checkpoints:
            if low < between.tick <= high:
                pages.update(between.pages)
        by_tick = {c.tick: c for c in self._checkpoints}
        for page in pages:
            ticks = self._history.get(page, ())
            at = bisect_right(ticks, tick)
            content = by_tick[ticks[at - 1]].pages[page] if at else bytes(PAGE)
            if machine.engine.read(page * PAGE, PAGE) != content:
                machine.engine.write(page * PAGE, content)
        for disk, saved in zip(machine.disks, checkpoint.disks, strict=True):
            disk.restore(saved)
        machine.load(checkpoint.state)
        machine.engine.dirty_pages()
        self._base_tick = tick

    # ---- inside

    def _keep_power_on(self) -> None:
        machine = self._machine
        first = Checkpoint(machine.tick, machine.save(), [disk.snapshot() for disk in machine.disks])
        zeros = bytes(PAGE)
        for page in range(machine.engine.size // PAGE):
            content = machine.engine.read(page * PAGE, PAGE)
            if content != zeros:
                self._put(first, page, content)
        self._checkpoints.append(first)

    def _put(self, checkpoint: Checkpoint, page: int, content: bytes) -> None:
        checkpoint.pages[page] = content
        insort(self._history.setdefault(page, []), checkpoint.tick)

    def _thin(self) -> None:
        """Drop checkpoints, the densest first, until the rest fit the budget."""
        while sum(c.size for c in self._checkpoints[1:]) > self.budget and len(self._checkpoints) > 3:
            gaps = [
                (self._checkpoints[i + 1].tick - self._checkpoints[i - 1].tick, i)
                for i in range(1, len(self._checkpoints) - 1)
                if self._checkpoints[i].tick != self._base_tick
            ]
            if not gaps:
                return
            self._drop(min(gaps)[1])

    def _drop(self, index: int) -> None:
        dropped, following = self._checkpoints[index], self._checkpoints[index + 1]
        for page, content in dropped.pages.items():
            self._history[page].remove(dropped.tick)
            if page not in following.pages:
                self._put(following, page, content)
        del self._checkpoints[index]
