"""The network of one machine among several: what it sends is fetched, what comes is brought with its time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from tt.events import Event, Kind

_WAITING = 4096  # frames that may wait for one card
_SENT_BYTES = 64 << 20  # of what is sent in a window
_FRAME_BYTES = 200  # what a frame needs besides its bytes


class Ports:
    """The cables of a machine that runs in windows of guest time; see `tt.vmm.live.Network`.

    The machine's owner takes what was sent with `fetch`, and brings what arrives with `bring`
    before the machine gets to that time.  Frames for which a card has no room wait for the next
    window (`open`): when else the machine looks for them depends on its host.
    """

    def __init__(self, cards: int) -> None:
        self.room: Callable[[int], int | None] = lambda card: None
        self.sent = [0] * cards
        self.received = [0] * cards
        self.dropped = [0] * cards
        self.lost = [0] * cards
        self._out_bytes = 0
        self._out: list[tuple[int, int, bytes]] = []
        self._coming: list[list[tuple[int, int, bytes]]] = [[] for _ in range(cards)]
        self._order = 0
        self._full = [False] * cards  # till the next window
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._waiting = [0] * cards  # of those that have arrived, and were not taken yet

    # ---- for the owner

    def fetch(self) -> list[tuple[int, int, bytes]]:
        """Return, and forget, what the machine sent: (guest ns, card, frame) in order."""
        out, self._out, self._out_bytes = self._out, [], 0
        return out

    def bring(self, card: int, at_ns: int, frame: bytes) -> None:
        """Have a frame arrive at guest time `at_ns`; where too many wait, it is dropped."""
        coming = self._coming[card]
        if len(coming) >= _WAITING:
            self.dropped[card] += 1
            return
        self._order += 1
        heapq.heappush(coming, (at_ns, self._order, frame))

    def open(self) -> None:
        """Begin a window: frames that found no room may be tried again."""
        self._full = [False] * len(self._full)

    # ---- `Network`

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        """Take a frame that the guest sent at guest time `now_ns`."""
        self.sent[card] += 1
        if self._out_bytes >= _SENT_BYTES:
            self.lost[card] += 1
            return
        self._out_bytes += len(frame) + _FRAME_BYTES
        self._out.append((now_ns, card, frame))

    def poll(self, now_ns: int) -> bool:
        """Move what is due at guest time `now_ns`; return whether something is there for the guest."""
        for card, coming in enumerate(self._coming):
            while coming and coming[0][0] <= now_ns and not self._full[card]:
                room = self.room(card)
                if room is None:
                    heapq.heappop(coming)
                    self.dropped[card] += 1
                elif room <= self._waiting[card]:
                    self._full[card] = True
                else:
                    self._arrived.append((card, heapq.heappop(coming)[2]))
                    self._waiting[card] += 1
                    self.received[card] += 1
        return bool(self._arrived)

    def take(self, tick: int) -> list[Event]:
        """Return, and forget, what `poll` found, as inputs at `tick`."""
        arrived = [Event(tick, Kind.FRAME_IN, card, 0, frame) for card, frame in self._arrived]
        self._arrived.clear()
        self._waiting = [0] * len(self._waiting)
        return arrived

    def due_ns(self, now_ns: int) -> int | None:
        """Return the guest time after `now_ns` at which a frame is due next, or None."""
        found = []
        for coming in self._coming:
            if coming and coming[0][0] > now_ns:
                found.append(coming[0][0])
            elif coming:  # the first waits for room; which of the others is next is seldom asked
                found += [min(later)] if (later := [at for at, *_ in coming if at > now_ns]) else []
        return min(found, default=None)

    @property
    def blocked(self) -> bool:
        """Whether a frame waits for room, which the next window may have."""
        return any(self._full)

    def descriptors(self) -> list[int]:
        """Return nothing: the owner brings what comes."""
        return []

    def counters(self) -> list[dict[str, int]]:
        """Return what became of each card's frames."""
        return [
            {"received": received, "sent": sent, "dropped": dropped, "lost": lost}
            for received, sent, dropped, lost in zip(
                self.received, self.sent, self.dropped, self.lost, strict=True
            )
        ]

    def close(self) -> None:
        """Do nothing."""
