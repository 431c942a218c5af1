"""A cable as bad as one likes: latency, bandwidth, and mishaps that follow from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

_QUEUE_NS = 200_000_000
"""A cable with a bandwidth takes no frame that would have to wait for longer than this."""


@dataclass(frozen=True)
class Conditions:
    """What a cable does to frames, in each direction.

    `latency_ns` and `bits_per_s` (0: any number) are of guest time; `loss`, `duplicate`, `reorder`
    and `corrupt` are probabilities from 0 to 1 that a frame is lost, comes twice, comes after
    later ones, or has a bit flipped.  All of it follows from `seed` and from the frames.
    """

    latency_ns: int = 0
    bits_per_s: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    seed: int = 0

    @property
    def perfect(self) -> bool:
        """Whether frames come out as they went in, at once."""
        return self == Conditions(seed=self.seed)


class Link:
    """One direction of a cable; `direction` tells the two apart, so that each has mishaps of its own."""

    def __init__(self, conditions: Conditions, direction: int = 0) -> None:
        self.conditions = conditions
        self.lost = 0
        """Frames that never came out."""
        self._random = random.Random(f"{conditions.seed}/{direction}")
        self._free_ns = 0  # when the last frame has left

    def carry(self, now_ns: int, frame: bytes) -> list[tuple[int, bytes]]:
        """Return what comes out at the other end of a frame that goes in now: (guest ns, frame) each."""
        c, chance = self.conditions, self._random.random
        # Always as many numbers a frame: what happens to one does not depend on what happened to others.
        lost, twice, late, spoilt = (chance() for _ in range(4))
        at = now_ns
        if c.bits_per_s:
            begin = max(now_ns, self._free_ns)
            if begin - now_ns > _QUEUE_NS:
                self.lost += 1
                return []
            self._free_ns = at = begin + len(frame) * 8 * 1_000_000_000 // c.bits_per_s
        if lost < c.loss:
            self.lost += 1
            return []
        if spoilt < c.corrupt and frame:
            bit = int(spoilt / c.corrupt * len(frame) * 8)
            changed = bytearray(frame)
            changed[bit >> 3] ^= 1 << (bit & 7)
            frame = bytes(changed)
        at += c.latency_ns
        if late < c.reorder:  # it is overtaken by those that go in while it is held back
            at += max(c.latency_ns, 1_000_000)
        return [(at, frame)] * (2 if twice < c.duplicate else 1)
