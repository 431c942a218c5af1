"""Recording: a live machine on one side, a trace on the other."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tt.events import Event, Kind
from tt.log import BackgroundWriter, ConsoleCoalescer
from tt.vmm.config import MachineConfig, build_machine, open_disks
from tt.vmm.engine import FOREVER
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine, Stop

DIGEST_EVERY_TICKS = 250_000_000
CHECKPOINT_EVERY_TICKS = 10_000_000  # some 25 ms of running: how long the way to any tick may be
TICKS_PER_PAGE = 6_000  # packing a page takes as long as running these
CHECKPOINT_RAM = 3  # times the guest's RAM: the most room that checkpoints take in a trace


@dataclass
class Recording:
    """What came of a recording.

    `reason` is why it ended, in words; `counts` how many events of each kind;
    `host_s` how long it took.  `path` is None when nothing was written.
    """

    path: Path | None
    end_tick: int
    guest_ns: int
    reason: str
    counts: Counter[Kind] = field(default_factory=Counter)
    digests: int = 0
    host_s: float = 0.0


class Recorder:
    """The subscriber that writes down whatever passes the door."""

    def __init__(self, machine: Machine, writer: BackgroundWriter) -> None:
        self.counts: Counter[Kind] = Counter()
        self.digests = 0
        self._machine = machine
        self._writer = writer
        self._coalescer = ConsoleCoalescer()
        machine.door.subscribe(self.see)

    def see(self, event: Event) -> None:
        """Log an event."""
        if event.kind is Kind.IRQ:
            # With each interrupt goes a checksum of the registers: a replay that
            # strays is caught at the next interrupt, not at the next digest.
            event = event._replace(data=self._machine.engine.register_checksum())
        self.log(event)

    def log(self, event: Event) -> None:
        """Log an event as it is; one of kind IRQ has its checksum already."""
        for whole in self._coalescer.add(event):
            self.counts[whole.kind] += 1
            self._writer.add(whole)

    def digest(self) -> None:
        """Log the digests of the parts of the machine's state now."""
        self._writer.add_digest(self._machine.tick, state_digest(self._machine))
        self.digests += 1

    def checkpoint(self) -> int:
        """Put the machine as it is now into the trace; return how many pages had changed.

        It must just have arrived at its tick.  Does nothing while the writer is behind.
        """
        if self._writer.behind:
            return 0
        engine = self._machine.engine
        pages, contents = engine.take_changes()
        state = self._machine.save()
        self._writer.add_checkpoint(self._machine.tick, state, engine.ram_digest(), pages, contents)
        return len(pages) // 4

    def commit(self) -> None:
        """Make everything so far safe."""
        tick = self._machine.tick
        for event in self._coalescer.expire(tick):
            self.counts[event.kind] += 1
            self._writer.add(event)
        self._writer.commit(tick)

    def seal(self, reason: str, summary: dict[str, object]) -> None:
        """Close the trace as complete."""
        for event in self._coalescer.flush():
            self.counts[event.kind] += 1
            self._writer.add(event)
        self._writer.seal(self._machine.tick, reason, summary)


def state_digest(machine: Machine) -> bytes:
    """Return what traces hold and replays compare: the digests of CPU, RAM, board, disks, 16 bytes each."""
    return b"".join(machine.digest_parts().values())


