"""The verbs of `chronus`, and the options that most of them share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli import parser as tt_parser

if TYPE_CHECKING:
    from tt.chronus.store.history import History
    from tt.cli.parser import Subparsers

# In the order in which help shows them.
VERBS = {
    "log": "list what was written to a disk, in bursts",
    "ls": "list a folder as it was",
    "cat": "print a file as it was",
    "cp": "copy files out of the past",
    "find": "find files as they were",
    "diff": "tell which files differ between two instants",
    "blame": "list the instants at which a file changed",
    "bisect": "find the write that broke a machine",
    "serve": "serve a disk over NBD: live with every write kept, or as it was",
    "import": "make a history of disk images or qcow2 snapshots",
    "export": "write a disk as it was to an image",
    "squash": "forget old history",
}


def add_verb(subparsers: Subparsers, name: str, examples: str, more: str = "") -> argparse.ArgumentParser:
    """Add the parser of a verb of chronus; see `tt.cli.parser.add_verb`."""
    return tt_parser.add_verb(subparsers, name, examples, more, verbs=VERBS)


def add_history_options(parser: argparse.ArgumentParser) -> None:
    """Add the trace and what says which of its disks is meant, and where its base image is."""
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a recording, or a disk's history")
    parser.add_argument("--disk", metavar="N", type=int, default=0, help="which disk (default 0, the first)")
    parser.add_argument("--base", metavar="FILE", type=Path, help="where its base image is now")


def open_history(args: argparse.Namespace) -> History:
    """Open the history that the options of `add_history_options` name."""
    from tt.chronus.store.history import History

    return History.open(args.trace, base=args.base, disk=args.disk)


def add_at_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which instant."""
    parser.add_argument(
        "--at",
        metavar="POS",
        default="end",
        help="the instant: w17, b3, a tick, @bookmark, 50%%, 12.5s, 2026-11-22T14:03, -2h (default: newest)",
    )


def instant_of(history: History, args: argparse.Namespace) -> int:
    """Return the instant that `--at` names."""
    return history.resolve(args.at)
