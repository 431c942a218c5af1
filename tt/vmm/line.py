"""An interrupt line: what a device raises, whoever listens at the other end."""

from __future__ import annotations

from collections.abc import Callable


class Line:
    """One level-carrying wire with a listener.

    The listener is told of every change of level, and only of changes; edge
    detection belongs to the listener.
    """

    __slots__ = ("level", "_listener")

    def __init__(self, listener: Callable[[bool], None]) -> None:
        self.level = False
        self._listener = listener

    def set(self, level: bool) -> None:
        """Drive the line to `level`."""
        if level != self.level:
            self.level = level
            self._listener(level)

    def pulse(self) -> None:
        """Drive the line high and low again: one rising edge."""
        self.set(True)
        self.set(False)
