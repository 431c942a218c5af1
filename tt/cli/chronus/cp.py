"""`chronus cp`: copy files out of the past."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_at_option, add_history_options, add_verb, instant_of, open_history
from tt.cli.output import format_count, format_size, print_json
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "cp",
        """chronus cp boot.tt /etc old-etc --at w120
           chronus cp boot.tt /etc/fstab /etc/passwd . --at -1d""",
        "Files keep their paths below DIR.  Nothing escapes from it: links that would lead out are "
        "rewritten, devices are left out, and no file is set-user-ID or has another owner than you.",
    )
    add_history_options(parser)
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="files and folders, and last the DIR to copy to"
    )
    add_at_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy, and say what was left out."""
    from tt.chronus.files.extract import extract
    from tt.chronus.files.tree import Tree

    *paths, into = args.paths
    if not paths:
        raise UsageError("give what to copy, and then the folder to copy it to")
    with open_history(args) as history:
        found = extract(Tree(history.at(instant_of(history, args))), paths, Path(into))
    if args.json:
        print_json({"into": into, "files": len(found.nodes), "size": found.size, "left_out": found.left_out})
        return 0
    for line in found.left_out:
        print(f"chronus: left out {printable(line)}", file=sys.stderr)
    print(f"{format_count(len(found.nodes), 'file')}, {format_size(found.size)}, in {into}")
    return 0
