"""`tt guest build`: make guests to record."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.output import format_size, print_json
from tt.cli.parser import add_verb

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers

Say = Callable[[str], None]


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "guest",
        """tt guest build debian -o guests
           tt record guests/debian.img
           tt guest build denali -o guests""",
        "debian is Debian's own kernel with a small root file system (busybox), fetched with apt; it needs "
        "no root.  denali is five guests of the Denali machine, built with gcc: a demo, one with a bug for "
        "docs/tutorial.md, and with a network one that plays ping-pong with another, a web server and a "
        "client; their sources and the C kit are put beside them, as a start for your own.",
    )
    parser.add_argument("action", choices=["build"])
    parser.add_argument("guest", choices=["debian", "denali"])
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder to build in")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the guest, and say what was built and how to record it."""
    build = _debian if args.guest == "debian" else _denali
    facts = build(args.output, (lambda line: None) if args.json else _say)
    if args.json:
        print_json(facts)
        return 0
    for path in facts["built"]:
        print(f"built {path}, {_size(Path(path))}")
    print(f"try: {facts['try']}")
    return 0


def _debian(output: Path, say: Say) -> dict[str, Any]:
    from tt.guests import debian

    guest = debian.build(output, say)
    return {
        "guest": "debian",
        "built": [str(path) for path in (guest.image, guest.kernel, guest.initrd)],
        "kernel_version": guest.kernel_version,
        "packages": guest.packages,
        "try": f"tt record {guest.image}",
    }


def _denali(output: Path, say: Say) -> dict[str, Any]:
    from tt.guests import denali

    image = denali.build(output, say)
    built = [str(guest) for guest in denali.guests(output)]
    return {"guest": "denali", "built": built, "try": f"tt record {image} --machine denali"}


def _say(line: str) -> None:
    # At once, also into a pipe: the next step may take a while.
    print(line, flush=True)


def _size(path: Path) -> str:
    """Return a file's size, and what it takes on the disk where that is less (images are sparse)."""
    found = path.stat()
    taken = found.st_blocks * 512
    size = format_size(found.st_size)
    return f"{size} ({format_size(taken)} on disk)" if taken < found.st_size else size
