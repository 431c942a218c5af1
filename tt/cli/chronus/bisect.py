"""`chronus bisect`: find the write that broke a machine; `bisect log`, `bisect replay`: what was probed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt.cli.chronus.probe_options import add_probe_options, make_probe
from tt.cli.chronus.verbs import add_verb, open_history
from tt.cli.output import format_count, print_json
from tt.errors import TTError, UsageError
from tt.log.text import printable

if TYPE_CHECKING:
    from tt.chronus.search.bisect import Bisection, Probed
    from tt.chronus.search.verdict_log import Entry
    from tt.chronus.search.verdicts import Probe
    from tt.chronus.store.history import History
    from tt.cli.parser import Subparsers

_MORE = """
A probe says of the machine as it was whether that was good (exit code 0), bad (1 to 124), or that it cannot
tell (125: a skip); 126, 127 and 128 or more end the search.  A machine that hangs or crashes cannot be judged
either, unless the one at the bad end does the same.  Both ends are probed first, then instants in between,
the ends of bursts of writes rather than others; with --bad before --good the fix is searched.  Where the
blocks or files that a probe looked at are the same, so is its answer, and it is not run again.
Every verdict is kept in TRACE.verdicts: a search that was cut off goes on when the same command is given
again.  `bisect log` prints what is there (with --json for `bisect replay`), `bisect replay LOG TRACE` takes
verdicts over from elsewhere.  The exit code is 0 when something was found, 1 when not.
"""


def register(subparsers: Subparsers) -> None:
    """Add the verb's parser."""
    parser = add_verb(
        subparsers,
        "bisect",
        """chronus bisect web.tt --good start --files 'grep -q ^Port etc/ssh/sshd_config'
           chronus bisect web.tt --good @monday --guest 'nginx -t' --jobs 2 --report why.html
           chronus bisect web.tt --good w10 --run 'curl -fsS http://127.0.0.1:$CHRONUS_PORT_80/'
           chronus bisect web.tt --good w10 --bad w900 --run ./check.sh --runner qemu --port 80
           chronus bisect web.tt --good -3d --guest ./probe.sh --early --flaky 0.1 --confidence 0.999
           chronus bisect log web.tt
           chronus bisect replay verdicts.jsonl web.tt""",
        _MORE,
    )
    parser.add_argument(
        "words",
        metavar="TRACE",
        nargs="+",
        help="a recording, or a disk's history; or log TRACE, replay LOG TRACE",
    )
    parser.add_argument("--disk", metavar="N", type=int, default=0, help="which disk (default 0, the first)")
    parser.add_argument("--base", metavar="FILE", type=Path, help="where its base image is now")
    parser.add_argument("--good", metavar="POS", help="an instant at which it worked")
    parser.add_argument("--bad", metavar="POS", default="end", help="one at which it did not (the newest)")
    add_probe_options(parser)
    search = parser.add_argument_group("the search")
    search.add_argument("--bursts", action="store_true", help="do not go into the guilty burst")
    search.add_argument("--all", action="store_true", help="find every turn: broke, fixed, broke again")
    search.add_argument(
        "--grid", metavar="N", type=int, default=24, help="--all: look at so many places first (24)"
    )
    search.add_argument(
        "--repeat", metavar="N", type=int, default=1, help="probe N times, the majority counts"
    )
    search.add_argument(
        "--flaky", metavar="P", type=float, default=0.0, help="an answer is wrong with probability P"
    )
    search.add_argument(
        "--confidence", metavar="C", type=float, default=0.99, help="of what --flaky finds (0.99)"
    )
    search.add_argument(
        "--jobs", metavar="N", type=int, help="so many probes at a time, in processes (0: all processors)"
    )
    search.add_argument("--scheduler", metavar="ADDRESS", default="", help="probe on a Dask cluster")
    search.add_argument("--no-cache", action="store_true", help="neither use nor keep verdicts")
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--minimize", action="store_true", help="find the fewest files that break it")
    answer.add_argument("--no-why", action="store_true", help="only when, not why")
    answer.add_argument("--report", metavar="FILE.html", type=Path, help="write a page about it")
    answer.add_argument("-q", "--quiet", action="store_true", help="do not tell every probe")
    answer.add_argument("--json", action="store_true", help="print one JSON object (log: one a line)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, and say what was found; return 1 where there is nothing to find."""
    words: list[str] = args.words
    args.trace = Path(words[-1])
    match words:
        case ["log", _trace]:
            return _log(args)
        case ["replay", source, _trace]:
            return _replay(args, Path(source))
        case [_trace] if args.trace.exists() or words[0] not in ("log", "replay"):
            return _bisect(args)
    raise UsageError(
        f"{shlex.join(words)[:200]}: give one TRACE, or log TRACE, or replay LOG TRACE"
        + ("" if words[0] not in ("log", "replay") else f", of which {words[0]} needs a file more")
    )


def _bisect(args: argparse.Namespace) -> int:
    from tt.chronus.search.bisect import NothingToFind, Options, bisect

    if args.good is None:
        raise UsageError("give --good POS, an instant at which it worked: start is the oldest")
    options = Options(
        bursts=args.bursts, every=args.all, grid=args.grid, repeat=args.repeat, wrong=args.flaky,
        confidence=args.confidence, jobs=_jobs(args), scheduler=args.scheduler, keep=not args.no_cache,
    )  # fmt: skip
    options.check()
    if args.report is not None and not args.report.absolute().parent.is_dir():
        raise UsageError(f"--report {args.report}: there is no such folder")
    with open_history(args) as history:
        good, bad = history.resolve(args.good), history.resolve(args.bad)
        probe = make_probe(args, history)
        tell = _Telling(history, quiet=args.quiet or args.json)
        try:
            found = bisect(
                history, probe, good, bad, options, base=args.base, on_probe=tell.probe, say=tell.step
            )
        except NothingToFind as e:
            if not args.json:
                raise
            print_json({"found": False, "message": str(e)})
            return e.exit_code
        except KeyboardInterrupt:
            if options.keep and not args.json:
                print("chronus: the same command goes on from here", file=sys.stderr)
            raise
        return _answer(args, history, probe, found, tell)


def _jobs(args: argparse.Namespace) -> int:
    """Return how many probes at a time: on a cluster, where nothing is said, as many as it can."""
    if args.jobs is None:
        return 0 if args.scheduler else 1
    return int(args.jobs)


class _Telling:
    """The lines of progress on stderr, in git's form."""

    def __init__(self, history: History, quiet: bool) -> None:
        self._history = history
        self._quiet = quiet
        self._shown = ""
        self._known = 0

    def step(self, line: str) -> None:
        """Print how far the search is."""
        if not self._quiet and line != self._shown:
            self._shown = line
            print(line, file=sys.stderr, flush=True)

    def probe(self, probed: Probed) -> None:
        """Report a look."""
        verdict = probed.verdict
        what = verdict.outcome.value + (f" ({printable(verdict.signature)})" if verdict.signature else "")
        if not probed.runs:
            how = "known"
        else:
            how = f"{verdict.seconds:.1f} s" + (f", {probed.runs} runs" if probed.runs > 1 else "")
        self.step(f"{self._history.describe(probed.instant)} is {what}  [{how}]")


def _answer(
    args: argparse.Namespace, history: History, probe: Probe, found: Bisection, tell: _Telling
) -> int:
    from tt.chronus.report.terminal import render
    from tt.chronus.why.finding import explain

    findings = (
        []
        if args.no_why
        else [
            explain(history, turn, probe if args.minimize else None, found, say=tell.step)
            for turn in found.turns
        ]
    )
    if args.report is not None:
        from tt.chronus.report.html import write_report

        write_report(args.report, history, found, findings)
    code = 0 if found.turns else 1
    if args.json:
        print_json(facts(history, found, findings))
        return code
    for line in render(history, found, findings, colours=sys.stdout.isatty()):
        print(line)
    for note in found.notes:
        print(f"note: {printable(note)}")
    if args.report is not None:
        print(f"wrote {args.report}")
    return code


def facts(history: History, found: Bisection, findings: list[Any]) -> dict[str, Any]:
    """Return a search as plain data."""
    return {
        "found": bool(found.turns),
        "good": found.good,
        "bad": found.bad,
        "probe": found.probe,
        "turns": [
            {
                "before": turn.before,
                "after": turn.after,
                "becomes_bad": turn.becomes_bad,
                "candidates": list(turn.candidates[:1000]),
                "candidate_count": len(turn.candidates),
                "confidence": turn.confidence,
                "when": history.describe(turn.after),
            }
            for turn in found.turns
        ],
        "why": [finding.plain() for finding in findings],
        "probed": [
            {
                "instant": one.instant,
                "bad": one.bad,
                "outcome": one.verdict.outcome.value,
                "signature": one.verdict.signature,
                "exit_code": one.verdict.exit_code,
                "runs": one.runs,
                "seconds": round(one.verdict.seconds, 3),
            }
            for one in found.probed
        ],
        "ran": found.ran,
        "shared": found.shared,
        "seconds": round(found.seconds, 3),
        "notes": found.notes,
    }


# ---- log and replay


def _log(args: argparse.Namespace) -> int:
    from tt.chronus.search.bisect import default_log
    from tt.chronus.search.verdict_log import VerdictLog, plain, read

    with open_history(args) as history:
        path = default_log(history)
        if not path.exists():
            raise TTError(f"nothing was probed yet: there is no {path}")
        about = ""
        for entry in VerdictLog(history, None).entries(read(path)):
            if args.json:
                print(json.dumps(plain(entry)))
                continue
            if entry.about != about:
                about = entry.about
                print(f"# {printable(about)}")
            print(_line(history, entry))
    return 0


def _line(history: History, entry: Entry) -> str:
    verdict = entry.verdict
    what = verdict.outcome.value + (f" ({printable(verdict.signature)})" if verdict.signature else "")
    there = history.first <= entry.instant <= history.count
    where = history.describe(entry.instant) if there else f"w{entry.instant} · squashed"
    sample = ", may be wrong" if entry.kind == "sample" else ""
    return f"{what:<6} {where}  [{verdict.seconds:.1f} s{sample}]"


def _replay(args: argparse.Namespace, source: Path) -> int:
    from tt.chronus.search.bisect import default_log
    from tt.chronus.search.verdict_log import VerdictLog, plain, read

    with open_history(args) as history:
        path = default_log(history)
        log = VerdictLog(history, path)
        there = list(read(path)) if path.exists() else []
        known = {json.dumps({**plain(entry), "trace": ""}) for entry in log.entries(iter(there))}
        taken = strange = 0
        for entry in list(read(source)):
            if json.dumps({**plain(entry), "trace": ""}) in known:
                continue
            if log.take_over(entry):
                taken += 1
            else:
                strange += 1
        if log.trouble:
            raise TTError(log.trouble)
    if args.json:
        print_json({"taken": taken, "strange": strange, "log": str(path)})
    else:
        print(f"took over {format_count(taken, 'verdict')}: a search with the same probe goes on from them")
    if strange:
        print(
            f"chronus: {format_count(strange, 'verdict')} left out: "
            f"{args.trace} has other writes at those instants",
            file=sys.stderr,
        )
    return 0 if taken or not strange else 1
