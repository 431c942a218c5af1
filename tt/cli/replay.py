"""`tt replay`: go to any moment of a recording and look around."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tt.cli.output import print_json
from tt.cli.parser import add_verb
from tt.cli.paths import add_base_option, parse_bases
from tt.cli.progress import Progress
from tt.position import GRAMMAR

if TYPE_CHECKING:
    from tt.cli.parser import Subparsers
    from tt.replay import Replay

_STEP_TICKS = 20_000_000
_PLAIN = "where; regs; disas 6; console 6"


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "replay",
        """tt replay boot.tt --to-tick 1_234_567
           tt replay boot.tt --to-tick 2.5s --batch 'regs; x rsp 64; disas 10'
           tt replay boot.tt --to-tick '#100' --batch 'digest; console 3' --json
           tt replay boot.tt --batch help""",
        f"For a position, {GRAMMAR}.  The replay is compared with the record all the way there; where they "
        "differ it says so, and exits with 1.  So it does when a command of --batch finds no memory at an "
        "address.  `--batch help` lists the commands.",
    )
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument("--to-tick", metavar="POS", default="end", help="where to go (end)")
    parser.add_argument("--batch", metavar="CMDS", default=_PLAIN, help=f"what to show there ({_PLAIN})")
    add_base_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with an answer a command")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay to the position and print what was asked for; return 1 when a command found nothing."""
    from tt.inspect import Moment, parse_batch, where
    from tt.log import Trace
    from tt.replay import Replay

    batch = parse_batch(args.batch)
    bases = parse_bases(args.base)
    with Trace.open(args.trace) as trace:
        tick = trace.resolve(args.to_tick)
        replay = Replay(trace, bases)
        _go(replay, tick)
        moment = Moment(replay.machine, trace, at_end=tick == trace.end_tick)
        answers = [command.run(moment, words) for command, words in batch]
        if args.json:
            found = [
                {"command": command.usage.split()[0], **a.data}
                for (command, _), a in zip(batch, answers, strict=True)
            ]
            print_json(where(moment).data | {"answers": found})
        else:
            for answer in answers:
                print("\n".join(answer.lines))
    return 0 if all(answer.good for answer in answers) else 1


def _go(replay: Replay, tick: int) -> None:
    with Progress(f"replaying to {tick:,}") as progress:
        for station in range(_STEP_TICKS, tick, _STEP_TICKS):
            replay.run_to(station)
            progress(station, tick)
        if tick == replay.trace.end_tick:
            replay.finish()
        else:
            replay.run_to(tick)
