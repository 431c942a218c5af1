"""`--console`: a conversation on the booted guest's serial console, by a script (see `script`)."""

from __future__ import annotations

import codecs
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tt.chronus.probes import signatures
from tt.chronus.probes.exit_codes import outcome_of
from tt.chronus.probes.script import (
    Choice,
    End,
    Login,
    Pause,
    Run,
    Script,
    Send,
    Step,
    Wait,
    Watch,
    parse_script,
)
from tt.chronus.runners.named import runner
from tt.chronus.runners.runner import CannotBoot, Guest, Setup
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict
from tt.chronus.store.view import DiskView

_Found = TypeVar("_Found")

TAIL = 4000  # characters of the console that a verdict keeps

_MOST_TEXT = 256 << 10  # characters that a regex is tried on
_MOST_LINE = 4000  # the longest line that a terminal takes
_SHOWN = 200  # characters of a match in a verdict
_INSTANT_S = 1e-6  # a shorter rest of a time-out counts as none
_QUIET_S = 0.3  # of silence, after which the last line counts as a prompt
_NUDGE_S = 5.0  # of silence, after which Enter may bring a prompt that something was printed over
_LOGIN = re.compile(r"(?<!Last )(?<!last )login: ?")
_PASSWORD = re.compile(r"[Pp]assword: ?\Z")
_REFUSED = re.compile(r"Login incorrect|Authentication failure|Login timed out")

# Colours and cursor movements (ECMA-48: CSI; OSC up to BEL or ST), other escapes; one that is not whole yet.
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]{0,200}\x1b?|[ -/]*)?\Z")
_SILENT = re.compile(r"[\r\0\a]")


