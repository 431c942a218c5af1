"""Places to stop at: breakpoints, watchpoints, catchpoints, and what arriving at one looks like.

Plain data: nothing in here runs a machine, so a shell or a gdb server may keep,
list and change stops while nothing is open.  `tt.travel.search` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.frames.filters import Filter
    from tt.travel.timeline import Timeline

Condition = Callable[["Timeline"], bool]
"""Called at each stop, with the timeline there; must not move the timeline."""

MAX_BREAKPOINTS, MAX_WATCHPOINTS = 250, 60  # enabled at a time: the engine's limits, less what stepping needs
ADDRESSES = 1 << 64
_EVENT_KINDS = ("interrupt", "device", "disk-write", "console", "net", "power")
_ENGINE_KINDS = ("syscall", "exception")
CATCHABLE = (*_EVENT_KINDS, *_ENGINE_KINDS)


@dataclass(eq=False, kw_only=True)
class StopPoint:
    """What all stops have.

    `number` is given by `Stops.add`.  `hits` counts the arrivals whose condition
    held, in both directions, the ignored ones too; `ignore` is how many of them
    to pass over.  A `temporary` one is removed when it stops.  `text` is what the user
    typed, for lists.
    """

    number: int = 0
    enabled: bool = True
    temporary: bool = False
    hits: int = 0
    ignore: int = 0
    condition: Condition | None = None
    condition_text: str = ""
    text: str = ""

    reason: ClassVar[str] = "break"
    word: ClassVar[str] = "stop"

    @property
    def name(self) -> str:
        """What to call it in a sentence: `breakpoint 3`."""
        return f"{self.word} {self.number}" if self.number > 0 else self.word

    def describe(self) -> str:
        """Return one line that says what it stops at, without its number."""
        return self.text

    def holds(self, timeline: Timeline) -> bool:
        """Whether the condition holds, standing at the stop."""
        return self.condition is None or bool(self.condition(timeline))


@dataclass(eq=False)
class Breakpoint(StopPoint):
    """Stop before the instruction at linear address `addr` is executed, in any address space."""

    addr: int

    word: ClassVar[str] = "breakpoint"

    def __post_init__(self) -> None:
        _check_address(self.addr, 1)

    def describe(self) -> str:
        """Return one line that says what it stops at."""
        return self.text or f"{self.addr:#x}"


@dataclass(eq=False)
class Watchpoint(StopPoint):
    """Stop after an access to any of `size` bytes at `addr`.

    `addr` is linear, in any address space, or with `physical` a guest-physical
    address, to which stores by devices count too.
    """

    addr: int
    size: int = 8
    reads: bool = False
    writes: bool = True
    physical: bool = False

    reason: ClassVar[str] = "watch"
    word: ClassVar[str] = "watchpoint"

    def __post_init__(self) -> None:
        _check_address(self.addr, self.size)
        if not (self.reads or self.writes):
            raise UsageError("a watchpoint that watches neither reads nor writes never stops: give one")

    def describe(self) -> str:
        """Return one line that says what it stops at."""
        kinds = "accesses" if self.reads and self.writes else "reads" if self.reads else "writes"
        where = self.text or f"{self.addr:#x}"
        return f"{kinds} of {self.size} bytes at {'physical ' if self.physical else ''}{where}"


@dataclass(eq=False)
class Catchpoint(StopPoint):
    """Stop before an event happens.

    `what` is one of `CATCHABLE`; the others narrow it down, None means any:

    interrupt   `number_wanted`: its vector (of a Denali guest: the bit of the event); or `line`: the
                input of the interrupt controller, 0 to 15, as the guest has set it up at the current tick
    device      `device`: timer, disk, console, input, entropy, clock or ethernet, with a unit or
                without (`disk0`)
    disk-write  `disk`, and any of the blocks (sectors of 512 bytes) `lba` to `last_lba`
    console     `pattern`: a regular expression, searched in what the guest prints (`unit` or any);
                the event is the piece of output that completes the match
    net         `frames`: which Ethernet frames, sent or got
    syscall     `number_wanted`: what is in EAX at SYSCALL, SYSENTER or INT 0x80
    exception   `number_wanted`: its vector
    power       the machine stops by itself
    """

    what: str
    number_wanted: int | None = None
    line: int | None = None
    device: str | None = None
    disk: int | None = None
    lba: int | None = None
    last_lba: int | None = None
    pattern: str | None = None
    unit: int | None = None
    frames: Filter | None = None

    reason: ClassVar[str] = "catch"
    word: ClassVar[str] = "catchpoint"

    def __post_init__(self) -> None:
        if self.what not in CATCHABLE:
            raise UsageError(f"{self.what!r} cannot be caught: give {', '.join(CATCHABLE)}")
        if self.what == "console" and self.pattern is None:
            raise UsageError("catch console needs a regular expression: catch console 'login:'")
        if self.what == "exception" and not 0 <= (self.number_wanted or 0) < 256:
            raise UsageError(f"{self.number_wanted} is not a vector: give 0 to 255")
        if self.what == "device" and self.device is not None:
            split_device(self.device)
        _ = self.regex

    @cached_property
    def regex(self) -> re.Pattern[bytes]:
        """The pattern, compiled."""
        try:
            return re.compile((self.pattern or "").encode(), re.MULTILINE)
        except re.error as e:
            raise UsageError(f"{self.pattern!r} is not a regular expression: {e}") from None

    @property
    def in_log(self) -> bool:
        """Whether the trace's events tell where it is; else the machine must run."""
        return self.what in _EVENT_KINDS

    def describe(self) -> str:
        """Return one line that says what it stops at."""
        if self.text:
            return self.text
        narrowed: dict[str, list[tuple[str, int | str | None]]] = {
            "interrupt": [("vector", self.number_wanted), ("line", self.line)],
            "device": [("", self.device)],
            "disk-write": [("disk", self.disk), ("from block", self.lba), ("to block", self.last_lba)],
            "console": [("unit", self.unit), ("", self.pattern)],
        }
        facts = narrowed.get(self.what, [("", self.number_wanted)])
        words = [f"{name} {value}".strip() for name, value in facts if value is not None]
        return " ".join([self.what, *words])


