"""`chronus find`: find files as they were."""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from tt.cli.chronus.ls import node_json
from tt.cli.chronus.verbs import add_at_option, add_history_options, add_verb, instant_of, open_history
from tt.cli.output import print_json
from tt.errors import UsageError
from tt.log.text import printable
from tt.vmm.config import parse_size

if TYPE_CHECKING:
    from tt.chronus.files.tree import Node
    from tt.cli.parser import Subparsers

_TYPES = {"f": "file", "d": "directory", "l": "symlink"}


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "find",
        """chronus find boot.tt /etc --name '*.conf' --at 50%
           chronus find boot.tt --newer w100
           chronus find boot.tt / --type f --size +1M""",
        "--newer POS finds what is not as it was at POS.",
    )
    add_history_options(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="where to begin (default /)")
    add_at_option(parser)
    parser.add_argument("--name", metavar="GLOB", help="names like this")
    parser.add_argument("--type", choices=_TYPES, help="files, directories or links")
    parser.add_argument("--size", metavar="[+-]SIZE", help="larger (+), smaller (-) or exactly: +1M, -4K, 0")
    parser.add_argument("--newer", metavar="POS", help="only what changed since that instant")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find; return 1 where nothing is."""
    from tt.chronus.files.difference import diff
    from tt.chronus.files.extract import below
    from tt.chronus.files.tree import Tree

    compare = _size(args.size)
    with open_history(args) as history:
        instant = instant_of(history, args)
        view = history.at(instant)
        tree = Tree(view)
        if args.newer is None:
            nodes = tree.walk(args.path)
        else:
            since = history.resolve(args.newer)
            changes = diff(history.at(since), view, history.changed_blocks(since, instant))
            paths = [change.path for change in changes if change.kind != "removed"]
            nodes = (tree.node(path) for path in paths if below(path, (args.path.rstrip("/") or "/",)))
        found = [node for node in nodes if _matches(node, args) and compare(node.stat.size)]
    if args.json:
        print_json([node_json(node) for node in found])
    else:
        for node in found:
            print(printable(node.path))
        for complaint in tree.complaints:
            print(f"chronus: {printable(complaint)}", file=sys.stderr)
    return 0 if found else 1


def _matches(node: Node, args: argparse.Namespace) -> bool:
    name = node.path.rpartition("/")[2]
    if args.name is not None and not fnmatchcase(name, args.name):
        return False
    return args.type is None or node.stat.kind == _TYPES[args.type]


class _size:  # noqa: N801 - a function with a memory
    """Tells whether a size is what `--size` asks for; raises `UsageError` for a size below 0."""

    def __init__(self, text: str | None) -> None:
        self._sign = text[0] if text and text[0] in "+-" else ""
        self._size = None if text is None else parse_size(text.removeprefix(self._sign))
        if self._size is not None and self._size < 0:
            raise UsageError(f"--size {text}: a size is 0 or more")

    def __call__(self, size: int) -> bool:
        if self._size is None:
            return True
        return (
            size > self._size
            if self._sign == "+"
            else size < self._size
            if self._sign
            else size == self._size
        )
