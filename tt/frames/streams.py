"""TCP connections of a recording, put together from its frames as the guest's card saw them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import dpkt  # type: ignore[import-untyped]

from tt.frames.dissect import Packet

_WRAP = 0xFFFFFFFF  # numbers go round
_AHEAD = 1 << 30  # a segment further away than this belongs to another connection
_HELD_BYTES = 16 << 20  # of segments that wait for one before them


@dataclass(frozen=True)
class Piece:
    """Bytes that arrived in order: by frame `frame` at `tick`, sent by the connection's `side` (0 or 1)."""

    tick: int
    frame: int
    side: int
    data: bytes


@dataclass
class Stream:
    """One connection.  Side 0 is who began it, as far as the recording shows.

    `again` counts the bytes that came more than once; `waiting` those that came behind a gap
    which nothing has filled.
    """

    number: int
    card: int
    ends: tuple[tuple[str, int], tuple[str, int]]
    first_tick: int
    last_tick: int
    state: str = "open"
    frames: int = 0
    again: int = 0
    waiting: int = 0
    pieces: list[Piece] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Both ends."""
        (one, one_port), (two, two_port) = self.ends
        return f"{one}:{one_port} > {two}:{two_port}"

    def sizes(self) -> tuple[int, int]:
        """Return how many bytes each side sent."""
        one, two = (sum(len(piece.data) for piece in self.pieces if piece.side == side) for side in (0, 1))
        return one, two


class _Side:
    # One direction: what is expected next, and what came too early.
    def __init__(self) -> None:
        self.next: int | None = None
        self.early: dict[int, tuple[bytes, Packet]] = {}
        self.early_bytes = 0
        self.closed = False

    def joins(self) -> int | None:
        """Return where a segment begins that came too early and does not any more."""
        assert self.next is not None
        return next((at for at in self.early if (self.next - at) & _WRAP < 1 << 31), None)


class Streams:
    """The connections seen so far; `add` packets in their order."""

    def __init__(self) -> None:
        self.all: list[Stream] = []
        self._open: dict[tuple[int, frozenset[tuple[str, int]]], tuple[Stream, tuple[_Side, _Side]]] = {}

    def add(self, packet: Packet) -> Stream | None:
        """Take a packet; return the connection that it belongs to, None where it is not TCP."""
        tcp = packet.tcp
        if tcp is None or packet.source_port is None or packet.destination_port is None:
            return None
        one, two = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        key = (packet.frame.card, frozenset((one, two)))
        begins = bool(tcp.flags & dpkt.tcp.TH_SYN) and not tcp.flags & dpkt.tcp.TH_ACK
        known = self._open.get(key)
        if known is not None and begins:
            sides = known[1]
            again = sides[0].next is not None and sides[0].next == (tcp.seq + 1) & _WRAP
            if not again or known[0].state != "open":
                known = None  # the same ports once more
        if known is None:
            tick = packet.frame.tick
            ends = (two, one) if tcp.flags & dpkt.tcp.TH_SYN and tcp.flags & dpkt.tcp.TH_ACK else (one, two)
            stream = Stream(len(self.all) + 1, packet.frame.card, ends, tick, tick)
            self.all.append(stream)
            known = self._open[key] = (stream, (_Side(), _Side()))
        stream, sides = known
        stream.frames += 1
        stream.last_tick = packet.frame.tick
        side = 0 if one == stream.ends[0] else 1
        self._take(stream, sides, side, packet)
        return stream

    # ---- inside

    def _take(self, stream: Stream, sides: tuple[_Side, _Side], side: int, packet: Packet) -> None:
        tcp = packet.tcp
        assert tcp is not None
        here = sides[side]
        seq = tcp.seq
        if tcp.flags & dpkt.tcp.TH_SYN:
            seq = (seq + 1) & _WRAP
            here.next = seq
        if tcp.flags & dpkt.tcp.TH_RST:
            stream.state = "reset"
            return
        if here.next is None:
            here.next = seq  # the recording begins in the middle of it
        if packet.payload:
            self._data(stream, here, side, seq, packet.payload, packet)
            stream.waiting = sum(each.early_bytes for each in sides)
        if tcp.flags & dpkt.tcp.TH_FIN:
            here.closed = True
            if all(each.closed for each in sides):
                stream.state = "closed"

    def _data(self, stream: Stream, here: _Side, side: int, seq: int, data: bytes, packet: Packet) -> None:
        assert here.next is not None
        ahead = (seq - here.next) & _WRAP
        if ahead >= 1 << 31:  # it begins with what was seen already
            old = (1 << 32) - ahead
            stream.again += min(old, len(data))
            data = data[old:]
            ahead = 0
            if not data:
                return
        if ahead:
            if ahead > _AHEAD:
                return
            kept = here.early.get(seq)
            if kept is not None:
                stream.again += min(len(kept[0]), len(data))
            if (kept is None or len(kept[0]) < len(data)) and here.early_bytes < _HELD_BYTES:
                here.early_bytes += len(data) - (len(kept[0]) if kept else 0)
                here.early[seq] = (data, packet)
            return
        self._keep(stream, here, side, data, packet)
        while (found := here.joins()) is not None:
            early, its_packet = here.early.pop(found)
            here.early_bytes -= len(early)
            old = (here.next - found) & _WRAP
            stream.again += min(old, len(early))
            if early[old:]:
                self._keep(stream, here, side, early[old:], its_packet)

    def _keep(self, stream: Stream, here: _Side, side: int, data: bytes, packet: Packet) -> None:
        assert here.next is not None
        here.next = (here.next + len(data)) & _WRAP
        stream.pieces.append(Piece(packet.frame.tick, packet.frame.number, side, data))


def streams_of(packets: Iterable[Packet]) -> list[Stream]:
    """Return the connections in `packets`, numbered from 1 in the order in which they begin."""
    found = Streams()
    for packet in packets:
        found.add(packet)
    return found.all


def talk(stream: Stream) -> Iterator[Piece]:
    """Yield what was said, in order of its frames; what one side says without a break is one piece."""
    held: list[Piece] = []
    for piece in sorted(stream.pieces, key=lambda piece: piece.frame):
        if held and held[-1].side != piece.side:
            yield _joined(held)
            held = []
        held.append(piece)
    if held:
        yield _joined(held)


def _joined(pieces: list[Piece]) -> Piece:
    first = pieces[0]
    return Piece(first.tick, first.frame, first.side, b"".join(piece.data for piece in pieces))
