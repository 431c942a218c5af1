"""Who wrote this, and where did they have it from?"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.inspect import Answer
from tt.position import format_tick
from tt.shell.command import Arguments, command, shorten
from tt.shell.commands.network import network_cards
from tt.shell.targets import count, memory_range
from tt.vmm.linear import linear_pc

if TYPE_CHECKING:
    from tt.log import Frame
    from tt.shell.session import Session
    from tt.travel.sources import Origin
    from tt.travel.writes import Write

_WAITED_TICKS = 50_000_000  # how long a frame may have waited for its batch: 0.2 s of a guest at 250 MHz
_MOST_WAITING = 512


@command(
    "last-write", "lw", "who-wrote",
    usage="ADDR [SIZE]", theme="moving", least=1, most=None, form=True, completes=("expression",),
    examples=(("last-write jiffies", "who wrote its 8 bytes last, and when"),
              ("last-write u32[$rsp+8]", "4 bytes"), ("last-write/p 0x1000 16", "at a physical address"),
              ("origin", "then: where the value came from")),
)  # fmt: skip
def last_write_(session: Session, arguments: Arguments) -> Answer:
    """Go back to the last write to memory, and tell what wrote it.

    This ends right after it.  Asked again it goes to the write before that; `origin` goes to where the
    value came from; `goto -` comes back.
    """
    _past_only(session)
    if arguments.form not in ("", "p"):
        raise UsageError(f"/{shorten(arguments.form, False)}: only /p is known here, for a physical address")
    addr, size, physical, _ = memory_range(session, arguments.text)
    physical = physical or arguments.form == "p"
    timeline, before = session.timeline, session.tick
    write = timeline.last_write(addr, size, physical=physical)
    if write is None:
        timeline.seek(before)
        what = f"nothing wrote to {size} bytes at {'physical ' if physical else ''}{addr:#x} before here"
        return Answer({"tick": None, "addr": addr}, [what], good=False)
    return _written(session, write, before)


@command(
    "origin", "from",
    usage="[N|$REGISTER]", theme="moving", most=1, completes=("register",),
    examples=(("origin", "who made what the last `last-write` or `origin` told of"),
              ("origin 2", "its second input"), ("origin $rdi", "who set a register")),
)  # fmt: skip
def origin(session: Session, arguments: Arguments) -> Answer:
    """Go back to where a value came from.

    After `last-write`: to the instruction that made what was written; asked again, to the one that
    made its input, and so on.
    """
    from tt.travel.code import whole
    from tt.travel.sources import Input, Origin
    from tt.travel.writes import Write

    _past_only(session)
    timeline, before = session.timeline, session.tick
    words = arguments.words
    source, which = session.source, 0
    if words and not words[0].isdigit():
        name = whole(words[0].removeprefix("$").lower())
        values = timeline.registers()
        if name not in values:
            raise UsageError(f"{shorten(words[0])} is no register that can be followed: give $rax, $rip ...")
        source = Origin(
            session.tick,
            linear_pc(timeline.machine.engine),
            "",
            "copied",
            (Input("register", values[name], name),),
        )
    elif words:
        which = count(words[0]) - 1
    if source is None:
        raise UsageError("origin of what?  `last-write ADDR` or `origin $REGISTER` comes first")
    if which >= len(source.inputs):
        raise UsageError(f"there is no input {which + 1}: that value came from {len(source.inputs)}")
    found = timeline.origin_of(source, which)
    if isinstance(found, Write):
        return _written(session, found, before)
    if found is None:
        what = f"{source.inputs[which]} came from nowhere before"
        if source.inputs[which].kind == "immediate":
            what = f"{source.inputs[which]} stands in the instruction itself"
        timeline.seek(before)
        return Answer({"tick": None}, [what], good=False)
    session.source = found
    told = _source(session, found)
    return session.arrive([told], {"source": _plain(found)})


# ---- how


def _past_only(session: Session) -> None:
    if session.live is not None:
        raise UsageError("a live branch only goes forward: `close` seals it, then ask this of its recording")


def _written(session: Session, write: Write, before: int) -> Answer:
    """Return the answer that tells of a write, standing right after it."""
    timeline = session.timeline
    if timeline.tick != write.tick:
        timeline.seek(write.tick)
    named = session.symbol(write.rip)
    writer = named or f"{write.rip:#x}"
    if write.by != "instruction":
        writer = f"{'the ' if write.by == 'interrupt' else 'a '}{write.by} ({writer} was executing)"
    back = format_tick(before - write.tick)
    lines = [f"written by {writer} at tick {format_tick(write.tick)}, {back} ticks back"]
    lines.append(f"  old {in_words(write.old)}   new {in_words(write.new)}")
    brought = _frame(session, write) if write.by == "device" else None
    if brought is not None:
        frame, at = brought
        lines.append(f"  it came by frame {frame.number}, as its byte {at}: {_summary(frame)}")
    session.source = timeline.source_of(write)
    if write.by == "instruction":
        lines.append(_source(session, session.source))
    data: dict[str, Any] = {"addr": write.addr, "size": write.size, "physical": write.physical}
    data |= {"writer": write.rip, "writer_symbol": named or None, "by": write.by}
    data |= {"frame": None if brought is None else brought[0].number}
    data |= {"old": write.old.hex(), "new": write.new.hex(), "source": _plain(session.source)}
    return session.arrive(lines, data)


def _frame(session: Session, write: Write) -> tuple[Frame, int] | None:
    """Return the frame that brought what a device wrote, and the value's place in it, None where none did.

    It arrived at that very tick, but on a Denali machine, where frames wait for the next batch.
    """
    if not network_cards(session.trace):
        return None
    from tt.frames.brought import AROUND, brought

    waited = 0 if session.machine.kind == "pc" else _WAITED_TICKS
    came = session.trace.frames(max(0, write.tick - 1 - waited), write.tick)
    engine = session.machine.engine
    addr = write.addr if write.physical else engine.translate(write.addr)
    if addr is None:
        return None
    end = addr + len(write.new)
    left = engine.read(max(0, addr - AROUND), min(addr, AROUND))
    right = engine.read(end, min(AROUND, engine.size - end))
    return brought(deque((f for f in came if f.incoming), _MOST_WAITING), write.new, left, right)


def _summary(frame: Frame) -> str:
    from tt.frames.dissect import Dissector

    return Dissector(counting=False)(frame).summary


def _source(session: Session, source: Origin) -> str:
    """Return in a line where a value came from."""
    told = []
    for at, each in enumerate(source.inputs, 1):
        named = session.symbol(each.addr) if each.kind == "memory" else ""
        number = f"({at}) " if len(source.inputs) > 1 else ""
        told.append(f"{number}{f'{named}: ' if named else ''}{each}")
    return f"  {source.how} from {' and '.join(told) or 'nothing'} by `{source.text}`"


def _plain(source: Origin) -> dict[str, Any]:
    names = ("kind", "value", "register", "addr", "size")
    inputs = [{name: getattr(each, name) for name in names} for each in source.inputs]
    return {"tick": source.tick, "rip": source.rip, "text": source.text, "how": source.how, "inputs": inputs}


def in_words(data: bytes | None) -> str:
    """Return bytes as a number where they are 1, 2, 4 or 8, else in hexadecimal."""
    if data is None:
        return "(not mapped)"
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#x}"
    return data[:32].hex(" ") + (" ..." if len(data) > 32 else "")
