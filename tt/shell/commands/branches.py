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
    usage="[NAME] [keep-inputs] [net=END]", theme="branches", most=4,
    examples=(("fork", "a live branch from here"), ("fork what-if", "one with a name"),
              ("fork what-if keep-inputs", "what was typed later, and the frames that came, come there too"),
              ("fork live net=user,forward=8080-80", "its network card is connected, as by tt record --net")),
)  # fmt: skip
def fork(session: Session, arguments: Arguments) -> Answer:
    """Make a live branch that leaves the recording here.

    In it `set` changes registers and memory, `disk write` a disk, `type` types, `continue` and `step` run on,
    and all of that is recorded as a trace of its own, beside this one.  `close` seals it; then you can travel
    in it.  The network of a machine with cards is cut off (net=off) unless the fork says otherwise:
    net=none unplugs the cable, net=user or net=stream:... connects it to somebody who is there now.
    """
    from tt.travel.branches.fork import Fork

    if session.live is not None:
        raise UsageError("this is a live branch already: `close` it first")
    words = arguments.words
    keep = "keep-inputs" in words[-2:]
    nets = [word.removeprefix("net=") for word in words if word.startswith("net=")]
    words = [word for word in words if word != "keep-inputs" and not word.startswith("net=")]
    if len(words) > 1:
        raise UsageError(f"{shorten(words[1])}: it is fork [NAME] [keep-inputs] [net=END]")
    parent = session.trace.path
    path, name = None, ""
    if words:
        name = words[0]
        if not _NAME.fullmatch(name):
            raise UsageError(f"{shorten(name)} is no name: give letters, digits and -")
        path = parent.with_name(f"{parent.stem}-{name}.tt")
    made = Fork(
        session.timeline,
        path,
        name,
        keep_inputs=keep,
        network=nets or None,
        say=session.say,
        progress=session.heed,
    )
    session.live = Live(made, session.trace)
    shown = printable(str(made.path))
    told = [f"a live branch, recorded as {shown}; `set`, `type`, `continue`, then `close`"]
    if made.cables.line:
        told.append(made.cables.line)
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
    "plug",
    usage="[CARD]", theme="branches", most=1, examples=(("plug", "plug the cable of card 0 in"),),
)  # fmt: skip
def plug(session: Session, arguments: Arguments) -> Answer:
    """Plug in the cable of a network card of a live branch."""
    return _live(session, "plug").plug(_card(arguments.words[0] if arguments.words else "0"), True)


@command(
    "unplug",
    usage="[CARD]", theme="branches", most=1, examples=(("unplug 1", "pull the cable of card 1 out"),),
)  # fmt: skip
def unplug(session: Session, arguments: Arguments) -> Answer:
    """Pull out the cable of a network card of a live branch."""
    return _live(session, "unplug").plug(_card(arguments.words[0] if arguments.words else "0"), False)


@command(
    "receive",
    usage="[CARD] HEX", theme="branches", least=1, most=2,
    examples=(("receive ffffffffffff525400747401080600010800...", "network card 0 gets a frame"),),
)  # fmt: skip
def receive(session: Session, arguments: Arguments) -> Answer:
    """Give a network card of a live branch a frame, without its checksum."""
    *card, text = arguments.words
    try:
        frame = bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{shorten(text)} is no frame: give pairs of hex digits") from None
    return _live(session, "receive").receive(_card(card[0] if card else "0"), frame)


def _live(session: Session, name: str) -> Live:
    if session.live is None:
        raise UsageError(f"what came is recorded: `fork` makes a live branch here, and there `{name}` works")
    return session.live


def _card(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise UsageError(f"{shorten(text)} is no network card: give its number, from 0 on")
    return int(text)


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
