"""Guests on the real QEMU: it boots from the disk over NBD, and what it writes goes into an overlay."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tt.chronus.nbd.instants import InstantExport
from tt.chronus.nbd.server import serving
from tt.chronus.runners.boot_files import BootFiles, boot_files, command_line, recorded_machine
from tt.chronus.runners.console_socket import ConsoleSocket
from tt.chronus.runners.kvm import kvm_works
from tt.chronus.runners.qemu_process import QemuProcess
from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.view import DiskView, TrackedView
from tt.errors import TTError, UsageError
from tt.vmm.boot import kinds, loader, modules, multiboot, multiboot2

BINARY = "qemu-system-x86_64"
QEMU_CMDLINE = ("console=ttyS0", "panic=-1")
"""Words for a Linux kernel: use the serial console, and end a panic with a reset, which ends QEMU."""

_OF_TT = frozenset(loader.PC_CMDLINE) - {"console=ttyS0"}  # words meant for tt's machine only

_MAX_CONSOLE = 16 << 20
_BOOTABLE = b"\x55\xaa"  # at 510 of a boot sector
_NO_BOOT = b"No bootable device."  # SeaBIOS
_LATEST = 253_402_300_799  # the end of the year 9999
_TCG_CACHE_MB = 128
_ACCELERATORS = ("auto", "kvm", "tcg")
_SCRIPT = "/dev/fdset/1"
_BUSES = {"virtio": "virtio-blk-pci", "ide": "ide-hd", "scsi": "scsi-hd"}
_MOST_CPUS = 64
_OPTIONS = ("firmware", "bus=ide|scsi", "network=open|none", "accelerator=kvm|tcg", "cpus=N", "binary=PATH")
_NETWORKS = ("closed", "open", "none")
_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)")


@dataclass(frozen=True)
class QemuRunner:
    """Starts guests on QEMU.

    With `firmware` it boots as a PC does: SeaBIOS, and the disk's own boot loader; else the disk's
    kernel directly, or, where there is none but a boot sector, by the firmware too.  `bus` is what
    the disk is attached to (`virtio`, `ide`, `scsi`), `network` the guest's: `closed` (the forwarded ports
    alone), `open` (it reaches what this host reaches), `none`.  `accelerator` is `auto` (KVM where it works),
    `kvm` or `tcg`.  `more` are arguments for QEMU as they stand.
    """

    firmware: bool = False
    bus: str = "virtio"
    network: str = "closed"
    accelerator: str = "auto"
    cpus: int = 1
    binary: str = BINARY
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the runner is called."""
        return "qemu"

    def key(self) -> str:
        """Return a text that identifies this runner; its speed is left out."""
        return repr(replace(self, accelerator="auto"))

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the runner for `qemu[:OPTION,...]`, an option being `firmware` or `bus=ide` (`--runner`)."""
        runner = cls()
        kinds = {field.name: str(field.type) for field in fields(cls) if field.name != "more"}
        for option in filter(None, name.partition(":")[2].split(",")):
            key, equals, value = option.partition("=")
            kind = kinds.get(key)
            if kind is None or (kind == "bool") == bool(equals) or (kind == "int" and not value.isdecimal()):
                raise UsageError(f"--runner {name}: {option!r} is none of {', '.join(_OPTIONS)}")
            chosen: Any = True if kind == "bool" else int(value) if kind == "int" else value
            runner = replace(runner, **{key: chosen})
        runner.check()
        return runner

    def start(self, disk: DiskView, setup: Setup) -> QemuGuest:
        """Start a guest; see `Runner.start`."""
        return QemuGuest(self, disk, setup)

    def path(self) -> str:
        """Return the path of QEMU; raises `ProbeError` where it is not installed."""
        found = shutil.which(self.binary)
        if found is None:
            raise ProbeError(
                f"--runner qemu needs {self.binary}, which is not installed: "
                "apt install qemu-system-x86, or use --runner tt"
            )
        return found

    def check(self) -> None:
        """Raise `UsageError` for options that make no sense."""
        for what, known in (("bus", _BUSES), ("network", _NETWORKS), ("accelerator", _ACCELERATORS)):
            if getattr(self, what) not in known:
                raise UsageError(f"the qemu runner has no {what} {getattr(self, what)!r}: {', '.join(known)}")
        if not 1 <= self.cpus <= _MOST_CPUS:
            raise UsageError(f"the qemu runner cannot have {self.cpus} cpus: 1 to {_MOST_CPUS}")

    def machine(self, mem_bytes: int, epoch: int) -> list[str]:
        """Return QEMU's arguments for the machine, without its disks; raises `ProbeError`."""
        self.check()
        binary = self.path()
        kvm = self.accelerator == "kvm" or (self.accelerator == "auto" and kvm_works(binary))
        if self.accelerator == "kvm" and not kvm_works(binary):
            raise ProbeError("KVM does not work here (/dev/kvm): use the accelerator auto or tcg")
        clock = datetime.fromtimestamp(min(max(epoch, 0), _LATEST), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc,graphics=off"),  # the firmware talks on the serial console
            *("-accel", "kvm" if kvm else f"tcg,tb-size={_TCG_CACHE_MB}", "-cpu", "host" if kvm else "max"),
            *("-m", str(-(-mem_bytes >> 20)), "-smp", str(self.cpus), "-rtc", f"base={clock}"),
            *("-device", "virtio-rng-pci"),
        ]

    def disk(self, socket_path: str) -> list[str]:
        """Return the arguments for the disk: an export of the NBD server at `socket_path`."""
        quoted = socket_path.replace(",", ",,")
        controller = ["-device", "virtio-scsi-pci"] if self.bus == "scsi" else []
        return [
            *("-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={quoted},export=disk"),
            *controller,
            *("-device", f"{_BUSES[self.bus]},drive=disk,bootindex=1,rerror=report,werror=report"),
        ]

    def forwards(self, ports: Sequence[int]) -> list[str]:
        """Return the arguments for the network, with `ports` of the guest reachable from here."""
        if self.network == "none":
            if ports:
                raise ProbeError("ports cannot be forwarded without a network: set network=closed or open")
            return []
        for port in ports:
            if not 0 < port < 65536:
                raise ProbeError(f"{port} is no TCP port: 1 to 65535")
        user = ["user,id=net", *(["restrict=on"] if self.network == "closed" else [])]
        user += [f"hostfwd=tcp:127.0.0.1:0-:{port}" for port in ports]
        return ["-netdev", ",".join(user), "-device", "virtio-net-pci,netdev=net,romfile="]


