"""`chronus blame`: every instant at which a file changed."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from tt.cli.chronus.show import Paint, add_color_option, change_json, when, write_json
from tt.cli.chronus.verbs import add_history_options, add_verb, open_history
from tt.cli.output import print_json
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.files.blame import BlameEntry
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "blame",
        """chronus blame disk.tt /etc/ssh/sshd_config
           chronus blame disk.tt /etc/fstab --patch
           chronus blame disk.tt vda1:/grub/grub.cfg --since -7d --json""",
        "Each line is a write that changed the file: a guest that starts from the instant before "
        "it sees the old file, from the instant after it the new one.  A directory changes as names in it "
        "come and go; a link is looked at itself.  Exits with 1 where nothing is, or was, at PATH.",
    )
    add_history_options(parser)
    parser.add_argument("path", metavar="PATH", help="a file, link or directory")
    parser.add_argument("--since", metavar="POS", default="start", help="begin at this instant")
    parser.add_argument("--until", metavar="POS", default="end", help="end with this one")
    parser.add_argument("-p", "--patch", action="store_true", help="show what changed in it")
    parser.add_argument("--times", action="store_true", help="changes of nothing but its time count, too")
    parser.add_argument("--limit", metavar="N", type=int, help="at most so many, the oldest")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    add_color_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the writes that changed the file."""
    from tt.chronus.files.blame import blame
    from tt.chronus.files.tree import Tree
    from tt.errors import BadInput

    if args.limit is not None and args.limit < 0:
        raise UsageError(f"--limit {args.limit}: give 0 or more")
    paint = Paint(args.color)
    found = False
    with open_history(args) as history:
        first = history.resolve(args.since)
        last = history.resolve(args.until, first)
        if last < first:
            raise UsageError(f"--until w{last} is before --since w{first}")
        entries = blame(history, args.path, first, last, times=args.times)
        for entry in islice(entries, args.limit):
            found = True
            _print(entry, args, paint)
        if not found:
            try:
                Tree(history.at(first)).lstat(args.path)
            except BadInput:
                if not args.json:
                    print(f"nothing is at {printable(args.path)} from w{first} to w{last}")
                return 1
            if not args.json:
                print(f"{printable(args.path)} did not change from w{first} to w{last}")
    return 0


def _print(entry: BlameEntry, args: argparse.Namespace, paint: Paint) -> None:
    change = entry.change
    if args.json:
        fact = {
            "before": entry.before,
            "after": entry.after,
            **write_json(entry.write),
            **change_json(change),
        }
        print_json({**fact, "patch": change.unified()} if args.patch else fact)
        return
    where = f"w{entry.after}"
    text = change.describe() or change.kind
    print(
        f"{paint('bold', f'{where:<8}')} {when(entry.write)}  {paint.letter(change.letter)} {printable(text)}"
    )
    if args.patch:
        for line in change.unified()[1:]:
            print(f"    {paint.patch_line(line)}".rstrip())
