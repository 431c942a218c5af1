"""`tt console`: what the guest printed."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from tt.cli.output import print_json, write_bytes
from tt.cli.parser import add_verb
from tt.errors import UsageError
from tt.events import Kind
from tt.log import Trace
from tt.log.text import printable
from tt.position import format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "console",
        """tt console boot.tt
           tt console boot.tt --ticks
           tt console boot.tt --follow-time --speed 4""",
        "The bytes come as the guest printed them, colours and all; "
        "--ticks and --json escape control characters.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--unit", type=int, default=0, metavar="N", help="which console (0)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--ticks", action="store_true", help="put before each line the tick at which it began")
    how.add_argument("--follow-time", action="store_true", help="play it back as slowly as it was printed")
    how.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="with --follow-time: so many times as fast"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the console."""
    if not 0 < args.speed < float("inf"):
        raise UsageError(f"--speed {args.speed}: give a number above 0")
    with Trace.open(args.trace) as trace:
        if args.ticks or args.json:
            width = len(format_tick(trace.end_tick))
            for tick, unit, text in trace.console_lines():
                if unit != args.unit:
                    continue
                if args.json:
                    print_json({"tick": tick, "unit": unit, "text": text})
                else:
                    print(f"{format_tick(tick):>{width}}  {printable(text)}")
            return 0
        began = time.monotonic()
        for ns, event in trace.timed_events({Kind.CONSOLE}):
            if event.unit == args.unit:
                if args.follow_time:
                    time.sleep(max(0.0, began + ns / 1e9 / args.speed - time.monotonic()))
                write_bytes(event.data)
    return 0
