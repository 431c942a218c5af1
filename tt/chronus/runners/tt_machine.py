"""Guests on tt's own machine: deterministic, so that the same disk gives the same answer.

A guest runs only while its console is read, on the reader's thread, and stops at ticks that
depend on nothing but the guest.  So a conversation is a function of the disk and of what is typed when:
two runs of one script read the same console and the same blocks.  An idle guest does not wait for the host's
clock: its time jumps to its next timer.  Only when `console_socket` is used, or from the first frame on
that a guest with a network sends, does its time pass as the host's does.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from tt.chronus.runners import warm as warm_machines
from tt.chronus.runners.boot_files import BootFiles, boot_files, command_line, recorded_machine
from tt.chronus.runners.console_socket import ConsoleSocket
from tt.chronus.runners.ports import ForwardedPorts
from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.view import DiskView, TrackedView
from tt.errors import BadInput
from tt.events import Event, Kind
from tt.net.network import Network
from tt.vmm import running
from tt.vmm.boot import loader
from tt.vmm.boot.plan import BootPlan
from tt.vmm.config import MachineConfig, NetConfig, default_mac
from tt.vmm.disk import BLOCK, SECTOR, Base
from tt.vmm.live import readable
from tt.vmm.machine import SLICE_TICKS

PERIOD_NS = 4
_SLICE_NS = 10_000_000  # how long a busy guest goes on before its reader gets what it printed
_MAX_CONSOLE = 16 << 20
_NAP_S = 0.05
_NO_WAITING = "panic=-1"  # a panic ends the machine at once


class Quick:
    """The source of a guest's inputs: typed bytes; and the jumps of an idle guest's time.

    `until_ns` is the guest time at which the reader wants to be back, `fresh` whether there is something
    for it to read.  With `pace` an idle guest's time passes as the host's does.  `network` is what its
    card is connected to, if anything.
    """

    def __init__(self) -> None:
        self.until_ns = 0
        self.pace = False
        self.network: Network | None = None
        self.fresh: Callable[[], bool] = lambda: False
        self.now_ns: Callable[[], int] = lambda: 0
        self._typed: deque[bytes] = deque()
        self._back = False

    def type(self, data: bytes) -> None:
        """Type `data` into the first console."""
        if data:
            self._typed.append(data)

    def resume(self, until_ns: int) -> bool:
        """Go on, to guest time `until_ns` at the latest; return whether something was typed."""
        self.until_ns = until_ns
        self._back = False
        return bool(self._typed)

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return a live answer."""
        return live()

    def next_input(self, tick: int) -> int | None:
        """Return `tick` when something was typed, or came by the network."""
        if self._typed or (self.network is not None and self.network.poll(self.now_ns())):
            return tick
        return None

    def take_inputs(self, tick: int) -> list[Event]:
        """Return what was typed, and what came by the network."""
        typed = [Event(tick, Kind.INPUT, 0, 0, self._typed.popleft()) for _ in range(len(self._typed))]
        if self.network is None:
            return typed
        self.network.poll(self.now_ns())
        return typed + self.network.take(tick)

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        """Pass the time to the guest's next timer, or to where the reader wants to be back."""
        if self._typed:
            return 0
        left = self.until_ns - self.now_ns()
        if self.fresh() or left <= 0:
            self._back = True
            return None
        passed = left if most_ns is None else min(left, most_ns)
        if self.pace:
            passed = self._nap(min(passed, int(_NAP_S * 1e9)))
        return passed

    def _nap(self, most_ns: int) -> int:
        """Sleep, until something comes by the network if there is one; return for how many ns."""
        descriptors = [] if self.network is None else self.network.descriptors()
        if not descriptors:
            time.sleep(most_ns / 1e9)
            return most_ns
        begin = time.monotonic()
        readable(descriptors, most_ns / 1e9)
        return min(most_ns, int((time.monotonic() - begin) * 1e9))

    def polled(self, tick: int) -> bool:
        """Whether nothing is typed: then a guest that polls for input waits, and its time may be passed."""
        return not self._typed

    def wants_pause(self, tick: int) -> bool:
        """Whether to return to the reader."""
        return self._back


