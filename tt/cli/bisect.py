"""`tt bisect`: find the tick from which something is so."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import event_json, event_row, format_count, format_ns, print_json, print_table
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.errors import BadInput, UsageError
from tt.log.text import printable
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.symbols import SymbolTable
    from tt.travel import Timeline
    from tt.travel.bisect import BisectResult, Cause, Change, JudgedTick, Predicate, Transitions
    from tt.travel.expressions import MemoryRange

    Places = tuple[MemoryRange, ...] | None

_LOOKS, _LOOKS_OF_COMMANDS = 1000, 50  # of --all, without --every

_MORE = """
A state is bad where EXPR holds, or where COMMAND says so.  Between a good place and a bad one the first
bad tick is found, exactly; with --bad before --good, the first that is good again.  It is the only one if
the condition changes once: a few more places are looked at, and what contradicts is told.  --all finds every
change: for an expression on memory at fixed addresses after every store to it, for others by looking each
1000th of the way (with --run each 50th), or each N ticks.  Expressions are
C's: registers ($rax), memory (u32[addr], *(int*)addr, str[addr], physical p32[addr]), symbols (an address:
*name is what lies there), tick, ns, and console ~ "regex"; where no memory is mapped a condition does not
hold.  COMMAND's exit code is that of git bisect run: 0 good, 1 to 124 bad, 125 skip, 128 or more ends the
search.  In its environment it finds TT_TRACE, TT_TICK, TT_NS (guest time), TT_REGISTERS (a JSON file),
TT_CONSOLE (a file of what was printed), TT_BASE_OPTIONS (your --base options) and, with --memory, TT_MEMORY
(a file of physical memory).  The exit code is 0 when something was found, 1 when not.
"""


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "bisect",
        """tt bisect boot.tt --expr 'console ~ "Kernel panic"'
           tt bisect boot.tt --good 10% --bad @crash --expr '*(u32*)&nr_files > 1000'
           tt bisect boot.tt --bad 2.5s --good end --expr 'u8[0xffffffff82a01040] == 0xff'
           tt bisect boot.tt --run '! grep -q "mounted filesystem" "$TT_CONSOLE"'
           tt bisect boot.tt --run 'test "$(jq .cr3 "$TT_REGISTERS")" = 0'
           tt bisect boot.tt --expr '*(int*)&mode == 3' --all --every 100_000""",
        _MORE,
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--good", metavar="POS", default="start", help="a place where it is good (start)")
    parser.add_argument("--bad", metavar="POS", default="end", help="a place where it is bad (end)")
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--expr", metavar="EXPR", help="bad is where this expression holds")
    judge.add_argument(
        "--run", metavar="COMMAND", help="bad is where this shell command fails", dest="command"
    )
    parser.add_argument("--all", action="store_true", help="find every change between the two places")
    parser.add_argument("--every", metavar="N", help="with --all, look each N ticks (see above)")
    parser.add_argument(
        "--check", metavar="N", help="look at N more places for contradictions (16; with --run 0)"
    )
    parser.add_argument("--memory", action="store_true", help="with --run, give COMMAND the memory too")
    parser.add_argument(
        "--symbols", metavar="FILE", action="append", default=[], help="names from an ELF file or System.map"
    )
    add_base_option(parser)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tell every look (with --run it is told)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Bisect, and say what was found; return 1 when nothing was."""
    from tt.log import Trace
    from tt.travel import Timeline
    from tt.travel.bisect import BisectError

    if args.every is not None and not args.all:
        raise UsageError("--every goes with --all")
    if args.memory and args.expr is not None:
        raise UsageError("--memory goes with --run: an expression reads memory by itself")
    every = _count("--every", args.every, least=1)
    checks = _count("--check", args.check, least=0)
    bases = parse_bases(args.base)
    with Trace.open(args.trace) as trace:
        good, bad = trace.resolve(args.good), trace.resolve(args.bad)
        timeline = Timeline(trace, bases)
        names = _Names(timeline, max(good, bad), args.symbols)
        answer = _Answer(args, timeline, names)
        with (
            _Telling(timeline, args.verbose or args.expr is None) as tell,
            _judge(args, names) as (predicate, places),
        ):
            try:
                if args.all:
                    first, last = min(good, bad), max(good, bad)
                    return answer.transitions(
                        _all(timeline, first, last, predicate, places, every, tell), tell
                    )
                return answer.verdict(_one(timeline, good, bad, predicate, checks, answer, tell), tell)
            except BisectError as e:
                message = f"{e}{_hint(args.expr)}"
                if not args.json:
                    raise BisectError(message) from None
                print_json({"found": False, "message": message})
                return e.exit_code


