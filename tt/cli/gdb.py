"""`tt gdb`: let gdb drive a recording."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.errors import BadInput
from tt.position import GRAMMAR

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.gdb import Server


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "gdb",
        """tt gdb boot.tt
           tt gdb boot.tt --to-tick 2.5s --listen :9000
           tt gdb boot.tt --symbols-out kernel.sym --script-out boot.gdb
           gdb -x boot.gdb""",
        "gdb's own commands go forwards and backwards (reverse-step, reverse-continue, ...); `monitor help` "
        f"in gdb lists tt's.  For a position, {GRAMMAR}.  docs/gdb.md tells more.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--to-tick", metavar="POS", default="start", help="where gdb begins (start)")
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        default="127.0.0.1:1234",
        help="ADDRESS:PORT, PORT or unix:PATH (127.0.0.1:1234)",
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen where other machines reach it; there is no password",
    )
    parser.add_argument(
        "--symbols-out",
        metavar="FILE",
        help="write the guest's symbols as an ELF file for gdb's `symbol-file`",
    )
    parser.add_argument(
        "--script-out", metavar="FILE", help="write a gdb script that connects, and adds tt's commands to gdb"
    )
    parser.add_argument("--once", action="store_true", help="end when the first gdb leaves")
    add_base_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or with --once until gdb leaves."""
    from tt.gdb import Server, parse_listen
    from tt.log import Trace
    from tt.travel import Timeline

    bases = parse_bases(args.base)
    with Trace.open(args.trace) as trace:
        tick = trace.resolve(args.to_tick)
        timeline = Timeline(trace, bases)
        with Progress(f"going to {tick:,}") as progress:
            timeline.progress = lambda done: progress(done, tick)
            timeline.seek(tick)
            timeline.progress = None
        server = Server(timeline, parse_listen(args.listen), allow_remote=args.allow_remote)
        try:
            _write(args, server)
            where = f"{args.trace} at tick {tick:,}, listening at {server.address.for_gdb}"
            print(f"{where}; connect with: {_connect(args, server)}", flush=True)
            server.serve(lambda line: print(line, flush=True), once=args.once)
        except KeyboardInterrupt:
            print()
        finally:
            server.close()
    return 0


def _write(args: argparse.Namespace, server: Server) -> None:
    symbols = Path(args.symbols_out) if args.symbols_out else None
    if symbols is not None:
        server.guest.write_symbols(symbols)
    if args.script_out:
        script = server.guest.script(server.address.for_gdb, symbols)
        try:
            Path(args.script_out).write_text(script)
        except OSError as e:
            raise BadInput(f"cannot write {args.script_out}: {e.strerror or e}") from None


def _connect(args: argparse.Namespace, server: Server) -> str:
    """Return the gdb command line to type."""
    if args.script_out:
        return f"gdb -x {args.script_out}"
    symbols = f" {args.symbols_out}" if args.symbols_out else ""
    return f"gdb -ex 'target remote {server.address.for_gdb}'{symbols}"
