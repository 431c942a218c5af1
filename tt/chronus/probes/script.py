r"""The language of `--console` scripts: a conversation on the serial console, one step a line.

    timeout 90s                            how long each wait may take from here on (60s)
    expect /REGEX/ [within 5s] [or bad]    wait until it appears behind what was matched last
    good if /REGEX/                        wait for any of several: neighbouring lines of this kind are
    bad if /REGEX/                         one wait, and what appears first decides; `skip` as well;
    next if /REGEX/                        `next` goes on below them
    bad after 10s                          the verdict when none of them appeared in time
    type TEXT                              type a line, as it stands, with Enter
    send "TEXT"                            type exactly this: \r is Enter, \n \t \e \\ \" \xHH, \cC is Ctrl-C
    login USER [PASSWORD]                  log in (or do nothing at a prompt that is there already)
    run COMMAND                            type a command, wait for its end; other than 0 ends the script
    prompt /REGEX/                         what a shell's prompt looks like (`$`, `#`, `%` or `>` and a space)
    pause 2s                               let time pass
    bad whenever /REGEX/                   look out for this in every wait from here on; `good`, `skip` too
    good | bad | skip [REASON]             the verdict; a script that gets to its end is good

Blank lines and lines that begin with `#` mean nothing. A regex is Python's (`^` and `$` are the ends of
lines), between slashes or quotes of either kind, `i` behind it for any case. It sees the console without
colours and carriage returns. A wait that takes too long is a hang. What is typed is echoed, and can be
matched. `run` judges an exit code as every probe does: 0 goes on, 1 to 124 is bad, 125 a skip.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from tt.chronus.search.verdicts import Outcome
from tt.errors import BadInput

TIMEOUT_S = 60.0
PROMPT = re.compile(r"[#$%>] ?\Z")
MAX_SCRIPT = 1 << 20  # characters

_MAX_SECONDS = 86_400.0
_VERDICTS = {outcome.value: outcome for outcome in (Outcome.GOOD, Outcome.BAD, Outcome.SKIP)}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "e": b"\x1b", "a": b"\a", "b": b"\b", "0": b"\0"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)")


@dataclass(frozen=True)
class Choice:
    """One thing to wait for; `outcome` None goes on with the next step."""

    line: int
    pattern: re.Pattern[str]
    outcome: Outcome | None


@dataclass(frozen=True)
class Wait:
    """Wait for the first of `choices`; after `within_s` it is `otherwise`."""

    line: int
    choices: tuple[Choice, ...]
    within_s: float
    otherwise: Outcome = Outcome.HANG


@dataclass(frozen=True)
class Send:
    """Type these bytes."""

    line: int
    data: bytes


@dataclass(frozen=True)
class Login:
    """Log in, within `within_s` for each step of it."""

    line: int
    user: str
    password: str | None
    prompt: re.Pattern[str]
    within_s: float


@dataclass(frozen=True)
class Run:
    """Run a shell command, at a prompt, and judge its exit code."""

    line: int
    command: str
    prompt: re.Pattern[str]
    within_s: float


@dataclass(frozen=True)
class Pause:
    """Let time pass."""

    line: int
    seconds: float


@dataclass(frozen=True)
class Watch:
    """Look out for `choice` in every wait from here on."""

    line: int
    choice: Choice


@dataclass(frozen=True)
class End:
    """The verdict."""

    line: int
    outcome: Outcome
    reason: str


Step = Wait | Send | Login | Run | Pause | Watch | End


@dataclass(frozen=True)
class Script:
    """A conversation; `name` stands before line numbers."""

    name: str
    steps: tuple[Step, ...]


def parse_script(text: str, name: str) -> Script:
    """Parse a console script; raises `BadInput` that names the line, what is wrong and what to write."""
    if len(text) > MAX_SCRIPT:
        raise BadInput(f"{name} is over {MAX_SCRIPT >> 20} MB: is it a console script?")
    steps = tuple(_Parser(name).parse(text))
    if not steps:
        raise BadInput(f"{name} has no step in it: write one, such as expect /login:/")
    return Script(name, steps)


class _Parser:
    """The lines of a script, with the time-out and the prompt that hold where it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = 0
        self.timeout_s = TIMEOUT_S
        self.prompt = PROMPT
        self._words: dict[str, Callable[[str], Step | None]] = {
            "timeout": self._timeout,
            "expect": self._expect,
            "type": self._type,
            "send": self._send,
            "login": self._login,
            "run": self._run,
            "prompt": self._set_prompt,
            "pause": self._pause,
        }

    def parse(self, text: str) -> Iterator[Step]:
        """Yield the steps."""
        lines = [
            (number, line.strip())
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip() and not line.strip().startswith("#")
        ]
        ended = 0
        for together, run in groupby(lines, lambda numbered: _is_choice(numbered[1])):
            group = list(run)
            if ended:
                raise BadInput(
                    f"{self.name}:{group[0][0]}: is never reached: line {ended} ends the script before it"
                )
            steps = [self._choices(group)] if together else self._singles(group)
            for step in steps:
                yield step
                if isinstance(step, Wait) and all(choice.outcome for choice in step.choices):
                    ended = step.line
                if isinstance(step, End):
                    ended = step.line

    def _singles(self, lines: list[tuple[int, str]]) -> Iterator[Step]:
        ended = 0
        for number, line in lines:
            self.line = number
            if ended:
                raise self._wrong(f"is never reached: line {ended} ends the script before it")
            step = self._step(line)
            if step is not None:
                yield step
            if isinstance(step, End):
                ended = number

    def _step(self, line: str) -> Step | None:
        word, rest = _first(line)
        if word in _VERDICTS:
            return self._verdict(_VERDICTS[word], rest)
        handler = self._words.get(word)
        if handler is None:
            near = difflib.get_close_matches(word, [*self._words, *_VERDICTS], 1)
            hint = f"is {near[0]!r} meant?" if near else f"a line begins with {', '.join(self._words)}, good,"
            raise self._wrong(f"no such step: {word!r}: {hint}{'' if near else ' bad, skip or next'}")
        return handler(rest)

    # ---- steps

    def _verdict(self, outcome: Outcome, rest: str) -> Step:
        word, pattern = _first(rest)
        if word == "whenever":
            regex, rest = self._regex(pattern, f"{outcome.value} whenever /REGEX/")
            self._nothing(rest)
            return Watch(self.line, Choice(self.line, regex, outcome))
        return End(self.line, outcome, rest)

    def _choices(self, lines: list[tuple[int, str]]) -> Wait:
        """Make one wait of neighbouring lines `VERDICT if /REGEX/`, `next if`, `VERDICT after TIME`."""
        found: list[Choice] = []
        limit: tuple[float, Outcome] | None = None
        for number, line in lines:
            self.line = number
            verdict, rest = _first(line)
            word, rest = _first(rest)
            if word == "after":
                if verdict == "next":
                    raise self._wrong("use pause to let time pass, or good, bad or skip before 'after'")
                if limit is not None:
                    raise self._wrong("the time of this wait is given twice: leave one 'after' line")
                seconds, rest = self._duration(rest, f"{verdict} after 10s")
                limit = seconds, _VERDICTS[verdict]
            else:
                regex, rest = self._regex(rest, f"{verdict} if /REGEX/")
                found.append(Choice(number, regex, _VERDICTS.get(verdict)))
            self._nothing(rest)
        self.line = lines[0][0]
        if not found:
            raise self._wrong("'after' needs something to wait for: put a line such as good if /REGEX/ above")
        seconds, otherwise = limit or (self.timeout_s, Outcome.HANG)
        return Wait(self.line, tuple(found), seconds, otherwise)

    def _expect(self, rest: str) -> Step:
        usage = "expect /REGEX/ [within 5s] [or bad]"
        regex, rest = self._regex(rest, usage)
        seconds, otherwise = self.timeout_s, Outcome.HANG
        word, after = _first(rest)
        if word == "within":
            seconds, rest = self._duration(after, usage)
            word, after = _first(rest)
        if word == "or":
            verdict, rest = _first(after)
            if verdict not in _VERDICTS:
                raise self._wrong(f"{verdict!r} is no verdict: write good, bad or skip behind 'or'")
            otherwise = _VERDICTS[verdict]
        self._nothing(rest, usage)
        return Wait(self.line, (Choice(self.line, regex, None),), seconds, otherwise)

    def _type(self, rest: str) -> Step:
        return Send(self.line, rest.encode() + b"\r")

    def _send(self, rest: str) -> Step:
        if rest[:1] not in ('"', "'") or not rest:
            raise self._wrong('the text to send stands in quotes: send "yes\\r" (or use: type yes)')
        data, at = bytearray(), 1
        while at < len(rest) and rest[at] != rest[0]:
            if rest[at] != "\\":
                data += rest[at].encode()
                at += 1
                continue
            piece, size = self._escape(rest[at + 1 : at + 4])
            data += piece
            at += 1 + size
        if at >= len(rest):
            raise self._wrong(f"the text is not closed: put a {rest[0]} at its end")
        self._nothing(rest[at + 1 :].strip())
        if not data:
            raise self._wrong("there is nothing to send between the quotes")
        return Send(self.line, bytes(data))

    def _escape(self, text: str) -> tuple[bytes, int]:
        """Return the bytes of an escape and how many characters behind the backslash it takes."""
        kind = text[:1]
        if kind in _ESCAPES:
            return _ESCAPES[kind], 1
        if kind in ("\\", '"', "'"):
            return kind.encode(), 1
        if kind == "x" and re.fullmatch(r"[0-9a-fA-F]{2}", text[1:]):
            return bytes.fromhex(text[1:]), 3
        if kind == "c" and re.match(r"[@-_a-z]", text[1:]):
            return bytes([ord(text[1].upper()) & 0x1F]), 2
        raise self._wrong(
            f"unknown escape \\{text.strip()[:3]}: there are \\r \\n \\t \\e \\a \\b \\0 \\\\ \\\" \\' "
            "\\xHH (two digits) and \\cC (Ctrl-C)"
        )

    def _login(self, rest: str) -> Step:
        try:
            words = shlex.split(rest)
        except ValueError:
            raise self._wrong("a quote is not closed: login USER [PASSWORD]") from None
        if len(words) not in (1, 2):
            raise self._wrong("write login USER [PASSWORD], the password in quotes if it has spaces")
        return Login(self.line, words[0], words[1] if len(words) == 2 else None, self.prompt, self.timeout_s)

    def _run(self, rest: str) -> Step:
        if not rest:
            raise self._wrong("there is no command to run: run test -s /etc/fstab")
        return Run(self.line, rest, self.prompt, self.timeout_s)

    def _set_prompt(self, rest: str) -> None:
        self.prompt, rest = self._regex(rest, "prompt /REGEX/")
        self._nothing(rest)

    def _timeout(self, rest: str) -> None:
        self.timeout_s, rest = self._duration(rest, "timeout 60s")
        self._nothing(rest)

    def _pause(self, rest: str) -> Step:
        seconds, rest = self._duration(rest, "pause 2s")
        self._nothing(rest)
        return Pause(self.line, seconds)

    # ---- parts of a line

    def _regex(self, text: str, usage: str) -> tuple[re.Pattern[str], str]:
        """Return the regex that `text` begins with, and what stands behind it."""
        quote = text[:1]
        if not quote or quote not in "/\"'":
            raise self._wrong(f"a regex stands between slashes or quotes: {usage}")
        end = 1
        while end < len(text) and text[end] != quote:
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise self._wrong(f"the regex is not closed: put a {quote} at its end")
        source = text[1:end].replace("\\" + quote, quote)
        letters, rest = _first(text[end + 1 :]) if text[end + 1 : end + 2].strip() else ("", text[end + 1 :])
        if letters not in ("", "i"):
            raise self._wrong(f"{letters!r} behind the regex: only i (any case) may stand there")
        try:
            regex = re.compile(source, re.MULTILINE | (re.IGNORECASE if letters else 0))
        except (re.error, RecursionError, OverflowError) as e:
            raise self._wrong(f"{quote}{source}{quote} is no regex: {e}") from None
        if regex.search(""):
            raise self._wrong(f"{quote}{source}{quote} matches empty text, so it would match at once")
        return regex, rest.strip()

    def _duration(self, text: str, usage: str) -> tuple[float, str]:
        word, rest = _first(text)
        match = _DURATION.fullmatch(word)
        if not match or match[2] not in _UNITS:
            raise self._wrong(f"{word!r} is no time: write a number with ms, s or m behind it: {usage}")
        seconds = float(match[1]) * _UNITS[match[2]]
        if not 0 < seconds <= _MAX_SECONDS:
            raise self._wrong(f"{word} is out of range: a time is above 0 and at most a day")
        return seconds, rest

    def _nothing(self, rest: str, usage: str = "") -> None:
        if rest:
            raise self._wrong(f"unexpected {rest!r} at the end{f': {usage}' if usage else ''}")

    def _wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.name}:{self.line}: {what}")


def _first(text: str) -> tuple[str, str]:
    """Split off the first word."""
    words = text.split(None, 1)
    return (words[0], words[1].rstrip()) if len(words) == 2 else (text.strip(), "")


def _is_choice(line: str) -> bool:
    verdict, rest = _first(line)
    return (verdict in _VERDICTS or verdict == "next") and _first(rest)[0] in ("if", "after")