DEVICES = ("timer", "disk", "console", "input", "entropy", "clock", "ethernet")


def split_device(device: str) -> tuple[str, int | None]:
    """Return the name and the unit of `disk0`; raises `UsageError` when there is no such device."""
    match = re.fullmatch(r"([a-z]+)([0-9]+)?", device)
    if match is None or match[1] not in DEVICES:
        raise UsageError(f"{device!r} is not a device: give {', '.join(DEVICES)}, with a number or without")
    return match[1], None if match[2] is None else int(match[2])


class Stops:
    """The stops of a timeline, by number."""

    def __init__(self) -> None:
        self._points: dict[int, StopPoint] = {}
        self._next = 1

    def add(self, point: StopPoint) -> int:
        """Take `point` in, and return the number it gets; numbers are never used again.

        Raises `UsageError` where there are too many.
        """
        if point.number in self._points and self._points[point.number] is point:
            raise UsageError(f"{point.name} is there already")
        most = {Breakpoint: MAX_BREAKPOINTS, Watchpoint: MAX_WATCHPOINTS}.get(type(point))
        if most is not None and sum(type(p) is type(point) for p in self) >= most:
            raise UsageError(f"there are {most} {point.word}s already: delete some")
        point.number = self._next
        self._next += 1
        self._points[point.number] = point
        return point.number

    def remove(self, number: int) -> StopPoint:
        """Take a stop out and return it; raises `UsageError` when no stop has that number."""
        point = self.get(number)
        del self._points[number]
        return point

    def get(self, number: int) -> StopPoint:
        """Return the stop of that number; raises `UsageError` when there is none."""
        if number not in self._points:
            known = ", ".join(map(str, self._points)) or "none"
            raise UsageError(f"there is no stop {number}: there is {known}")
        return self._points[number]

    def enable(self, number: int) -> None:
        """Let a stop stop again."""
        self.get(number).enabled = True

    def disable(self, number: int) -> None:
        """Keep a stop, but pass it."""
        self.get(number).enabled = False

    def clear(self) -> None:
        """Remove all."""
        self._points.clear()

    def __iter__(self) -> Iterator[StopPoint]:
        """By number."""
        return iter(list(self._points.values()))

    def __len__(self) -> int:
        return len(self._points)

    @property
    def active(self) -> list[StopPoint]:
        """The enabled ones, by number."""
        return [point for point in self if point.enabled]


@dataclass(frozen=True)
class Arrival:
    """Where a search or a step ended, and why.

    `reason` is `step` (done as asked), `break`, `watch`, `catch`, `start` (the
    recording begins here), `end` (it ends here) or `tick`.  `point` is what
    stopped, `points` all that stop at this tick.  `old` and `new` are a watchpoint's bytes before
    and after the access, None where they cannot be read.  `by` is "instruction",
    "device", "interrupt" (the CPU saved or read state on its way into a handler)
    or "page walk" of a watchpoint.
    """

    reason: str
    tick: int
    point: StopPoint | None = None
    detail: str = ""
    old: bytes | None = None
    new: bytes | None = None
    by: str = ""
    points: tuple[StopPoint, ...] = ()


def _check_address(addr: int, size: int) -> None:
    if not 0 <= addr < ADDRESSES or size < 1 or addr + size > ADDRESSES:
        raise UsageError(
            f"{size} bytes at {addr:#x} are not a place in memory: give 1 byte or more, below 2**64"
        )
