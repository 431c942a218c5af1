"""`chronus bisect`: find the write that broke a machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.chronus.verbs import add_history_options, add_verb, open_history
from tt.cli.output import print_json
from tt.errors import UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.bisect import Bisection, Probed
    from tt.chronus.history import History
    from tt.chronus.verdicts import Probe
    from tt.cli.parser import Subparsers

_KINDS = ("files", "guest", "console", "beside")


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "bisect",
        """chronus bisect web.tt --good start --bad end --files 'grep -q ^Port etc/ssh/sshd_config'
           chronus bisect web.tt --good @monday --bad end --guest 'nginx -t' --jobs 2 --report why.html
           chronus bisect web.tt --good w10 --bad w900 --run ./check.sh --runner qemu --port 80
           chronus bisect web.tt --log
           chronus bisect web.tt --replay verdicts.jsonl""",
        "A probe says of the machine as it was whether it was good (exit code 0), bad (1 to 124) or cannot "
        "tell (125); a machine that hangs or crashes cannot be judged, unless the bad end does the same.  "
        "What was probed is kept in TRACE.verdicts: the same command goes on where it was cut off.",
    )
    add_history_options(parser)
    parser.add_argument("--good", metavar="POS", help="an instant at which it worked")
    parser.add_argument("--bad", metavar="POS", help="one at which it did not (default: the newest)")
    probes = parser.add_argument_group("probes (one of them)")
    probes.add_argument(
        "--files", metavar="COMMAND", help="a command of this host, in a folder with the files"
    )
    probes.add_argument(
        "--guest", metavar="COMMAND", help="a command, or a script file, inside the booted guest"
    )
    probes.add_argument("--console", metavar="SCRIPT", type=Path, help="a conversation on the serial console")
    probes.add_argument(
        "--run", dest="beside", metavar="COMMAND", help="a command of this host beside the booted guest"
    )
    options = parser.add_argument_group("how a probe runs")
    options.add_argument("--path", metavar="PATH", action="append", help="--files: only these (default /)")
    options.add_argument(
        "--runner", choices=["tt", "qemu"], default="tt", help="what boots the guest (default tt)"
    )
    options.add_argument("--early", action="store_true", help="--guest: before the system's own init")
    options.add_argument("--kernel", metavar="FILE", type=Path, help="boot this instead of the disk's own")
    options.add_argument("--initrd", metavar="FILE", type=Path, help="with this initrd")
    options.add_argument(
        "--append", metavar="WORDS", default="", help="more words for the kernel's command line"
    )
    options.add_argument("--mem", metavar="SIZE", help="the guest's memory (default: as recorded, else 256M)")
    options.add_argument(
        "--port", metavar="N", type=int, action="append", help="qemu: forward a port of the guest"
    )
    options.add_argument(
        "--timeout", metavar="S", type=float, default=120.0, help="a probe's time (default 120)"
    )
    search = parser.add_argument_group("the search")
    search.add_argument("--bursts", action="store_true", help="do not go into the guilty burst")
    search.add_argument("--all", action="store_true", help="find every turn: broke, fixed, broke again")
    search.add_argument(
        "--repeat", metavar="N", type=int, default=1, help="probe N times, the majority counts"
    )
    search.add_argument(
        "--flaky", metavar="P", type=float, default=0.0, help="answers are wrong with probability P"
    )
    search.add_argument(
        "--confidence", metavar="C", type=float, default=0.99, help="of --flaky (default 0.99)"
    )
    search.add_argument("--jobs", metavar="N", type=int, default=1, help="probes at a time, in processes")
    search.add_argument("--scheduler", metavar="ADDRESS", default="", help="give them to a Dask cluster")
    search.add_argument("--no-cache", action="store_true", help="neither use nor keep earlier verdicts")
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--minimize", action="store_true", help="find the fewest files that break it")
    answer.add_argument("--no-why", action="store_true", help="only when, not why")
    answer.add_argument("--report", metavar="FILE.html", type=Path, help="write a page about it")
    answer.add_argument("--json", action="store_true", help="print one JSON object")
    answer.add_argument(
        "--log", action="store_true", help="print what was probed before, and do nothing else"
    )
    answer.add_argument("--replay", metavar="FILE", type=Path, help="take over verdicts from --log --json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, and say what was found; return 1 where there is nothing to find."""
    from tt.chronus.bisect import Options, bisect

    with open_history(args) as history:
        if args.log:
            return _log(history, args)
        if args.replay is not None:
            return _replay(history, args.replay)
        if args.good is None:
            raise UsageError("give --good POS, an instant at which it worked")
        good = history.resolve(args.good)
        bad = history.resolve(args.bad or "end")
        probe = make_probe(args, history)
        _check(args)
        options = Options(
            bursts=args.bursts, every=args.all, repeat=args.repeat, wrong=args.flaky, confidence=args.confidence,
            jobs=args.jobs, scheduler=args.scheduler, keep=not args.no_cache,
        )  # fmt: skip
        quiet = args.json
        found = bisect(
            history, probe, good, bad, options, base=args.base,
            on_probe=lambda probed: None if quiet else _show(history, probed),
            say=lambda line: None if quiet else print(line, file=sys.stderr),
        )  # fmt: skip
        return _answer(args, history, probe, found)


