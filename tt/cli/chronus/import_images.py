"""`chronus import`: make a history of disk images or qcow2 snapshots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_verb
from tt.cli.chronus.waiting import ProgressLine, undone_by_signals
from tt.cli.output import format_size, print_json

if TYPE_CHECKING:
    from tt.chronus.store.importing import Imported
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "import",
        """chronus import -o web.tt monday.img tuesday.img wednesday.img
           chronus import -o web.tt server.qcow2
           chronus import -o web.tt base.qcow2 overlay1.qcow2 overlay2.qcow2""",
        "Each image, oldest first, becomes one instant of the history, with its file's time and a bookmark "
        "of its name; of a qcow2 file so does each snapshot inside it.  Before the first is w0, an empty "
        "disk.  The history holds all of it: the images are not needed afterwards.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="raw or qcow2, oldest first")
    parser.add_argument(
        "-o", "--output", metavar="OUT.tt", type=Path, required=True, help="the history to make"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT.tt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import, telling of each image."""
    from tt.chronus.store.importing import import_images, pictures

    line = ProgressLine(shown=sys.stderr.isatty() and not args.json)

    def say(one: Imported) -> None:
        line.clear()
        if not args.json:
            print(f"w{one.instant}  @{one.bookmark}  {format_size(one.size)} changed  {one.picture.path}")
            sys.stdout.flush()

    with undone_by_signals():
        imported = import_images(
            args.output, pictures(args.images), overwrite=args.force, say=say, progress=line.show
        )
    line.clear()
    if args.json:
        facts = [
            {
                "image": str(one.picture.path),
                "snapshot": one.picture.name if one.picture.snapshot else None,
                "bookmark": one.bookmark,
                "instant": one.instant,
                "changed": one.size,
            }
            for one in imported
        ]
        print_json({"path": str(args.output), "images": facts})
        return 0
    print(f"made {args.output}, {format_size(args.output.stat().st_size)}; try: chronus log {args.output}")
    return 0
