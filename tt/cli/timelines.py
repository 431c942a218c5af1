"""`tt timelines`: the tree of a recording and its forks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tt.cli.output import print_json
from tt.cli.parser import add_verb

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "timelines",
        """tt timelines boot.tt
           tt timelines boot-1.tt --json""",
        "The traces in the folders of those that belong together are looked at; * is the one given, ? a "
        "parent that is not here any more.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: the root, and its children"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    from tt.travel.branches.family import family, render

    node = family(args.trace)
    if args.json:
        print_json(node.root.plain())
    else:
        print("\n".join(render(node)))
    return 0