class QemuGuest:
    """A guest on QEMU; see `Guest`.  Use it from one thread, but for `write`."""

    def __init__(self, runner: QemuRunner, disk: DiskView, setup: Setup) -> None:
        binary = runner.path()
        self.ports: dict[int, int] = {}
        self.nbd_url: str | None = None
        self._setup = setup
        self._console = bytearray()
        self._hub: ConsoleSocket | None = None
        self._script: int | None = None
        self._left = b""
        self._why: str | None = None
        self._process: QemuProcess | None = None
        self._resources = ExitStack()
        self._disk = _Watched(disk)
        self._complaints: list[str] = []
        self._begin = time.monotonic()
        try:
            self._start(runner, binary)
        except CannotBoot as e:
            e.reads = self.reads
            self.stop()
            raise
        except BaseException:
            self.stop()
            raise

    def _start(self, runner: QemuRunner, binary: str) -> None:
        setup = self._setup
        boot = what_boots(self._disk, setup, runner.firmware)
        arguments = runner.machine(setup.mem_bytes, setup.epoch)
        files: list[int] = []
        if boot is not None:
            kernel = self._file(boot.kernel)
            files.append(kernel)
            arguments += ["-vga", "none", "-kernel", f"/dev/fd/{kernel}"]
            arguments += ["-append", kernel_words(boot, setup)]
            names = []
            for words, data in companions(boot):
                files.append(self._file(data))
                names.append(f"/dev/fd/{files[-1]} {words}".strip().replace(",", ",,"))
            if names:
                arguments += ["-initrd", ",".join(names)]
        export = self._resources.enter_context(InstantExport(self._disk, name="disk", overlay=True))
        server = self._resources.enter_context(serving([export], say=self._complaints.append))
        self.nbd_url = server.url("disk")
        arguments += runner.disk(server.address.removeprefix("unix:"))
        if setup.script_disk is not None:
            if runner.bus != "virtio":
                raise ProbeError(
                    f"a second disk is /dev/vdb beside a virtio disk only, not beside {runner.bus}"
                )
            self._script = self._file(setup.script_disk.ljust(-(-len(setup.script_disk) // 512) * 512, b"\0"))
            files.append(self._script)
            arguments += script_arguments(self._script)
        arguments += [*runner.forwards(setup.forward), *runner.more]
        self._begin = time.monotonic()
        self._process = QemuProcess(binary, arguments, files)
        if setup.forward:
            answer = self._process.execute("human-monitor-command", **{"command-line": "info usernet"})
            self.ports = {int(guest): int(host) for host, guest in _FORWARD.findall(answer)}

    @property
    def console(self) -> bytes:
        """All that it printed, or the last 16 MB of that."""
        return bytes(self._console)

    @property
    def ended(self) -> str | None:
        """Why it is not running any more, in words; None while it is."""
        return self._why or (self._process.ended if self._process else "stopped")

    @property
    def seconds(self) -> float:
        """How long it has run, by the host's clock."""
        return time.monotonic() - self._begin

    @cached_property
    def _socket(self) -> ConsoleSocket:
        self._hub = ConsoleSocket(self.write, self.console)
        return self._hub

    @property
    def console_socket(self) -> Path | None:
        """A unix socket with the console; it is served during calls of `read`."""
        return None if self.ended else self._socket.path

    @property
    def reads(self) -> frozenset[int] | None:
        """Which blocks of 4 KB of the disk were read so far."""
        return frozenset(self._disk.reads.copy())

    def read(self, timeout_s: float) -> bytes:
        """Return what the guest prints next; see `Guest.read`.

        Raises `BadInput` where its disk is damaged, `ProbeError` where QEMU or the overlay fails.
        """
        if self._process is None:
            return b""
        left = max(0.0, min(timeout_s, self._setup.timeout_s - self.seconds))
        data = self._process.read(left)
        if self._disk.error is not None:
            raise self._disk.error
        if self._complaints:
            raise ProbeError(
                f"reading the guest's disk failed, so there is no verdict: {self._complaints[0]}"
            )
        self._console += data
        del self._console[:-_MAX_CONSOLE]
        if self._hub is not None:
            if data:
                self._hub.feed(data)
            elif self.ended is not None:
                self._hub.end()
        if _NO_BOOT in self._console[-len(data) - len(_NO_BOOT) :] and data:
            self._why = self._why or _NO_BOOT.decode().rstrip(".")
        return data

    def write(self, data: bytes) -> None:
        """Type `data` into the console."""
        if self._process is not None:
            self._process.write(data)

    def script_disk(self) -> bytes:
        """Return the second disk as it is now."""
        if self._script is not None:
            self._left = os.pread(self._script, os.fstat(self._script).st_size, 0)
        return self._left

    def stop(self) -> None:
        """End QEMU, and let go of everything."""
        if self._process is not None:
            self._why = self.ended or "stopped"
            self._process.stop()
            self._process = None
        self.script_disk()
        self._script = None
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _file(self, data: bytes) -> int:
        """Return a descriptor of a file without a name that holds `data`."""
        file = tempfile.TemporaryFile(prefix="chronus-qemu-")  # noqa: SIM115 (closed with the guest)
        self._resources.enter_context(file)
        file.write(data)
        file.flush()
        return file.fileno()


def what_boots(disk: DiskView, setup: Setup, firmware: bool = False) -> BootFiles | None:
    """Return what QEMU is to boot directly; None where the firmware is to boot the disk.

    Raises `CannotBoot` where there is neither a kernel nor a boot sector, `ProbeError` where the firmware
    would boot and `setup` has words for a kernel, or QEMU does not have the machine.
    """
    recorded = None if setup.recording is None else recorded_machine(setup.recording)
    if recorded is not None and recorded.machine != "pc":
        raise ProbeError(f"QEMU has no {recorded.machine} machine: use --runner tt")
    directly = bool(setup.append or setup.init or setup.initrd or setup.kernel)
    if firmware:
        if directly:
            raise ProbeError(
                "with the firmware the disk's own boot loader decides on the kernel and its words: "
                "leave out --runner qemu's firmware, or probe with --console or --run"
            )
        return None
    try:
        return boot_files(disk, setup)
    except CannotBoot:
        if directly or disk.sectors < 1 or disk.read(0, 1)[510:512] != _BOOTABLE:
            raise
        return None


def companions(boot: BootFiles) -> list[tuple[str, bytes]]:
    """Return what QEMU loads beside a kernel: an initrd without words, or modules with theirs.

    Raises `CannotBoot` for a kernel whose protocol QEMU does not speak.
    """
    if boot.kind == multiboot2.KIND:
        raise CannotBoot("QEMU boots no Multiboot2 kernel by itself: use --runner tt, or qemu:firmware")
    if boot.kind in kinds.MULTIBOOT:
        return [(module.words, module.data) for module in modules.unpack(boot.initrd)]
    return [] if boot.initrd is None else [("", boot.initrd)]


def kernel_words(boot: BootFiles, setup: Setup) -> str:
    """Return the kernel's command line: the disk's words, then what it needs here, then the user's."""
    own, added = command_line(boot.cmdline, setup)
    if boot.kind in (*kinds.MULTIBOOT, multiboot.OLD_KIND):
        return loader.full_cmdline(boot.kind, own, added)
    words, init = loader.split_init(own)
    more, more_init = loader.split_init(added)
    if set(words) >= _OF_TT:
        words = [word for word in words if word not in _OF_TT]
    given = {word.partition(",")[0] for word in (*words, *more)}
    given |= {"panic=-1"} if any(word.startswith("panic=") for word in given) else set()
    missing = [word for word in QEMU_CMDLINE if word not in given]
    return loader.join_init([*words, *missing, *more], [*init, *more_init])


def script_arguments(descriptor: int) -> list[str]:
    """Return the arguments for a second disk in an open file."""
    return [
        *("-add-fd", f"fd={descriptor},set=1"),
        *("-blockdev", f"driver=file,node-name=script,filename={_SCRIPT},locking=off,cache.no-flush=on"),
        *("-device", "virtio-blk-pci,drive=script"),
    ]


class _Watched(TrackedView):
    """A disk that remembers why it could not be read: the guest's I/O error must not become a verdict."""

    def __init__(self, disk: DiskView) -> None:
        super().__init__(disk)
        self.error: TTError | None = None

    def blocks(self, first: int, count: int) -> list[bytes]:
        try:
            return super().blocks(first, count)
        except TTError as e:
            self.error = self.error or e
            raise
