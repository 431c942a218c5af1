"""Recording: a live machine on one side, a trace on the other."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tt.events import Event, Kind
from tt.log import BackgroundWriter, ConsoleCoalescer
from tt.vmm import running
from tt.vmm.build import build_machine
from tt.vmm.config import MachineConfig
from tt.vmm.disk_images import open_disks
from tt.vmm.engine import FOREVER
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine, Stop
from tt.vmm.spacing import Spacing

DIGEST_EVERY_TICKS = 250_000_000
CHECKPOINT_RAM = 3  # times the guest's RAM: the most room that checkpoints take in a trace


@dataclass
class Recording:
    """The result of a recording.

    `reason` is why it ended, in words; `counts` how many events of each kind;
    `host_s` how long it took.  `path` is None when nothing was written.  `network` says
    of each network card what became of its frames.
    """

    path: Path | None
    end_tick: int
    guest_ns: int
    reason: str
    counts: Counter[Kind] = field(default_factory=Counter)
    digests: int = 0
    host_s: float = 0.0
    network: list[dict[str, int]] = field(default_factory=list)


class Recorder:
    """The subscriber that logs every event that passes the door."""

    def __init__(self, machine: Machine, writer: BackgroundWriter) -> None:
        self.counts: Counter[Kind] = Counter()
        self.digests = 0
        self._machine = machine
        self._writer = writer
        self._coalescer = ConsoleCoalescer()
        machine.door.subscribe(self.see)

    def see(self, event: Event) -> None:
        """Log an event."""
        self.log(with_checksum(self._machine, event))

    def log(self, event: Event, host_ns: int | None = None) -> None:
        """Log an event as it is; one of kind IRQ has its checksum already.

        `host_ns` is when a frame or a disk write was, since 1970; None: now.
        """
        for whole in self._coalescer.add(event):
            self.counts[whole.kind] += 1
            self._writer.add(whole, host_ns if whole is event else None)

    def add_digest(self, tick: int, digest: bytes) -> None:
        """Log a digest of the machine's state."""
        self._writer.add_digest(tick, digest)
        self.digests += 1

    def checkpoint(self, cost: int) -> int | None:
        """Put the machine as it is now into the trace; return how many pages had changed.

        `cost` says how far it has come, see `tt.vmm.spacing`.
        It must just have arrived at its tick.  Does nothing, and returns None, while the writer is behind.
        """
        if self._writer.behind:
            return None
        engine = self._machine.engine
        pages, contents = engine.take_changes()
        state = self._machine.save()
        self._writer.add_checkpoint(self._machine.tick, state, engine.ram_digest(), pages, contents, cost)
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


def with_checksum(machine: Machine, event: Event) -> Event:
    """Return an event as it is logged: an interrupt with a checksum of the registers.

    So a replay that strays is caught at the next interrupt, not at the next digest.
    """
    if event.kind is Kind.IRQ:
        return Event(event.tick, Kind.IRQ, event.unit, event.value, machine.engine.register_checksum())
    return event


def state_digest(machine: Machine) -> bytes:
    """Return what traces hold and replays compare: the digests of CPU, RAM, board, disks, 16 bytes each."""
    return b"".join(machine.digest_parts().values())


