"""Guests on tt's own machine: deterministic, so that the same disk gives the same answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from tt.chronus.instant import DiskView, TrackedView
from tt.chronus.runners.runner import BootFiles, End, Heard, Setup, Started, boot_files, command_line
from tt.errors import BadInput
from tt.events import Event, Kind
from tt.vmm.boot import loader
from tt.vmm.boot.plan import BootPlan
from tt.vmm.clock import Timer
from tt.vmm.config import MachineConfig, build_machine
from tt.vmm.disk import OverlayDisk
from tt.vmm.live import LiveSource, seeded_entropy

_SEED = 20041205  # of the guest's random bytes: any, but the same for every probe
_HOST_FACTOR = 5.0  # a guest second takes at most some host seconds: what stops a guest that never idles
_HOST_LEAST_S = 120.0


@dataclass
class _Running:
    """The guest as its listener has it."""

    source: LiveSource
    alarm: Timer
    console_socket: Path | None = None
    ports: dict[int, int] = field(default_factory=dict)
    nbd_url: str = ""

    @property
    def now_s(self) -> float:
        return self.source.now_ns() / 1e9

    def wake(self, at_s: float) -> None:
        self.alarm.arm(int(at_s * 1e9))

    def send(self, data: bytes) -> None:
        self.source.type(data)

    def stop(self, why: str) -> None:
        self.source.stop(why)


class _Bytes:
    """A few bytes as the base of a disk."""

    def __init__(self, data: bytes) -> None:
        self._data = data.ljust(-(-len(data) // 4096) * 4096, b"\0")
        self.sectors = len(self._data) // 512

    def read(self, lba: int, count: int) -> bytes:
        return self._data[lba * 512 : (lba + count) * 512]


class TtRunner:
    """Runs guests on the pc machine; each is over when it ends or is told to."""

    name = "tt"

    def run(
        self,
        disk: DiskView,
        setup: Setup,
        *,
        extra: bytes = b"",
        heard: Heard,
        started: Started | None = None,
    ) -> End:
        """See `Runner.run`; `timeout_s` is of guest time, and generous of host time."""
        begin = time.monotonic()
        tracked = TrackedView(disk)
        plan = _plan(boot_files(tracked, setup), setup)
        disks = [tracked.overlay()]
        if extra:
            disks.append(OverlayDisk(_Bytes(extra)))
        config = MachineConfig(
            "pc",
            setup.mem_bytes,
            4,
            setup.epoch,
            "virtual",
            plan.kind,
            plan.cmdline,
            (),
            plan=plan,
            discard=True,
        )
        # What idles waits for nobody: its time jumps to its next timer.
        source = LiveSource(forever=True, pace=setup.pace)
        machine = build_machine(config, disks, source, entropy=seeded_entropy(_SEED))
        source.now_ns = machine.clock.now
        source.wants_input = lambda: machine.wants_input
        guest = _Running(source, machine.clock.timer("probe", lambda: heard(guest, b"")))
        console = bytearray()
        limit_ns = int(setup.timeout_s * 1e9)
        host_limit = begin + max(_HOST_LEAST_S, setup.timeout_s * _HOST_FACTOR)
        timed_out = False

        def see(event: Event) -> None:
            if event.kind is Kind.CONSOLE:
                console.extend(event.data)
                heard(guest, event.data)

        machine.door.subscribe(source.see)
        machine.door.subscribe(see)
        if started is not None:
            started(guest)
        while True:
            left_ns = limit_ns - machine.now_ns
            if left_ns <= 0 or time.monotonic() > host_limit:
                timed_out, why = True, f"{setup.timeout_s:g} s are over"
                break
            stop = machine.run(machine.tick + max(1, left_ns // machine.clock.period_ns))
            if stop.reason == "pause":
                source.breathed()
                if source.stop_requested:
                    why = source.stop_reason
                    break
            elif stop.reason != "tick":
                why = "idle for ever" if stop.reason == "idle" else stop.detail
                timed_out = stop.reason == "idle"
                break
        second = disks[1].read(0, disks[1].sectors) if extra else b""
        return End(
            why, timed_out, bytes(console), second, frozenset(tracked.reads), time.monotonic() - begin
        )  # fmt: skip


def _plan(files: BootFiles, setup: Setup) -> BootPlan:
    own, added = command_line(files, setup)
    cmdline = loader.with_pc_defaults(own, added)
    key = blake2b(files.kernel + b"\0" + (files.initrd or b""), digest_size=16).digest()
    return _planned(key, _Kept(files), cmdline, setup.mem_bytes)


class _Kept:
    """Files that a cache does not look at: their hash is its key."""

    def __init__(self, files: BootFiles) -> None:
        self.files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2)
def _planned(key: bytes, kept: _Kept, cmdline: str, mem_bytes: int) -> BootPlan:
    """Make a plan, or take the one that was made for the same kernel."""
    kind = loader.kernel_kind(kept.files.kernel)
    if kind is None:
        raise BadInput("the disk's kernel is none that tt can boot")
    return loader.plan_boot_from_parts(kind, kept.files.kernel, kept.files.initrd, cmdline, mem_bytes)
