"""The guest's network as of here: its cards, the frames around here, TCP connections as text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tt.errors import UsageError
from tt.events import Kind
from tt.inspect import Answer
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.command import Arguments, command, shorten
from tt.shell.commands.recorded import heeded
from tt.shell.targets import count
from tt.vmm.config import MachineConfig, NetConfig

if TYPE_CHECKING:
    from tt.frames.dissect import Packet
    from tt.frames.streams import Stream
    from tt.log import Trace
    from tt.shell.session import Session

_MOST_LINES = 10_000
_MOST_BYTES = 64 << 10  # of one piece of a stream
_SAMPLE = 16  # bytes shown of what is no text
WORDS = ("frames", "streams", "follow")


@command(
    "net",
    usage="[frames|streams|follow] [N]", theme="recording", most=2, completes=("net",),
    examples=(("net", "the network cards, and what they have counted"),
              ("net frames", "ten frames around here"), ("net streams", "the TCP connections"),
              ("net follow 3", "what was said in the third")),
)  # fmt: skip
def net(session: Session, arguments: Arguments) -> Answer:
    """Look at the guest's network.

    `net streams` numbers the TCP connections of the whole recording; `net follow N` shows what both sides
    said, with a mark at the present.  `catch net` stops at frames, `tt pcap` writes them all to a file.
    """
    if not network_cards(session.trace):
        raise UsageError("this machine has no network card: `tt record --net user` gives it one")
    words = arguments.words
    if not words:
        return _cards(session)
    what = next((word for word in WORDS if word.startswith(words[0].lower())), None)
    if what == "frames":
        return _frames(session, count(words[1], _MOST_LINES) if len(words) > 1 else 10)
    if what == "streams" and len(words) == 1:
        return _streams(session)
    if what == "follow":
        if len(words) < 2:
            raise UsageError("net follow: which one?  `net streams` numbers them")
        return _follow(session, count(words[1]))
    raise UsageError(f"net {shorten(' '.join(words))}: give {', '.join(WORDS)}, or nothing")


def network_cards(trace: Trace) -> tuple[NetConfig, ...]:
    """Return the network cards of the recorded machine."""
    return MachineConfig.without_parts(trace.meta).nets


def _cards(session: Session) -> Answer:
    trace, tick = session.trace, session.tick
    cards = network_cards(trace)
    links = [True] * len(cards)
    for event in trace.events(last_tick=tick, kinds={Kind.LINK}):
        if event.unit < len(links):
            links[event.unit] = bool(event.value)
    lines, data = [], []
    for number, card in enumerate(cards):
        counted = session.machine.frame_counters(number)
        told = ", ".join(f"{value:,} {name}" for name, value in counted.items())
        link = "up" if links[number] else "down"
        lines.append(f"ethernet{number}  {card.model}  {card.mac}  link {link}  {told}".rstrip())
        data.append({"card": number, "model": card.model, "mac": card.mac, "link": link, **counted})
    return Answer({"tick": tick, "cards": data}, lines)


def _frames(session: Session, number: int) -> Answer:
    tick = session.tick
    before: deque[Packet] = deque(maxlen=number)
    after: list[Packet] = []
    for packet in _packets(session):
        if packet.frame.tick < tick:
            before.append(packet)
        else:
            after.append(packet)
            if len(after) == number:
                break
    half = min(len(before), max(number // 2, number - len(after)))
    chosen = [*islice(before, len(before) - half, None), *after[: number - half]]
    wide = max((len(format_tick(packet.frame.tick)) for packet in chosen), default=1)
    lines = [_line(packet, wide) for packet in chosen]
    lines.insert(half, f"{'---':>7}  here, at {format_tick(tick)}")
    data = [
        {"frame": p.frame.number, "tick": p.frame.tick, "in": p.frame.incoming, "summary": p.summary}
        for p in chosen
    ]
    return Answer({"tick": tick, "frames": data}, lines)


def _streams(session: Session) -> Answer:
    from tt.frames.streams import streams_of

    lines, data = [], []
    for stream in streams_of(_packets(session)):
        past, future = stream.last_tick < session.tick, stream.first_tick > session.tick
        mark = "over" if past else "to come" if future else "now"
        one, two = stream.sizes()
        again = f", {stream.again:,} sent again" if stream.again else ""
        waiting = f", {stream.waiting:,} behind a gap" if stream.waiting else ""
        lines.append(
            f"{stream.number:>3}  {mark:<7}  {stream.name}  {one:,} and {two:,} bytes{again}{waiting}, "
            f"{stream.state}, ticks {format_tick(stream.first_tick)} to {format_tick(stream.last_tick)}"
        )
        data.append(
            {"stream": stream.number, "ends": [list(end) for end in stream.ends], "bytes": [one, two],
             "state": stream.state, "first_tick": stream.first_tick, "last_tick": stream.last_tick}
        )  # fmt: skip
    if not lines:
        lines = ["no TCP connection was recorded"]
    return Answer({"tick": session.tick, "streams": data}, lines)


def _follow(session: Session, number: int) -> Answer:
    from tt.frames.streams import streams_of, talk

    streams = streams_of(_packets(session))
    if not 0 < number <= len(streams):
        raise UsageError(f"there is no connection {number}: `net streams` lists the {len(streams)} there are")
    stream: Stream = streams[number - 1]
    lines = [f"connection {number}: {stream.name}, {stream.state}"]
    data: list[dict[str, Any]] = []
    marked = False
    for piece in talk(stream):
        if not marked and piece.tick >= session.tick:
            marked = True
            lines.append(f"--- here, at {format_tick(session.tick)}")
        host, port = stream.ends[piece.side]
        lines.append(f"{host}:{port}, frame {piece.frame}, tick {format_tick(piece.tick)}:")
        arrow = "<" if piece.side else ">"
        lines += [f"  {arrow} {line}" for line in as_text(piece.data)]
        data.append({"side": piece.side, "tick": piece.tick, "frame": piece.frame, "data": piece.data.hex()})
    if stream.waiting:
        lines.append(f"{stream.waiting:,} bytes came behind a gap that nothing has filled")
    return Answer({"tick": session.tick, "stream": number, "talk": data}, lines)


def as_text(data: bytes) -> list[str]:
    """Return what one side said in lines: text as it is, and of what is no text how much it is."""
    lines = data[:_MOST_BYTES].split(b"\n")
    first = next((i for i, line in enumerate(lines) if _strange(line)), len(lines))
    rest = b"\n".join(lines[first:])
    if _strange(rest) * 20 > len(rest):  # more than now and then
        shown = [line.decode() for line in lines[:first]]
        size = len(rest) + max(0, len(data) - _MOST_BYTES)
        shown.append(f"{size:,} bytes that are no text: {rest[:_SAMPLE].hex(' ')}{' ...' * (size > _SAMPLE)}")
        return [printable(line.rstrip("\r")) for line in shown]
    shown = data[:_MOST_BYTES].decode("utf-8", "replace").splitlines()
    more = [f"... {len(data) - _MOST_BYTES:,} bytes more"] if len(data) > _MOST_BYTES else []
    return [*map(printable, shown), *more]


def _strange(data: bytes) -> int:
    """Return how many characters of `data` are in no text: control characters, and what is not UTF-8."""
    text = data.decode("utf-8", "replace")
    return sum(c == "\ufffd" or (c < " " and c not in "\t\r\n\x1b") for c in text)


def _packets(session: Session) -> Iterator[Packet]:
    from tt.frames.dissect import Dissector

    return map(Dissector(), heeded(session, session.trace.frames()))


def _line(packet: Packet, wide: int) -> str:
    frame = packet.frame
    arrow = "<" if frame.incoming else ">"
    return f"{frame.number:>7,}  {format_tick(frame.tick):>{wide}}  {arrow} {packet.summary}"
