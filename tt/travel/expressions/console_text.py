"""What the guest had printed up to a tick: exact to a line from the record, to a byte by replaying."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from tt.events import Event, Kind
from tt.log.coalesce import MAX_RUN_TICKS

if TYPE_CHECKING:
    from tt.log import Trace
    from tt.travel.timeline import Timeline


class ConsoleText:
    """All consoles of a trace as one text, in the order it was printed.

    The record keeps bytes in runs under the tick of their first byte (`tt.log.coalesce`),
    at most a line and 200,000 ticks long.  `whole(tick)` counts a run as printed as soon
    as its first byte is, up to that much too early; `ExactConsole` is exact.
    """

    def __init__(self, trace: Trace, *, printed_by_its_tick: bool) -> None:
        """Read the console out of `trace`.

        `printed_by_its_tick`: whether the text is there at the tick that its event names.  It is for a
        Denali guest, whose printing VMCALL counts in that tick; a PC's OUT is the instruction after it.
        """
        self.find = bisect_right if printed_by_its_tick else bisect_left
        self._end_tick = trace.end_tick
        self.ticks: list[int] = []
        self.ends = [0]  # ends[i]: where in `data` the run before the i-th ends
        text = bytearray()
        for tick, _unit, data in trace.console():
            text += data
            self.ticks.append(tick)
            self.ends.append(len(text))
        self.data = bytes(text)

    def begun(self, tick: int) -> int:
        """Return how many runs had begun at `tick`."""
        return len(self.ticks) if tick >= self._end_tick else self.find(self.ticks, tick)

    def whole(self, tick: int) -> int:
        """Return how many bytes of `data` were there at `tick`, whole runs."""
        return self.ends[self.begun(tick)]


def recorded_console(timeline: Timeline) -> ConsoleText:
    """Return what a timeline's guest prints, by the record."""
    return ConsoleText(timeline.trace, printed_by_its_tick=timeline.machine.kind == "denali")


class ExactConsole:
    """What was printed where a timeline stands, to the byte.

    Inside a run it replays the run once to learn when each byte was printed, and
    comes back: so it must not be asked from inside a search that has stops set.
    """

    def __init__(self, console: ConsoleText) -> None:
        self._console = console
        self._byte_ticks: dict[int, list[int]] = {}  # of a run, by its first tick

    def __call__(self, timeline: Timeline) -> tuple[bytes, int]:
        """Return the whole text, and how many bytes of it there are where `timeline` stands."""
        console, tick = self._console, timeline.tick
        runs = console.begun(tick)
        if not runs or tick >= timeline.end_tick or tick - console.ticks[runs - 1] > MAX_RUN_TICKS:
            return console.data, console.ends[runs]
        begin = console.ticks[runs - 1]
        first = bisect_left(console.ticks, begin)  # long texts printed at once are several runs of one tick
        size = console.ends[runs] - console.ends[first]
        if begin not in self._byte_ticks:
            self._byte_ticks[begin] = _printed_from(timeline, begin, size)
        return console.data, console.ends[first] + min(size, console.find(self._byte_ticks[begin], tick))


def _printed_from(timeline: Timeline, begin: int, size: int) -> list[int]:
    """Return the ticks of the first `size` bytes printed at or after tick `begin`."""
    here = timeline.tick
    ticks: list[int] = []

    def see(event: Event) -> None:
        if event.kind is Kind.CONSOLE and event.tick >= begin:
            ticks.extend([event.tick] * len(event.data))

    door = timeline.machine.door
    timeline.seek(max(begin - 1, 0))
    door.subscribe(see)
    try:
        timeline.seek(min(begin + MAX_RUN_TICKS + 1, timeline.end_tick))
    finally:
        door.unsubscribe(see)
    timeline.seek(here)
    return ticks[:size]
