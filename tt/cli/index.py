"""`tt index`: give a recording checkpoints, so that every place in it is near."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.output import print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "index",
        """tt index old.tt
           tt index boot.tt --every 5_000_000""",
        "`tt record` writes checkpoints as it goes.  This replays a recording that has none, or too few, "
        "and puts them in.  The replay is compared with the record all the way; where that fails, the "
        "trace stays as it was.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument(
        "--every",
        metavar="TICKS",
        help="how far apart they lie (where running from one to the next takes 20 ms)",
    )
    add_base_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Add the checkpoints and say how many."""
    from tt.travel.indexing import add_checkpoints

    every = None
    if args.every is not None:
        digits = args.every.replace("_", "").replace(",", "")
        if not digits.isdigit() or len(digits) > 18:
            raise UsageError(f"--every {args.every!r} is not a number of ticks: give 10_000_000, say")
        every = int(digits)
    path = Path(args.trace)
    with Progress(f"indexing {path.name}") as progress:
        count = add_checkpoints(path, parse_bases(args.base), every, progress)
    if args.json:
        print_json({"trace": str(path), "checkpoints": count, "bytes": path.stat().st_size})
    else:
        print(f"{path}: {count:,} checkpoints, {path.stat().st_size / 1e6:.1f} MB now")
    return 0
