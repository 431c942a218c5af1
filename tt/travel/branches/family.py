"""The tree of timelines: which trace is a branch of which, and where it leaves.

A forked trace says in its `meta` where it comes from:

    parent = {"id": of the parent, "path": where it was (relative to the child, or absolute),
              "name": its name, "fork_tick": the tick where the child leaves it}

Nothing is kept elsewhere.  A tree is put together from the traces in the folders
of those that belong to it, found by their ids, so it survives moving the whole
folder; a parent that is gone leaves its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tt.errors import BadInput
from tt.log import Trace
from tt.log.text import printable
from tt.position import format_tick

_LONGEST_NAME = 200
_DEEPEST = 10_000
_MOST_NETWORKS = 8


@dataclass(eq=False)
class Node:
    """A timeline in the tree.

    `path` is None for a parent that is not here any more: then only its `name`
    is known.  `fork_tick` is where it leaves its parent, None for a root.  `networks` says what
    its network cards were connected to.
    """

    id: str
    name: str
    path: Path | None = None
    end_tick: int = 0
    reason: str = ""
    fork_tick: int | None = None
    networks: tuple[str, ...] = ()
    parent: Node | None = field(default=None, repr=False)
    children: list[Node] = field(default_factory=list, repr=False)

    @property
    def root(self) -> Node:
        """The top of the tree."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def ancestors(self) -> list[Node]:
        """This node, its parent, and so on up to the root."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found

    def walk(self) -> list[Node]:
        """Return this node and all below it, parents first."""
        found = [self]
        for node in found:
            found.extend(node.children)
        return found

    def plain(self) -> dict[str, Any]:
        """Return the tree below this node as JSON-able data."""
        return {
            "name": self.name,
            "id": self.id,
            "path": None if self.path is None else str(self.path),
            "fork_tick": self.fork_tick,
            "end_tick": self.end_tick,
            "networks": list(self.networks),
            "children": [child.plain() for child in self.children],
        }


def trace_id(trace: Trace) -> str:
    """Return the unique id of a trace, in hex; it is computed for traces made before there were ids."""
    stored = trace.meta.get("id")
    if isinstance(stored, str) and 0 < len(stored) <= 64:
        return stored
    known: list[Any] = [trace.meta]
    if trace.sealed:
        known += [trace.end_tick, trace.event_count, trace.summary]
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()


def trace_name(trace: Trace) -> str:
    """Return the name a fork was given, or else the file's."""
    stored = trace.meta.get("name")
    return stored[:_LONGEST_NAME] if isinstance(stored, str) and stored else trace.path.stem


def parent_entry(parent: Trace, child: Path, fork_tick: int) -> dict[str, Any]:
    """Return what the `meta` of the trace at `child` says of its parent."""
    there, here = parent.path.absolute(), child.absolute().parent
    beside = here in there.parents
    return {
        "id": trace_id(parent),
        "path": os.path.relpath(there, here) if beside else str(there),
        "name": trace_name(parent),
        "fork_tick": fork_tick,
    }


def family(path: str | os.PathLike[str]) -> Node:
    """Return the node of the trace at `path` in the tree of all its relations that can be found.

    Raises `BadInput` when that trace cannot be read; others that cannot are left out.
    """
    scan = _Scan()
    own = scan.read(Path(path))
    scan.folder(Path(path).absolute().parent)
    asked, climbing = own, own
    while climbing.parent_path is not None and climbing.parent_id not in scan.found:
        scan.try_read(climbing.parent_path)
        scan.folder(climbing.parent_path.parent)
        if climbing.parent_id not in scan.found:
            break
        climbing = scan.found[climbing.parent_id]
    return scan.tree(asked)


def render(node: Node) -> list[str]:
    """Draw the whole tree that `node` belongs to, one line for each timeline, with `node` marked."""
    lines: list[str] = []
    _draw(node.root, node, "", "", lines)
    missing = [n for n in node.root.walk() if n.path is None]
    for gone in missing:
        lines.append(
            f"parent {printable(gone.name)} is not here any more: its branches are whole by themselves"
        )
    return lines


