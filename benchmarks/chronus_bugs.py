"""Real configuration bugs on a Debian server: writes searched, probes run, seconds, the file named.

First builds the server and records it at work (two minutes; needs root and debootstrap).  `--jobs N` runs N
probes at a time; each search goes down to the single write.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side as bench

sys.path[:0] = [str(bench.ROOT / "tests" / folder) for folder in ("integration", "tools")]


def main() -> int:
    """Search for each bug and print a table; return 1 where one was not found, or named another file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--life", type=Path, help="the recording, if there is one (default: made anew)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="only bugs whose names contain this text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tt-bugs-") as folder:
        life = options.life or made(Path(folder))
        facts = []
        for bug in _bugs(options.only):
            facts.append(search(life, bug, options.jobs))
            print(*list(facts[-1].values())[:-1], sep="  ", file=sys.stderr, flush=True)
    table = bench.Table(
        f"Bugs found, {options.jobs} probes at a time",
        ("bug", "kind", "probe", "writes", "bursts", "probes run", "shared", "seconds", "file named"),
    )
    for fact in facts:
        table.add(
            *(f"{value:,}" if isinstance(value, int) else str(value) for value in list(fact.values())[:-1])
        )
    bench.report(options.json, [table], {"bugs": facts})
    return int(not all(fact["right"] for fact in facts))


def made(folder: Path) -> Path:
    """Build the server and record it at work."""
    from chronus_bugs import script_image
    from server_image import build
    from test_chronus_bugs import live

    build(folder)
    live(folder / "server.img", script_image(folder / "life.img"), folder / "life.tt")
    return folder / "life.tt"


def search(life: Path, bug: Any, jobs: int) -> dict[str, Any]:
    """Find one bug, searching from the first good instant of the whole recording."""
    from chronus_bugs import milestones
    from test_chronus_bugs import probe_of, span_of

    from tt.chronus.search.bisect import Options, bisect
    from tt.chronus.store.history import History
    from tt.chronus.why.finding import explain

    with History.open(life) as history:
        at = {text: history.instant_at_tick(tick) for text, tick in milestones(history.trace).items()}
        _good, bad, step, done = span_of(bug, history)
        good = at["DONE start"]
        if not bug.mends and bug.judged_at_the_end:
            bad = at["DONE end"]
        begin = time.perf_counter()
        found = bisect(history, probe_of(bug, history), good, bad, Options(keep=False, jobs=jobs))
        seconds = time.perf_counter() - begin
        turn = found.turns[0]
        paths = explain(history, turn, None, found, author=False).paths
        named = bug.guilty if bug.guilty in paths else (paths[0] if paths else "none")
        return {
            "bug": bug.name,
            "kind": bug.kind,
            "probe": f"--{bug.how}",
            "writes": bad - good,
            "bursts": len(history.bursts(good, bad)),
            "probes run": found.ran,
            "shared": found.shared,
            "seconds": f"{seconds:.0f}",
            "file named": named,
            "right": step < turn.after <= done and bug.guilty in paths,
        }


def _bugs(only: str | None) -> list[Any]:
    from chronus_bugs import BUGS

    return [bug for bug in BUGS if only is None or only in bug.name]


if __name__ == "__main__":
    sys.exit(main())