@dataclass(frozen=True)
class ConsoleProbe:
    """Boot, and talk to the guest as `script` (its text; `name` stands before line numbers) says.

    Raises `BadInput` for an invalid script.
    """

    script: str
    name: str
    runner: str
    setup: Setup

    def __post_init__(self) -> None:
        parse_script(self.script, self.name)

    def key(self) -> str:
        """Return a text that identifies this probe."""
        return f"console {runner(self.runner).key()} {self.setup.key()} {self.script!r}"

    def describe(self) -> str:
        """Return one line that describes the probe."""
        return f"--console {self.name} on {self.runner}"

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Boot and talk; see `Probe.run`."""
        script = parse_script(self.script, self.name)
        begin = time.monotonic()
        try:
            guest = runner(self.runner).start(disk, self.setup)
        except CannotBoot as e:
            seconds = time.monotonic() - begin
            return ProbeVerdict(Outcome.CRASH, f"cannot boot: {e}"[:TAIL], seconds=seconds, reads=e.reads)
        with guest:
            verdict = Conversation(guest, script, self.setup.timeout_s).hold()
        return replace(verdict, seconds=time.monotonic() - begin)


class _Over(Exception):
    """The conversation has come to its end."""

    def __init__(self, outcome: Outcome, reason: str, signature: str = "", code: int | None = None) -> None:
        super().__init__(reason)
        self.outcome, self.reason, self.signature, self.code = outcome, reason, signature, code


class Transcript:
    """What a console printed, as text to search: without colours, carriage returns and bells.

    `text` is its last part, `mark` how far that was matched, `total` how many characters there were.
    """

    def __init__(self) -> None:
        self.text = ""
        self.mark = 0
        self.total = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> None:
        """Add what was printed."""
        raw = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(raw, max(0, len(raw) - 250))
        self._held = unfinished[0] if unfinished else ""
        fresh = _SILENT.sub("", _ESCAPE.sub("", raw[: len(raw) - len(self._held)]))
        self.text += fresh
        self.total += len(fresh)
        spare = len(self.text) - _MOST_TEXT
        if spare > 0:
            self.text = self.text[spare:]
            self.mark = max(0, self.mark - spare)

    @property
    def line(self) -> str:
        """The last line, which has no end yet: a prompt, if there is one."""
        return self.text[self.text.rfind("\n") + 1 :]


class Conversation:
    """A script being followed with a running guest, for `timeout_s` of the guest's time at most."""

    def __init__(self, guest: Guest, script: Script, timeout_s: float) -> None:
        self.heard = Transcript()
        self._guest = guest
        self._script = script
        self._limit_s = timeout_s
        self._watches: list[Choice] = []
        self._line = 0
        self._commands = 0
        self._output = ""
        self._crash = signatures.Watch()

    def hold(self) -> ProbeVerdict:
        """Go through the script; return the verdict."""
        try:
            for step in self._script.steps:
                self._line = step.line
                self._do(step)
            raise _Over(Outcome.GOOD, f"{self._script.name}: all of it went as it should")
        except _Over as over:
            return ProbeVerdict(
                over.outcome,
                over.signature,
                over.code,
                f"{self._output[-TAIL:]}{over.reason}",
                self.heard.text[-TAIL:],
                reads=self._guest.reads,
            )

    def _do(self, step: Step) -> None:
        match step:
            case Wait():
                self._wait(step)
            case Send():
                self._guest.write(step.data)
            case Login():
                self._log_in(step)
            case Run():
                self._run(step)
            case Pause():
                self._until(lambda: None, step.seconds)
            case Watch():
                self._watches.append(step.choice)
            case End():
                raise _Over(step.outcome, self._at(step.reason or f"it is {step.outcome.value}"))

    # ---- steps

    def _wait(self, step: Wait) -> None:
        """Wait for the first of a step's choices."""
        found = self._until(lambda: self._first(step.choices), step.within_s)
        if found is None:
            wanted = " or ".join(f"/{choice.pattern.pattern}/" for choice in step.choices)
            raise _Over(step.otherwise, self._at(f"{wanted} did not appear in {step.within_s:g} s"))
        choice, match = found
        self.heard.mark = match.end()
        if choice.outcome is not None:
            raise _Over(choice.outcome, self._matched(choice, match))
        self._crash = signatures.Watch()  # a crash printed before the match was expected

    def _log_in(self, step: Login) -> None:
        """Log in, or find the guest logged in, until it is at a shell's prompt."""
        self._ask(step, _LOGIN, "login:")
        if self._stands(step.prompt):
            return
        self._answer(step.user)
        refused = Choice(step.line, _REFUSED, Outcome.BAD)
        self._watches.append(refused)
        self._ask(step, _PASSWORD, "a password prompt")
        if not self._stands(step.prompt):
            if step.password is None:
                raise ProbeError(
                    f"{self._script.name}:{step.line}: a password is asked for: "
                    f"write login {step.user} PASSWORD"
                )
            self._answer(step.password)
            self._ask(step)
        self._watches.remove(refused)
        self.heard.mark = len(self.heard.text)

    def _ask(self, step: Login, question: re.Pattern[str] | None = None, what: str = "") -> None:
        """Wait for a question, or for the shell's prompt."""
        if not self._settle(step.prompt, step.within_s, question):
            wanted = f"{what}{' or ' if what else ''}the prompt /{step.prompt.pattern}/"
            raise _Over(Outcome.HANG, self._at(f"{wanted} did not appear in {step.within_s:g} s"))

    def _answer(self, text: str) -> None:
        self.heard.mark = len(self.heard.text)
        self._guest.write(text.encode() + b"\r")

    def _run(self, step: Run) -> None:
        """Run a command in a shell of its own, and judge its exit code."""
        if not self._settle(step.prompt, step.within_s):
            text = f"there is no prompt to run {step.command!r} at: log in first (login USER)"
            raise _Over(Outcome.HANG, self._at(text))
        self._commands += 1
        # The guest echoes what is typed; the quotes in the echo tell it from the answer.
        typed = f"sh -c {shlex.quote(step.command)}; echo chronus'-'{self._commands}-$?-"
        if len(typed) > _MOST_LINE:
            raise ProbeError(
                f"{self._script.name}:{step.line}: {len(step.command):,} characters are too many to type: "
                f"at most {_MOST_LINE - 100:,}"
            )
        self._answer(typed)
        answer = re.compile(rf"chronus-{self._commands}-(\d+)-")
        match = self._until(lambda: answer.search(self.heard.text, self.heard.mark), step.within_s)
        if match is None:
            text = f"{step.command!r} did not end in {step.within_s:g} s"
            raise _Over(Outcome.HANG, self._at(text))
        said = self.heard.text[self.heard.mark : match.start()].partition("\n")[2]
        self.heard.mark = match.end()
        code = int(match[1])
        try:
            outcome = outcome_of(code, step.command, " in the guest")
        except KeyboardInterrupt:  # in the guest, not at this keyboard
            where = f"{self._script.name}:{step.line}"
            raise ProbeError(f"{where}: {step.command!r} was interrupted in the guest ({code})") from None
        if outcome is not Outcome.GOOD:
            self._output = said if not said or said.endswith("\n") else f"{said}\n"
            raise _Over(outcome, self._at(f"{step.command!r} exits with {code}"), code=code)

    # ---- waiting

    def _until(self, seen: Callable[[], _Found | None], within_s: float) -> _Found | None:
        """Listen until `seen` returns something; return that, or None after `within_s`.

        Raises `_Over` when the guest ends or crashes, the time for everything is over, or what a step
        `whenever` looks out for appears first.
        """
        deadline = self._guest.seconds + within_s
        while True:
            found = seen()
            if found is not None:
                return found
            self._look_out()
            if not self._listen(deadline):
                return None

    def _settle(
        self, prompt: re.Pattern[str], within_s: float, question: re.Pattern[str] | None = None
    ) -> bool:
        """Wait until the last line is a prompt, or `question`, and nothing follows it for a moment.

        Where a message was printed over the prompt, Enter brings it back.
        """
        deadline = self._guest.seconds + within_s
        while True:
            stands = self._stands(prompt) or (question is not None and self._stands(question))
            if self._is_quiet(_QUIET_S if stands else min(_NUDGE_S, deadline - self._guest.seconds)):
                if stands:
                    return True
                if self._guest.seconds >= deadline - _INSTANT_S:
                    return False
                if self.heard.total and not self.heard.line:  # Enter would answer a question
                    self._guest.write(b"\r")

    def _is_quiet(self, seconds: float) -> bool:
        """Wait until something is printed, or return true."""
        before = self.heard.total
        return self._until(lambda: True if self.heard.total != before else None, seconds) is None

    def _stands(self, pattern: re.Pattern[str]) -> bool:
        """Whether the last line is such a prompt."""
        return pattern.search(self.heard.line) is not None

    def _first(self, choices: Sequence[Choice]) -> tuple[Choice, re.Match[str]] | None:
        """Return which of `choices`, or of the `whenever` steps, matches first behind the mark."""
        heard = self.heard
        found = [
            (match.start(), number, choice, match)
            for number, choice in enumerate((*choices, *self._watches))
            if (match := choice.pattern.search(heard.text, heard.mark))
        ]
        if not found:
            return None
        _, _, choice, match = min(found, key=lambda entry: entry[:2])
        return choice, match

    def _look_out(self) -> None:
        """End the conversation if a `whenever` step matches, or at a crash."""
        found = self._first(())
        if found is not None:
            choice, match = found
            raise _Over(choice.outcome or Outcome.BAD, self._matched(choice, match))
        fatal = self._crash.fatal
        if fatal:
            raise _Over(Outcome.CRASH, self._at(f"the guest cannot go on: {fatal}"), fatal)

    def _listen(self, deadline: float) -> bool:
        """Read what the guest prints next; return false after `deadline`."""
        guest = self._guest
        left = min(deadline, self._limit_s) - guest.seconds
        if left > _INSTANT_S:
            data = guest.read(left)
            if data:
                self.heard.feed(data)
                self._crash.feed(data)
                return True
        if guest.ended is not None:
            found = self._crash.worst or guest.ended
            raise _Over(Outcome.CRASH, self._at(f"the guest ended: {guest.ended}"), found)
        if guest.seconds >= self._limit_s - _INSTANT_S:
            raise _Over(Outcome.HANG, self._at(f"the {self._limit_s:g} s for all of it are over"))
        return guest.seconds < deadline - _INSTANT_S

    def _matched(self, choice: Choice, match: re.Match[str]) -> str:
        shown = " ".join(match[0].split())[:_SHOWN]
        verdict = choice.outcome.value if choice.outcome else "next"
        return f"{self._script.name}:{choice.line}: {verdict}: {shown!r} appeared"

    def _at(self, what: str) -> str:
        return f"{self._script.name}:{self._line}: {what}"
