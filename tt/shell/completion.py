"""What may come next on a line: commands, symbols, registers, bookmarks, files in the guest."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tt.errors import TTError
from tt.events import Kind
from tt.shell import command
from tt.shell.commands import network
from tt.shell.commands.catching import EXCEPTIONS, KINDS
from tt.shell.commands.disks import complete_path
from tt.shell.commands.looking import INFO
from tt.shell.commands.recorded import kind_name
from tt.shell.syscalls import NUMBERS

if TYPE_CHECKING:
    from tt.shell.session import Session

_MOST = 300
_NAME = re.compile(r"\$?[A-Za-z_][\w.]*$|\$$")
_DISK_WORDS = ("ls", "cat", "stat", "hex", "write")


def complete(session: Session, text: str) -> tuple[int, list[str]]:
    """Return where the word begins that `text`, all before the cursor, ends with, and what it may become."""
    begin = text.rfind(";") + 1
    line = text[begin:].lstrip()
    begin = len(text) - len(line)
    head, blank, rest = line.partition(" ")
    if not blank:
        return begin, _beginning(command.names(), head)
    try:
        found = command.find(head.partition("/")[0])
    except TTError:
        return len(text), []
    words = rest.split(" ")
    last = words[-1]
    at = min(len([word for word in words[:-1] if word]), len(found.completes) - 1)
    if at < 0:
        return len(text), []
    kind = found.completes[at]
    if re.search(r"(^|\s)if\s", rest) and kind in ("symbol", "expression", "catch"):
        kind = "expression"
    if kind == "catch":
        return len(text) - len(last), _beginning(_catchable(words[:-1]), last)
    if kind in ("expression", "symbol"):
        match = _NAME.search(last)
        name = match[0] if match is not None else ""
        if not name:
            return len(text), []
        return len(text) - len(name), _names(session, name)
    try:
        return len(text) - len(last), _KINDS[kind](session, last)
    except (TTError, OSError, ValueError):
        return len(text), []


# ---- how


def _beginning(names: list[str] | tuple[str, ...], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)][:_MOST]


def _names(session: Session, typed: str) -> list[str]:
    from tt.travel.expressions import REGISTER_NAMES

    if typed.startswith("$"):
        return _beginning([f"${name}" for name in REGISTER_NAMES], typed)
    return session.symbols.names(typed, _MOST)


def _registers(session: Session, typed: str) -> list[str]:
    from tt.travel.expressions import REGISTER_NAMES

    dollar = "$" if typed.startswith("$") else ""
    return _beginning([f"{dollar}{name}" for name in REGISTER_NAMES], typed)


def _positions(session: Session, typed: str) -> list[str]:
    return _beginning(["start", "end", "-", *(f"@{name}" for name in sorted(session.bookmarks))], typed)


def _bookmarks(session: Session, typed: str) -> list[str]:
    return _beginning(sorted(session.bookmarks), typed)


def _commands(session: Session, typed: str) -> list[str]:
    return _beginning([*command.names(), "positions", "expressions"], typed)


def _stops(session: Session, typed: str) -> list[str]:
    return _beginning([str(point.number) for point in session.timeline.stops], typed)


def _kinds(session: Session, typed: str) -> list[str]:
    return _beginning([kind_name(kind) for kind in Kind], typed)


def _devices(session: Session, typed: str) -> list[str]:
    return _beginning(["clock", *session.machine.board.save()], typed)


def _paths(session: Session, typed: str) -> list[str]:
    folder, slash, begun = typed.rpartition("/")
    where = command.host_path(folder + slash or ".")
    names = sorted(path for path in where.iterdir() if path.name.startswith(begun))[:_MOST]
    return [f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}" for path in names]


def _traces(session: Session, typed: str) -> list[str]:
    beside = session.trace.path.parent.glob("*.tt")
    return _beginning(sorted({path.name for path in beside}), typed)


def _catchable(before: list[str]) -> list[str]:
    given = [word for word in before if word]
    if not given:
        return list(KINDS)
    return {"syscall": list(NUMBERS), "exception": list(EXCEPTIONS)}.get(given[0], [])


_KINDS: dict[str, Callable[[Session, str], list[str]]] = {
    "register": _registers,
    "position": _positions,
    "bookmark": _bookmarks,
    "command": _commands,
    "stop": _stops,
    "kind": _kinds,
    "device": _devices,
    "path": _paths,
    "trace": _traces,
    "file": complete_path,
    "disk": lambda session, typed: _beginning(_DISK_WORDS, typed),
    "net": lambda session, typed: _beginning(network.WORDS, typed),
    "info": lambda session, typed: _beginning(INFO, typed),
}