def make_probe(args: argparse.Namespace, history: History) -> Probe:
    """Return the probe that the options describe; raises `UsageError`."""
    kinds = [kind for kind in _KINDS if getattr(args, kind) is not None]
    if len(kinds) != 1:
        raise UsageError("give one probe: --files, --guest, --console or --run")
    if kinds == ["files"]:
        from tt.chronus.probes.files import FilesProbe

        return FilesProbe(args.files, tuple(args.path or ("/",)), args.timeout)
    from tt.chronus.runners.runner import setup_of

    setup = setup_of(
        history, kernel=args.kernel, initrd=args.initrd, append=args.append, mem=args.mem,
        timeout_s=args.timeout, ports=tuple(args.port or ()),
    )  # fmt: skip
    if kinds == ["guest"]:
        from tt.chronus.probes.guest import GuestProbe

        return GuestProbe(args.guest, args.runner, setup, early=args.early)
    if kinds == ["console"]:
        from tt.chronus.probes.console import ConsoleProbe

        return ConsoleProbe.from_file(args.console, args.runner, setup)
    from tt.chronus.probes.run import RunProbe

    return RunProbe(args.beside, args.runner, setup)


def _check(args: argparse.Namespace) -> None:
    if args.repeat < 1 or args.jobs < 1:
        raise UsageError("--repeat and --jobs: give 1 or more")
    if not 0 <= args.flaky < 0.5 or not 0.5 < args.confidence < 1:
        raise UsageError("--flaky: give a probability below 0.5; --confidence: one between 0.5 and 1")


def _show(history: History, probed: Probed) -> None:
    verdict = probed.verdict
    what = verdict.outcome.value + (f": {verdict.signature}" if verdict.signature else "")
    how = "as before" if verdict.cached else f"{verdict.seconds:.1f} s"
    print(f"{what:<6} {history.describe(probed.instant)}  ({how})", flush=True)


def _answer(args: argparse.Namespace, history: History, probe: Probe, found: Bisection) -> int:
    from tt.chronus.report.terminal import render
    from tt.chronus.why import explain

    findings = [] if args.no_why else [
        explain(history, turn, probe if args.minimize else None, found) for turn in found.turns
    ]  # fmt: skip
    if args.report is not None:
        from tt.chronus.report.html import write_report

        write_report(args.report, history, found, findings)
    if args.json:
        print_json(facts(history, found, findings))
        return 0
    print()
    for line in render(history, found, findings, colours=sys.stdout.isatty()):
        print(line)
    if args.report is not None:
        print(f"wrote {args.report}")
    return 0


def facts(history: History, found: Bisection, findings: list[Any]) -> dict[str, Any]:
    """Return a search as plain data."""
    return {
        "good": found.good,
        "bad": found.bad,
        "probe": found.probe,
        "turns": [
            {
                "before": turn.before,
                "after": turn.after,
                "becomes_bad": turn.becomes_bad,
                "candidates": len(turn.candidates),
                "confidence": turn.confidence,
                "when": history.describe(turn.after),
            }
            for turn in found.turns
        ],
        "why": [finding.plain() for finding in findings],
        "probed": [
            {
                "instant": one.instant,
                "outcome": one.verdict.outcome.value,
                "signature": one.verdict.signature,
                "cached": one.verdict.cached,
                "seconds": round(one.verdict.seconds, 3),
            }
            for one in found.probed
        ],
        "ran": found.ran,
        "seconds": round(found.seconds, 3),
    }


def _log(history: History, args: argparse.Namespace) -> int:
    from tt.chronus.bisect import default_log
    from tt.chronus.verdict_log import plain, read

    path = default_log(history)
    for entry in read(path) if path.exists() else ():
        if args.json:
            print(json.dumps(plain(entry), ensure_ascii=False))
            continue
        verdict = entry.verdict
        what = f"{verdict.outcome.value} {printable(verdict.signature)}".strip()
        print(f"{what:<6} w{entry.instant:<8} {verdict.seconds:6.1f} s  {printable(entry.about)}")
    return 0


def _replay(history: History, source: Path) -> int:
    from tt.chronus.bisect import default_log
    from tt.chronus.verdict_log import VerdictLog, read

    log = VerdictLog(history, default_log(history))
    known = {(entry.probe, entry.instant) for entry in log.entries}
    taken = 0
    for entry in read(source):
        history.check(entry.instant)
        if (entry.probe, entry.instant) not in known:
            log.append(entry)
            taken += 1
    print(f"took over {taken} verdicts: a search with the same probe goes on from them")
    return 0