class LiveRun:
    """A live machine that is run in steps, with what is due written down after each.

    What recordings and forks have in common.  It begins on an arrival at a tick.
    `recorder` may be None: then the machine only runs.
    """

    def __init__(self, machine: Machine, recorder: Recorder | None, checkpoint_ticks: int | None) -> None:
        self.machine = machine
        self.is_arrival = True
        """Whether the machine stands on first arrival at its tick, where nothing of the tick has happened."""
        self._recorder = recorder
        self._spacing = Spacing(machine, checkpoint_ticks if recorder is not None else 0)
        self._next_digest = _digest_after(machine.tick)
        self._digest: tuple[int, bytes] | None = None  # of the last arrival: another may take its place

    def run(self, goal: int) -> Stop:
        """Run to tick `goal`, or to what is due before that, or to what stops the machine.

        The reasons are those of `tt.vmm.running.run`.  An arrival before `goal` has the
        reason `tick` too.
        """
        return self._run(min(goal, self._next_digest, self._spacing.next), pausing=True)

    def settle(self) -> Stop:
        """Go on to the next place that a replay finds too: an arrival at a tick, idling, or the end.

        The source is not asked for pauses, and no time passes for an idle guest.
        """
        return self._run(self.machine.tick + 1, pausing=False)

    def take_digest(self) -> None:
        """Take the digest of the state here, on arrival; it is logged when the machine has moved on."""
        self._digest = (self.machine.tick, state_digest(self.machine))

    def take_checkpoint(self) -> None:
        """Put the state into the trace, on arrival."""
        if self._recorder is not None:
            pages = self._recorder.checkpoint(self._spacing.cost)
            if pages is None:
                self._spacing.put_off()
            else:
                self._spacing.kept(pages)

    def commit(self) -> None:
        """Make everything so far safe."""
        if self._recorder is not None:
            self._recorder.commit()

    def end(self, reason: str, host_s: float, told: Mapping[str, object] | None = None) -> None:
        """Close the trace, with a digest of the last state, at a place that a replay finds too.

        `told` is what its summary says besides.
        """
        if self._recorder is None:
            return
        if not self.is_arrival:
            self.settle()
        at = "power" if self.machine.ended is not None else "arrival" if self.is_arrival else "idle"
        if self._digest is not None and self._digest[0] < self.machine.tick:
            self._log_digest()
        self.take_digest()
        self._log_digest()
        self._recorder.seal(
            reason,
            {
                "at": at,
                "ended": self.machine.ended,
                "guest_ns": self.machine.now_ns,
                "host_s": round(host_s, 3),
                "engine": self.machine.engine.statistics,
            }
            | dict(told or {}),
        )

    def _run(self, target: int, pausing: bool) -> Stop:
        machine, before = self.machine, self.machine.tick
        stop = (
            running.run(machine, target, pausing=pausing) if pausing else machine.run(target, pausing=False)
        )
        tick = machine.tick
        if stop.reason != "tick" or tick > before:
            self.is_arrival = stop.reason == "tick"
        if self._digest is not None and self._digest[0] < tick:
            self._log_digest()
        if stop.reason == "tick":
            if tick >= self._spacing.next and self._spacing.due():
                self.take_checkpoint()
            if tick >= self._next_digest:
                self._next_digest = _digest_after(tick)
                if self._recorder is not None:
                    self.take_digest()
        return stop

    def _log_digest(self) -> None:
        if self._digest is not None and self._recorder is not None:
            self._recorder.add_digest(*self._digest)
        self._digest = None


