"""Console bytes, gathered into runs before they are logged."""

from __future__ import annotations

from collections.abc import Sequence

from tt.events import Event, Kind

MAX_RUN_BYTES = 64
MAX_RUN_TICKS = 200_000
_CONSOLE = Kind.CONSOLE
_NOTHING: tuple[Event, ...] = ()


class ConsoleCoalescer:
    """Turn a stream of events into one where console bytes come in runs.

    A guest prints a byte at a time; one event a byte would be most of the log.
    A run is the bytes of successive CONSOLE events of one unit, and carries the
    tick of its first byte.  It ends after a newline, at 64 bytes, before a byte
    more than 200,000 ticks younger than its first, and before any event of
    another kind or unit (so the log stays in tick order).

    Runs depend on nothing but the events, so a replay that feeds its own events
    through a coalescer gets the same runs, however the recording was cut into
    commits.  Feed it every event, in order, and log what it returns.

    It begins with the bytes `run` already gathered, the first of them printed at `tick`.
    """

    def __init__(self, tick: int = 0, unit: int = 0, run: bytes = b"") -> None:
        self._tick = tick
        self._unit = unit
        self._run = bytearray(run)

    @property
    def pending(self) -> tuple[int, int, bytes]:
        """The tick, unit and bytes of the run under way; zeros and no bytes where there is none."""
        return (self._tick, self._unit, bytes(self._run)) if self._run else (0, 0, b"")

    def add(self, event: Event) -> Sequence[Event]:
        """Take the next event; return the events that are complete, in order."""
        run, data = self._run, event.data
        if (  # by far the most events: one more byte of a run
            event.kind is _CONSOLE
            and 0 < len(run) < MAX_RUN_BYTES - 1
            and len(data) == 1
            and data != b"\n"
            and event.tick - self._tick <= MAX_RUN_TICKS
            and event.unit == self._unit
        ):
            run += data
            return _NOTHING
        if event.kind is not Kind.CONSOLE:
            if not self._run:
                return [event]
            return [*self.flush(), event]
        ready: list[Event] = []
        joins = event.unit == self._unit and event.tick - self._tick <= MAX_RUN_TICKS
        if event.data and not joins:
            ready = self.flush()
        for byte in event.data:
            if not self._run:
                self._tick, self._unit = event.tick, event.unit
            self._run.append(byte)
            if byte == 0x0A or len(self._run) >= MAX_RUN_BYTES:
                ready += self.flush()
        return ready

    def expire(self, tick: int) -> list[Event]:
        """Return the run that no byte from `tick` on can join, if there is one.

        Call it before a commit: it makes output visible sooner, and changes no run.
        """
        return self.flush() if self._run and tick - self._tick > MAX_RUN_TICKS else []

    def flush(self) -> list[Event]:
        """End the run and return it; only at the end of a recording, or the runs depend on when you call."""
        if not self._run:
            return []
        run = Event(self._tick, Kind.CONSOLE, self._unit, 0, bytes(self._run))
        self._run.clear()
        return [run]