def _draw(node: Node, marked: Node, lead: str, below: str, lines: list[str]) -> None:
    stack = [(node, lead, below)]
    while stack:
        at, lead, below = stack.pop()
        sign = "*" if at is marked else "o" if at.path is not None else "?"
        lines.append(f"{lead}{sign} {_words(at)}")
        for child in reversed(at.children):
            last = child is at.children[-1]
            stack.append((child, below + ("`-" if last else "|-"), below + ("  " if last else "| ")))


def _words(node: Node) -> str:
    name = printable(node.name)
    if node.path is None:
        return f"{name} (not here any more)"
    words = [name]
    if node.fork_tick is not None:
        words.append(f"from {format_tick(node.fork_tick)}")
    words.append(f"to {format_tick(node.end_tick)}")
    if node.reason:
        words.append(f"({printable(node.reason)})")
    if node.networks:
        words.append(f"[net: {printable('; '.join(node.networks))}]")
    shown = node.path.name
    return "  ".join([*words, "" if shown == f"{node.name}.tt" else printable(shown)]).rstrip()


@dataclass
class _Found:
    """What was read from one trace."""

    node: Node
    parent_id: str = ""
    parent_path: Path | None = None
    parent_name: str = ""


class _Scan:
    """Traces read so far, by id."""

    def __init__(self) -> None:
        self.found: dict[str, _Found] = {}
        self._read: dict[Path, _Found | None] = {}
        self._folders: set[Path] = set()

    def read(self, path: Path) -> _Found:
        """Look at a trace; raises `BadInput`."""
        real = path.absolute()
        known = self._read.get(real)
        if known is not None:
            return known
        self._read[real] = None
        with Trace.open(path) as trace:
            node = Node(trace_id(trace), trace_name(trace), real, trace.end_tick, trace.reason)
            networks = trace.meta.get("networks")
            if isinstance(networks, list):
                node.networks = tuple(str(each)[:_LONGEST_NAME] for each in networks[:_MOST_NETWORKS])
            found = _Found(node)
            parent = trace.meta.get("parent")
            if isinstance(parent, dict):
                self._take_parent(found, parent, real)
        self._read[real] = found
        # Of two copies of one trace the first that was read counts.
        self.found.setdefault(node.id, found)
        return found

    def try_read(self, path: Path) -> None:
        """Look at a file that need not be a trace."""
        if path.absolute() in self._read:
            return
        try:
            self.read(path)
        except (BadInput, OSError):
            self._read[path.absolute()] = None

    def folder(self, folder: Path) -> None:
        """Look at all traces in a folder."""
        if folder in self._folders:
            return
        self._folders.add(folder)
        try:
            names = sorted(folder.glob("*.tt"))
        except OSError:
            return
        for path in names:
            if path.is_file():
                self.try_read(path)

    def tree(self, asked: _Found) -> Node:
        """Put the nodes together and return the one asked for."""
        gone: dict[str, Node] = {}
        chosen = dict(self.found)
        chosen[asked.node.id] = asked  # if there are two copies
        for found in chosen.values():
            if not found.parent_id or found.parent_id == found.node.id:
                continue
            known = chosen.get(found.parent_id)
            if known is not None:
                parent = known.node
            else:
                parent = gone.setdefault(found.parent_id, Node(found.parent_id, found.parent_name))
            if found.node in parent.ancestors:
                continue  # a damaged or forged entry: a trace cannot descend from itself
            found.node.parent = parent
            parent.children.append(found.node)
            parent.children.sort(key=lambda child: (child.fork_tick or 0, child.name))
        return asked.node

    def _take_parent(self, found: _Found, parent: dict[str, Any], child: Path) -> None:
        """Take over the fields of a `parent` entry, if they have the right types."""
        identity, path, name = (parent.get(key) for key in ("id", "path", "name"))
        tick = parent.get("fork_tick")
        if not isinstance(identity, str) or not isinstance(tick, int) or tick < 0:
            return
        found.parent_id = identity
        found.node.fork_tick = tick
        if isinstance(path, str) and path and "\0" not in path:
            found.parent_path = child.parent / path
        found.parent_name = name[:_LONGEST_NAME] if isinstance(name, str) and name else "its parent"
