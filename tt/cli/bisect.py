"""`tt bisect`: find the tick from which a condition holds."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tt.cli.bisect_report import GuestNames, Report, Telling
from tt.cli.output import print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.travel import Timeline
    from tt.travel.bisect import BisectResult, Predicate, Transitions
    from tt.travel.expressions import MemoryRange

    Places = tuple[MemoryRange, ...] | None

_LOOKS, _LOOKS_OF_COMMANDS = 1000, 50  # of --all, without --every

_MORE = """
A state is bad where EXPR holds, or where COMMAND says so.  Between a good place and a bad one the first
bad tick is found, exactly; with --bad before --good, the first that is good again.  It is the only one if
the condition changes once: a few more places are looked at, and contradictions are reported.  --all finds
every change: for an expression on memory at fixed addresses after every store to it, for others by looking
each 1000th of the way (with --run each 50th), or each N ticks.  Expressions are
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
        names = GuestNames(timeline, max(good, bad), args.symbols)
        answer = Report(args, timeline, names)
        with (
            Telling(timeline, args.verbose or args.expr is None) as tell,
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
    """Return advice for a condition that holds for one instruction only, which bisection cannot find."""
    if expression is None or not re.search(r"\$?\b(pc|rip|eip)\b", expression):
        return ""
    return "; where an instruction is executed `break` finds, in tt replay"


def _one(
    timeline: Timeline,
    good: int,
    bad: int,
    predicate: Predicate,
    checks: int | None,
    answer: Report,
    tell: Telling,
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
    tell: Telling,
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
def _judge(args: argparse.Namespace, names: GuestNames) -> Iterator[tuple[Predicate, Places]]:
    """Give the predicate that was asked for, and the memory on which alone an expression depends.

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
