"""`tt verify`: replay a whole recording and compare it with the record."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from tt.cli.output import format_count, print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.log.text import printable
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.replay import Verdict


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "verify",
        """tt verify boot.tt
           tt verify boot.tt --base 0=/images/debian.img
           tt verify boot.tt --json""",
        "Every event is compared, the registers at every interrupt, and the digests of the whole state.  "
        "Where they differ, the first bad tick is looked for, and the exit code is 1.",
    )
    parser.add_argument("trace", metavar="TRACE")
    add_base_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, and say what was compared or what differs; return 1 when something does."""
    from tt.log import Trace
    from tt.replay import verify

    bases = parse_bases(args.base)
    with Trace.open(args.trace) as trace, Progress("verifying") as progress:
        begin = time.monotonic()
        verdict = verify(trace, bases, progress)
        seconds = time.monotonic() - begin
        sealed = trace.sealed
    if args.json:
        print_json(facts(verdict) | {"trace": args.trace, "sealed": sealed, "host_s": round(seconds, 3)})
    else:
        for line in verdict_lines(args.trace, verdict, sealed, seconds):
            print(line)
    return 0 if verdict.good else 1


def facts(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain data."""
    return {
        "good": verdict.good,
        "end_tick": verdict.end_tick,
        "events": verdict.events,
        "digests": verdict.digests,
        "message": verdict.message,
        "detail": list(verdict.detail),
    }


def verdict_lines(trace: str, verdict: Verdict, sealed: bool, seconds: float) -> list[str]:
    """Return a verdict in words."""
    if not verdict.good:
        return [f"{trace}: {verdict.message}", *(f"  {printable(line)}" for line in verdict.detail)]
    cut = "" if sealed else ", up to where the recording was cut off"
    return [
        f"{trace}: good: {format_tick(verdict.end_tick)} ticks replayed in {seconds:.1f} s, "
        f"{format_count(verdict.events, 'event')} and {format_count(verdict.digests, 'digest')} "
        f"of the whole state agree{cut}"
    ]
