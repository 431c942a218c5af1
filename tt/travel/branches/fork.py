"""Forks: live machines that continue from any moment of a recording, each recorded as a trace of its own.

A child trace is complete.  It holds its parent's beginning up to the fork (the same
machine, the same events), then the changes that were made by hand as events of the
EDIT kinds, then what happened after.  So a replay from power-on first repeats the
parent's run, makes the same edits at the same tick and goes on as the fork did.
The entry `parent` of its `meta` marks it as a branch, see `tt.travel.branches.family`.

At the tick of the fork, on first arrival, the child's state is the parent's; edits
come after the arrival, with the first step.  The `Fork` itself shows them at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tt.errors import TTError, UsageError
from tt.events import ANSWERS, INPUTS, Event, Kind
from tt.log import BackgroundWriter
from tt.log.chunks import MAX_DATA
from tt.recording import (
    CHECKPOINT_RAM,
    LiveRun,
    Recorder,
)
from tt.replay import config_of
from tt.travel.branches.cables import Cables, parse_cables
from tt.travel.branches.family import parent_entry
from tt.travel.branches.outside import BranchSource, KeptInputs
from tt.travel.branches.past import Past, copy_files
from tt.travel.interrupts import noted
from tt.vmm import running
from tt.vmm.build import build_machine
from tt.vmm.disk import SECTOR
from tt.vmm.engine import FOREVER
from tt.vmm.live import COMMIT_EVERY_S, Network
from tt.vmm.machine import Machine, Stop
from tt.vmm.messages import LONGEST_FRAME, SHORTEST_FRAME

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_PAGE = 4096
_STOOD_STILL_S = 0.5  # after so much of the host's time, the guest's does not catch up with it
_SETTLE_S = 2.0  # host time that an interrupted idle guest gets to reach its next instruction
_ErrorType = type[BaseException]  # inside the class, `type` is the method that types text
_BOOT_FILES = ("kernel", "initrd", "guest")


class Fork:
    """A live machine that was the recording's at the timeline's tick, recorded at `path`.

    By default the parent's inputs after this tick are dropped.  `keep_inputs` gives
    them at their ticks, the parent's own later edits included, and gives its answers
    (entropy, clocks) as long as the guest asks the same questions: a fork with
    nothing changed runs exactly as its parent did.  `script` lines are typed when
    the guest waits at a prompt.  The timeline is left where it was.  `progress(tick)`
    is told about ten times a second while the fork runs, and may raise.

    `network` says what each network card is connected to, see `tt.travel.branches.cables`,
    with `forwards` as in `tt record --forward`; or it is a `Network` that is there already.
    By default nothing arrives, or with `keep_inputs` what arrived then.  `say` is told in a
    line when a peer goes.

    Raises `UsageError` where the recording's machine has ended already, or `path` exists.
    """

    def __init__(
        self,
        timeline: Timeline,
        path: Path | None = None,
        name: str = "",
        *,
        keep_inputs: bool = False,
        script: Sequence[bytes] = (),
        network: Sequence[str] | Network | None = None,
        forwards: Sequence[str] = (),
        say: Callable[[str], None] = lambda line: None,
        entropy: Callable[[int], bytes] = os.urandom,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        parent = timeline.trace
        if timeline.machine.ended is not None:
            raise UsageError(
                f"nothing can go on from tick {timeline.tick:,}, the machine has ended there "
                f"({timeline.machine.ended}): fork earlier"
            )
        self.fork_tick = timeline.tick
        self.path = _free_path(parent.path) if path is None else Path(path)
        self.name = name or self.path.stem
        self.progress = progress
        self._begin = time.monotonic()
        self._closed = False
        self._spool: list[Path] = []
        self._ran_at = 0.0
        self._edited_at: int | None = None  # the tick of the last edit
        self._told: Event | None = None  # the last event
        config = config_of(parent)
        cards = len(config.nets)
        self.cables = (
            parse_cables(network, cards, keep_inputs=keep_inputs, forwards=forwards)
            if network is None or isinstance(network, Sequence)
            else Cables(("a network of its own",) * cards)
        )
        past = Past(timeline, prompt=bool(script))
        answered = sum(e.tick == self.fork_tick and e.kind in ANSWERS for e in past.recent)
        kept = KeptInputs(parent, self.fork_tick, answered, self.cables.frames) if keep_inputs else None
        self._source = BranchSource(kept, script)
        disks = [disk.twin() for disk in timeline.machine.disks]
        self.machine: Machine = build_machine(config, disks, self._source, entropy=entropy)
        self.machine.engine.take_changes()  # a checkpoint holds only what changed since power-on
        self.machine.restore(timeline.machine.snapshot())
        if kept is None:
            self.machine.router.restore_all()  # the parents of its devices are not here
        if past.printed is not None:
            self._source.see(past.printed)
        meta = dict(parent.meta)
        meta["id"] = os.urandom(16).hex()
        meta["parent"] = parent_entry(parent, self.path, self.fork_tick)
        meta["name"] = self.name
        if cards:
            meta["networks"] = list(self.cables.told)
        if network is None or isinstance(network, Sequence):
            network = self.cables.open(config.nets, past.links, say)
        self._source.network = network
        self._source.pace = network is not None  # whoever is there keeps the host's time
        running.attach(self._source, self.machine)
        checkpoint_bytes = CHECKPOINT_RAM * config.mem_bytes
        try:
            self._writer = BackgroundWriter(self.path, meta, checkpoint_bytes=checkpoint_bytes)
        except BaseException:
            if network is not None:
                network.close()
            raise
        try:
            self._writer.wait()  # until the file is there, and its name taken
            self._spool = copy_files(parent, self._writer)
            recorder = Recorder(self.machine, self._writer)
            self._live = LiveRun(self.machine, recorder, None)
            self._live.take_checkpoint()
            past.copy(self._writer, recorder)
        except BaseException:
            self._let_go()
            raise
        self.machine.door.subscribe(self._see)
        self.machine.door.subscribe(self._source.see)
        self._live.take_digest()
        self._commit_at = 0.0
        self._live.commit()
        for card in self.cables.unplugged:
            self.plug(card, False)

    # ---- looking

    @property
    def tick(self) -> int:
        """Where the fork is."""
        return self.machine.tick

    @property
    def ended(self) -> str | None:
        """Why the machine has ended, if it has."""
        return self.machine.ended

    def registers(self) -> dict[str, int]:
        """Return the CPU's registers by name."""
        return self.machine.engine.registers()

    def read(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at the guest's virtual `addr`; raises `IndexError` where nothing is mapped."""
        return self.machine.engine.read_virtual(addr, size)

    def read_physical(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at guest-physical `addr`; raises `IndexError` outside RAM."""
        return self.machine.engine.read(addr, size)

    def translate(self, addr: int) -> int:
        """Return the guest-physical address behind `addr`; raises `IndexError` where nothing is mapped."""
        physical = self.machine.engine.translate(addr)
        if physical is None:
            raise IndexError(f"guest address {addr:#x} is not mapped to RAM")
        return physical

    def digest(self) -> bytes:
        """Return the 16-byte digest of the whole state."""
        return self.machine.digest()

    # ---- changing

    def set_register(self, name: str, value: int) -> None:
        """Set a register: rax ... r15, rip, rflags, fs_base, gs_base, cr2 or cr3."""
        if not -(1 << 63) <= value < 1 << 64:
            raise UsageError(f"{value:#x} does not fit into {name}: it has 64 bits")
        self._edit(Kind.EDIT_REGISTER, 0, value & (1 << 64) - 1, name.lower().encode("ascii", "replace"))

    def write(self, addr: int, data: bytes, *, physical: bool = False) -> None:
        """Store `data` at a virtual address, or a guest-physical one; all of it or nothing."""
        pieces = list(self._pieces(addr, data, physical))
        for at, piece in pieces:
            if at < 0 or at + len(piece) > self.machine.engine.size:
                raise UsageError(f"{at:#x} is outside the guest's RAM")
        for at, piece in pieces:
            self._edit(Kind.EDIT_MEMORY, 0, at, piece)

    def write_disk(self, disk: int, lba: int, data: bytes) -> None:
        """Store whole 512-byte sectors on a disk behind the guest's back: its caches keep the old bytes."""
        if not 0 <= disk < len(self.machine.disks):
            raise UsageError(f"there is no disk {disk}: the machine has {len(self.machine.disks)}")
        sectors = self.machine.disks[disk].sectors
        if len(data) % SECTOR or lba < 0 or lba + len(data) // SECTOR > sectors:
            raise UsageError(
                f"{len(data)} bytes at lba {lba} are not whole sectors of disk {disk}: "
                f"it has {sectors:,} of {SECTOR} bytes"
            )
        for at in range(0, len(data), MAX_DATA):
            self._edit(Kind.EDIT_DISK, disk, lba + at // SECTOR, data[at : at + MAX_DATA])

    def type(self, text: str | bytes, at: int | None = None) -> None:
        """Type into the console with the next step, or at tick `at`; a newline is the Enter key."""
        self._open()
        data = text.encode() if isinstance(text, str) else text
        if at is not None and at < self.tick:
            raise UsageError(f"nothing can be typed at tick {at:,}: the fork is at {self.tick:,} already")
        for start in range(0, len(data), MAX_DATA):
            piece = data[start : start + MAX_DATA]
            if at is None:
                self._source.type(piece)
            else:
                self._source.type_at(at, piece)

    def receive_frame(self, card: int, frame: bytes) -> None:
        """Let network card `card` get a frame with the next step; it ends before the checksum."""
        self._check_card(card)
        if not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME:
            raise UsageError(
                f"{len(frame):,} bytes are no frame: it has {SHORTEST_FRAME} to {LONGEST_FRAME:,}"
            )
        self._source.give(Event(0, Kind.FRAME_IN, card, 0, frame))

    def plug(self, card: int, up: bool) -> None:
        """Plug the cable of network card `card` in, or pull it out, with the next step."""
        self._check_card(card)
        self._source.give(Event(0, Kind.LINK, card, int(up)))

    # ---- running

    def run(
        self,
        ticks: int | None = None,
        *,
        until: int | None = None,
        until_prompt: bool = False,
        timeout_s: float | None = None,
    ) -> Stop:
        """Run on for `ticks`, or to tick `until`, or until nothing more happens; return why it stopped.

        The reasons are those of `Stop`: `tick`, `power` (the machine ended), `idle`
        (nothing wakes it without an input), `pause` (`timeout_s` of host time are over),
        and with `until_prompt` also `prompt`: the guest waits at a prompt, and all of the
        script is typed.  Ctrl-C raises `KeyboardInterrupt` between two instructions, and
        the fork can go on.
        """
        self._open()
        goal = self.tick + ticks if ticks is not None else FOREVER if until is None else until
        if goal < self.tick:
            raise UsageError(f"a fork runs forward only: it is at tick {self.tick:,}, past {goal:,}")
        self._source.forever = not until_prompt
        if time.monotonic() - self._ran_at > _STOOD_STILL_S:
            self._source.resumed()
        late = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self._run(goal, late)
        finally:
            self._ran_at = time.monotonic()

    def _run(self, goal: int, late: float | None) -> Stop:
        with noted() as interrupted:
            while True:
                stop = self._live.run(goal)
                if stop.reason != "pause" and (stop.reason != "tick" or stop.tick >= goal):
                    if interrupted:
                        raise KeyboardInterrupt
                    return stop
                if stop.reason == "pause":
                    self._breathe()
                    if self._source.stop_requested:
                        self._source.stop_requested = False
                        self._settle(goal)
                        return Stop("prompt", self.tick)
                    if interrupted or (late is not None and time.monotonic() >= late):
                        self._settle(goal)
                        if interrupted:
                            raise KeyboardInterrupt
                        return Stop("pause", self.tick)

    def close(self) -> Path:
        """Seal the child trace and return its path.

        Edits and keys with no step after them get one more step: without it a replay would not show them.
        """
        if self._closed:
            return self.path
        if self._edited_at == self.tick or self._source.next_input(self.tick) == self.tick:
            self._settle(self.tick + 1)
        self._closed = True
        try:
            ended = self.machine.ended or "the fork was closed"
            network = self._source.network
            told = None if network is None else {"network": network.counters()}
            self._live.end(ended, time.monotonic() - self._begin, told)
        finally:
            self._let_go()
        return self.path

    def discard(self) -> None:
        """Close the fork and remove its trace."""
        if not self._closed:
            self._closed = True
            self._let_go()
        for ending in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: _ErrorType | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _edit(self, kind: Kind, unit: int, value: int, data: bytes) -> None:
        self._open()
        if self.machine.ended is not None:
            raise UsageError(f"the machine has ended ({self.machine.ended}): nothing can be changed any more")
        # A replay makes edits as early as it can: on arrival at the tick, or after idling or an input there.
        last = self._told
        if not (self._live.is_arrival or last is None or last.tick < self.tick or last.kind in INPUTS):
            raise UsageError(
                f"the guest idles at tick {self.tick:,} in the middle of what happens there: "
                "let it run on first, or fork again at that tick"
            )
        try:
            self.machine.edit(kind, unit, value, data)
        except TTError as e:
            raise UsageError(str(e)) from None
        self._edited_at = self.tick
        self._told = Event(self.tick, kind)

    def _pieces(self, addr: int, data: bytes, physical: bool) -> Iterator[tuple[int, bytes]]:
        """Yield (guest-physical address, bytes), cut at pages and at what an event may hold."""
        at = 0
        while at < len(data):
            here = addr + at if physical else (addr + at) % (1 << 64)
            size = MAX_DATA if physical else _PAGE - here % _PAGE
            try:
                yield here if physical else self.translate(here), data[at : at + size]
            except IndexError as e:
                raise UsageError(f"nothing can be written there: {e}") from None
            at += size

    def _see(self, event: Event) -> None:
        self._told = event

    def _breathe(self) -> None:
        if time.monotonic() >= self._commit_at:
            self._live.commit()
            self._commit_at = time.monotonic() + COMMIT_EVERY_S
        self._source.breathed()
        if self.progress is not None:
            try:
                self.progress(self.tick)
            except BaseException:
                self._settle(FOREVER)
                raise

    def _settle(self, goal: int) -> None:
        """Go to the next arrival at a tick, so that what is recorded next has a tick of its own."""
        late = time.monotonic() + _SETTLE_S
        target = min(goal, self.tick + 1)
        while self.machine.ended is None and self.tick < target and time.monotonic() < late:
            self._source.breathed()
            if self._live.run(target).reason not in ("pause", "tick"):
                return

    def _open(self) -> None:
        if self._closed:
            raise UsageError(f"the fork {self.path} is closed: fork again")

    def _check_card(self, card: int) -> None:
        self._open()
        cards = len(self.cables.told)
        if not 0 <= card < cards:
            raise UsageError(f"there is no network card {card}: the machine has {cards}")

    def _let_go(self) -> None:
        if self._source.network is not None:
            self._source.network.close()
        self._writer.close()
        for path in self._spool:
            path.unlink(missing_ok=True)


def _free_path(parent: Path) -> Path:
    """Return the first of x-1.tt, x-2.tt, ... beside x.tt that is not there."""
    number = 1
    while (path := parent.with_name(f"{parent.stem}-{number}.tt")).exists():
        number += 1
    return path
