"""What `tt bisect` prints: lines of progress, and the result."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import event_json, event_row, format_count, format_ns, print_json, print_table
from tt.log.text import printable
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.symbols import SymbolTable
    from tt.travel import Timeline
    from tt.travel.bisect import BisectResult, Cause, Change, JudgedTick, Transitions


class GuestNames:
    """The guest's symbols, looked up on first use: at the later end, where the kernel has loaded them."""

    def __init__(self, timeline: Timeline, tick: int, files: list[str]) -> None:
        self._timeline = timeline
        self._tick = tick
        self._files = files
        self._table: SymbolTable | None = None

    @property
    def table(self) -> SymbolTable:
        """The symbols of the guest and of the files that were given."""
        from tt.symbols import for_timeline

        if self._table is None:
            here = self._timeline.tick
            self._timeline.seek(self._tick)
            self._table = for_timeline(self._timeline)
            for name in self._files:
                self._table.load(Path(name))
            self._timeline.seek(here)
        return self._table

    def find(self, name: str) -> int | None:
        """Return the address of a symbol."""
        return self.table.find(name)

    def describe(self, addr: int) -> str:
        """Return `name+0x12`, or ""."""
        found = self.table.at(addr)
        if found is None:
            return ""
        name, offset = found
        return printable(f"{name}+{offset:#x}" if offset else name)


