"""The network of one live machine: a cable for each of its cards, and what is on its way in them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tt.events import Event, Kind
from tt.net.ends import End
from tt.net.link import Conditions, Link

_ON_THE_WAY = 4096  # frames in a cable with latency, each way
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

    def __post_init__(self) -> None:
        self.inwards, self.outwards = Link(self.conditions, 0), Link(self.conditions, 1)
        self.coming: list[tuple[int, int, bytes]] = []  # heaps of (guest ns, order, frame)
        self.going: list[tuple[int, int, bytes]] = []
        self.up: bool | None = None  # what the guest was told; at power-on a cable is plugged in


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
        if cable.conditions.perfect:
            cable.end.send(frame)
            return
        for at, what in cable.outwards.carry(now_ns, frame):
            self._put(cable.going, at, what)

    def poll(self, now_ns: int) -> bool:
        """Move what is due at guest time `now_ns`; return whether something is there for the guest."""
        waiting = bool(self._arrived)
        for card, cable in enumerate(self.cables):
            while cable.going and cable.going[0][0] <= now_ns:
                cable.end.send(heapq.heappop(cable.going)[2])
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
        heads = (heap[0][0] for cable in self.cables for heap in (cable.coming, cable.going) if heap)
        return min((at for at in heads if at > now_ns), default=None)

    def descriptors(self) -> list[int]:
        """Return the descriptors that become readable when something comes from outside."""
        found = (cable.end.fileno() for cable in self.cables)
        return [descriptor for descriptor in found if descriptor >= 0]

    def told(self) -> list[str]:
        """Return in a line for each card how many frames came and went, and how many were lost."""
        lines = []
        for card, cable in enumerate(self.cables):
            line = f"network card {card} ({cable.end.name}): {cable.received:,} frames in, {cable.sent:,} out"
            losses = (
                (cable.dropped, "came while nobody listened"),
                (cable.end.lost, "were not taken"),
                (cable.inwards.lost + cable.outwards.lost, "were lost on the cable"),
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
        most = _A_LOOK if room is None else min(room, _A_LOOK)
        if cable.conditions.perfect:
            frames = cable.end.receive(most)
        else:
            if len(cable.coming) < _ON_THE_WAY:
                for frame in cable.end.receive(_A_LOOK):
                    for at, what in cable.inwards.carry(now_ns, frame):
                        self._put(cable.coming, at, what)
            frames = []
            while cable.coming and cable.coming[0][0] <= now_ns and len(frames) < most:
                frames.append(heapq.heappop(cable.coming)[2])
        up = cable.end.up
        if up != (cable.up is not False):
            self._arrived.append((Kind.LINK, card, int(up), b""))
        cable.up = up
        if room is None:
            cable.dropped += len(frames)
            return
        cable.received += len(frames)
        for frame in frames:
            self._arrived.append((Kind.FRAME_IN, card, 0, frame))

    def _put(self, heap: list[tuple[int, int, bytes]], at: int, frame: bytes) -> None:
        if len(heap) < _ON_THE_WAY:
            self._order += 1
            heapq.heappush(heap, (at, self._order, frame))
