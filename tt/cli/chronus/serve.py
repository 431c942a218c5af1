"""`chronus serve`: serve a disk over NBD."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.chronus.verbs import add_verb
from tt.cli.output import format_size, print_json
from tt.errors import UsageError

if TYPE_CHECKING:
    from tt.chronus.nbd import Export, Server
    from tt.cli.parser import Subparsers

_LIVE = "live"
_SWITCH_S = 0.0005  # a client's thread waits about this long for another's to let it run
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "serve",
        """chronus serve web.tt --base disk.img
           chronus serve web.tt --base disk.img --listen unix:/run/web.sock
           chronus serve blank.tt --size 20G --listen 127.0.0.1:10809
           chronus serve web.tt --at -2h
           chronus serve web.tt --at w812 --overlay
           chronus serve web.tt --export good=w812 --export bad=end --overlay
           chronus serve web.tt --export =live --export monday=@monday""",
        "The live disk keeps every write, with its time, in the history, which is made if it does not "
        "exist; the base image is only read.  An instant is read-only, or with --overlay can be written "
        "over: what is written is forgotten at the end.  For example: qemu-system-x86_64 -drive "
        "file=URL,format=raw,if=virtio; or nbd-client, nbdcopy, qemu-img.  Ctrl-C or SIGTERM ends it; "
        "after a kill, the next to open the history finds all that was flushed.",
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a disk's history, or a recording (--at)")
    parser.add_argument("--base", metavar="FILE", type=Path, help="the image the disk starts out as")
    parser.add_argument("--size", metavar="SIZE", help="make a history of an empty disk of this size (20G)")
    parser.add_argument(
        "--disk", metavar="N", type=int, default=0, help="which disk of a recording (default 0)"
    )
    parser.add_argument("--at", metavar="POS", help="serve an instant instead of the live disk")
    parser.add_argument(
        "--export",
        metavar="NAME=POS",
        action="append",
        default=[],
        help="serve an instant, or `live`, under a name; may be repeated",
    )
    parser.add_argument(
        "--overlay", action="store_true", help="let clients write over instants, for this time"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:10809",
        help="unix:PATH, HOST:PORT, or a port of 127.0.0.1 (default 127.0.0.1:10809; port 0: any)",
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen beyond this machine: anybody who reaches the port can read and write",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object when it serves")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from tt.chronus.nbd import serving

    wanted = _wanted(args)
    with _signals() as stopped, ExitStack() as stack:
        exports = _open(args, wanted, stack)
        server = stack.enter_context(serving(exports, args.listen, allow_remote=args.allow_remote, say=_say))
        sys.setswitchinterval(_SWITCH_S)
        _tell(args, server, exports, wanted)
        stopped.wait()
        if _LIVE in wanted.values():
            _say("stopping: what was written goes into the history (a second Ctrl-C leaves that for later)")
    return 0


def _wanted(args: argparse.Namespace) -> dict[str, str]:
    """Return what is to be served: names, and positions or `live`."""
    wanted: dict[str, str] = {}
    for text in [*([f"={args.at}"] if args.at is not None else []), *args.export]:
        name, equals, where = text.partition("=")
        if not equals or not where:
            raise UsageError(f"--export {text}: give NAME=POS, for example monday=@monday, or {_LIVE}")
        if name in wanted:
            raise UsageError(f"two exports are called {name!r}: give each a name of its own")
        wanted[name] = where
    wanted = wanted or {"": _LIVE}
    if list(wanted.values()).count(_LIVE) > 1:
        raise UsageError("the live disk is served once: clients may share its one export")
    if args.overlay and set(wanted.values()) == {_LIVE}:
        raise UsageError("--overlay is for instants: give --at POS, or --export NAME=POS")
    return wanted


def _open(args: argparse.Namespace, wanted: dict[str, str], stack: ExitStack) -> list[Export]:
    from tt.chronus.nbd import InstantExport
    from tt.chronus.store.history import History
    from tt.chronus.store.live import LiveDisk, create

    if _LIVE in wanted.values():
        if args.disk:
            raise UsageError("a disk's history has disk 0 alone: leave --disk out")
        if not args.trace.exists():
            if args.base is None and args.size is None:
                raise UsageError(f"{args.trace} does not exist yet: --base IMAGE or --size SIZE makes it")
            create(args.trace, args.base, _size(args))
        elif args.size is not None:
            raise UsageError(f"{args.trace} exists already, and its disk has a size: leave --size out")
    elif args.size is not None:
        raise UsageError("--size is for a new live disk")
    exports: dict[str, Export] = {}
    for name, where in wanted.items():
        if where == _LIVE:
            exports[name] = stack.enter_context(LiveDisk(args.trace, base=args.base, name=name, say=_say))
    if set(wanted.values()) - {_LIVE}:
        history = stack.enter_context(History.open(args.trace, base=args.base, disk=args.disk))
        lock = threading.Lock()
        for name, where in wanted.items():
            if where != _LIVE:
                instant = history.resolve(where)
                export = InstantExport(
                    history.at(instant),
                    name=name,
                    overlay=args.overlay,
                    lock=lock,
                    description=f"{args.trace.name} at {history.describe(instant)}",
                )
                exports[name] = stack.enter_context(export)
    return [exports[name] for name in wanted]


def _size(args: argparse.Namespace) -> int | None:
    from tt.vmm.config import parse_size

    if args.size is not None and args.base is not None:
        raise UsageError("--base or --size: an image has a size")
    return None if args.size is None else parse_size(args.size)


def _tell(args: argparse.Namespace, server: Server, exports: list[Export], wanted: dict[str, str]) -> None:
    if args.json:
        facts = [
            {
                "name": export.name,
                "url": server.url(export.name),
                "size": export.size,
                "readonly": export.readonly,
                "live": wanted[export.name] == _LIVE,
                "description": getattr(export, "description", ""),
            }
            for export in exports
        ]
        print_json({"address": server.address, "exports": facts})
    else:
        for export in exports:
            what = (
                "every write is kept" if wanted[export.name] == _LIVE else getattr(export, "description", "")
            )
            how = "read-only, " if export.readonly else ""
            print(f"{server.url(export.name)}  {format_size(export.size)}, {how}{what}")
    sys.stdout.flush()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set an event at the first signal that asks for an end; a second one has its usual effect."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in _STOPS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        restore()
        stopped.set()

    for number in _STOPS:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()


def _say(line: str) -> None:
    sys.stderr.write(f"chronus: {line}\n")
    sys.stderr.flush()
