"""Names of files on the command line: where base images are now, and what a new trace is called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from tt.errors import UsageError


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to a verb."""
    parser.add_argument(
        "--base",
        metavar="N=FILE",
        action="append",
        default=[],
        help="the image of disk N is FILE now (may be repeated)",
    )


def parse_bases(texts: Sequence[str]) -> dict[int, Path]:
    """Return disk numbers and files; raises `UsageError`."""
    bases = {}
    for text in texts:
        number, equals, path = text.partition("=")
        if not equals or not path or not number.isascii() or not number.isdigit() or len(number) > 4:
            raise UsageError(
                f"--base {text}: give the disk's number and its image, as in --base 0=debian.img"
            )
        bases[int(number)] = Path(path)
    return bases


def free_name(stem: str) -> Path:
    """Return the first of `stem`.tt, `stem`-2.tt, `stem`-3.tt ... that does not exist here yet."""
    names = (Path(f"{stem}.tt" if number == 1 else f"{stem}-{number}.tt") for number in count(1))
    return next(name for name in names if not name.exists())