def _digest_after(tick: int) -> int:
    return (tick // DIGEST_EVERY_TICKS + 1) * DIGEST_EVERY_TICKS


class LiveRecording:
    """A recording that its owner steps: a machine from its power-on, and the trace that tells of it.

    What `record` does in one go.  The owner calls `step` until it has enough, `commit` now and
    then, and `end`; and always `close`.  The parameters are those of `record`.
    """

    def __init__(
        self,
        config: MachineConfig,
        output: Path | None,
        source: LiveSource,
        *,
        overwrite: bool = False,
        embed: bool = False,
        checkpoint_ticks: int | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        networks: Sequence[str] = (),
        on_event: Callable[[Event], None] | None = None,
        on_start: Callable[[Machine], None] | None = None,
    ) -> None:
        self.path = output
        self.source = source
        self._begin = time.monotonic()
        self._writer: BackgroundWriter | None = None
        self._recorder: Recorder | None = None
        # The machine first: where it cannot be built, no trace is begun.
        self.machine = build_machine(config, open_disks(config, check=False), source, entropy=entropy)
        if output is not None:
            self._writer = BackgroundWriter(
                output,
                meta_of(config) | ({"networks": list(networks)} if networks else {}),
                overwrite=overwrite,
                checkpoint_bytes=CHECKPOINT_RAM * config.mem_bytes,
            )
        try:
            self._wire(config, embed, on_event, on_start)
            self._live = LiveRun(self.machine, self._recorder, checkpoint_ticks)
            self.machine.engine.take_changes()  # power-on is not stored: the machine's description gives it
        except BaseException:
            self.close()
            raise

    def step(self, goal: int = FOREVER) -> Stop:
        """Run to tick `goal`, or to whatever comes first; see `LiveRun.run`."""
        return self._live.run(goal)

    def commit(self) -> None:
        """Make everything so far safe."""
        self._live.commit()

    def end(self, reason: str) -> Recording:
        """Close the trace, complete, and return what was recorded; `reason` says why it ended."""
        network = self.source.network
        counters = [] if network is None else network.counters()
        self._live.end(reason, self.host_s, {} if network is None else {"network": counters})
        machine = self.machine
        result = Recording(
            self.path, machine.tick, machine.now_ns, reason, host_s=self.host_s, network=counters
        )
        if self._recorder is not None:
            result.counts = self._recorder.counts
            result.digests = self._recorder.digests
        return result

    def close(self) -> None:
        """Close the trace, at its last commit where `end` was not called."""
        if self._writer is not None:
            self._writer.close()

    @property
    def host_s(self) -> float:
        """How long it has taken so far, in seconds of the host."""
        return time.monotonic() - self._begin

    def _wire(
        self,
        config: MachineConfig,
        embed: bool,
        on_event: Callable[[Event], None] | None,
        on_start: Callable[[Machine], None] | None,
    ) -> None:
        machine, source, writer = self.machine, self.source, self._writer
        running.attach(source, machine)
        if writer is not None:
            for name, data in config.parts.items():
                writer.add_file(name, data)
            if embed:
                for number, disk in enumerate(config.disks):
                    if disk.path:
                        writer.add_file(f"disk{number}", Path(disk.path))
            self._recorder = Recorder(machine, writer)
        machine.door.subscribe(source.see)
        if on_event is not None:
            machine.door.subscribe(on_event)
        if on_start is not None:
            on_start(machine)


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
    networks: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
    on_start: Callable[[Machine], None] | None = None,
) -> Recording:
    """Run the machine that `config` describes and write down everything that happens to it.

    The recording ends when the guest ends, at `max_ticks`, after `timeout_s`
    of host time, when the source says so, or when an idle guest can never wake.
    With `embed`, the base images go into the trace too.  A checkpoint is kept each
    `checkpoint_ticks` (0: none; None: where running from the last takes long enough; less often of a guest
    that writes much).  With `output` None the
    same run is made and nothing written, to measure what recording costs.
    `entropy` gives the guest's random bytes, `tt.vmm.live.seeded_entropy` the same
    ones each time.  `networks` says in words what each network card is connected to.
    `on_event` is told of every event as well.  Raises `TTError`s as the parts do.
    """
    source = source or LiveSource()
    recording = LiveRecording(
        config,
        output,
        source,
        overwrite=overwrite,
        embed=embed,
        checkpoint_ticks=checkpoint_ticks,
        entropy=entropy,
        networks=networks,
        on_event=on_event,
        on_start=on_start,
    )
    try:
        return recording.end(_run(recording, source, max_ticks, timeout_s))
    finally:
        recording.close()


def meta_of(config: MachineConfig) -> dict[str, object]:
    """Return what a trace says of its machine."""
    return {
        "id": os.urandom(16).hex(),  # by which forks name their parent; nothing that a guest sees
        "config": config.plain(),
        "machine": config.machine,
        "period_ns": config.period_ns,
    }


def _run(recording: LiveRecording, source: LiveSource, max_ticks: int, timeout_s: float | None) -> str:
    """Run until something ends the recording; return what."""
    while True:
        stop = recording.step(max_ticks)
        if stop.reason == "tick":
            if stop.tick >= max_ticks:
                return f"reached {max_ticks:,} ticks"
        elif stop.reason == "pause":
            recording.commit()
            source.breathed()
            if source.stop_requested:
                return source.stop_reason
        else:
            return why(stop)
        if timeout_s is not None and recording.host_s >= timeout_s:
            return "time is up"


def why(stop: Stop) -> str:
    """Return in words why a machine came back that will not go on by itself."""
    if stop.reason == "idle":
        return "idle for ever: nothing can wake the guest"
    return stop.detail
