"""Replaying: the same machine, fed from the record and compared with it all the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tt.checker import Checker, describe
from tt.differences import machine_differences
from tt.errors import BadInput, Divergence
from tt.events import ANSWERS, INPUTS, Event, Kind
from tt.log import EventsAhead, Trace
from tt.log.checkpoints import PAGE, StoredCheckpoint, set_bits
from tt.log.disk_writer import DISK_ONLY
from tt.recording import state_digest
from tt.vmm import running
from tt.vmm.build import build_machine
from tt.vmm.config import MachineConfig
from tt.vmm.disk_images import open_disks
from tt.vmm.engine import FOREVER
from tt.vmm.machine import Machine, Stop

PARTS = ("cpu", "ram", "board", "disks")
_MOST_LINES = 20  # of differences
_GOES_ON = ("tick", "break", "watch", "catch")


class TraceSource:
    """Answers and inputs from a trace, for a machine that has just arrived at `first_tick`."""

    def __init__(self, trace: Trace, first_tick: int = 0) -> None:
        self.is_enough: Callable[[], bool] = lambda: False  # whether the run should stop
        self._first_tick = first_tick
        self._answers = EventsAhead(trace, ANSWERS, first_tick)
        self._inputs = EventsAhead(trace, INPUTS, first_tick)

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return what was answered in the recording."""
        event = self._answers.take()
        while event is not None and event.tick == self._first_tick < tick:
            event = self._answers.take()  # given before the arrival there
        if event is None or (event.tick, event.kind, event.unit) != (tick, kind, unit):
            recorded = "nothing more" if event is None else describe(event)
            raise Divergence(
                f"replay diverges at tick {tick:,}: the guest asks for {kind.name.lower()} (unit {unit}), "
                f"the record has {recorded}"
            )
        return event.data

    def next_input(self, tick: int) -> int | None:
        """Return the tick of the next recorded input, or an earlier one at which to ask again."""
        event = self._inputs.peek(tick)
        if event is not None:
            return None if event.kind is Kind.WAKE else event.tick
        return self._inputs.due(tick)

    def take_inputs(self, tick: int) -> list[Event]:
        """Return the inputs recorded at `tick`."""
        inputs = []
        while (event := self._inputs.peek(tick)) is not None and event.kind is not Kind.WAKE:
            inputs.append(event)
            self._inputs.take()
        return inputs

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Let as much time pass as passed in the recording."""
        event = self._inputs.peek()
        if event is None:
            return None if most_ns or most_ns is None else 0  # the record has nothing more
        if event.kind is not Kind.WAKE or event.tick != tick:
            raise Divergence(
                f"replay diverges at tick {tick:,}: the guest idles, the record has {describe(event)}"
            )
        self._inputs.take()
        return event.value

    def polled(self, tick: int) -> bool:
        """Return False: a guest that polls its console gets what was typed in the recording."""
        return False

    def wants_pause(self, tick: int) -> bool:
        """Whether the owner has all that it wants."""
        return self.is_enough()


def run_on(machine: Machine, until: int) -> Stop:
    """Run a replaying machine to tick `until`, or to what its engine was told to stop at.

    Raises `Divergence` where it ends, or idles with nothing recorded to wake it.
    """
    stop = running.run(machine, until)
    if stop.reason not in _GOES_ON:
        raise Divergence(
            f"replay diverges at tick {stop.tick:,}: the machine stops "
            f"({stop.detail or stop.reason}), the record goes on to {until:,}"
        )
    return stop


class Replay:
    """A machine that replays a trace, forward only, and compares all of it with the record.

    `bases` says where base images are now, by disk number.  Raises `BadInput`
    when a base image is missing or has changed.
    """

    def __init__(
        self, trace: Trace, bases: dict[int, Path] | None = None, *, check_bases: bool = True
    ) -> None:
        self.trace = trace
        self.config = config_of(trace)
        disks = open_disks(self.config, bases or extract_embedded(trace, self.config), check=check_bases)
        self._source = TraceSource(trace)
        self.machine = build_machine(self.config, disks, self._source)
        self.checker = Checker(self.machine, trace)
        self.digests_checked = 0
        self._digests = trace.digests()
        self._next_digest = next(self._digests, None)
        self.last_good_tick = 0

    @property
    def tick(self) -> int:
        """Where the replay is."""
        return self.machine.tick

    def run_to(self, tick: int) -> None:
        """Run forward to `tick`, comparing every event and digest on the way; raises `Divergence`."""
        while True:
            digest = self._next_digest
            due = digest is not None and digest[0] <= tick and not self._is_final(digest[0])
            target = digest[0] if due and digest is not None else tick
            run_on(self.machine, target)
            if due and digest is not None:
                self._check_digest(*digest)
            if self.machine.tick >= tick:
                return

    def finish(self) -> None:
        """Run to the end of the record, and through all that happened at its last tick."""
        self.run_to(self.trace.end_tick)
        if self.trace.end_state == "power":
            self._power_off()
        elif self.trace.end_state == "idle":
            self._idle_out()
        else:
            self._use_up()
        if self.trace.sealed or not self.checker.is_through:
            self.checker.finish()
        if self._next_digest is not None:
            self._check_digest(*self._next_digest)
        guest_ns = self.trace.summary.get("guest_ns") if self.trace.end_state else None
        if guest_ns is not None and guest_ns != self.machine.now_ns:
            raise Divergence(
                f"replay diverges at tick {self.tick:,}: guest time is {self.machine.now_ns:,} ns "
                f"at the end, and was {guest_ns:,} ns"
            )

    def _power_off(self) -> None:
        """Check that the machine ends as it ended in the recording."""
        ended = self.trace.summary.get("ended")
        stop = running.run(self.machine, FOREVER if self.machine.ended else self.trace.end_tick + 1)
        if stop.reason != "power" or stop.detail != ended:
            raise Divergence(
                f"replay diverges at tick {stop.tick:,}: the recording ended there ({ended}), "
                f"the replay goes on ({stop.detail or stop.reason})"
            )

    def _idle_out(self) -> None:
        """Let the guest idle as long as it did in the recording."""
        stop = running.run(self.machine, self.trace.end_tick + 1)
        if stop.reason != "idle":
            raise Divergence(
                f"replay diverges at tick {stop.tick:,}: the recording ended while the guest was idle, "
                f"the replay does not idle there ({stop.detail or stop.reason})"
            )

    def _use_up(self) -> None:
        """Replay what the record has of its last tick: a recording may be cut off in the middle of it."""
        if self.trace.sealed:
            self.checker.flush()
        self._source.is_enough = lambda: self.checker.is_through
        try:
            if not self.checker.is_through and self.machine.ended is None:
                running.run(self.machine, self.trace.end_tick + 1)
        finally:
            self._source.is_enough = lambda: False

    def _is_final(self, tick: int) -> bool:
        """Whether the digest at `tick` is of the last state of all, after the events of the last tick."""
        return tick == self.trace.end_tick and self.trace.end_state in ("idle", "power")

    def _check_digest(self, tick: int, recorded: bytes) -> None:
        found = state_digest(self.machine)
        if found != recorded:
            parts = [
                name
                for i, name in enumerate(PARTS)
                if found[16 * i : 16 * i + 16] != recorded[16 * i : 16 * i + 16]
            ]
            raise Divergence(
                f"replay diverges between tick {self.last_good_tick:,} and {tick:,}: "
                f"the state's digest differs in {', '.join(parts)}"
            )
        self.last_good_tick = tick
        self.digests_checked += 1
        self._next_digest = next(self._digests, None)


def config_of(trace: Trace) -> MachineConfig:
    """Return the machine that a trace was recorded on; raises `BadInput`."""
    plain = trace.meta.get("config")
    if not isinstance(plain, dict):
        raise BadInput(f"{trace.path} does not describe the machine it was recorded on: it is damaged")
    names = [name for name in ("kernel", "initrd", "guest") if name in trace.files]
    config = MachineConfig.from_plain(plain, {name: trace.file(name) for name in names})
    if config.machine == DISK_ONLY:
        raise BadInput(f"{trace.path} is a disk's history, with no machine to run: look into it with chronus")
    if ("guest" if config.machine == "denali" else "kernel") not in config.parts:
        raise BadInput(
            f"{trace.path} holds no guest to boot: it is damaged, or was cut off at its very start"
        )
    return config


def extract_embedded(trace: Trace, config: MachineConfig) -> dict[int, Path]:
    """Unpack embedded base images whose originals are missing beside the trace; return where they are."""
    found: dict[int, Path] = {}
    for number, disk in enumerate(config.disks):
        name = f"disk{number}"
        if not disk.path or name not in trace.files or Path(disk.path).exists():
            continue
        path = trace.path.with_name(f"{trace.path.name}.{name}.img")
        if not path.exists() or path.stat().st_size != disk.size:
            partial = path.with_name(path.name + ".partial")
            with partial.open("wb") as f:
                for piece in trace.file_pieces(name):
                    f.write(piece)
            partial.replace(path)
        found[number] = path
    return found


@dataclass(frozen=True)
class Verdict:
    """What a verification found: `good`, or `message` and the tick range it lies in."""

    good: bool
    end_tick: int
    events: int
    digests: int
    message: str = ""
    detail: tuple[str, ...] = ()


def verify(
    trace: Trace,
    bases: dict[int, Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tamper: Callable[[Machine], None] | None = None,
) -> Verdict:
    """Replay everything and compare; on a divergence, narrow it down to the first bad tick.

    `progress(tick, end_tick)` is told now and then.  `tamper(machine)` is for
    tests: it is called with each machine built and may sabotage it.
    """
    replay = Replay(trace, bases)
    if tamper is not None:
        tamper(replay.machine)
    try:
        checkpoints = {checkpoint.tick: checkpoint for checkpoint in trace.checkpoints}
        for tick in sorted({*range(50_000_000, trace.end_tick, 50_000_000), trace.end_tick, *checkpoints}):
            replay.run_to(tick)
            if tick in checkpoints:
                check_checkpoint(replay.machine, checkpoints[tick])
            if progress is not None:
                progress(tick, trace.end_tick)
        replay.finish()
    except Divergence as e:
        good, bad = replay.last_good_tick, replay.machine.tick
        detail = _narrow(trace, bases, good, bad, tamper)
        return Verdict(
            False, trace.end_tick, replay.checker.checked, replay.digests_checked, str(e), tuple(detail)
        )
    return Verdict(True, trace.end_tick, replay.checker.checked, replay.digests_checked)


def check_checkpoint(machine: Machine, checkpoint: StoredCheckpoint) -> None:
    """Compare a machine with the trace's checkpoint of its tick; raises `Divergence`."""
    where = f"replay diverges at tick {checkpoint.tick:,}: the checkpoint there is of another state"
    found = machine.save()
    if checkpoint.state != found:
        parts = [name for name in found if checkpoint.state.get(name) != found[name]]
        raise Divergence(f"{where} ({', '.join(parts)})")
    if checkpoint.digest != machine.engine.ram_digest():
        raise Divergence(f"{where} (RAM)")
    for page in set_bits(int.from_bytes(checkpoint.changed, "little")):
        if checkpoint.page(page) != machine.engine.read(page * PAGE, PAGE):
            raise Divergence(f"{where} (the page of RAM at {page * PAGE:#x})")


