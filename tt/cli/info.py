"""`tt info`: what is in a trace."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tt.cli.facts import trace_facts, trace_lines
from tt.cli.output import print_facts, print_json
from tt.cli.parser import add_verb
from tt.log import Trace

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "info",
        """tt info boot.tt
           tt info boot.tt --check
           tt info boot.tt --json""",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--check", action="store_true", help="read everything; exit 1 if it is damaged")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts; return 1 when `--check` finds damage."""
    with Trace.open(args.trace) as trace:
        if args.check and (problems := trace.verify_structure()):
            if args.json:
                print_json({"trace": str(trace.path), "problems": problems})
            else:
                print_facts(("damage", problem) for problem in problems)
            return 1
        facts = trace_facts(trace)
        if args.check:
            facts["problems"] = []
        if args.json:
            print_json(facts)
        else:
            print_facts(trace_lines(facts))
    return 0
