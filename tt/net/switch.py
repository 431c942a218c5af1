"""A learning switch, and the cables to its ports.

After IEEE 802.1D-2004, 7.8 (learning) and 7.9 (ageing): from each frame it learns at which port the
sender is, and gives a frame to the port of its receiver only, where it knows that port.  Groups,
broadcasts and unknown receivers go to all other ports.  What a bridge keeps to itself is not passed
on (7.12.6: 01:80:C2:00:00:00 to 0F).  Time is guest time, so what the switch does follows from the frames.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

from tt.net.link import Conditions, Link
from tt.vmm.messages import LONGEST_FRAME, SHORTEST_FRAME

AGEING_NS = 300_000_000_000
"""An address that sent nothing for this long is forgotten (802.1D, table 7-5)."""
MOST_ADDRESSES = 4096
"""Addresses that are remembered; beyond, the one that was silent for longest is forgotten."""
_ON_THE_WAY = 64 << 20  # bytes of the frames in the cables to the switch, at a time
_FRAME_BYTES = 200  # what a frame needs besides its bytes
_RESERVED = bytes.fromhex("0180c20000")


class Table:
    """Which address is at which port."""

    def __init__(self, most: int = MOST_ADDRESSES, ageing_ns: int = AGEING_NS) -> None:
        self._most, self._ageing_ns = most, ageing_ns
        self._ports: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # address: (port, last seen)

    def __len__(self) -> int:
        return len(self._ports)

    def learn(self, address: bytes, port: int, now_ns: int) -> None:
        """Take note that a frame from `address` came in at `port`; a group address is nobody's."""
        if address[0] & 1:
            return
        self._ports[address] = (port, now_ns)
        self._ports.move_to_end(address)
        if len(self._ports) > self._most:
            self._ports.popitem(last=False)

    def find(self, address: bytes, now_ns: int) -> int | None:
        """Return the port of `address`, or None where it is not known."""
        found = self._ports.get(address)
        if found is None:
            return None
        port, seen_ns = found
        if now_ns - seen_ns >= self._ageing_ns:
            del self._ports[address]
            return None
        return port


class Switch:
    """A switch with a cable to each of its ports, `cables` the conditions of each.

    A frame is put in with `send`, and `advance` gives those that come out.  Both cables of its way have
    their conditions: a frame takes the latency of either.
    """

    def __init__(self, cables: Sequence[Conditions], table: Table | None = None) -> None:
        self.table = Table() if table is None else table
        self.flooded = 0
        """Frames that went to all ports, the receiver's not being known or being a group."""
        self.lost = 0
        """Frames for which there was no room, or that are none."""
        self._up = [Link(conditions, 2 * port) for port, conditions in enumerate(cables)]
        self._down = [Link(conditions, 2 * port + 1) for port, conditions in enumerate(cables)]
        # On the way to the switch: (ns at the switch, port, order, frame).  Two ports' frames of one
        # instant are taken in the order of the ports, one port's in the order in which they were sent.
        self._coming: list[tuple[int, int, int, bytes]] = []
        self._bytes = 0
        self._order = 0

    @property
    def ports(self) -> int:
        """How many ports there are."""
        return len(self._up)

    @property
    def latency_ns(self) -> int:
        """The latency of the shortest cable."""
        return min((link.conditions.latency_ns for link in self._up), default=0)

    @property
    def lost_in_cables(self) -> int:
        """Frames that a bad cable lost, or whose queue was full."""
        return sum(link.lost for link in (*self._up, *self._down))

    def send(self, port: int, frame: bytes, now_ns: int) -> None:
        """Put a frame into the cable at `port`."""
        if not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME or self._bytes >= _ON_THE_WAY:
            self.lost += 1
            return
        for at_ns, what in self._up[port].carry(now_ns, frame):
            self._order += 1
            self._bytes += len(what) + _FRAME_BYTES
            heapq.heappush(self._coming, (at_ns, port, self._order, what))

    def next_ns(self) -> int | None:
        """Return when the next frame reaches the switch, or None: none is on its way."""
        return self._coming[0][0] if self._coming else None

    def advance(self, until_ns: int) -> list[tuple[int, int, bytes]]:
        """Serve all frames that reach the switch before `until_ns`: (port, ns at its far end, frame) each.

        Nothing may be put in later that would reach it before.
        """
        out: list[tuple[int, int, bytes]] = []
        while self._coming and self._coming[0][0] < until_ns:
            at_ns, port, _order, frame = heapq.heappop(self._coming)
            self._bytes -= len(frame) + _FRAME_BYTES
            for other in self._ways(port, frame, at_ns):
                out += ((other, ns, what) for ns, what in self._down[other].carry(at_ns, frame))
        return out

    def _ways(self, port: int, frame: bytes, now_ns: int) -> Sequence[int]:
        receiver, sender = frame[:6], frame[6:12]
        self.table.learn(sender, port, now_ns)
        if receiver[:5] == _RESERVED and receiver[5] < 16:
            return ()
        found = None if receiver[0] & 1 else self.table.find(receiver, now_ns)
        if found is not None:
            return () if found == port else (found,)
        self.flooded += 1
        return [other for other in range(self.ports) if other != port]
