"""Bookmarks: ticks with names, kept with the recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.inspect import Answer
from tt.log.bookmarks import forget, remember
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.command import Arguments, command, shorten

if TYPE_CHECKING:
    from tt.shell.session import Session


@command(
    "bookmark", "checkpoint", "mark",
    usage="[NAME [POS]]", theme="recording", most=2, completes=("bookmark", "position"),
    examples=(("bookmark before-crash", "here"), ("bookmark boot 12.5s", "there"),
              ("goto @boot", "back to it")),
)  # fmt: skip
def bookmark(session: Session, arguments: Arguments) -> Answer:
    """Give a tick a name; without one, a number does.

    Bookmarks are kept with the recording.  `delete bookmark NAME` takes one away.
    """
    words = arguments.words
    known = session.bookmarks
    name = words[0].removeprefix("@") if words else str(_free_number(known))
    if session.live is not None:
        raise UsageError("a live branch has no bookmarks yet: `close` it first")
    tick = session.position(words[1]) if len(words) > 1 else session.tick
    moved = f", which was at {format_tick(known[name])}" if name in known and known[name] != tick else ""
    note = remember(session.trace, name, tick)
    lines = [f"@{name} is tick {format_tick(tick)}{moved}"]
    return Answer({"name": name, "tick": tick, "kept": not note}, [*lines, note] if note else lines)


@command("bookmarks", theme="recording", examples=(("bookmarks", "all of them"),))
def bookmarks(session: Session, arguments: Arguments) -> Answer:
    """List the bookmarks."""
    return listing(session)


def listing(session: Session) -> Answer:
    """Return the bookmarks, by tick."""
    known = sorted(session.bookmarks.items(), key=lambda item: (item[1], item[0]))
    width = max((len(format_tick(tick)) for _name, tick in known), default=0)
    lines = [f"{format_tick(tick):>{width}}  @{printable(name)}" for name, tick in known]
    return Answer({"bookmarks": dict(known)}, lines or ["there are no bookmarks: `bookmark NAME` makes one"])


def remove_bookmarks(session: Session, names: Sequence[str]) -> Answer:
    """Forget names; raises `UsageError` where there is no such bookmark."""
    lines = []
    for name in names:
        note = forget(session.trace, name)
        lines.append(f"bookmark {shorten(name, False)} deleted{f': {note}' if note else ''}")
    return Answer({"deleted": list(names)}, lines)


def _free_number(known: Mapping[str, int]) -> int:
    return next(number for number in range(1, len(known) + 2) if str(number) not in known)
