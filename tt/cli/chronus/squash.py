"""`chronus squash`: forget old history."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_history_options, add_verb, open_history
from tt.cli.output import format_count, format_size, print_json

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "squash",
        """chronus squash disk.tt --before -30d
           chronus squash boot.tt --before 50% -o disk.tt""",
        "Instants before POS are given up, with the room that only they took; later ones keep their "
        "numbers.  A recording of a machine needs all its writes to be replayed: -o writes the history of "
        "its disk from POS on to another file, and leaves the recording as it is.",
    )
    add_history_options(parser)
    parser.add_argument("--before", metavar="POS", required=True, help="the oldest instant to keep")
    parser.add_argument("-o", "--output", metavar="OUT.tt", type=Path, help="write to a new file instead")
    parser.add_argument("--force", action="store_true", help="overwrite OUT.tt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Squash, and print how many bytes that freed."""
    from tt.chronus.store.squash import copy_from, squash

    with open_history(args) as history:
        before = history.resolve(args.before)
        if args.output is not None:
            done = copy_from(history, before, args.output, overwrite=args.force)
    if args.output is None:
        done = squash(args.trace, before)
    if args.json:
        print_json(
            {
                "path": str(done.path),
                "first": done.first,
                "forgotten": done.writes,
                "size_before": done.size_before,
                "size": done.size_after,
            }
        )
        return 0
    print(
        f"{done.path}: forgot {format_count(done.writes, 'write')}; "
        f"{format_size(done.size_before)} became {format_size(done.size_after)}"
    )
    return 0
