"""`tt diff`: where two recordings, or two moments, differ."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import event_json, print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.differences import Difference
    from tt.travel import Timeline


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "diff",
        """tt diff boot.tt boot-1.tt
           tt diff boot.tt@1_000_000 boot.tt@+500
           tt diff boot.tt@@before boot-1.tt@end --limit 100 --json""",
        "Of two recordings: the first tick at which their states differ, what made the difference, and how "
        "they differ.  With a position, as in TRACE@POS, those two moments are compared; @+N of the second "
        "is relative to the first, and a position left out is the other's.  Exits with 1 where they differ.",
    )
    parser.add_argument("left", metavar="A[@POS]")
    parser.add_argument("right", metavar="B[@POS]")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="show N things of a kind (20)")
    add_base_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print, and return 1 where there is a difference."""
    from tt.log import Trace
    from tt.travel import Timeline

    if args.limit < 1:
        raise UsageError(f"--limit {args.limit}: give 1 or more")
    bases = parse_bases(args.base)
    sides = [_split(text) for text in (args.left, args.right)]
    with ExitStack() as stack, Progress("comparing") as progress:
        lines = [Timeline(stack.enter_context(Trace.open(path)), bases) for path, _pos in sides]
        end = max(line.end_tick for line in lines)
        for line in lines:
            line.progress = lambda tick: progress(tick, end)
        typed = [pos for _path, pos in sides]
        if typed == ["", ""]:
            return _timelines(lines[0], lines[1], args)
        first = lines[0].trace.resolve(typed[0] or typed[1])
        second = lines[1].trace.resolve(typed[1] or typed[0], current=first)
        return _moments(lines[0], lines[1], (first, second), args)


def _timelines(left: Timeline, right: Timeline, args: argparse.Namespace) -> int:
    from tt.travel.branches.compare import first_difference

    parting = first_difference(left, right, args.limit)
    if args.json:
        events = (parting.left_event, parting.right_event)
        print_json(
            {
                "tick": parting.tick,
                "same_until": parting.same_until,
                "compared_to": parting.compared_to,
                "events": [None if event is None else event_json(*event) for event in events],
                "differences": [_plain(each) for each in parting.differences],
            }
        )
    else:
        print("\n".join(parting.lines()))
    return 0 if parting.tick is None else 1


def _moments(left: Timeline, right: Timeline, ticks: tuple[int, int], args: argparse.Namespace) -> int:
    from tt.travel.branches.compare import diff_states

    left.seek(ticks[0])
    right.seek(ticks[1])
    found = diff_states(left, right, args.limit)
    if args.json:
        print_json({"ticks": ticks, "differences": [_plain(each) for each in found]})
    else:
        print("\n".join(map(str, found)) or "the two are the same")
    return 1 if found else 0


def _plain(difference: Difference) -> dict[str, Any]:
    return {
        "part": difference.part,
        "unit": difference.unit,
        "where": difference.where,
        "left": difference.left,
        "right": difference.right,
    }


def _split(text: str) -> tuple[str, str]:
    """Return the file and the position of TRACE@POS; a file's name may hold an @ too."""
    at = -1
    while (at := text.find("@", at + 1)) >= 0:
        if at + 1 < len(text) and not Path(text).exists() and Path(text[:at]).is_file():
            return text[:at], text[at + 1 :]
    return text, ""