class Telling:
    """Lines and a progress line on stderr, as git has them."""

    _EVERY_S = 0.1
    _AFTER_S = 1.0

    def __init__(self, timeline: Timeline, verbose: bool) -> None:
        self._timeline = timeline
        self._verbose = verbose
        self._live = sys.stderr.isatty()
        self._next_s = time.monotonic() + self._AFTER_S
        self._shown = False
        self._left = ""

    def __enter__(self) -> Telling:
        self._timeline.progress = self.tick
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._timeline.progress = None

    def tick(self, tick: int) -> None:
        """Show where the replay is."""
        if not self._live or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + self._EVERY_S
        self._shown = True
        print(
            f"\r\x1b[KBisecting{self._left}: replaying, tick {format_tick(tick)}",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def probe(self, probe: JudgedTick) -> None:
        """Report a look."""
        self._left = f": {format_count(probe.left, 'probe')} left (roughly)"
        if self._verbose:
            self.clear()
            word = {True: "bad", False: "good", None: "skipped"}[probe.bad]
            print(
                f"Bisecting{self._left}; tick {format_tick(probe.tick)} is {word}",
                file=sys.stderr,
                flush=True,
            )

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


class Report:
    """The words for what was found."""

    def __init__(self, args: argparse.Namespace, timeline: Timeline, names: GuestNames) -> None:
        self._timeline = timeline
        self._names = names
        self._trace = shlex.quote(args.trace)
        self._json = args.json
        self._bases = "".join(f" --base {shlex.quote(base)}" for base in args.base)
        self._what = printable(args.expr if args.expr is not None else f"`{args.command}`")
        self.by_expression = args.expr is not None
        self._words = (
            {True: "holds", False: "does not hold"}
            if self.by_expression
            else {True: "is bad", False: "is good"}
        )
        self.says = {
            bad: f"{self._what if self.by_expression else 'it'} {word}" for bad, word in self._words.items()
        }

    def verdict(self, verdict: BisectResult, tell: Telling) -> int:
        """Print a verdict; return the exit code."""
        found = verdict.tick is not None
        facts, lines = self._moment(verdict.latest) if found else ({}, [])
        tell.clear()
        if self._json:
            print_json(
                {
                    "found": found,
                    "tick": verdict.tick,
                    "earliest": verdict.earliest,
                    "latest": verdict.latest,
                    "good": verdict.good,
                    "bad": verdict.bad,
                    "becomes": "bad" if verdict.becomes_bad else "good",
                    "monotonic": verdict.monotonic,
                    "contradictions": [_probe(probe) for probe in verdict.contradictions],
                    **facts,
                    "probes": [_probe(probe) for probe in verdict.probes],
                }
            )
            return 0 if found else 1
        words = self._words[verdict.becomes_bad]
        if found:
            when = format_ns(facts["guest_ns"])
            print(f"tick {format_tick(verdict.latest)}, {when}: from here on {self._what} {words}")
        else:
            print(
                f"{self._what} {words} from some tick on, {format_tick(verdict.earliest)} to "
                f"{format_tick(verdict.latest)}: everything in between that was looked at was skipped"
            )
        for line in lines:
            print(f"  {line}")
        for line in self._contradictions(verdict):
            print(line)
        print(
            f"see it: tt replay {printable(self._trace)} --to-tick {verdict.latest}{printable(self._bases)}"
        )
        return 0 if found else 1

    def transitions(self, found: Transitions, tell: Telling) -> int:
        """Print all changes; return the exit code."""
        rows = []
        for change in found.changes:
            rows.append((change, *self._moment(change.latest)))
        tell.clear()
        if self._json:
            print_json(
                {
                    "found": bool(found.changes),
                    "first": found.first,
                    "last": found.last,
                    "every": found.every,
                    "starts": _state(found.starts_bad),
                    "changes": [_change(change) | facts for change, facts, _lines in rows],
                    "looks": found.looks,
                    "skipped": found.skipped,
                }
            )
            return 0 if found.changes else 1
        print(
            f"{self._what}: {format_count(len(found.changes), 'change')} from tick "
            f"{format_tick(found.first)} to {format_tick(found.last)}; "
            f"at first it {self._words[found.starts_bad]}"
        )
        if rows:
            table = [self._row(change, facts) for change, facts, _lines in rows]
            print_table(("tick", "guest time", "from here on it", "by"), table, right=(0, 1))
        if found.every is None:
            print("every store to the memory it reads was looked at")
        elif found.every > 1:
            print(
                f"looked every {format_count(found.every, 'tick')}: changes that undo each other in between "
                f"are not seen; --every {max(1, found.every // 100)} looks closer"
            )
        return 0 if found.changes else 1

    def _row(self, change: Change, facts: dict[str, Any]) -> list[str]:
        hidden = (
            "" if change.earliest == change.latest else f" (or since {format_tick(change.earliest)}: skipped)"
        )
        by = facts["instruction"]["text"] + (f"  {facts['symbol']}" if facts["symbol"] else "")
        when = format_ns(facts["guest_ns"])
        return [format_tick(change.latest), when, self._words[change.bad] + hidden, by]

    def _contradictions(self, verdict: BisectResult) -> Iterator[str]:
        if verdict.monotonic:
            return
        one = verdict.contradictions[0]
        side = "before" if one.tick < verdict.earliest else "after"
        assert one.bad is not None
        yield (
            f"it is not monotonic: at tick {format_tick(one.tick)}, {side} that, it {self._words[one.bad]}; "
            "so this is one of several changes, and --all finds them"
        )

    def _moment(self, tick: int) -> tuple[dict[str, Any], list[str]]:
        """Return the instruction and event that led to `tick`, as plain data and as lines."""
        from tt.travel.bisect import cause

        found = cause(self._timeline, tick)
        guest_ns = self._timeline.machine.now_ns
        instruction = _instruction(found)
        symbol = self._names.describe(found.addr)
        events = [event_json(number, event) for number, event in found.events]
        facts = {"guest_ns": guest_ns, "instruction": instruction, "symbol": symbol, "events": events}
        named = f"  {symbol}" if symbol else ""
        lines = [f"by {found.addr:#x}{named}  {instruction['text']}"]
        for number, event in found.events:
            lines.append("just before it: " + "  ".join(event_row(number, event)).rstrip())
        return facts, lines


def _instruction(found: Cause) -> dict[str, Any]:
    from tt.inspect import disassemble

    for addr, raw, text in disassemble(found.code, found.addr, found.bits, 1):
        return {"addr": addr, "bytes": raw.hex(), "text": text}
    return {"addr": found.addr, "bytes": "", "text": "(no instruction)"}


def _state(bad: bool | None) -> str:
    return "skipped" if bad is None else "bad" if bad else "good"


def _probe(probe: JudgedTick) -> dict[str, Any]:
    return {"tick": probe.tick, "is": _state(probe.bad)}


def _change(change: Change) -> dict[str, Any]:
    exact = change.latest if change.earliest == change.latest else None
    return {
        "tick": exact,
        "earliest": change.earliest,
        "latest": change.latest,
        "becomes": _state(change.bad),
    }