class TtRunner:
    """Starts guests on tt's machines: the pc, or the one of the recording."""

    name = "tt"

    def key(self) -> str:
        """Return a text that identifies this runner."""
        return "tt"

    def start(self, disk: DiskView, setup: Setup) -> TtGuest:
        """Start a guest; see `Runner.start`."""
        tracked = TrackedView(disk)
        bases: list[Base] = [tracked]
        if setup.script_disk is not None:
            bases.append(_Bytes(setup.script_disk))
        try:
            config = _config(tracked, setup)
        except CannotBoot as e:
            e.reads = frozenset(tracked.reads)
            raise
        return TtGuest(config, bases, tracked, ForwardedPorts(setup.forward) if setup.forward else None)


class TtGuest:
    """A guest on tt's own machine; see `tt.chronus.runners.runner.Guest`."""

    nbd_url = None

    def __init__(
        self,
        config: MachineConfig,
        bases: list[Base],
        tracked: TrackedView,
        forwarded: ForwardedPorts | None = None,
    ) -> None:
        self.ports = {} if forwarded is None else forwarded.ports
        self.ended: str | None = None
        self._tracked = tracked
        self._console = bytearray()
        self._unread = 0
        self._seconds = 0.0
        self._script = b""
        self._socket: ConsoleSocket | None = None
        self._forwarded = forwarded
        self._source = source = Quick()
        sectors = tuple(base.sectors for base in bases)
        try:
            warm = warm_machines.take(_key(config, sectors), config, sectors, source)
            warm.begin(bases, source, self._see)
        except BaseException:
            self._disconnect()
            raise
        self._console += warm.console
        self._warm: warm_machines.WarmMachine | None = warm
        if forwarded is not None:
            source.network = forwarded.network
            running.plug_in(forwarded.network, warm.machine)
        source.now_ns = warm.machine.clock.now
        source.fresh = lambda: self._unread < len(self._console)

    @property
    def console(self) -> bytes:
        """Everything printed so far (of a very long output, the last part)."""
        return bytes(self._console)

    @property
    def seconds(self) -> float:
        """Guest time since power-on."""
        return self._seconds

    @property
    def reads(self) -> frozenset[int]:
        """The blocks of the disk that were read so far, by the boot loader or the guest."""
        return frozenset(self._tracked.reads)

    @property
    def console_socket(self) -> Path:
        """A socket with the console; from now on an idle guest takes the host's time."""
        if self._socket is None:
            self._source.pace = True
            self._socket = ConsoleSocket(self._source.type, self.console)
        return self._socket.path

    def read(self, timeout_s: float) -> bytes:
        """Run until the guest prints something, for `timeout_s` of its time at most; see `Guest.read`.

        Raises `ProbeError` when its network has failed.
        """
        if self._forwarded is not None and self._forwarded.failed:
            raise ProbeError(f"the guest's network failed, so there is no verdict: {self._forwarded.failed}")
        warm = self._warm
        if warm is not None and self.ended is None:
            try:
                self._run(warm, warm.machine.now_ns + max(0, math.ceil(timeout_s * 1e9)))
            except BaseException:
                self._warm = None  # interrupted at any place: it must not run on
                self.ended = "cut off"
                raise
            self._seconds = warm.machine.now_ns / 1e9
        fresh = bytes(self._console[self._unread :])
        self._unread = len(self._console)
        if self._socket is not None:
            if fresh:
                self._socket.feed(fresh)
            elif self.ended is not None:
                self._socket.end()
        return fresh

    def write(self, data: bytes) -> None:
        """Type `data`; it reaches the guest when it runs on."""
        self._source.type(data)

    def script_disk(self) -> bytes:
        """Return the second disk as it is now."""
        if self._warm is not None and len(self._warm.disks) > 1:
            self._script = self._warm.contents(1)
        return self._script

    def stop(self) -> None:
        """End the guest; its machine is kept for the next one."""
        self.script_disk()
        self.ended = self.ended or "stopped"
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.machine.slice_ticks = SLICE_TICKS
            warm_machines.give_back(warm)
        self._disconnect()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, warm: warm_machines.WarmMachine, until_ns: int) -> None:
        machine = warm.machine
        period_ns = machine.clock.period_ns
        while self._unread == len(self._console):
            left_ns = until_ns - machine.now_ns
            if left_ns <= 0:
                return
            if self._source.resume(until_ns):
                warm.touched()
            stop = running.run(machine, machine.tick + max(1, min(left_ns, _SLICE_NS) // period_ns))
            if stop.reason == "power":
                self.ended = stop.detail
                return
            if stop.reason == "tick":
                warm.arrived(self.console)

    def _disconnect(self) -> None:
        self._source.network = None
        if self._forwarded is not None:
            self._forwarded.close()

    def _see(self, event: Event) -> None:
        if event.kind is Kind.FRAME_OUT and self._source.network is not None:
            assert self._warm is not None
            self._warm.touched()  # what is answered is up to passt
            self._source.pace = True
            self._source.network.send(event.unit, event.data, self._source.now_ns())
        elif event.kind is Kind.CONSOLE:
            self._console += event.data
            if len(self._console) > _MAX_CONSOLE:
                half = _MAX_CONSOLE // 2
                del self._console[:half]
                self._unread = max(0, self._unread - half)


class _Bytes:
    """Some bytes as the base of a disk."""

    def __init__(self, data: bytes) -> None:
        self._data = data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
        self.sectors = len(self._data) // SECTOR

    def read(self, lba: int, count: int) -> bytes:
        """Return `count` sectors."""
        return self._data[lba * SECTOR : (lba + count) * SECTOR]


def _config(disk: DiskView, setup: Setup) -> MachineConfig:
    recorded = None if setup.recording is None else recorded_machine(setup.recording)
    if recorded is not None and recorded.machine == "denali":
        return _denali(recorded, setup)
    plan = _plan(boot_files(disk, setup), setup)
    return MachineConfig(
        machine="pc",
        mem_bytes=setup.mem_bytes,
        period_ns=PERIOD_NS,
        epoch=setup.epoch,
        clock="virtual",
        boot_kind=plan.kind,
        cmdline=plan.cmdline,
        disks=(),
        plan=plan,
        discard=True,
        firmware=True,
        nets=_cards("virtio", setup),
    )


def _denali(recorded: MachineConfig, setup: Setup) -> MachineConfig:
    """Return the recording's Denali machine, whose guest is in the trace and not on its disk."""
    if setup.kernel is not None or setup.initrd is not None or setup.append:
        raise ProbeError("a Denali guest takes no kernel, initrd or command line: leave them out")
    if setup.init or setup.script_disk is not None:
        raise ProbeError("a Denali guest has no shell to run a command: probe it with --console or --run")
    return MachineConfig(
        machine="denali",
        mem_bytes=setup.mem_bytes,
        period_ns=recorded.period_ns,
        epoch=setup.epoch,
        clock="virtual",
        boot_kind=recorded.boot_kind,
        cmdline="",
        disks=(),
        parts=recorded.parts,
        nets=_cards("denali", setup),
    )


def _cards(model: str, setup: Setup) -> tuple[NetConfig, ...]:
    """Return the network card of a guest whose ports are to be reached; none for others."""
    return (NetConfig(model, default_mac(0)),) if setup.forward else ()


def _key(config: MachineConfig, sectors: tuple[int, ...]) -> tuple[object, ...]:
    """Return a key, equal for machines that do the same until they first read their disks.

    Equal plans are one object (`_planned`), and so are a recording's parts.
    """
    plan = config.plan
    what = id(config.parts["guest"]) if plan is None else (id(plan.kernel), id(plan.segments))
    clock = (config.period_ns, config.epoch)
    return (config.machine, config.mem_bytes, *clock, config.cmdline, what, sectors, config.nets)


def _plan(files: BootFiles, setup: Setup) -> BootPlan:
    key = blake2b(digest_size=16)
    for part in ((files.kind or "").encode(), files.kernel, files.initrd or b""):
        key.update(len(part).to_bytes(8, "little"))
        key.update(part)
    own, added = command_line(files.cmdline, setup)
    return _planned(key.digest(), _Unseen(files), own, added, setup.mem_bytes)


class _Unseen:
    """Files that a cache does not compare: their hash is part of its key."""

    def __init__(self, files: BootFiles) -> None:
        self.files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unseen)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2)
def _planned(key: bytes, unseen: _Unseen, own: str, added: str, mem_bytes: int) -> BootPlan:
    """Make a plan, or take the one that was made of the same files: unpacking a kernel takes a second."""
    files = unseen.files
    kind = files.kind
    if kind is None:
        raise CannotBoot(f"no kernel that tt can boot: {files.where}")
    if kind.startswith("linux"):
        added = f"{_NO_WAITING} {added}"
    cmdline = loader.full_cmdline(kind, own, added)
    try:
        return loader.plan_new(kind, files.kernel, files.initrd, cmdline, mem_bytes)
    except BadInput as e:
        raise CannotBoot(str(e)) from None
