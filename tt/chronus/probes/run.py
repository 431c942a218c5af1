"""`--run`: a host command that talks to the running guest: by its console, its network, its disk."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tt.chronus.nbd.instants import InstantExport
from tt.chronus.nbd.server import serving
from tt.chronus.probes.exit_codes import outcome_of
from tt.chronus.probes.host import named_files, run_command
from tt.chronus.probes.script import PROMPT
from tt.chronus.probes.signatures import Watch, plain
from tt.chronus.runners.named import runner
from tt.chronus.runners.runner import CannotBoot, Guest, Setup
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.view import DiskView, TrackedView

_TAIL = 4000  # characters of the console that a verdict keeps
_READ_S = 0.2  # how long the guest's output is read between checks of the command
_MOST_LINE = 4096
_PROMPT_S, _SILENT_S = 1.0, 10.0
_NAMED_PORT = re.compile(r"\bCHRONUS_PORT_(\d{1,5})\b")


def named_ports(command: str) -> tuple[int, ...]:
    """Return the TCP ports of the guest that a command asks for as $CHRONUS_PORT_<n>."""
    return tuple(dict.fromkeys(int(port) for port in _NAMED_PORT.findall(command)))


@dataclass(frozen=True)
class RunProbe:
    """Boot, and run `command` by the host's shell while the guest runs.

    Its environment has CHRONUS_CONSOLE (a unix socket with the guest's console, from its first byte on),
    CHRONUS_PORT_<n> (the port of 127.0.0.1 that goes to the guest's TCP port n, for each of
    `Setup.forward`), CHRONUS_NBD (an NBD URL: the disk as it was, read-only; the guest's disk as it is, on
    a runner that serves it) and CHRONUS_INSTANT.  It starts with the guest; with `after`, when
    the console shows a line that this regex matches; with ports and no `after`, when the guest seems to
    be up: a prompt stands on its console, or nothing was printed for 10 s.  The guest ends when the
    command does, and `Setup.timeout_s` is for both together.
    """

    command: str
    runner: str
    setup: Setup
    after: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.after)
        except re.error as e:
            raise ProbeError(f"{self.after!r} is no regex to wait for: {e}") from None

    def key(self) -> str:
        """Return a text that identifies this probe."""
        ran = runner(self.runner).key()
        named = named_files(self.command, Path.cwd())
        return f"run {ran} {self.setup.key()} {self.after!r} {self.command!r} {named}"

    def describe(self) -> str:
        """Return one line that describes the probe."""
        return f"--run {self.command!r} on {self.runner}"

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Boot, and run the command; see `Probe.run`."""
        begin = time.monotonic()
        shared = _SharedView(disk)
        seen = TrackedView(shared)
        with ExitStack() as stack:
            try:
                guest = stack.enter_context(runner(self.runner).start(shared, self.setup))
            except CannotBoot as e:
                seconds = time.monotonic() - begin
                return ProbeVerdict(
                    Outcome.CRASH, f"cannot boot: {e}"[:_TAIL], seconds=seconds, reads=e.reads
                )
            url = guest.nbd_url
            if url is None:
                url = stack.enter_context(serving([InstantExport(seen, name="disk")])).url("disk")
            verdict = self._talk(guest, lambda: self._environment(guest, disk, url))
            reads = None if guest.reads is None else guest.reads | frozenset(seen.reads)
        return replace(verdict, seconds=time.monotonic() - begin, reads=reads)

    def _environment(self, guest: Guest, disk: DiskView, url: str) -> dict[str, str]:
        ports = {f"CHRONUS_PORT_{inside}": str(outside) for inside, outside in guest.ports.items()}
        return {
            **ports,
            "CHRONUS_CONSOLE": str(guest.console_socket or ""),
            "CHRONUS_NBD": url,
            "CHRONUS_INSTANT": disk.where,
        }

    def _talk(self, guest: Guest, environment: Callable[[], Mapping[str, str]]) -> ProbeVerdict:
        """Keep the guest going until the command has ended, or the time is over."""
        watch = Watch()
        limit_s = time.monotonic() + self.setup.timeout_s
        if not self._wait(guest, watch, limit_s):
            return self._judge(None, "", guest, watch)
        command = _Command(self.command, environment(), max(0.1, limit_s - time.monotonic()))
        try:
            while not command.ended.is_set():
                data = guest.read(_READ_S)
                watch.feed(data)
                if guest.ended is not None and not data:
                    command.ended.wait(_READ_S)
        finally:
            command.stop()
        if command.error is not None:
            raise command.error
        return self._judge(command.code, command.output, guest, watch)

    def _wait(self, guest: Guest, watch: Watch, limit_s: float) -> bool:
        """Wait for what the command is to start after; return whether it came."""
        if not self.after and not self.setup.forward:
            return True
        wanted = re.compile(self.after)
        line, printed_s = b"", 0.0
        while guest.ended is None and time.monotonic() < limit_s and guest.seconds < self.setup.timeout_s:
            data = guest.read(_READ_S)
            if watch.feed(data):
                return False
            *lines, line = (line + data).replace(b"\r", b"\n").split(b"\n")
            line = line[-_MOST_LINE:]
            if data:
                printed_s = guest.seconds
            if self.after:
                texts = (text.decode("utf-8", "replace") for text in (*lines, line))
                if any(wanted.search(plain(text)) for text in texts):
                    return True
            elif guest.seconds - printed_s >= _quiet_s(line):
                return True
        return False

    def _judge(self, code: int | None, output: str, guest: Guest, watch: Watch) -> ProbeVerdict:
        """Return the verdict; a crash of the guest counts before the command's exit code."""
        console = guest.console.decode("utf-8", "replace")[-_TAIL:]
        crashed = watch.fatal or (code is None and watch.grave)
        if code is None and guest.ended is not None:
            crashed = watch.worst or f"the guest ended: {guest.ended}"
        if crashed and code not in (0, 125):
            return ProbeVerdict(Outcome.CRASH, crashed, code, output, console)
        if code is None:
            return ProbeVerdict(Outcome.HANG, watch.grave, None, output, console)
        return ProbeVerdict(outcome_of(code, self.command), "", code, output, console)


def _quiet_s(line: bytes) -> float:
    """Return how long nothing is to be printed behind a console's last line for the guest to be up."""
    text = plain(line.decode("utf-8", "replace"))
    return _PROMPT_S if PROMPT.search(text) or text.endswith("login:") else _SILENT_S


class _Command(threading.Thread):
    """A command that runs beside the guest; `code` is None where it took too long."""

    def __init__(self, command: str, environment: Mapping[str, str], timeout_s: float) -> None:
        super().__init__(name="probe command", daemon=True)
        self.code: int | None = None
        self.output = ""
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._command, self._environment, self._timeout_s = command, environment, timeout_s
        self._cancel = threading.Event()
        self.start()

    def run(self) -> None:
        """Run the command; called by `start`."""
        try:
            self.code, self.output = run_command(
                self._command, self._environment, self._timeout_s, cancel=self._cancel
            )
        except BaseException as e:
            self.error = e
        self.ended.set()

    def stop(self) -> None:
        """End it if it still runs."""
        self._cancel.set()
        self.join()


class _SharedView(DiskView):
    """A disk that several threads may read."""

    def __init__(self, disk: DiskView) -> None:
        self.disk = disk
        self.sectors, self.size, self.where = disk.sectors, disk.size, disk.where
        self._lock = threading.Lock()

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring blocks of 4 KB."""
        with self._lock:
            return self.disk.blocks(first, count)