def record(
    config: MachineConfig,
    output: Path | None,
    source: LiveSource | None = None,
    *,
    max_ticks: int = FOREVER,
    timeout_s: float | None = None,
    overwrite: bool = False,
    embed: bool = False,
    checkpoint_ticks: int | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
    on_event: Callable[[Event], None] | None = None,
    on_start: Callable[[Machine], None] | None = None,
) -> Recording:
    """Run the machine that `config` describes and write down everything that happens to it.

    The recording ends when the guest ends, at `max_ticks`, after `timeout_s`
    of host time, when the source says so, or when an idle guest can never wake.
    With `embed`, the base images go into the trace too.  A checkpoint is kept each
    `checkpoint_ticks` (0: none; a guest that writes much is kept less often).  With `output` None the
    same run is made and nothing written: what a recording is measured against.
    `entropy` gives the guest's random bytes, `tt.vmm.live.seeded_entropy` the same
    ones each time.  `on_event` is told of every event as well.  Raises `TTError`s as the parts do.
    """
    source = source or LiveSource()
    writer = None
    begin = time.monotonic()
    # The machine first: where it cannot be built, no trace is begun.
    machine = build_machine(config, open_disks(config, check=False), source, entropy=entropy)
    if output is not None:
        writer = BackgroundWriter(
            output,
            meta_of(config),
            overwrite=overwrite,
            checkpoint_bytes=CHECKPOINT_RAM * config.mem_bytes,
        )
    try:
        source.now_ns = machine.clock.now
        source.wants_input = lambda: machine.wants_input
        recorder = None
        if writer is not None:
            for name, data in config.parts.items():
                writer.add_file(name, data)
            if embed:
                for number, disk in enumerate(config.disks):
                    if disk.path:
                        writer.add_file(f"disk{number}", Path(disk.path))
            recorder = Recorder(machine, writer)
        machine.door.subscribe(source.see)
        if on_event is not None:
            machine.door.subscribe(on_event)
        if on_start is not None:
            on_start(machine)
        spacing = CHECKPOINT_EVERY_TICKS if checkpoint_ticks is None else checkpoint_ticks
        deadline = None if timeout_s is None else begin + timeout_s
        reason = _run(machine, source, recorder, max_ticks, deadline, spacing or FOREVER)
        result = Recording(output, machine.tick, machine.now_ns, reason, host_s=time.monotonic() - begin)
        if recorder is not None:
            if machine.ended is not None:
                recorder.digest()
            recorder.seal(
                reason,
                {
                    "ended": machine.ended,
                    "guest_ns": machine.now_ns,
                    "host_s": round(time.monotonic() - begin, 3),
                    "engine": machine.engine.statistics,
                },
            )
            result.counts = recorder.counts
            result.digests = recorder.digests
        return result
    finally:
        if writer is not None:
            writer.close()


def meta_of(config: MachineConfig) -> dict[str, object]:
    """Return what a trace says of its machine."""
    return {
        "id": os.urandom(16).hex(),  # by which forks name their parent; nothing that a guest sees
        "config": config.plain(),
        "machine": config.machine,
        "period_ns": config.period_ns,
    }


def _run(
    machine: Machine,
    source: LiveSource,
    recorder: Recorder | None,
    max_ticks: int,
    deadline: float | None,
    checkpoint_ticks: int,
) -> str:
    next_digest = DIGEST_EVERY_TICKS
    next_checkpoint = checkpoint_ticks if recorder is not None else FOREVER
    machine.engine.take_changes()  # power-on is not stored: the machine's description gives it
    while True:
        stop = machine.run(min(max_ticks, next_digest, next_checkpoint))
        if stop.reason == "tick":
            if recorder is not None and stop.tick >= min(max_ticks, next_checkpoint):
                pages = recorder.checkpoint()
                next_checkpoint = stop.tick + max(checkpoint_ticks, pages * TICKS_PER_PAGE)
            if recorder is not None and stop.tick >= min(max_ticks, next_digest):
                recorder.digest()
            if stop.tick >= max_ticks:
                return f"reached {max_ticks:,} ticks"
            if stop.tick >= next_digest:
                next_digest += DIGEST_EVERY_TICKS
        elif stop.reason == "pause":
            if recorder is not None:
                recorder.commit()
            source.breathed()
            if source.stop_requested:
                return source.stop_reason
        else:
            return _why(stop)
        if deadline is not None and time.monotonic() >= deadline:
            return "time is up"


def _why(stop: Stop) -> str:
    if stop.reason == "idle":
        return "idle for ever: nothing can wake the guest"
    return stop.detail
