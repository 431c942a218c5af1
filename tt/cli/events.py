"""`tt events`: the list of nondeterministic events."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from tt.cli.output import event_json, event_row, kind_name, print_json, print_table
from tt.cli.parser import add_verb
from tt.errors import UsageError
from tt.events import Kind
from tt.log import Trace

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "events",
        """tt events boot.tt --limit 20
           tt events boot.tt --kind irq --kind timer --from 50% --to +1_000_000
           tt events boot.tt --kind input --json""",
        "--to with a sign is relative to --from.",
    )
    parser.add_argument("trace", metavar="TRACE")
    kinds = ", ".join(kind_name(kind) for kind in Kind)
    parser.add_argument(
        "--kind", action="append", metavar="KIND", help=f"only this (may be repeated): {kinds}"
    )
    parser.add_argument("--from", dest="first", default="start", metavar="POS", help="begin at this position")
    parser.add_argument("--to", dest="last", default="end", metavar="POS", help="end with this position")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the events asked for."""
    known = {kind_name(kind): kind for kind in Kind}
    wanted = [name.lower().replace("_", "-") for name in args.kind or known]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"{unknown[0]!r} is no kind of event: there are {', '.join(known)}")
    if args.limit is not None and args.limit < 0:
        raise UsageError(f"--limit {args.limit}: give 0 or more")
    with Trace.open(args.trace) as trace:
        first = trace.resolve(args.first)
        last = trace.resolve(args.last, current=first)
        numbered = trace.numbered_events(first, last, {known[name] for name in wanted})
        found = islice(numbered, args.limit)
        if args.json:
            for number, event in found:
                print_json(event_json(number, event))
        else:
            rows = (event_row(number, event) for number, event in found)
            print_table(["EVENT", "TICK", "KIND", "UNIT", "VALUE", "DATA"], rows, right=(0, 1, 3, 4))
    return 0
