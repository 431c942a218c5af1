"""`tt fork`: go another way from a moment of a recording."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tt.cli.output import print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.errors import UsageError
from tt.position import GRAMMAR, format_tick

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.travel.branches.fork import Fork


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "fork",
        """tt fork boot.tt --at 50% --reg rax=5 --ticks 1_000_000
           tt fork boot.tt --at @prompt --line 'cat /proc/cmdline' -o other.tt
           tt fork boot.tt --at 2.5s --write 0xffffffff82000000=00ff --keep-inputs
           tt fork boot.tt --at 1_000_000 --disk 0:2048=sector.bin --ticks 5_000_000
           tt fork web.tt --at 50% --net user --forward 8080:80 --timeout 60""",
        f"The machine stands as it was at POS ({GRAMMAR}), is changed, and runs on live; that is recorded as "
        "a trace of its own, which holds its parent's beginning and refers to it.  The network of a machine "
        "that has cards is cut off unless --net connects it; with --keep-inputs the frames that came in "
        "TRACE come again.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--at", metavar="POS", default="end", help="where to leave the recording (end)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the new trace (TRACE-1.tt, ...)")
    parser.add_argument("--name", default="", help="what it is called in `tt timelines` (the file's name)")
    parser.add_argument("--reg", metavar="NAME=VALUE", action="append", default=[], help="set a register")
    parser.add_argument(
        "--write", metavar="ADDR=HEX", action="append", default=[], help="store bytes in memory"
    )
    parser.add_argument(
        "--pwrite", metavar="ADDR=HEX", action="append", default=[], help="the same, at a physical address"
    )
    parser.add_argument(
        "--disk",
        metavar="N:LBA=FILE",
        action="append",
        default=[],
        help="store a file on disk N from a sector on",
    )
    parser.add_argument("--type", metavar="TEXT", action="append", default=[], help=r"type now; \n is Enter")
    parser.add_argument(
        "--line",
        metavar="TEXT",
        action="append",
        default=[],
        help="type a line when the guest is at a prompt",
    )
    parser.add_argument(
        "--keep-inputs",
        action="store_true",
        help="give the guest what was typed then, and the frames that came, at the same ticks",
    )
    parser.add_argument(
        "--net",
        metavar="END",
        action="append",
        help="what the first network card is connected to (the second: once more): `off`, nothing arrives "
        "(default); `none`, the cable is unplugged; `user` or `stream:...`, live, as in tt record",
    )
    parser.add_argument(
        "--forward",
        metavar="HOST:GUEST",
        action="append",
        default=[],
        help="with --net user: connections to this port of the host's loopback reach that port of the guest",
    )
    parser.add_argument("--ticks", metavar="N", help="run for so long (until the guest waits)")
    parser.add_argument("--timeout", type=float, metavar="S", help="run for at most S seconds of host time")
    add_base_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the fork, let it run, and print the result."""
    from tt.log import Trace
    from tt.travel import Timeline
    from tt.travel.branches.fork import Fork

    ticks = None if args.ticks is None else _number(args.ticks.replace(",", "").replace("_", ""), "--ticks")
    if ticks is not None and ticks < 1:
        raise UsageError(f"--ticks {args.ticks}: give 1 or more")
    script = [line.encode() + b"\n" for line in args.line]
    with Trace.open(args.trace) as trace, Progress("running") as progress:
        timeline = Timeline(trace, parse_bases(args.base))
        timeline.progress = lambda tick: progress(tick, trace.end_tick)
        timeline.seek(trace.resolve(args.at))
        fork = Fork(
            timeline,
            args.output,
            args.name,
            keep_inputs=args.keep_inputs,
            script=script,
            network=args.net,
            forwards=args.forward,
            say=_say,
        )
        try:
            _change(fork, args)
        except BaseException:
            fork.discard()
            raise
        end = trace.end_tick if ticks is None else fork.tick + ticks
        fork.progress = lambda tick: progress(tick, end)
        interrupted = False
        try:
            # A server at its prompt goes on serving: with a live network, --timeout says when it ends.
            serves = fork.cables.is_live and args.timeout is not None
            until_prompt = ticks is None and not serves
            reason = fork.run(ticks, until_prompt=until_prompt, timeout_s=args.timeout).reason
        except KeyboardInterrupt:
            interrupted, reason = True, "interrupted"
        except BaseException:
            fork.close()  # what was recorded stays
            raise
        path = fork.close()
    why = {
        "tick": "as asked",
        "idle": "nothing more happens",
        "pause": "time is up",
        "prompt": "it waits",
    }.get(reason, reason)
    why = fork.ended or why
    if args.json:
        print_json(
            {
                "trace": str(path),
                "fork_tick": fork.fork_tick,
                "end_tick": fork.tick,
                "reason": why,
                "name": fork.name,
                "networks": list(fork.cables.told),
            }
        )
    else:
        print(f"{path}: left {args.trace} at tick {format_tick(fork.fork_tick)}")
        if fork.cables.line:
            print(fork.cables.line)
        print(f"ended at tick {format_tick(fork.tick)}: {why}")
    return 130 if interrupted else 0


def _change(fork: Fork, args: argparse.Namespace) -> None:
    for text in args.reg:
        name, value = _pair(text, "--reg rax=0x10")
        fork.set_register(name, _number(value, "--reg"))
    for option, physical in (("write", False), ("pwrite", True)):
        for text in getattr(args, option):
            addr, data = _pair(text, f"--{option} 0x1000=00ff")
            if not re.fullmatch(r"([0-9a-fA-F]{2})+", data):
                raise UsageError(f"--{option} {text}: {data[:40]!r} is no bytes: give pairs of hex digits")
            fork.write(_number(addr, f"--{option}"), bytes.fromhex(data), physical=physical)
    for text in args.disk:
        place, file = _pair(text, "--disk 0:2048=FILE")
        disk, _, lba = place.partition(":")
        sectors = Path(file).read_bytes()
        fork.write_disk(_number(disk, "--disk"), _number(lba, "--disk"), sectors + bytes(-len(sectors) % 512))
    for text in args.type:
        fork.type(text.replace("\\n", "\n"))


def _say(line: str) -> None:
    print(f"tt: {line}", file=sys.stderr, flush=True)


def _pair(text: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left or not right:
        raise UsageError(f"{text[:60]!r} says too little: give something as in {example}")
    return left, right


def _number(text: str, option: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{option}: {text[:40]!r} is not a number") from None
