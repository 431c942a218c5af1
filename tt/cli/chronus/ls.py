"""`chronus ls`: list a folder as it was."""

from __future__ import annotations

import argparse
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tt.cli.chronus.verbs import add_at_option, add_history_options, add_verb, instant_of, open_history
from tt.cli.output import print_json
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.files.tree import Node
    from tt.cli.parser import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "ls",
        """chronus ls boot.tt /etc --at w120
           chronus ls boot.tt vda2:/boot --at -2h
           chronus ls boot.tt /etc -R --json""",
        "Without PATH it lists the root folder, and the disk's volumes where there are several.",
    )
    add_history_options(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="a folder or file (default /)")
    add_at_option(parser)
    parser.add_argument("-R", "--recursive", action="store_true", help="folders in it too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List it."""
    from tt.chronus.files.tree import Tree

    with open_history(args) as history:
        instant = instant_of(history, args)
        tree = Tree(history.at(instant))
        node = tree.node(args.path)
        if node.stat.kind == "symlink" and tree.exists(args.path):
            node = tree.node(args.path.rstrip("/") + "/.")
        if node.stat.kind != "directory":
            nodes = [node]
        elif args.recursive:
            nodes = list(tree.walk(node.path))[1:]
        else:
            nodes = [tree.node(f"{node.path.rstrip('/')}/{name}") for name in tree.listdir(node.path)]
        if args.json:
            volumes = [{"name": v.name, "size": v.size, "type": v.type} for v in tree.volumes]
            print_json({"instant": instant, "volumes": volumes, "files": [node_json(one) for one in nodes]})
            return 0
        if args.path == "/" and len(tree.volumes) > 1:
            print("volumes: " + ", ".join(f"{v.name} ({v.type or 'unknown'})" for v in tree.volumes))
        width = max((len(str(one.stat.size)) for one in nodes), default=1)
        for one in nodes:
            name = one.path if args.recursive or one is node else one.path.rpartition("/")[2]
            print(line_of(one, name, width))
        for complaint in tree.complaints:
            print(f"chronus: {printable(complaint)}")
    return 0


def line_of(node: Node, name: str, width: int) -> str:
    """Return a file as `ls -l` shows it."""
    s = node.stat
    when = datetime.fromtimestamp(s.mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")
    arrow = f" -> {printable(node.link)}" if node.link is not None else ""
    return f"{stat.filemode(s.mode)} {s.uid:>5} {s.gid:>5} {s.size:>{width}} {when} {printable(name)}{arrow}"


def node_json(node: Node) -> dict[str, Any]:
    """Return a file as plain data."""
    s = node.stat
    fact: dict[str, Any] = {
        "path": node.path,
        "kind": s.kind,
        "mode": f"{s.mode:o}",
        "uid": s.uid,
        "gid": s.gid,
    }
    return fact | {"size": s.size, "mtime": s.mtime, "inode": s.inode, "link": node.link}
