"""What stands at the far end of a cable."""

from __future__ import annotations

from typing import Protocol


class End(Protocol):
    """The far end of a cable.

    Nothing here blocks, and nothing raises once the end is open: a peer that is dead or slow loses
    frames, as it would on a cable.  `now_ns` is guest time.
    """

    name: str
    """What it is, for messages: "passt"."""
    lost: int
    """Frames of the guest that nobody took."""

    @property
    def up(self) -> bool:
        """Whether somebody is there."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that is readable when `receive` has something to do, or -1."""
        ...

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Take a frame from the guest."""
        ...

    def receive(self, most: int, now_ns: int = 0) -> list[bytes]:
        """Return at most `most` of the frames that have come for the guest, the oldest first."""
        ...

    def due_ns(self) -> int | None:
        """Return the guest time at which a frame comes next, None where only its peer knows."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Nothing:
    """A cable that is not plugged in."""

    name = "nothing"
    up = False

    def __init__(self) -> None:
        self.lost = 0

    def fileno(self) -> int:
        """Return -1: there is nothing to wait for."""
        return -1

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Lose a frame."""
        self.lost += 1

    def receive(self, most: int, now_ns: int = 0) -> list[bytes]:
        """Return nothing."""
        return []

    def due_ns(self) -> int | None:
        """Return None: nothing will come."""
        return None

    def close(self) -> None:
        """Do nothing."""


class Silence(Nothing):
    """A cable that is plugged in, with nobody at its other end."""

    name = "silence"
    up = True
