"""`--guest`: a command inside the booted guest, with no agent in its image; see `guest_script`."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tt.chronus.probes.exit_codes import outcome_of
from tt.chronus.probes.guest_script import EMERGENCY, Answer, read_answer, script_disk
from tt.chronus.probes.signatures import Watch, plain
from tt.chronus.runners.named import runner
from tt.chronus.runners.runner import CannotBoot, Guest, Setup
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.view import DiskView

_TAIL = 4000  # characters of output and console that a verdict keeps
_GRACE_S = 2.0  # in which a guest that crashed may still print
_LOOK_S = 1.0  # how often a silent guest's disk is looked at
# A guest's own seconds count, so that a busy host changes no verdict; the host's time has a bound, too.
_HOST_FACTOR = 5.0
_HOST_LEAST_S = 300.0
_INIT = ("/bin/sh", "/dev/vdb")
_TYPED = b"exec /bin/sh /dev/vdb\n"
_PROMPT_SIZE = 200
# What dash, busybox and bash say as process 1 with nothing to run, and their prompt.
_SHELL = re.compile(
    rb"/bin/sh: [^\r\n]*(?:can't access tty; job control turned off|no job control in this shell)[\r\n]+"
    rb"[^\r\n]*[#$] (?:\x1b\[6n)?\Z"
)


@dataclass(frozen=True)
class GuestProbe:
    """Boot, and run `command` inside: a shell command, a script's text, or the name of a script file here.

    `early` runs it before the system's own init, with nothing started: quicker, and it works where the
    system does not come up.  Without it the command runs when the system has booted.
    """

    command: str
    runner: str
    setup: Setup
    early: bool = False

    def key(self) -> str:
        """Return a text that identifies this probe."""
        ran = runner(self.runner).key()
        return f"guest {ran} {'early' if self.early else 'booted'} {self.setup.key()} {self._text()!r}"

    def describe(self) -> str:
        """Return one line that describes the probe."""
        return f"--guest {self.command!r}{' --early' if self.early else ''} on {self.runner}"

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Boot and ask; see `Probe.run`."""
        text = self._text()
        begin = time.monotonic()
        setup = replace(self.setup, init=_INIT, script_disk=script_disk(text, self.early))
        try:
            guest = runner(self.runner).start(disk, setup)
        except CannotBoot as e:
            seconds = time.monotonic() - begin
            return ProbeVerdict(Outcome.CRASH, f"cannot boot: {e}"[:_TAIL], seconds=seconds, reads=e.reads)
        with guest:
            watch = Watch()
            answer = self._wait(guest, watch, text)
            verdict = self._judge(guest, watch, answer)
        return replace(verdict, seconds=time.monotonic() - begin)

    def _wait(self, guest: Guest, watch: Watch, text: str) -> Answer | None:
        """Let the guest run until it has answered, ended, or its time is up."""
        until_s = self.setup.timeout_s
        give_up = time.monotonic() + max(_HOST_LEAST_S, _HOST_FACTOR * until_s)
        looked_s = 0.0
        asked = False
        last = b""
        while guest.ended is None and guest.seconds < until_s and time.monotonic() < give_up:
            fatal = watch.fatal
            printed = guest.read(min(_LOOK_S, until_s - guest.seconds))
            last = (last + printed)[-_PROMPT_SIZE:]
            if not asked and _SHELL.search(last):
                # The shell was started without our words (which name the script), so it reads from the
                # console.
                asked = True
                guest.write(_TYPED)
            if watch.feed(printed) and not fatal:
                until_s = min(until_s, guest.seconds + _GRACE_S)
            if guest.seconds - looked_s >= _LOOK_S:  # it may have answered, but fail to power off
                looked_s = guest.seconds
                answer = read_answer(guest.script_disk(), text, self.early)
                if answer is not None:
                    return answer
        return read_answer(guest.script_disk(), text, self.early)

    def _judge(self, guest: Guest, watch: Watch, answer: Answer | None) -> ProbeVerdict:
        console = _tail(guest.console)
        if answer is None:
            if watch.fatal:
                return ProbeVerdict(Outcome.CRASH, watch.fatal, console=console, reads=guest.reads)
            if guest.ended is not None:
                what = watch.grave or f"the guest ended without an answer: {guest.ended}"
                return ProbeVerdict(Outcome.CRASH, what, console=console, reads=guest.reads)
            return ProbeVerdict(Outcome.HANG, watch.grave, console=console, reads=guest.reads)
        output = _tail(answer.output)
        if answer.code == EMERGENCY:
            what = "the system booted into emergency mode" + (f": {watch.grave}" if watch.grave else "")
            return ProbeVerdict(Outcome.CRASH, what, output=output, console=console, reads=guest.reads)
        code = int(answer.code)
        return ProbeVerdict(self._outcome(code, output), "", code, output, console, reads=guest.reads)

    def _outcome(self, code: int, output: str) -> Outcome:
        lines = output.strip().splitlines()
        where = " in the guest" + (f", which says {plain(lines[-1])[:200]!r}" if lines else "")
        shown = self.command if len(self.command) < 200 else f"{self.command[:200]}..."
        try:
            return outcome_of(code, shown, where)
        except KeyboardInterrupt:  # in the guest, not at this keyboard
            raise ProbeError(f"{shown!r} was interrupted{where} (exit code {code})") from None

    def _text(self) -> str:
        if "\n" in self.command or "\0" in self.command or len(self.command) > 1024:
            return self.command
        path = Path(self.command)
        try:
            return path.read_text("utf-8", "surrogateescape") if path.is_file() else self.command
        except OSError as e:
            raise ProbeError(f"cannot read the script {self.command}: {e.strerror or e}") from None


def _tail(data: bytes) -> str:
    return data.decode("utf-8", "replace")[-_TAIL:]
