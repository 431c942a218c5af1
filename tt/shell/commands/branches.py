"""Other histories: forks, the tree of timelines, what differs, and where something became so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.inspect import Answer
from tt.log import Trace
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.command import Arguments, command, host_path, shorten
from tt.shell.live import Live
from tt.shell.targets import count

if TYPE_CHECKING:
    from tt.shell.session import Session

_NAME = re.compile(r"[\w][\w.+-]{0,60}")


@command(
    "fork",
    usage="[NAME] [keep-inputs]", theme="branches", most=2,
    examples=(("fork", "a live branch from here"), ("fork what-if", "one with a name"),
              ("fork what-if keep-inputs", "what was typed later in the recording is typed there too")),
)  # fmt: skip
def fork(session: Session, arguments: Arguments) -> Answer:
    """Make a live branch that leaves the recording here.

    In it `set` changes registers and memory, `disk write` a disk, `type` types, `continue` and `step` run on,
    and all of that is recorded as a trace of its own, beside this one.  `close` seals it; then you can travel
    in it.
    """
    from tt.travel.branches.fork import Fork

    if session.live is not None:
        raise UsageError("this is a live branch already: `close` it first")
    words = arguments.words
    keep = bool(words) and words[-1] == "keep-inputs"
    words = words[:-1] if keep else words
    if len(words) > 1:
        raise UsageError(f"{shorten(words[1])}: it is fork [NAME] [keep-inputs]")
    parent = session.trace.path
    path, name = None, ""
    if words:
        name = words[0]
        if not _NAME.fullmatch(name):
            raise UsageError(f"{shorten(name)} is no name: give letters, digits and -")
        path = parent.with_name(f"{parent.stem}-{name}.tt")
    made = Fork(session.timeline, path, name, keep_inputs=keep, progress=session.heed)
    session.live = Live(made, session.trace)
    shown = printable(str(made.path))
    told = [f"a live branch, recorded as {shown}; `set`, `type`, `continue`, then `close`"]
    return session.arrive(told, {"path": str(made.path), "name": made.name, "fork_tick": made.fork_tick})


@command(
    "type", "send",
    usage="TEXT", theme="branches", least=1, most=None, whole_line=True,
    examples=(("type ls -l\\n", "into the guest's console; \\n is Enter"), (r"type \x03", "Ctrl-C")),
)  # fmt: skip
def type_(session: Session, arguments: Arguments) -> Answer:
    r"""Type into the guest of a live branch.

    As in C, \n is Enter and \x03 Ctrl-C.  Where no \n ends the text, Enter is pressed all the same, but for
    a text in quotes.
    """
    from tt.travel.expressions.tokens import unescape

    if session.live is None:
        raise UsageError(
            "what was typed is recorded: `fork` makes a live branch here, and there `type` works"
        )
    text = arguments.text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        data = unescape(text[1:-1])
    else:
        data = unescape(text)
        if data[-1:] >= b" ":
            data += b"\n"
    return session.live.type(data)


@command(
    "close", "parent", "leave",
    theme="branches", examples=(("close", "seal the live branch, and stand at its end"),
                                ("close", "again: back to where it left its parent")),
)  # fmt: skip
def close(session: Session, arguments: Arguments) -> Answer:
    """Seal a live branch, or come back from another recording.

    After a live branch the place is the end of its recording.
    """
    live = session.live
    if live is not None:
        from tt.travel import Timeline

        session.live = None
        path = live.close()
        trace = Trace.open(path)
        timeline = Timeline(trace, session.bases, progress=session.heed)
        timeline.seek(timeline.end_tick)
        session.enter(timeline, live.name)
        told = f"sealed: this is now the recording {printable(str(path))}; `close` goes back to its parent"
        return session.arrive([told], {"path": str(path)})
    if not session.leave():
        raise UsageError("there is nothing to close: no branch was made, and no other recording entered")
    return session.arrive(
        [f"back in {printable(str(session.trace.path))}"], {"path": str(session.trace.path)}
    )


@command(
    "timelines", "tree",
    theme="branches", examples=(("timelines", "this recording, its parents and branches"),),
)  # fmt: skip
def timelines(session: Session, arguments: Arguments) -> Answer:
    """Draw the tree of recordings that this one belongs to."""
    from tt.travel.branches.family import family, render

    node = family(session.trace.path)
    return Answer({"tree": node.root.plain(), "here": str(session.trace.path)}, render(node))


@command(
    "switch", "enter", "open",
    usage="NAME|TRACE [POS]", theme="branches", least=1, most=2, completes=("trace", "position"),
    examples=(("switch what-if", "another timeline of the tree, at the same tick or its end"),
              ("switch other.tt 50%", "a recording, at a position")),
)  # fmt: skip
def switch(session: Session, arguments: Arguments) -> Answer:
    """Go to another recording; `close` comes back."""
    from tt.travel import Timeline

    if session.live is not None:
        raise UsageError("this is a live branch: `close` it first")
    words = arguments.words
    path = timeline_path(session, words[0])
    trace = Trace.open(path)
    try:
        tick = trace.resolve(words[1]) if len(words) > 1 else min(session.tick, trace.end_tick)
        timeline = Timeline(trace, session.bases, progress=session.heed)
        timeline.seek(tick)
    except BaseException:
        trace.close()
        raise
    from tt.travel.branches.family import trace_name

    session.enter(timeline, trace_name(trace))
    return session.arrive([f"in {printable(str(path))}; `close` comes back"], {"path": str(path)})


@command(
    "diff",
    usage="[POS|TIMELINE] [POS|TIMELINE]", theme="branches", least=1, most=2, completes=("position",),
    examples=(
        ("diff +1000", "what the next thousand ticks change"),
        ("diff 50% 60%", "two moments of this recording"),
        ("diff what-if", "where another timeline first goes another way, and how"),
    ),
)  # fmt: skip
def diff(session: Session, arguments: Arguments) -> Answer:
    """Show what differs between two moments, or where two timelines part."""
    from tt.shell.commands.differing import moments, recordings

    if session.live is not None:
        raise UsageError("a live branch cannot be compared: `close` it first")
    words = arguments.words
    try:
        ticks = [session.position(word) for word in words]
    except UsageError as error:
        if len(words) == 2 and any(looks_like_position(word) for word in words):
            raise
        try:
            return recordings(session, [timeline_path(session, word) for word in words])
        except UsageError:
            raise error from None
    return moments(session, *(ticks if len(ticks) == 2 else [session.tick, *ticks]))


@command(
    "bisect",
    usage="GOOD BAD EXPR", theme="branches", least=1, most=None,
    completes=("position", "position", "expression"),
    examples=(("bisect start end *(int*)0x601040 == 3", "the first tick where it is so"),
              ("bisect 40% 60% u64[jiffies] > 5_000", "between two positions")),
)  # fmt: skip
def bisect(session: Session, arguments: Arguments) -> Answer:
    """Find the first tick at which an expression is true.

    It is false at GOOD and true at BAD; with BAD before GOOD, the first where it is false again.
    """
    from tt.shell.commands.differing import first_bad
    from tt.shell.targets import compiled

    parts = arguments.text.split(None, 2)
    if len(parts) < 3:
        raise UsageError(f"{shorten(arguments.text)}: it is bisect GOOD BAD EXPR")
    if session.live is not None:
        raise UsageError("a live branch cannot be searched: `close` it first")
    good, bad = session.position(parts[0]), session.position(parts[1])
    return first_bad(session, good, bad, compiled(session, parts[2]), parts[2])


@command(
    "gdb",
    usage="[PORT]", theme="branches", most=1,
    examples=(("gdb", "serve this recording to gdb, from here on, until it detaches"),
              ("gdb 1234", "on a port")),
)  # fmt: skip
def gdb(session: Session, arguments: Arguments) -> Answer:
    """Let gdb drive from where you stand; Ctrl-C ends it."""
    from tt.shell.commands.serving import serve

    if session.live is not None:
        raise UsageError("a live branch cannot be served: `close` it first")
    port = count(arguments.words[0], 65535) if arguments.words else 0
    return serve(session, port)


# ---- how


def timeline_path(session: Session, name: str) -> Path:
    """Return the file of a timeline, by its name in the tree or by path; raises `UsageError`."""
    from tt.travel.branches.family import family

    node = family(session.trace.path)
    for each in node.root.walk():
        if each.path is not None and name in (each.name, each.path.name, each.path.stem, each.id):
            return each.path
    for path in (host_path(name), session.trace.path.parent / name):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):
            break
    known: list[Any] = [each.name for each in node.root.walk() if each.path is not None]
    raise UsageError(f"there is no timeline {shorten(name)}: there are {', '.join(map(printable, known))}")


def looks_like_position(text: str) -> bool:
    """Whether somebody meant a position."""
    return text in ("start", "end", "-") or text[:1] in "+-@#" or text[:1].isdigit()


def tick_range(first: int, last: int) -> str:
    """Return two ticks in words."""
    return f"{format_tick(first)} and {format_tick(last)}"