def _narrow(
    trace: Trace,
    bases: dict[int, Path] | None,
    good: int,
    bad: int,
    tamper: Callable[[Machine], None] | None,
) -> list[str]:
    """Find the first tick at which a second replay and the failed one differ.

    The record holds digests only now and then, so what lies between is compared
    with another replay: if the two differ, replaying itself is not deterministic
    (or this one was tampered with) and the first bad tick is found by bisection;
    if they agree, the recording is what differs, between the last good digest
    and the event or digest that failed.
    """
    one, two = (_unchecked(trace, bases) for _ in range(2))
    if tamper is not None:
        tamper(one)
    for machine in (one, two):
        running.run(machine, good)
    low, high = good, bad
    saved = one.snapshot(), two.snapshot()
    for machine in (one, two):
        _run_quietly(machine, high)
    if one.digest() == two.digest():
        return [
            f"two replays agree with each other at tick {min(one.tick, two.tick):,}: the recording took "
            f"another way between tick {good:,} and {bad:,}"
        ]
    while high - low > 1:
        middle = (low + high) // 2
        # Inputs and answers are consumed as a replay goes, so each probe starts from fresh sources.
        one.restore(saved[0])
        two.restore(saved[1])
        for machine in (one, two):
            machine.door.source = TraceSource(trace, machine.tick)
            _run_quietly(machine, middle)
        if one.digest() == two.digest():
            low = middle
            saved = one.snapshot(), two.snapshot()
        else:
            high = middle
    one.restore(saved[0])
    two.restore(saved[1])
    for machine in (one, two):
        machine.door.source = TraceSource(trace, machine.tick)
        _run_quietly(machine, high)
    return [f"first bad tick: {high:,}", *_differences(two, one)]


def _unchecked(trace: Trace, bases: dict[int, Path] | None) -> Machine:
    config = config_of(trace)
    disks = open_disks(config, bases or extract_embedded(trace, config), check=False)
    return build_machine(config, disks, TraceSource(trace))


def _run_quietly(machine: Machine, tick: int) -> None:
    try:
        running.run(machine, tick)
    except Divergence:
        return


def _differences(expected: Machine, found: Machine) -> list[str]:
    """Return in words how two machines differ, what was expected first; at most 20 lines."""
    lines = [f"{each} (expected | found)" for each in machine_differences(expected, found)]
    lines = lines or ["only the digests differ"]
    more = [f"... and {len(lines) - _MOST_LINES} more differences"] if len(lines) > _MOST_LINES else []
    return lines[:_MOST_LINES] + more
