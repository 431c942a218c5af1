"""What differs between two moments or two recordings, and the tick from which an expression holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.inspect import Answer, disassemble
from tt.log import Trace
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.commands.recorded import kind_name

if TYPE_CHECKING:
    from tt.shell.session import Session
    from tt.travel.bisect import Cause
    from tt.travel.expressions import Condition

_SHOWN = 20  # differences of each kind


def moments(session: Session, first: int, second: int) -> Answer:
    """Compare the states at two ticks of this recording."""
    from tt.travel import Timeline
    from tt.travel.branches.compare import diff_states

    trace = session.trace
    one = Timeline(trace, session.bases, progress=session.heed)
    two = Timeline(trace, session.bases, progress=session.heed)
    one.seek(first)
    two.seek(second)
    found = [each for each in diff_states(one, two, _SHOWN + 1) if each.part != "tick"]
    lines = [f"tick {format_tick(first)} | tick {format_tick(second)}"]
    for part in dict.fromkeys(each.part for each in found):
        same_part = [each for each in found if each.part == part]
        lines += [f"  {printable(str(each))}" for each in same_part[:_SHOWN]]
        if len(same_part) > _SHOWN:
            lines.append(f"  ... and more of {part}")
    if not found:
        lines.append("  the states are the same")
    data = {"ticks": [first, second], "differences": [_plain(each) for each in found]}
    return Answer(data, lines)


def recordings(session: Session, paths: Sequence[Path]) -> Answer:
    """Find where two recordings part: the one given, or two, and this one."""
    from tt.travel import Timeline
    from tt.travel.branches.compare import first_difference

    opened = [Trace.open(path) for path in paths]
    try:
        lines = [Timeline(trace, session.bases, progress=session.heed) for trace in opened]
        if len(lines) == 1:
            lines.insert(0, Timeline(session.trace, session.bases, progress=session.heed))
        parting = first_difference(lines[0], lines[1], limit=_SHOWN)
        told = [printable(line) for line in parting.lines()]
        data: dict[str, Any] = {
            "tick": parting.tick,
            "same_until": parting.same_until,
            "names": parting.names,
        }
        data["differences"] = [_plain(each) for each in parting.differences]
        if parting.tick is not None and len(paths) == 1 and parting.tick <= session.end_tick:
            told.append(f"`goto {parting.tick}` goes there")
        return Answer(data, told)
    finally:
        for trace in opened:
            trace.close()


def first_bad(session: Session, good: int, bad: int, condition: Condition, text: str) -> Answer:
    """Find the first tick at which a condition holds, and go there."""
    from tt.travel.bisect import bisect, cause

    if good == bad:
        raise UsageError("good and bad are the same tick: there is nothing in between")
    timeline = session.timeline
    looks = 0

    def look(_probe: object) -> None:
        nonlocal looks
        looks += 1

    verdict = bisect(timeline, good, bad, condition, on_probe=look)
    what = "true" if verdict.becomes_bad else "false again"
    if verdict.tick is not None:
        told = [f"{printable(text)}: {what} from tick {format_tick(verdict.tick)} on, after {looks} looks"]
    else:
        between = f"{format_tick(verdict.earliest)} and {format_tick(verdict.latest)}"
        told = [f"{printable(text)}: {what} from somewhere between {between}"]
    if verdict.tick:
        told.append(_cause(session, cause(timeline, verdict.tick)))
    if not verdict.monotonic:
        other = verdict.contradictions[0]
        told.append(
            f"  but it changes again: it is {str(bool(other.bad)).lower()} at {format_tick(other.tick)}"
        )
    data = {"found": verdict.tick, "earliest": verdict.earliest, "latest": verdict.latest}
    return session.arrive(told, data | {"monotonic": verdict.monotonic, "looks": looks})


def _cause(session: Session, found: Cause) -> str:
    """Return in a line what happened in the step that made it so."""
    code = disassemble(found.code, found.addr, found.bits, 1)
    text = f"`{code[0][2]}` at " if code else ""
    events = "".join(f", event #{number} ({kind_name(event.kind)})" for number, event in found.events[:5])
    return f"  the step that made it so: {text}{session.symbol(found.addr) or f'{found.addr:#x}'}{events}"


def _plain(difference: Any) -> dict[str, Any]:
    facts = {"part": difference.part, "where": difference.where, "unit": difference.unit}
    for side in ("left", "right"):
        value = getattr(difference, side)
        facts[side] = value.hex() if isinstance(value, bytes) else value
    return facts
