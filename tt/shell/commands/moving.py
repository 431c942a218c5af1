"""Going somewhere: to a position, by instructions, or until something happens."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.inspect import Answer, where
from tt.position import format_tick
from tt.shell import syscalls
from tt.shell.command import Arguments, command, shorten
from tt.shell.targets import count, location

if TYPE_CHECKING:
    from tt.shell.session import Session
    from tt.travel.stops import Arrival

_SYSCALL = re.compile(r"(?<=: )(?:syscall|system call) ([0-9]+)$")
_AMOUNT = re.compile(r"[0-9].*")


@command(
    "goto", "go", "seek", "seek-ticks", "tt", "!tt",
    usage="POS", theme="moving", least=1, most=1, completes=("position",),
    examples=(
        ("goto 1_234_567", "that tick"),
        ("goto 50%", "the middle of the recording"),
        ("goto 2.5s", "when 2.5 s of guest time have passed"),
        ("goto #17", "event 17 of `events`"),
        ("goto @boot", "a bookmark"),
        ("goto -", "where you were before"),
    ),
)  # fmt: skip
def goto(session: Session, arguments: Arguments) -> Answer:
    """Go to a position.

    A tick, +N or -N, a percentage, start or end, @bookmark, #event, guest time (12.5s 300ms 40us), or - for
    the place you were at before.
    """
    _past_only(session)
    session.timeline.seek(session.position(arguments.words[0]))
    return session.arrive()


@command(
    "back", "backward",
    usage="[AMOUNT]", theme="moving", most=1, repeats=True,
    examples=(("back", "one tick"), ("back 1_000_000", "a million ticks"),
              ("back 20ms", "20 ms of guest time"),
              ("back 5%", "a twentieth of the recording")),
)  # fmt: skip
def back(session: Session, arguments: Arguments) -> Answer:
    """Go back by ticks, guest time or percent; stops at power-on."""
    return _shift(session, arguments, -1)


@command(
    "forward", "ahead",
    usage="[AMOUNT]", theme="moving", most=1, repeats=True,
    examples=(("forward 1_000_000", "a million ticks"), ("forward 1s", "a second of guest time")),
)  # fmt: skip
def forward(session: Session, arguments: Arguments) -> Answer:
    """Go forward by ticks, guest time or percent; stops at the end."""
    return _shift(session, arguments, 1)


@command(
    "step", "s", "si", "stepi", "t",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("step", "one instruction"), ("step 100", "a hundred")),
)  # fmt: skip
def step(session: Session, arguments: Arguments) -> Answer:
    """Go forward by N instructions (1)."""
    return _step(session, arguments, 1)


@command(
    "reverse-step", "rs", "rsi", "reverse-stepi", "t-",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("reverse-step", "one instruction back"), ("rsi 100", "a hundred back")),
)  # fmt: skip
def reverse_step(session: Session, arguments: Arguments) -> Answer:
    """Go back by N instructions (1)."""
    return _step(session, arguments, -1)


@command(
    "next", "n", "ni", "nexti",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("next", "past the call that comes next, if it is one"),),
)  # fmt: skip
def next_(session: Session, arguments: Arguments) -> Answer:
    """Go forward over calls and interrupts, N times (1).

    A call and all that it does counts as one instruction.
    """
    return _until_arrival(session, arguments, lambda: session.timeline.next())


@command(
    "reverse-next", "rn", "rni", "reverse-nexti", "p-",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("rn", "back over the call that was just made"),),
)  # fmt: skip
def reverse_next(session: Session, arguments: Arguments) -> Answer:
    """Go back over calls and interrupts, N times (1)."""
    return _until_arrival(session, arguments, lambda: session.timeline.reverse_next())


@command(
    "finish", "fin", "gu",
    theme="moving", repeats=True, examples=(("finish", "to where this function returns to"),),
)  # fmt: skip
def finish(session: Session, arguments: Arguments) -> Answer:
    """Go forward to where the function that runs has returned."""
    answer = _until_arrival(session, arguments, lambda: session.timeline.finish())
    if answer.data.get("reason") == "step":
        from tt.shell.values import show

        value = session.machine.engine.registers()["rax"]
        answer.data["rax"] = value
        answer.lines.append(f"  $rax is {show(value, '', session)}")
    return answer


@command(
    "reverse-finish", "rfin", "gu-",
    theme="moving", repeats=True, examples=(("rfin", "to the call of this function"),),
)  # fmt: skip
def reverse_finish(session: Session, arguments: Arguments) -> Answer:
    """Go back to the call of the function that runs."""
    return _until_arrival(session, arguments, lambda: session.timeline.reverse_finish())


@command(
    "continue", "c", "g", "fg",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("continue", "to the next break-, watch- or catchpoint, or the end"), ("c 3", "to the third"),
              ("c 10s", "in a live branch: for 10 s of guest time, also where the guest waits")),
)  # fmt: skip
def continue_(session: Session, arguments: Arguments) -> Answer:
    """Go forward to the next stop that is set, or to the end.

    With N, to the Nth.  In a live branch: run on, for N ticks or so much guest time, or until the guest
    waits or ends.
    """
    if session.live is not None:
        text = arguments.words[0] if arguments.words else ""
        if text.endswith("s") and _AMOUNT.fullmatch(text):
            return session.live.carry_on(session, ns=_nanoseconds(text))
        return session.live.carry_on(session, count(text) if text else None)
    return _until_arrival(session, arguments, lambda: session.timeline.proceed())


@command(
    "reverse-continue", "rc", "g-",
    usage="[N]", theme="moving", most=1, repeats=True,
    examples=(("rc", "to the last break-, watch- or catchpoint before here, or to power-on"),),
)  # fmt: skip
def reverse_continue(session: Session, arguments: Arguments) -> Answer:
    """Go back to the last stop that is set, or to power-on."""
    return _until_arrival(session, arguments, lambda: session.timeline.reverse_proceed())


@command(
    "advance", "until", "u",
    usage="LOCATION", theme="moving", least=1, most=None, completes=("symbol",),
    examples=(("advance vfs_read", "to the next call of vfs_read"),),
)  # fmt: skip
def advance(session: Session, arguments: Arguments) -> Answer:
    """Go forward to a location, or to another stop before it."""
    return _with_temporary(session, arguments, lambda: session.timeline.proceed())


@command(
    "reverse-advance", "ru",
    usage="LOCATION", theme="moving", least=1, most=None, completes=("symbol",),
    examples=(("reverse-advance vfs_read", "to the last call of vfs_read before here"),),
)  # fmt: skip
def reverse_advance(session: Session, arguments: Arguments) -> Answer:
    """Go back to a location, or to another stop before that."""
    return _with_temporary(session, arguments, lambda: session.timeline.reverse_proceed())


@command("run", "r", "start", theme="moving", examples=(("run", "to power-on, as gdb starts a program"),))
def run(session: Session, arguments: Arguments) -> Answer:
    """Go to power-on."""
    _past_only(session)
    session.timeline.seek(0)
    return session.arrive()


@command(
    "restart",
    usage="[BOOKMARK]", theme="moving", most=1, completes=("bookmark",),
    examples=(("restart", "power-on"), ("restart boot", "a bookmark; `checkpoint` makes one")),
)  # fmt: skip
def restart(session: Session, arguments: Arguments) -> Answer:
    """Go to a bookmark, or to power-on."""
    _past_only(session)
    words = arguments.words
    if words:
        name = words[0].removeprefix("@")
        if name not in session.bookmarks:
            known = ", ".join(sorted(session.bookmarks)) or "none"
            raise UsageError(f"there is no bookmark {shorten(name)}: there are {known}")
        session.timeline.seek(session.bookmarks[name])
    else:
        session.timeline.seek(0)
    return session.arrive()


@command(
    "when", "where", "when-ticks", "pwd",
    theme="moving", examples=(("when", "the tick and the guest time"),),
)  # fmt: skip
def when(session: Session, arguments: Arguments) -> Answer:
    """Tell the tick and the guest time."""
    return where(session.moment)


@command("here", "frame", "f", theme="moving", examples=(("here", "the function and the next instruction"),))
def here(session: Session, arguments: Arguments) -> Answer:
    """Show the current place: tick, symbol and the next instruction."""
    return session.arrive()


# ---- how


def _past_only(session: Session) -> None:
    if session.live is not None:
        raise UsageError("a live branch only goes forward: `close` seals it, then you can go anywhere in it")


def _shift(session: Session, arguments: Arguments, sign: int) -> Answer:
    _past_only(session)
    timeline = session.timeline
    text = arguments.words[0] if arguments.words else "1"
    if not _AMOUNT.fullmatch(text):
        raise UsageError(f"{shorten(text)}: give ticks (1_000), guest time (20ms) or percent (5%)")
    if text.endswith("s"):
        ns = _nanoseconds(text)
        target = timeline.trace.tick_at_ns(max(0, session.machine.now_ns + sign * ns))
    elif text.endswith("%"):
        from tt.position import parse

        target = session.tick + sign * int(timeline.end_tick * parse(text).amount / 100)
    else:
        target = session.tick + sign * count(text, 1 << 62)
    timeline.seek(min(max(target, 0), timeline.end_tick))
    return session.arrive()


def _nanoseconds(text: str) -> int:
    from tt.position import Anchor, parse

    where = parse(text)
    if where.anchor is not Anchor.TIME:
        raise UsageError(f"{shorten(text)}: give guest time as 2.5s, 20ms or 40us")
    return int(where.amount)


def _step(session: Session, arguments: Arguments, sign: int) -> Answer:
    number = count(arguments.words[0], 1 << 62) if arguments.words else 1
    if session.live is not None:
        if sign < 0:
            _past_only(session)
        return session.live.advance(session, number)
    before = session.tick
    timeline = session.timeline
    if number > 1 and timeline.stops.active:  # as in gdb, a stop on the way ends it
        from tt.travel.search import proceed, reverse_proceed

        if sign > 0:
            return arrived(session, proceed(timeline, until=min(before + number, timeline.end_tick)), before)
        return arrived(session, reverse_proceed(timeline, until=max(before - number, 0)), before)
    if sign > 0:
        timeline.step(number)
    else:
        timeline.reverse_step(number)
    answer = session.arrive()
    if session.tick == before:
        answer.lines.insert(0, "this is the end of the recording" if sign > 0 else "this is power-on")
    return answer


def _until_arrival(session: Session, arguments: Arguments, go: Callable[[], Arrival]) -> Answer:
    _past_only(session)
    number = count(arguments.words[0]) if arguments.words else 1
    before = session.tick
    for _ in range(number):
        arrival = go()
        if arrival.reason in ("start", "end"):
            break
    return arrived(session, arrival, before)


def _with_temporary(session: Session, arguments: Arguments, go: Callable[[], Arrival]) -> Answer:
    _past_only(session)
    from tt.travel.stops import Breakpoint

    stops = session.timeline.stops
    before = session.tick
    point = Breakpoint(location(session, arguments.text), temporary=True, text=arguments.text)
    number = stops.add(point)
    try:
        arrival = go()
    finally:
        if any(each.number == number for each in stops):
            stops.remove(number)
    return arrived(session, arrival, before)


def arrived(session: Session, arrival: Arrival, before: int) -> Answer:
    """Return the answer of a motion that ended with `arrival`, begun at tick `before`."""
    detail = _SYSCALL.sub(
        lambda match: f"{match[0]} ({syscalls.NAMES.get(int(match[1]), '?')})", arrival.detail
    )
    data: dict[str, Any] = {"reason": arrival.reason, "detail": detail}
    lines = []
    if arrival.reason in ("break", "watch", "catch"):
        name = arrival.point.name if arrival.point is not None else ""
        lines = [detail if detail.startswith(name) else f"{name}: {detail}"]
        data["number"] = arrival.point.number if arrival.point is not None else None
        if arrival.old is not None and arrival.new is not None:
            data["old"], data["new"] = arrival.old.hex(), arrival.new.hex()
            if arrival.old != arrival.new and _bytes(arrival.new) not in arrival.detail:
                lines.append(f"  old {_bytes(arrival.old)}   new {_bytes(arrival.new)}")
    elif arrival.reason == "end" or (arrival.reason == "tick" and session.tick == session.end_tick):
        lines = ["nothing stopped on the way: this is the end"]
        if session.tick == before:
            lines = ["this is the end of the recording"]
    elif arrival.reason == "start" or (arrival.reason == "tick" and session.tick == 0):
        lines = ["nothing stopped on the way back: this is power-on"] if before else ["this is power-on"]
    elif arrival.detail and arrival.reason not in ("step", "tick"):
        lines = [arrival.detail]
    answer = session.arrive(lines, data)
    if session.tick != before:
        moved = session.tick - before
        answer.data["moved"] = moved
        if lines and arrival.reason in ("break", "watch", "catch"):
            answer.lines[0] += f"   ({format_tick(abs(moved))} ticks {'on' if moved > 0 else 'back'})"
    return answer


def _bytes(data: bytes) -> str:
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#x}"
    return data[:32].hex(" ") + (" ..." if len(data) > 32 else "")
