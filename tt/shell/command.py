"""The list of commands: how each is typed, found and described.

A command is a decorated function `(session, arguments) -> Answer`.  Its docstring
is its help.  Each has an example, which the reference and `help` show.
"""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tt import position
from tt.errors import UsageError
from tt.inspect import Answer
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.shell.session import Session

THEMES = {
    "moving": "Going somewhere",
    "stopping": "Stopping at something",
    "looking": "Looking at the machine",
    "recording": "Looking at the recording",
    "branches": "Other histories",
    "shell": "The shell itself",
}
_COMMENT = re.compile(r"\s*#(?![0-9])")  # #17 is an event
_LONGEST_SHOWN = 60  # characters of a line that an error repeats
_LINE = re.compile(
    r"(?P<name>!?[A-Za-z?][\w?]*(?:-[A-Za-z]\w*)*-?)(?:/(?P<form>\S*))?(?:\s+(?P<text>.*))?", re.S
)


@dataclass(frozen=True)
class Arguments:
    """What stood behind a command: all of it as `text`, and the `8xg` of `x/8xg` as `form`."""

    text: str = ""
    form: str = ""

    @property
    def words(self) -> list[str]:
        """The words, quotes taken off; raises `UsageError` where a quotation does not close."""
        try:
            return shlex.split(self.text)
        except ValueError as e:
            raise UsageError(f"{shorten(self.text)}: {e}") from None


Run = Callable[["Session", Arguments], Answer]


@dataclass(frozen=True)
class Command:
    """A command.

    `usage` is how it is typed, `about` one line, `more` the rest of its help,
    `examples` (line, what it does).  `least` and `most` bound its words (`most` None:
    it takes the text as it is).  `completes` says what its words are, one name
    each, the last for all that follow.  `repeats`: an empty line does it again.
    `form` says whether `/8xg` may follow the name, `whole_line` that a `;` does not end it.
    """

    name: str
    aliases: tuple[str, ...]
    usage: str
    about: str
    more: str
    examples: tuple[tuple[str, str], ...]
    theme: str
    run: Run
    least: int
    most: int | None
    completes: tuple[str, ...]
    repeats: bool
    form: bool
    whole_line: bool


@dataclass(frozen=True)
class Call:
    """A line understood: a command and its arguments."""

    command: Command
    arguments: Arguments


COMMANDS: dict[str, Command] = {}
"""All commands by name, in the order in which help shows them."""

_NAMES: dict[str, Command] = {}  # names and aliases


def command(
    name: str,
    *aliases: str,
    usage: str = "",
    theme: str,
    examples: tuple[tuple[str, str], ...],
    least: int = 0,
    most: int | None = 0,
    completes: tuple[str, ...] = (),
    repeats: bool = False,
    form: bool = False,
    whole_line: bool = False,
) -> Callable[[Run], Run]:
    """Add the decorated function to the commands."""

    def add(run: Run) -> Run:
        about, _, more = (inspect.getdoc(run) or "").partition("\n")
        made = Command(
            name, aliases, f"{name} {usage}".rstrip(), about, more.strip(), examples, theme, run,
            least, most, completes, repeats, form, whole_line,
        )  # fmt: skip
        COMMANDS[name] = made
        for each in (name, *aliases):
            assert each not in _NAMES, each
            _NAMES[each] = made
        return run

    return add


def names(prefix: str = "") -> list[str]:
    """Return the names and aliases that begin with `prefix`, sorted."""
    return sorted(name for name in _NAMES if name.startswith(prefix))


def find(name: str) -> Command:
    """Return the command of a name, an alias or a beginning of just one; raises `UsageError`."""
    known = _NAMES.get(name) or _NAMES.get(name.lower())
    if known is not None:
        return known
    meant = {each.name: each for given, each in _NAMES.items() if given.startswith(name.lower())}
    if len(meant) == 1:
        return next(iter(meant.values()))
    shown = shorten(name)
    if meant:
        raise UsageError(f"{shown} may be {', '.join(sorted(meant))}: type more of it")
    near = difflib.get_close_matches(name.lower()[:40], [each for each in _NAMES if len(each) > 2], 1, 0.7)
    hint = f"did you mean {near[0]}?  " if near else ""
    raise UsageError(f"{shown} is no command: {hint}`help` lists them")


def parse(line: str) -> Call:
    """Return the command in one line, its words counted; a position alone is `goto`.  Raises `UsageError`."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        if _is_position(line.strip()):
            return Call(COMMANDS["goto"], Arguments(line.strip()))
        raise UsageError(f"{shorten(line.strip())} is no command: `help` lists them")
    found = find(match["name"])
    arguments = Arguments((match["text"] or "").strip(), match["form"] or "")
    if match["form"] is not None and not found.form:
        raise UsageError(f"{shorten(line)}: {found.name} takes no /{shorten(arguments.form, False)}")
    if found.most is not None:
        words = arguments.words
        if not found.least <= len(words) <= found.most:
            raise UsageError(f"{shorten(line)}: it is {found.usage}")
    elif found.least and not arguments.text:
        raise UsageError(f"{shorten(line)}: it is {found.usage}")
    return Call(found, arguments)


def _is_position(text: str) -> bool:
    if text == "-":
        return True
    try:
        position.parse(text)
    except UsageError:
        return False
    return True


def split(text: str) -> Iterator[str]:
    """Yield the commands in `text`: between line ends and `;` outside quotes; `# ...` lines are comments."""
    for line in text.splitlines():
        if _COMMENT.match(line):
            continue
        part, quote = "", ""
        for c in line:
            if c == ";" and not quote and not _takes_all(part):
                yield part
                part = ""
                continue
            if quote:
                quote = "" if c == quote else quote
            elif c in "\"'":
                quote = c
            part += c
        yield part


def _takes_all(part: str) -> bool:
    """Whether a line so far is a command whose text may hold a `;`."""
    words = part.split(None, 1)
    return bool(words) and words[0] in _NAMES and _NAMES[words[0]].whole_line


def host_path(text: str) -> Path:
    """Return a path on the host as it was typed, `~` being somebody's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no user of that name has a home directory
        return Path(text)


def shorten(text: str, quoted: bool = True) -> str:
    """Return what somebody typed as an error repeats it: printable, and not too long."""
    shown = printable(text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "...")
    return f"'{shown}'" if quoted else shown
