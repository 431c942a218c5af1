"""`chronus diff`: which files differ between two instants, and how."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from tt.cli.chronus.show import Paint, add_color_option, change_json, change_line, wanted
from tt.cli.chronus.verbs import add_history_options, add_verb, open_history
from tt.cli.output import format_count, print_json
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.files.changes import Change
    from tt.chronus.store.history import History
    from tt.cli.parser import Subparsers

_BAR = 40  # characters of a bar of --stat


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "diff",
        """chronus diff disk.tt b3
           chronus diff disk.tt w100 end /etc --stat
           chronus diff disk.tt -2h end /etc/ssh '/var/log/*.log'
           chronus diff disk.tt @before end --name-status
           chronus diff disk.tt 12:00 14:00 vda1:/ -U 0""",
        "Files added, removed and changed from the first instant to the second, with their texts, owners, "
        "modes and links, much as git prints it; a file is followed to its new name.  One position that is "
        "a burst or a write, as b3 or w17, means what it did; any other is compared with the end.  What "
        "begins with / (or vda1:/) is a path: only that, and what is below it.",
    )
    add_history_options(parser)
    parser.add_argument("words", metavar="POS|PATH", nargs="+", help="one or two instants, then paths")
    parser.add_argument(
        "-U", "--unified", metavar="N", type=int, default=3, help="lines of context (default 3)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--stat", action="store_true", help="print how many lines changed in each file")
    form.add_argument("--name-status", action="store_true", help="print only A, D, M, R or T, and paths")
    form.add_argument("--name-only", action="store_true", help="print only paths")
    form.add_argument("--blocks", action="store_true", help="print which blocks differ, not which files")
    form.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--times", action="store_true", help="show files of which only the time changed, too")
    parser.add_argument("--no-renames", action="store_true", help="a renamed file is one removed, one added")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 where anything differs")
    add_color_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and print."""
    from tt.chronus.files.difference import DiskIndex, pair_renames

    if args.unified < 0:
        raise UsageError(f"-U {args.unified}: give 0 or more")
    paint = Paint(args.color)
    with open_history(args) as history:
        first, second, paths = _ends(history, args.words)
        written = history.changed_blocks(first, second)
        if args.blocks:
            return _print_blocks(history, first, second, written) if written else 0
        index = DiskIndex(history.at(first))
        changes = index.move(history.at(second), written)
        if not args.no_renames:
            changes = pair_renames(changes)
        shown = list(wanted(changes, paths, args.times))
        _print(shown, args, paint)
        for note in index.notes:
            print(f"chronus: {printable(note)}", file=sys.stderr)
        if not index.readable:
            what = f"there is no file system that chronus reads at w{first} or w{second}"
            print(f"chronus: {what}: --blocks tells which blocks differ", file=sys.stderr)
        hidden = sum(change.only_times for change in changes) if not args.times and not paths else 0
        if hidden and not shown and sys.stdout.isatty():
            print(f"({format_count(hidden, 'file')} with other times only: --times shows them)")
    return int(bool(args.exit_code and shown))


def _ends(history: History, words: list[str]) -> tuple[int, int, list[str]]:
    """Return the two instants and the paths that were typed."""
    at = next((n for n, word in enumerate(words) if word.startswith("/") or ":/" in word), len(words))
    positions, paths = words[:at], words[at:]
    if not 1 <= len(positions) <= 2:
        raise UsageError(
            "give one or two instants, then paths that begin with /: chronus diff x.tt w1 w9 /etc"
        )
    first = history.resolve(positions[0])
    if len(positions) == 2:
        return first, history.resolve(positions[1], first), paths
    if match := re.fullmatch(r"b([0-9]{1,15})", positions[0]):
        burst = history.bursts()[int(match[1]) - 1]
        return burst.before, burst.after, paths
    if re.fullmatch(r"w[0-9]{1,15}", positions[0]) and first > history.first:
        return first - 1, first, paths
    return first, history.count, paths


def _print(shown: list[Change], args: argparse.Namespace, paint: Paint) -> None:
    if args.json:
        for change in shown:
            print_json({**change_json(change), "patch": change.unified(args.unified)})
    elif args.stat:
        _print_stat(shown, paint)
    elif args.name_only:
        for change in shown:
            print(printable(change.path))
    elif args.name_status:
        for change in shown:
            print(change_line(change, paint))
    else:
        for change in shown:
            for line in change.unified(args.unified):
                print(paint.patch_line(line))


def _print_stat(shown: list[Change], paint: Paint) -> None:
    """Print a bar for each file, as `git diff --stat`."""
    counted = [(change, change.counts()) for change in shown]
    names = [
        printable(f"{change.old_path} -> {change.path}" if change.old_path else change.path)
        for change in shown
    ]
    width = max((len(name) for name in names), default=0)
    most = max((sum(count) for _change, count in counted if count), default=0)
    scale = min(1.0, _BAR / most) if most else 1.0
    added = removed = 0
    for name, (change, count) in zip(names, counted, strict=True):
        if count is None:
            sizes = [node.stat.size if node else 0 for node in (change.old, change.new)]
            text = f"{sizes[0]:,} -> {sizes[1]:,} bytes"
        elif count == (0, 0):
            text = ", ".join(way for way in change.what if way != "time" or change.only_times) or change.kind
        else:
            plus, minus = (-(-number * scale // 1) for number in count)
            added, removed = added + count[0], removed + count[1]
            text = f"{sum(count):>5} {paint('green', '+' * int(plus))}{paint('red', '-' * int(minus))}"
        print(f" {name:<{width}} | {text}")
    if shown:
        lines = f"{format_count(added, 'line')} added, {removed:,} removed"
        print(f" {format_count(len(shown), 'file')} changed, {lines}")


def _print_blocks(history: History, first: int, second: int, written: set[int]) -> int:
    """Print the runs of blocks of 4 KB that differ."""
    one, two = history.at(first), history.at(second)
    blocks = sorted(block for block in written if one.block(block) != two.block(block))
    breaks = [at + 1 for at, (here, there) in enumerate(pairwise(blocks)) if there != here + 1]
    for begin, end in pairwise([0, *breaks, len(blocks)]):
        if begin < end:
            low, high = blocks[begin], blocks[end - 1]
            print(f"{low}-{high}" if high > low else f"{low}")
    return 0
