"""`chronus cat`: print a file as it was, or the disk's bytes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_at_option, add_history_options, add_verb, instant_of, open_history
from tt.cli.output import write_bytes
from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers

_PIECE = 1 << 20
_SECTOR = 512


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "cat",
        """chronus cat boot.tt /etc/fstab --at @before-upgrade
           chronus cat boot.tt --raw --offset 0 --size 512 | xxd""",
        "--raw prints the disk's own bytes: of what is no file, or where tt cannot read the file system.",
    )
    add_history_options(parser)
    parser.add_argument("paths", metavar="PATH", nargs="*", help="files")
    add_at_option(parser)
    parser.add_argument("--raw", action="store_true", help="bytes of the disk instead of files")
    parser.add_argument(
        "--offset", metavar="BYTES", type=int, default=0, help="where --raw begins (default 0)"
    )
    parser.add_argument("--size", metavar="BYTES", type=int, help="how many (default: to the end)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from tt.chronus.files.tree import Tree

    if bool(args.paths) == args.raw:
        raise UsageError("give files to print, or --raw for bytes of the disk")
    with open_history(args) as history:
        disk = history.at(instant_of(history, args))
        if not args.raw:
            tree = Tree(disk)
            for path in args.paths:
                write_bytes(tree.read(path))
            return 0
        size = disk.size - args.offset if args.size is None else args.size
        if args.offset < 0 or size < 0 or args.offset + size > disk.size:
            raise UsageError(
                f"bytes {args.offset:,} to {args.offset + size:,} are not on a disk of {disk.size:,}"
            )
        stream = disk.stream()
        stream.seek(args.offset)
        while size:
            data = stream.read(min(size, _PIECE))
            write_bytes(data)
            size -= len(data)
    return 0
