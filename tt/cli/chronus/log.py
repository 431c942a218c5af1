"""`chronus log`: what was written to a disk, in bursts, and which files that touched."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tt.cli.chronus.show import (
    Paint,
    add_color_option,
    change_json,
    change_line,
    wanted,
    when,
    write_json,
)  # fmt: skip
from tt.cli.chronus.verbs import add_history_options, add_verb, open_history
from tt.cli.output import format_count, format_size, print_json
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.files.burst_log import LogEntry
    from tt.chronus.store.bursts import Burst
    from tt.chronus.store.history import History
    from tt.cli.parser import Subparsers

_SHOWN = 12  # files of a burst, unless --all-files


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "log",
        """chronus log disk.tt
           chronus log disk.tt --since -2h --path /etc
           chronus log disk.tt --limit 5 --reverse
           chronus log disk.tt --writes --since b3 --until b4
           chronus log disk.tt --json | jq .files""",
        "A burst is what was written with no pause of a second in it; bN, and wN for a single write, are "
        "positions for every other verb.  Below it are the files that a guest would find changed that "
        "starts from the instant after it.  A last line in brackets says where on the disk it wrote.",
    )
    add_history_options(parser)
    parser.add_argument("--writes", action="store_true", help="single writes instead of bursts")
    parser.add_argument("--since", metavar="POS", default="start", help="begin at this instant")
    parser.add_argument("--until", metavar="POS", default="end", help="end with this one")
    parser.add_argument(
        "--path", metavar="PATH", action="append", default=[],
        help="only what touched PATH, or a file below it (may be repeated; * and ? match)",
    )  # fmt: skip
    parser.add_argument("-n", "--limit", metavar="N", type=int, help="at most so many, the newest")
    parser.add_argument("--reverse", action="store_true", help="newest first")
    parser.add_argument("--all-files", action="store_true", help=f"list all files, not {_SHOWN} of a burst")
    parser.add_argument("--times", action="store_true", help="show files of which only the time changed, too")
    parser.add_argument("--no-files", action="store_true", help="do not look into the file systems: quick")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    add_color_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the bursts asked for as they are found."""
    if args.limit is not None and args.limit < 0:
        raise UsageError(f"--limit {args.limit}: give 0 or more")
    if args.no_files and args.path:
        raise UsageError("--path needs a look at the files: leave --no-files out")
    paint = Paint(args.color)
    with open_history(args) as history:
        for entry in _entries(history, _bursts(history, args), args):
            if args.json:
                print_json(_json(history, entry, args))
            else:
                _print(history, entry, args, paint)
            sys.stdout.flush()
    return 0


def _bursts(history: History, args: argparse.Namespace) -> list[Burst]:
    """Return what lies between --since and --until: bursts with their numbers, or single writes."""
    from tt.chronus.files.burst_log import single_writes

    first = history.resolve(args.since)
    last = history.resolve(args.until, first)
    if last < first:
        raise UsageError(f"--until w{last} is before --since w{first}")
    bursts = [burst for burst in history.bursts() if burst.last > first and burst.first <= last]
    if not args.writes:
        return bursts
    images = {span.last: span for span in history.images}
    singles = [
        write
        for write in history.writes(first + 1, last)
        if write.number not in images and not history.inside_image(write.number)
    ]
    whole = [burst for burst in bursts if burst.last in images]
    return sorted([*single_writes(singles), *whole], key=lambda burst: burst.first)


def _entries(history: History, bursts: list[Burst], args: argparse.Namespace) -> Iterator[LogEntry]:
    from tt.chronus.files.burst_log import LogEntry, burst_log

    newest_first = args.reverse
    if args.limit is not None and not args.path:
        bursts = bursts[-args.limit :] if args.limit else []
    if args.no_files:
        for burst in reversed(bursts) if newest_first else bursts:
            yield LogEntry(burst, (), ())
        return
    if args.limit is None or not args.path:
        yield from _of_paths(burst_log(history, bursts, newest_first=newest_first), args)
        return
    found = list(islice(_of_paths(burst_log(history, bursts, newest_first=True), args), args.limit))
    yield from found if newest_first else reversed(found)


def _of_paths(entries: Iterator[LogEntry], args: argparse.Namespace) -> Iterator[LogEntry]:
    for entry in entries:
        if not args.path or any(wanted(entry.changes, args.path, args.times)):
            yield entry


def _print(history: History, entry: LogEntry, args: argparse.Namespace, paint: Paint) -> None:
    burst = entry.burst
    image = history.image_at(burst.last)
    name = f"b{burst.index}" if image or not args.writes else f"w{burst.first}"
    span = "" if name.startswith("w") else f"w{burst.last}" if image else _span(burst)
    parts = [when(burst.end)]
    if image:
        parts.append(f"image @{image.name}, {format_size(burst.size)}")
    elif args.writes:
        write = burst.begin
        kind = "" if write.kind.name == "DATA" else f"{write.kind.name.lower()} "
        parts.append(f"{kind}{format_size(write.size)} at sector {write.lba:,}")
    else:
        parts.append(f"{format_count(burst.count, 'write')}, {format_size(burst.size)}")
    span = f"{span:<13} " if span else ""
    print(f"{paint('yellow', f'{name:<5}')} {span}{'  '.join(part for part in parts if part)}")
    changes = list(wanted(entry.changes, args.path, args.times))
    shown = changes if args.all_files else changes[:_SHOWN]
    for change in shown:
        print(f"      {change_line(change, paint)}")
    if len(changes) > len(shown):
        print(f"      and {format_count(len(changes) - len(shown), 'more file')}: --all-files lists them")
    for note in entry.notes:
        print(f"      {paint('dim', f'[{printable(note)}]')}")
    places = _places(entry)
    if places and (args.writes or not changes):
        print(f"      {paint('dim', f'[{places}]')}")


def _span(burst: Burst) -> str:
    return f"w{burst.first}-w{burst.last}" if burst.count > 1 else f"w{burst.first}"


def _places(entry: LogEntry) -> str:
    """Return where on the disk a burst wrote, in a line."""
    texts: list[str] = []
    files: list[str] = []
    for region in entry.regions:
        if region.kind in ("file", "directory", "symlink", "map"):
            files.append(region.path or "a file without a name")
        elif region.kind == "volume":
            texts.append(f"{region.volume}, which chronus does not read")
        elif region.kind == "disk":
            texts.append("outside of all volumes")
        else:
            texts.append(region.kind)
    several = f"contents of {files[0]}" if files else ""
    if len(set(files)) > 1:
        several += f" and {len(set(files)) - 1} more"
    return printable(", ".join([*dict.fromkeys(texts), *([several] if several else [])]))


def _json(history: History, entry: LogEntry, args: argparse.Namespace) -> dict[str, Any]:
    burst = entry.burst
    image = history.image_at(burst.last)
    fact: dict[str, Any] = write_json(burst.begin) if args.writes and not image else {
        "burst": burst.index,
        "first": burst.first,
        "last": burst.last,
        "writes": burst.count,
        "begin": write_json(burst.begin),
        "end": write_json(burst.end),
    }  # fmt: skip
    fact["size"] = burst.size
    if image:
        fact["image"] = image.name
    if not args.no_files:
        fact["files"] = [change_json(change) for change in wanted(entry.changes, args.path, args.times)]
        fact["regions"] = [
            {
                "volume": region.volume,
                "kind": region.kind,
                "path": region.path or None,
                "blocks": len(region.blocks),
            }
            for region in entry.regions
        ]
        fact["notes"] = list(entry.notes)
    return fact
