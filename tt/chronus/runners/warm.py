"""Machines that have booted as far as they can without their disk, kept for the next probe.

The machine is deterministic, so until it first looks at its disk it does the same whatever is on it:
that is most of a kernel's boot.  So it is run once and checkpointed on the way; the next guest with the
same kernel, command line, memory and clock goes on from the last checkpoint.  Its state is exactly that of a
machine that ran from power-on, to the tick.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tt.events import Event
from tt.vmm.build import build_machine
from tt.vmm.config import MachineConfig
from tt.vmm.disk import Base, OverlayDisk
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Source

PAGE = 4096
_EVERY_TICKS = 30_000_000  # some 60 ms of running: what a later guest may have to run again
_SEED = 20041205  # of the guest's random bytes: any, but the same for every probe
_ZEROS = bytes(PAGE)


class Slot:
    """The base of a disk that can be exchanged as long as it has not been read."""

    def __init__(self, sectors: int, on_look: Callable[[], None]) -> None:
        self.sectors = sectors
        self.base: Base | None = None
        self._on_look = on_look

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors."""
        self._on_look()
        assert self.base is not None
        return self.base.read(lba, count)


@dataclass
class _Checkpoint:
    """The machine before it looked at its disks; the pages are in `WarmMachine`."""

    state: dict[str, Any]
    digest: bytes
    entropy: Any
    console: bytes


class WarmMachine:
    """A machine of `config` whose disks have these numbers of sectors, and what is needed to start it again.

    `console` is what it had printed where it starts: set by `begin`.
    """

    def __init__(self, key: Hashable, config: MachineConfig, sectors: Sequence[int], source: Source) -> None:
        self.key = key
        self.config = config  # its parts are in the key
        self.console = b""
        self._random = random.Random(_SEED)
        self._slots = [Slot(count, self._looked) for count in sectors]
        self.disks = [OverlayDisk(slot) for slot in self._slots]
        self.machine: Machine = build_machine(config, self.disks, source, entropy=self._random.randbytes)
        self._subscriber: Callable[[Event], None] | None = None
        self._kept: _Checkpoint | None = None
        self._pages: dict[int, bytes | memoryview] = {}
        self._cold = True  # nothing from outside has reached it yet
        self._next_tick = _EVERY_TICKS
        self.machine.engine.fetch_page = lambda number: self._pages.get(number, _ZEROS)

    def begin(self, bases: Sequence[Base], source: Source, subscriber: Callable[[Event], None]) -> None:
        """Start with these disks, from power-on or from the last checkpoint before it reads them."""
        machine, kept = self.machine, self._kept
        if kept is not None:
            if self._subscriber is not None:
                machine.door.unsubscribe(self._subscriber)
            machine.engine.revert(bytes(-(-machine.engine.size // PAGE // 8)), kept.digest)
            for disk in self.disks:
                disk.restore(({}, 0))
            machine.load(kept.state)
            self._random.setstate(kept.entropy)
            self.console = kept.console
        machine.door.source = source
        machine.door.subscribe(subscriber)
        self._subscriber = subscriber
        for slot, base in zip(self._slots, bases, strict=True):
            slot.base = base

    def end(self) -> None:
        """Let go of the disks."""
        for slot in self._slots:
            slot.base = None

    @property
    def is_warm(self) -> bool:
        """Whether it can be started again."""
        return self._kept is not None

    def contents(self, number: int) -> bytes:
        """Return the whole of a disk as it is now."""
        disk, cold = self.disks[number], self._cold
        data = disk.read(0, disk.sectors)
        self._cold = cold  # this read was not the guest's
        return data

    def touched(self) -> None:
        """Note that something is typed: from here on guests differ."""
        self._cold = False

    def arrived(self, console: bytes) -> None:
        """Take a checkpoint if it is time; to be called where the machine has just arrived at a tick."""
        machine = self.machine
        if not self._cold or machine.tick < self._next_tick:
            return
        engine = machine.engine
        numbers, contents = engine.take_changes()
        view = memoryview(contents)
        for i, number in enumerate(memoryview(numbers).cast("I")):
            self._pages[number] = view[i * PAGE : (i + 1) * PAGE]
        self._kept = _Checkpoint(machine.save(), engine.ram_digest(), self._random.getstate(), console)
        self._next_tick = machine.tick + _EVERY_TICKS

    def _looked(self) -> None:
        self._cold = False


_kept: list[WarmMachine] = []
_lock = threading.Lock()


def take(key: Hashable, config: MachineConfig, sectors: Sequence[int], source: Source) -> WarmMachine:
    """Return a machine that is not in use: the kept one, if it is of this key, else a new one."""
    with _lock:
        found = _kept.pop() if _kept else None
    if found is not None and found.key == key:
        return found
    del found  # its memory goes before the new one takes some
    return WarmMachine(key, config, sectors, source)


def give_back(warm: WarmMachine) -> None:
    """Keep a machine for the next guest, in the place of an older one."""
    warm.end()
    if warm.is_warm:
        with _lock:
            _kept[:] = [warm]


def forget() -> None:
    """Give the memory of the kept machine back."""
    with _lock:
        _kept.clear()
