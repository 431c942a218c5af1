"""How the verbs of `chronus` print changes of files and writes: in colour on a terminal, or as JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.files.changes import Change
    from tt.chronus.files.tree import Node
    from tt.chronus.store.write import Write

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_LETTERS = {"A": "green", "D": "red", "M": "yellow", "T": "yellow", "R": "cyan"}


class Paint:
    """Colours, where they are wanted: `when` is auto (a terminal, and no NO_COLOR), always or never."""

    def __init__(self, when: str = "auto") -> None:
        quiet = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._on = when == "always" or (when == "auto" and sys.stdout.isatty() and not quiet)

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._on and style else text

    def letter(self, letter: str) -> str:
        """Return the letter of a change in its colour."""
        return self(_LETTERS.get(letter, ""), letter)

    def patch_line(self, line: str) -> str:
        """Return a line of a unified diff in its colour, safe to print; tabs stay."""
        text = "\t".join(printable(part) for part in line.split("\t"))
        if line.startswith(("diff ", "--- ", "+++ ")):
            return self("bold", text)
        if line.startswith("@@"):
            return self("cyan", text)
        return self({"+": "green", "-": "red"}.get(line[:1], ""), text)


def add_color_option(parser: argparse.ArgumentParser) -> None:
    """Add `--color`."""
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours (auto: on a terminal)"
    )


def wanted(changes: Iterable[Change], paths: list[str], times: bool) -> Iterator[Change]:
    """Yield the changes at or below any of `paths`, in which * and ? match; of times alone if `times`."""
    filters = [normal(path) for path in paths]
    for change in changes:
        if change.only_times and not times:
            continue
        if not filters or any(_at(change.path, each) or _at(change.old_path, each) for each in filters):
            yield change


def normal(path: str) -> str:
    """Return a path as changes have it: absolute, with no slash at its end."""
    volume, colon, rest = path.partition(":/")
    prefix = f"{volume}:" if colon and "/" not in volume else ""
    inside = (rest if prefix else path).strip("/")
    return f"{prefix}/{inside}" if inside else prefix


def _at(path: str, wanted_path: str) -> bool:
    if not path:
        return False
    return path == wanted_path or path.startswith(f"{wanted_path}/") or fnmatchcase(path, wanted_path)


def change_line(change: Change, paint: Paint) -> str:
    """Return a change in a line: its letter, its path, and in which ways the file differs."""
    path = printable(change.path)
    if change.old_path:
        path = f"{printable(change.old_path)} -> {path}"
    ways = [way for way in change.what if way != "time" or change.only_times]
    told = ", ".join(ways)
    tail = f"  {paint('dim', f'({told})')}" if told not in ("", "contents") else ""
    return f"{paint.letter(change.letter)} {path}{tail}"


def change_json(change: Change) -> dict[str, Any]:
    """Return a change as plain data."""
    fact: dict[str, Any] = {"path": change.path, "kind": change.kind, "what": list(change.what)}
    if change.old_path:
        fact["old_path"] = change.old_path
    for side, node in (("old", change.old), ("new", change.new)):
        fact[side] = _node_json(node) if node is not None else None
    return fact


def _node_json(node: Node) -> dict[str, Any]:
    stat = node.stat
    fact: dict[str, Any] = {"kind": stat.kind, "size": stat.size, "mode": f"{stat.mode:o}"}
    fact |= {"uid": stat.uid, "gid": stat.gid, "nlink": stat.nlink, "mtime": stat.mtime}
    if node.link is not None:
        fact["link"] = node.link
    return fact


def when(write: Write) -> str:
    """Return when a write was, as far as is known: guest time, then host time."""
    from tt.chronus.store.positions import format_host

    parts = []
    if write.guest_ns is not None:
        parts.append(f"{write.guest_ns / 1e9:,.3f} s")
    if write.host_ns is not None:
        parts.append(format_host(write.host_ns))
    return "  ".join(parts)


def write_json(write: Write) -> dict[str, Any]:
    """Return a write as plain data."""
    return {
        "write": write.number,
        "kind": write.kind.name.lower(),
        "lba": write.lba,
        "sectors": write.sectors,
        "tick": write.tick,
        "guest_ns": write.guest_ns,
        "host_ns": write.host_ns,
    }