def _hint(expression: str | None) -> str:
    """Say what to do with a condition that holds for one instruction: no bisection finds that."""
    if expression is None or not re.search(r"\$?\b(pc|rip|eip)\b", expression):
        return ""
    return "; where an instruction is executed `break` finds, in tt replay"


def _one(
    timeline: Timeline,
    good: int,
    bad: int,
    predicate: Predicate,
    checks: int | None,
    answer: _Answer,
    tell: _Telling,
) -> BisectResult:
    from tt.travel.bisect import CHECKS, bisect

    if checks is None:
        checks = CHECKS if answer.by_expression else 0
    return bisect(timeline, good, bad, predicate, checks=checks, says=answer.says, on_probe=tell.probe)


def _all(
    timeline: Timeline,
    first: int,
    last: int,
    predicate: Predicate,
    places: Places,
    every: int | None,
    tell: _Telling,
) -> Transitions:
    from tt.travel.bisect import all_transitions, watched_transitions

    if every is None and places:
        return watched_transitions(timeline, first, last, predicate, places)
    if every is None:
        every = max(1, (last - first) // (_LOOKS_OF_COMMANDS if places is None else _LOOKS))
    return all_transitions(timeline, first, last, predicate, every=every, on_probe=tell.probe)


def _count(option: str, text: str | None, least: int) -> int | None:
    if text is None:
        return None
    digits = text.replace("_", "").replace(",", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18 or int(digits) < least:
        raise UsageError(f"{option} {printable(text)}: give a number, {least} or more")
    return int(digits)


# ---- what judges


@contextlib.contextmanager
def _judge(args: argparse.Namespace, names: _Names) -> Iterator[tuple[Predicate, Places]]:
    """Give the predicate that was asked for, and the memory that an expression depends on alone.

    That is empty where it depends on more, and None for a command.
    """
    from tt.travel.bisect_run import CommandPredicate
    from tt.travel.expressions import compile_condition

    if args.expr is not None:
        condition = compile_condition(args.expr, names)
        yield condition, condition.places or ()
        return
    options = {"TT_BASE_OPTIONS": " ".join(f"--base {shlex.quote(base)}" for base in args.base)}
    with CommandPredicate(args.command, memory=args.memory, environment=options) as predicate:
        yield predicate, None


class _Names:
    """The guest's symbols, looked for when somebody asks: at the later end, where a kernel has them."""

    def __init__(self, timeline: Timeline, tick: int, files: list[str]) -> None:
        self._timeline = timeline
        self._tick = tick
        self._files = files
        self._table: SymbolTable | None = None

    @property
    def table(self) -> SymbolTable:
        from tt.symbols import for_timeline

        if self._table is None:
            here = self._timeline.tick
            self._timeline.seek(self._tick)
            self._table = for_timeline(self._timeline)
            for name in self._files:
                _load(self._table, Path(name))
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


def _load(table: SymbolTable, path: Path) -> None:
    try:
        with path.open("rb") as f:
            is_elf = f.read(4) == b"\x7fELF"
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror}") from None
    if is_elf:
        table.load_elf(path)
    else:
        table.load_system_map(path)


# ---- what is told on the way


class _Telling:
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

    def __enter__(self) -> _Telling:
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
        """Tell of a look."""
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


# ---- what is told at the end


class _Answer:
    """The words for what was found."""

    def __init__(self, args: argparse.Namespace, timeline: Timeline, names: _Names) -> None:
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

    def verdict(self, verdict: BisectResult, tell: _Telling) -> int:
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

    def transitions(self, found: Transitions, tell: _Telling) -> int:
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
        """Return what made `tick` what it is, as plain data and as lines."""
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
