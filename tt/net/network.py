"""The network of one live machine: a cable for each of its cards, and what is on its way in them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tt.events import Event, Kind
from tt.net.capture import Player
from tt.net.ends import End
from tt.net.link import Conditions, Link

_ON_THE_WAY = 4096  # frames in a cable with latency, each way
_HELD_BYTES = 64 << 20  # the same of both ways together, in bytes
_A_LOOK = 256  # most frames taken from an end at once


@dataclass
class Cable:
    """What card `unit` is connected to, and what a bad cable holds back."""

    end: End
    conditions: Conditions = field(default_factory=Conditions)
    received: int = 0
    """Frames that reached the guest's card."""
    sent: int = 0
    """Frames that the guest sent."""
    dropped: int = 0
    """Frames that came while nobody listened in the guest, or too many at once."""
    plugged: bool = True
    """False: somebody pulled it out."""
    overflowed: int = 0
    """Frames for which a bad cable had no room."""
    held_bytes: int = 0
    """Bytes of the frames on their way in it."""

    def __post_init__(self) -> None:
        self.perfect = self.conditions.perfect
        self.inwards, self.outwards = Link(self.conditions, 0), Link(self.conditions, 1)
        self.coming: list[tuple[int, int, bytes]] = []  # heaps of (guest ns, order, frame)
        self.going: list[tuple[int, int, bytes]] = []
        self.up: bool | None = None  # what the guest was told; at power-on a cable is plugged in

    @property
    def lost(self) -> int:
        """Frames of either direction that the cable lost, and those of the guest that nobody took."""
        return self.end.lost + self.inwards.lost + self.outwards.lost + self.overflowed


class Network:
    """The cables of a live machine, by card.

    `room(card)` says how many frames the card has room for, None where nobody listens: a guest that
    is slow finds frames waiting, as with any host's network, and one that does not listen loses them.
    """

    def __init__(
        self, cables: Sequence[Cable], room: Callable[[int], int | None] = lambda card: None
    ) -> None:
        self.cables = list(cables)
        self.room = room
        self._order = 0
        self._arrived: deque[tuple[Kind, int, int, bytes]] = deque()

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        """Take a frame that the guest sent at guest time `now_ns`."""
        cable = self.cables[card]
        cable.sent += 1
        if not cable.plugged:
            cable.outwards.lost += 1
        elif cable.perfect:
            cable.end.send(frame, now_ns)
        else:
            for at, what in cable.outwards.carry(now_ns, frame):
                self._put(cable, cable.going, at, what)

    def poll(self, now_ns: int) -> bool:
        """Move what is due at guest time `now_ns`; return whether something is there for the guest."""
        waiting = bool(self._arrived)
        for card, cable in enumerate(self.cables):
            while cable.going and cable.going[0][0] <= now_ns:
                at, _order, frame = heapq.heappop(cable.going)
                cable.held_bytes -= len(frame)
                cable.end.send(frame, at)
            if not waiting:
                self._look(card, cable, now_ns)
        return bool(self._arrived)

    def take(self, tick: int) -> list[Event]:
        """Return, and forget, what `poll` found, as inputs at `tick`."""
        arrived = [Event(tick, kind, unit, value, data) for kind, unit, value, data in self._arrived]
        self._arrived.clear()
        return arrived

    def due_ns(self, now_ns: int) -> int | None:
        """Return the guest time after `now_ns` at which something in a cable is due next, or None."""
        heads = [heap[0][0] for cable in self.cables for heap in (cable.coming, cable.going) if heap]
        heads += [at for cable in self.cables if (at := cable.end.due_ns()) is not None]
        return min((at for at in heads if at > now_ns), default=None)

    def descriptors(self) -> list[int]:
        """Return the descriptors that become readable when something comes from outside.

        Not those of cards that have no room: what waits there would end each sleep at once.
        """
        found = []
        for card, cable in enumerate(self.cables):
            reads = self.room(card) != 0 if cable.perfect else len(cable.coming) < _ON_THE_WAY
            if reads and (descriptor := cable.end.fileno()) >= 0:
                found.append(descriptor)
        return found

    def plug(self, card: int, plugged: bool) -> None:
        """Plug the cable of a card in, or pull it out; the guest sees it at the next look."""
        self.cables[card].plugged = plugged

    def counters(self) -> list[dict[str, int]]:
        """Return what became of each card's frames, by name."""
        return [
            {"received": c.received, "sent": c.sent, "dropped": c.dropped, "lost": c.lost}
            for c in self.cables
        ]

    def told(self) -> list[str]:
        """Return in a line for each card how many frames came and went, and how many were lost."""
        lines = []
        for card, cable in enumerate(self.cables):
            line = f"network card {card} ({cable.end.name}): {cable.received:,} frames in, {cable.sent:,} out"
            losses = (
                (cable.dropped, "came while nobody listened"),
                (cable.end.lost, "were not taken"),
                (cable.lost - cable.end.lost, "were lost on the cable"),
            )
            lines.append("; ".join([line, *(f"{number:,} {what}" for number, what in losses if number)]))
        return lines

    def close(self) -> None:
        """Close all ends."""
        for cable in self.cables:
            cable.end.close()

    # ---- inside

    def _look(self, card: int, cable: Cable, now_ns: int) -> None:
        room = self.room(card)
        end = cable.end
        if room is None and isinstance(end, Player) and not end.started:
            return  # a capture begins when somebody listens
        most = _A_LOOK if room is None else min(room, _A_LOOK)
        if cable.perfect:
            frames = end.receive(most, now_ns)
        else:
            if len(cable.coming) < _ON_THE_WAY:
                for frame in end.receive(_A_LOOK, now_ns):
                    for at, what in cable.inwards.carry(now_ns, frame):
                        self._put(cable, cable.coming, at, what)
            frames = []
            while cable.coming and cable.coming[0][0] <= now_ns and len(frames) < most:
                frames.append(heapq.heappop(cable.coming)[2])
                cable.held_bytes -= len(frames[-1])
        up, was = cable.plugged and end.up, cable.up is not False
        cable.up = up
        if up and not was:  # before what comes by it; where it goes down, what came before is first
            self._arrived.append((Kind.LINK, card, 1, b""))
        if not cable.plugged:
            cable.inwards.lost += len(frames)
        elif room is None and was:
            cable.dropped += len(frames)
        else:  # a card that had no link says that it has no room
            cable.received += len(frames)
            self._arrived += ((Kind.FRAME_IN, card, 0, frame) for frame in frames)
        if was and not up:
            self._arrived.append((Kind.LINK, card, 0, b""))

    def _put(self, cable: Cable, heap: list[tuple[int, int, bytes]], at: int, frame: bytes) -> None:
        if len(heap) < _ON_THE_WAY and cable.held_bytes < _HELD_BYTES:
            self._order += 1
            cable.held_bytes += len(frame)
            heapq.heappush(heap, (at, self._order, frame))
        else:
            cable.overflowed += 1
