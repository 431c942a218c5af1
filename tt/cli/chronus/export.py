"""`chronus export`: write a disk as it was to an image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_at_option, add_history_options, add_verb, instant_of, open_history
from tt.cli.chronus.waiting import ProgressLine, undone_by_signals
from tt.cli.output import format_size, print_json

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "export",
        """chronus export boot.tt --at w120 -o before.img
           chronus export boot.tt --at @good -o good.qcow2 --format qcow2""",
        "The image is sparse, and appears when it is whole.",
    )
    add_history_options(parser)
    add_at_option(parser)
    parser.add_argument(
        "-o", "--output", metavar="IMAGE", type=Path, required=True, help="the image to write"
    )
    parser.add_argument("--format", choices=["raw", "qcow2"], default="raw", help="default raw")
    parser.add_argument("--force", action="store_true", help="overwrite IMAGE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write it."""
    from tt.chronus.store.export import export

    with open_history(args) as history:
        instant = instant_of(history, args)
        line = ProgressLine(shown=sys.stderr.isatty() and not args.json)
        with undone_by_signals():
            size = export(
                history.at(instant),
                args.output,
                image_format=args.format,
                overwrite=args.force,
                progress=lambda done: line.show(f"writing {args.output.name}", done / history.size),
            )
        line.clear()
        if args.json:
            print_json({"image": str(args.output), "size": size, "instant": instant})
        else:
            print(f"wrote {args.output}, {format_size(size)}: {history.describe(instant)}")
    return 0
