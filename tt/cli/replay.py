"""`tt replay`: go to any moment of a recording and look around."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.position import GRAMMAR

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.shell import Session

_PLAIN = "when; regs; disas 6; console 6"


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "replay",
        """tt replay boot.tt
           tt replay boot.tt --to-tick 1_234_567
           tt replay boot.tt --to-tick 2.5s --batch 'regs; x $rsp 64; disas 10'
           tt replay boot.tt --to-tick 50% --batch 'break vfs_read; reverse-continue; bt'
           echo 'last-write jiffies' | tt replay boot.tt --json
           tt replay boot.tt --batch help""",
        f"For a position, {GRAMMAR}.  At a terminal a shell opens there: `help` lists its commands (see "
        "docs/shell.md).  Without a terminal, commands are read from standard input, and where it is empty "
        "the plain state is shown.  The state is compared with the record's digests on the way; `tt verify` "
        "is the full check.  The exit code is 1 when a command of --batch finds nothing, such as no memory "
        "at an address.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--to-tick", metavar="POS", default="end", help="where to go (end)")
    parser.add_argument(
        "--batch", metavar="CMDS", help="do these commands there, separated by `;`, and leave"
    )
    add_base_option(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; of commands from a pipe, one a command"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open the shell at the position, or do the commands there; return 1 when one found nothing."""
    from tt.log import Trace
    from tt.shell import Session
    from tt.shell.batch import fit, parse_batch, run_batch, run_lines

    batch = None if args.batch is None else parse_batch(args.batch)
    bases = parse_bases(args.base)
    with Trace.open(args.trace) as trace:
        tick = trace.resolve(args.to_tick)
        with Progress(f"going to {tick:,}") as progress:
            session = Session(trace, bases)
            session.on_progress = lambda now: progress(now, tick)
            session.timeline.seek(tick)
        session.on_progress = None
        fit(session)
        try:
            if batch is not None:
                with _telling(session):
                    return run_batch(session, batch, args.json)
            if sys.stdin is not None and sys.stdin.isatty():
                if sys.stdout.isatty() and not args.json:
                    from tt.shell.terminal import converse

                    return converse(session)
                return run_batch(session, parse_batch(_PLAIN), args.json)
            lines = iter(sys.stdin if sys.stdin is not None else ())
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return run_batch(session, parse_batch(_PLAIN), args.json)
            with _telling(session):
                return run_lines(session, chain([first], lines), args.json)
        finally:
            session.close()


@contextmanager
def _telling(session: Session) -> Iterator[None]:
    """Show on a terminal at stderr how far a long replay is."""
    with Progress("searching") as progress:
        session.on_progress = lambda tick: progress(tick, session.end_tick)
        try:
            yield
        finally:
            session.on_progress = None
