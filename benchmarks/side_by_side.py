"""What the benchmarks share: runs interleaved A B, B A, A B, ..., medians with their range, tables.

Machines are noisy, so a number alone says little.  Contenders take turns, the
first of a round being the second of the next, and a ratio is the median of the
ratios within each round: what slows one run down likely slows its neighbour too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EPOCH = 1_700_000_000  # the guest's wall clock at power-on, the same in every run


@dataclass(frozen=True)
class Run:
    """One process or piece of work: wall and CPU seconds (all its threads), and the facts it reported."""

    wall_s: float
    cpu_s: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, and the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize `values`."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 2) -> str:
        """Return `median (low-high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def take_turns(contenders: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run every contender once a round, in an order that is reversed each round."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            if sys.stderr.isatty():
                print(f"\r\033[Kround {number + 1} of {rounds}: {name}", end="", file=sys.stderr, flush=True)
            runs[name].append(contenders[name]())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return runs


def spread(runs: Sequence[Run], what: str = "wall_s") -> Spread:
    """Summarize `wall_s`, `cpu_s` or a fact of some runs."""
    return Spread.of([getattr(run, what) if what in ("wall_s", "cpu_s") else run.facts[what] for run in runs])


def ratio(these: Sequence[Run], those: Sequence[Run], what: str = "wall_s") -> Spread:
    """Summarize the ratios of two contenders, round by round."""
    pairs = zip(these, those, strict=True)
    return Spread.of([spread([a], what).median / spread([b], what).median for a, b in pairs])


def run_process(command: Sequence[str], *, until: bytes | None = None, timeout_s: float = 600) -> Run:
    """Run a process to its end and return its time; its last line of output, if JSON, becomes the facts.

    With `until`, it is told to terminate once it has printed that.  Raises
    `SystemExit` with what it said if it fails, and after `timeout_s` without output.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        watchdog = _Watchdog(process, timeout_s)
        assert process.stdout is not None
        output, asked = b"", False
        with watchdog:
            while data := os.read(process.stdout.fileno(), 1 << 16):
                output += data
                if until is not None and not asked and until in output:
                    asked = True
                    process.send_signal(signal.SIGTERM)
            _pid, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if (process.returncode != 0 and not asked) or (until is not None and not asked):
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            sys.exit(f"{command[0]} ended with code {process.returncode}: {said[-2000:] or output[-300:]!r}")
    facts = {}
    last = output.rsplit(b"\n", 2)[-2:]
    for line in last:
        if line.startswith(b"{"):
            facts = json.loads(line)
    return Run(wall, usage.ru_utime + usage.ru_stime, facts)


class _Watchdog:
    """Kills a process that takes too long."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        import threading

        self._timer = threading.Timer(seconds, process.kill)

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def tt_run(work: str, **options: object) -> list[str]:
    """Return the command that does one piece of work in a process of its own; see `benchmarks/one_run.py`."""
    return [sys.executable, str(ROOT / "benchmarks" / "one_run.py"), work, json.dumps(options, default=str)]


@dataclass
class Table:
    """Rows of text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def print(self) -> None:
        """Print the table in Markdown, its columns aligned."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def cell(text: str, i: int) -> str:
            return text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])

        print(f"{self.title}\n")
        for number, line in enumerate(lines):
            print("| " + " | ".join(cell(text, i) for i, text in enumerate(line)) + " |")
            if not number:
                print("|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|")
        print()


def arguments(about: str, rounds: int, *, ticks: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"runs of each contender (default {rounds})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--guest", type=Path, help="folder with debian.img (default: built once, and cached)")
    if ticks:
        parser.add_argument("--ticks", type=int, help="stop each guest there: a quick look, not a result")
    return parser


def report(as_json: bool, tables: Sequence[Table], facts: Mapping[str, Any]) -> None:
    """Print the tables, or `facts` as JSON."""
    if as_json:
        print(json.dumps(dict(facts), default=lambda value: asdict(value), indent=1))
        return
    for table in tables:
        table.print()


def debian_guest(given: Path | None) -> Path:
    """Return the folder of the Debian guest: `given`, or one in tt's cache, built if it is not there."""
    from tt.guests import debian
    from tt.guests.apt import cache_directory

    folder = given or cache_directory() / f"guest-debian-{debian.recipe()}"
    if not (folder / "debian.img").exists():
        print(f"building the Debian guest in {folder}", file=sys.stderr)
        debian.build(folder)
    return folder


def denali_demo(folder: Path) -> Path:
    """Build the Denali demo guest in `folder` and return its ELF file."""
    from tt.guests import denali

    return denali.build(folder)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="tt-bench-") as name:
        yield Path(name)
