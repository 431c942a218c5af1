"""One person's stay in a recording: where they are, what they set, and the commands they give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt import position
from tt.errors import TTError, UsageError
from tt.inspect import Answer, Moment, disassemble
from tt.log import Trace
from tt.log.text import printable
from tt.position import format_tick
from tt.shell.command import Call, parse, shorten
from tt.shell.names import Symbols
from tt.travel import Timeline
from tt.vmm.linear import linear_pc, readable

if TYPE_CHECKING:
    from tt.shell.live import Live
    from tt.travel.sources import Origin
    from tt.vmm.machine import Machine

_LONGEST_LINE = 10_000  # characters
_JUMP = re.compile(r"(?:call|j[a-z]+|loop[a-z]*) (0x[0-9a-f]{4,16})")


class Interrupted(TTError):
    """Somebody stopped a command; the session stands where it stood before."""

    exit_code = 130


@dataclass(frozen=True)
class Status:
    """What the bar at the bottom tells: tick, percent of the recording, guest ns, symbol at RIP."""

    tick: int
    percent: float
    guest_ns: int
    symbol: str


@dataclass
class Display:
    """An expression shown after each motion."""

    number: int
    form: str
    text: str


@dataclass
class Screen:
    """What the output is shown on: `width` in characters, and whether it can show block characters."""

    width: int = 100
    blocks: bool = True


@dataclass
class _Outer:
    """A timeline to come back to."""

    timeline: Timeline
    name: str


class Session:
    """A timeline, and everything else that the commands need.

    `timeline` is the current one; `live` a fork that is being made, or None.
    `on_progress(tick)` is told during long ways.  Only `interrupt` may be called from another thread.
    """

    def __init__(self, trace: Trace, bases: dict[int, Path] | None = None) -> None:
        self.screen = Screen()
        self.on_progress: Callable[[int], None] | None = None
        self.say: Callable[[str], None] = lambda line: None  # shows a line before the answer is there
        self.bases = bases
        self.live: Live | None = None
        self.displays: list[Display] = []
        self.previous: int | None = None  # where one was before the last motion
        self.source: Origin | None = None  # what `origin` asks on about
        self.ended = False
        self.again: Call | None = None  # what an empty line does
        self._interrupted = False
        self._waiting = False
        self._parents: list[_Outer] = []
        self._symbols: Symbols | None = None
        self.name = ""
        self.timeline = Timeline(trace, bases, progress=self.heed)

    # ---- the current place

    @property
    def trace(self) -> Trace:
        """The current recording."""
        return self.timeline.trace

    @property
    def machine(self) -> Machine:
        """The machine as it is now."""
        return self.live.machine if self.live is not None else self.timeline.machine

    @property
    def tick(self) -> int:
        """The current moment."""
        return self.machine.tick

    @property
    def end_tick(self) -> int:
        """The last tick of the recording; in a live branch the present."""
        return self.machine.tick if self.live is not None else self.timeline.end_tick

    @property
    def moment(self) -> Moment:
        """The machine and its recording, for `tt.inspect`."""
        at_end = self.live is None and self.tick == self.timeline.end_tick
        return Moment(self.machine, self.trace, at_end)

    @property
    def bookmarks(self) -> Mapping[str, int]:
        """The ticks that have names."""
        return self.trace.bookmarks

    def event_tick(self, number: int) -> int:
        """Return the tick of an event."""
        return self.trace.event(number).tick

    def tick_at_ns(self, ns: int) -> int:
        """Return the first tick at which guest time has reached `ns`."""
        return self.trace.tick_at_ns(ns)

    def position(self, text: str) -> int:
        """Return the tick of a typed position; a bookmark's `@` may be left out; raises `UsageError`."""
        if text == "-":
            if self.previous is None:
                raise UsageError("there is no place before: nothing has moved yet")
            return self.previous
        try:
            where = position.parse(text)
        except UsageError:
            if text not in self.bookmarks:
                raise
            where = position.Position(position.Anchor.BOOKMARK, name=text)
        return position.resolve(where, self)

    def prompt(self) -> str:
        """Return what stands before the line one types: `(tt 1,234,567) `."""
        name = f"fork:{self.live.name} " if self.live is not None else f"{self.name} " if self.name else ""
        return f"(tt {printable(name)}{format_tick(self.tick)}) "

    def status(self) -> Status:
        """Return what the bar at the bottom tells."""
        end = max(self.end_tick, 1)
        rip = linear_pc(self.machine.engine)
        named = self.symbol(rip)
        return Status(self.tick, 100 * self.tick / end, self.machine.now_ns, named or f"{rip:#x}")

    # ---- memory, symbols and expressions

    def read(self, addr: int, size: int) -> bytes:
        """Return memory at a virtual address; raises `IndexError` where there is none."""
        if not 0 <= addr < 1 << 64:
            raise IndexError(f"{addr:#x} is no address")
        return self.machine.engine.read_virtual(addr, size)

    @property
    def symbols(self) -> Symbols:
        """The names of addresses."""
        if self._symbols is None:
            self._symbols = Symbols(self)
        return self._symbols

    def destination(self, instruction: str) -> str:
        """Return ` <name>` of where a jump or call leads, or ""."""
        match = _JUMP.fullmatch(instruction)
        named = self.symbol(int(match[1], 16)) if match is not None else ""
        return f" <{named}>" if named else ""

    def symbol(self, addr: int) -> str:
        """Return `name+0x12` of an address, or "" where no symbol is near."""
        return self.symbols.describe(addr)

    def value(self, text: str) -> int | bytes:
        """Return the number or the text that an expression is; raises `UsageError`."""
        from tt.travel.expressions import UnknownName, evaluate_any

        try:
            return evaluate_any(text, self.place, self.symbols)
        except UnknownName:
            # It may be one that is known only later in the recording.
            if not self.symbols.look_further():
                raise
            return evaluate_any(text, self.place, self.symbols)

    def evaluate(self, text: str) -> int:
        """Return the number that an expression is; raises `UsageError`."""
        value = self.value(text)
        if isinstance(value, bytes):
            raise UsageError(f"{shorten(text)} is a text: a number is wanted")
        return value

    def address(self, text: str) -> int:
        """Return the address that an expression or a symbol's name gives; raises `UsageError`."""
        found = self.symbols.find(text)
        if found is not None:
            return found
        try:
            return self.evaluate(text) % (1 << 64)
        except UsageError as e:
            raise UsageError(
                f"{shorten(text)} is no address: give 0x1000, a symbol, or an expression "
                f"such as $rsp+0x10 ({e})"
            ) from None

    @property
    def place(self) -> Timeline:
        """What expressions look at: the timeline, or the live branch, which has the same face."""
        return self.live if self.live is not None else self.timeline  # type: ignore[return-value]

    # ---- commands

    def run(self, line: str) -> Answer:
        """Do what a line says; an empty one repeats a motion.  Raises `TTError`."""
        if not line.strip():
            return self.execute(self.again) if self.again is not None else Answer({})
        if len(line) > _LONGEST_LINE:
            raise UsageError(f"a line of {len(line):,} characters: give at most {_LONGEST_LINE:,}")
        return self.execute(parse(line))

    def execute(self, call: Call) -> Answer:
        """Do one command.  If it raises, the place is the one before it."""
        timeline, before = self.timeline, self.tick
        self._interrupted = False
        self.again = call if call.command.repeats else None
        try:
            answer = call.command.run(self, call.arguments)
        except BaseException as e:
            if self.live is None and self.timeline is timeline and timeline.tick != before:
                self._return(timeline, before)
            if isinstance(e, KeyboardInterrupt):
                raise Interrupted("interrupted: you are where you were") from None
            if isinstance(e, RecursionError):
                raise UsageError(f"{shorten(call.arguments.text)}: nested too deep") from None
            raise
        if self.timeline is timeline and self.tick != before:
            self.previous = before
        return answer

    def follow(self, call: Call) -> None:
        """Let an empty line do `call` rather than the same again: what follows, of what was just shown."""
        self.again = call

    def interrupt(self) -> bool:
        """Ask the running command to stop; false if it was asked already.  For signal handlers.

        Raises `KeyboardInterrupt` where the command only waits for somebody.
        """
        if self._waiting:
            raise KeyboardInterrupt
        asked, self._interrupted = self._interrupted, True
        return not asked

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a command that waits rather than works: it may be interrupted anywhere."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def heed(self, tick: int) -> None:
        """Tell of progress, and stop here if somebody asked to: a timeline's `progress`."""
        if self.on_progress is not None:
            self.on_progress(tick)
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    @staticmethod
    def _return(timeline: Timeline, tick: int) -> None:
        """Go back to where a command began; nothing interrupts that."""
        progress, timeline.progress = timeline.progress, None
        try:
            timeline.seek(tick)
        finally:
            timeline.progress = progress

    def quietly_elsewhere(self, tick: int, look: Callable[[], bool]) -> bool:
        """Return what `look` returns at `tick`, and come back."""
        before = self.timeline.tick
        try:
            self.timeline.seek(tick)
            return look()
        finally:
            self.timeline.seek(before)

    # ---- other timelines

    def enter(self, timeline: Timeline, name: str) -> None:
        """Go to another timeline; `leave` comes back."""
        self._parents.append(_Outer(self.timeline, self.name))
        self.timeline, self.name = timeline, name
        self.previous = None

    def leave(self) -> bool:
        """Come back from where `enter` went; false if there is nothing to come back from."""
        if not self._parents:
            return False
        left = self.timeline
        place = self._parents.pop()
        self.timeline, self.name = place.timeline, place.name
        self.previous = None
        left.trace.close()
        return True

    def close(self) -> None:
        """Leave everything; a live branch is sealed."""
        if self.live is not None:
            self.live.close()
            self.live = None
        while self.leave():
            pass

    # ---- answers that many commands give

    def here(self) -> tuple[dict[str, Any], str]:
        """Return the current place as data, and as a line: tick, symbol, the next instruction."""
        moment = self.moment
        addr = linear_pc(self.machine.engine)
        code = readable(self.machine.engine.read_virtual, addr, 15)
        found = disassemble(code, addr, self.machine.engine.bits, 1)
        text = found[0][2] if found else "(no memory is mapped there)" if not code else "(no instruction)"
        text += self.destination(text)
        named = self.symbol(addr)
        data = {"tick": self.tick, "rip": addr, "symbol": named or None, "instruction": text}
        state = ""
        if moment.at_end:
            ended = self.trace.summary.get("ended") or self.trace.reason
            state = f"   [the end: {printable(str(ended))}]" if ended else "   [the end]"
        elif self.tick == 0:
            state = "   [power-on]"
        elif self.machine.halted:
            state = "   [halted]"
        data["at_end"], data["halted"] = moment.at_end, self.machine.halted
        return data, f"{format_tick(self.tick)}  {named or f'{addr:#x}'}   {text}{state}"

    def arrive(self, reason: list[str] | None = None, data: dict[str, Any] | None = None) -> Answer:
        """Return the answer of a motion: why it ended there, where that is, and the displays."""
        facts, line = self.here()
        shown = []
        values = {}
        for display in self.displays:
            from tt.shell.values import show

            try:
                value = self.evaluate(display.text)
                text = show(value, display.form, self)
                values[display.text] = value
            except (TTError, IndexError) as e:
                text = f"({e})"
            shown.append(f"{display.number}: {display.text} = {text}")
        facts |= data or {}
        if values:
            facts["displays"] = values
        return Answer(facts, [*(reason or []), line, *shown], look="place")
