"""How long the commands take to start: medians of runs that take turns, and as multiples of `python -c pass`.

    python benchmarks/startup.py [--rounds 15]

Bars: `tt --help` at most 0.15 s, `tt replay TRACE --batch where` at most 0.3 s, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARS_S = {"tt --help": 0.15, "tt replay --batch where": 0.3}


def cpu_seconds() -> float:
    """Return how long the processes that have ended kept a CPU busy."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "demo.tt"
        tt = [sys.executable, "-m", "tt.cli.main"]
        subprocess.run([*tt, "demo", "--keep"], cwd=folder, capture_output=True, check=True)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "tt --help": [*tt, "--help"],
            "chronus --help": [sys.executable, "-m", "tt.cli.chronus.main", "--help"],
            "tt info": [*tt, "info", str(trace)],
            "tt replay --batch where": [*tt, "replay", str(trace), "--batch", "where"],
        }
        wall: dict[str, list[float]] = {name: [] for name in commands}
        cpu: dict[str, list[float]] = {name: [] for name in commands}
        # As installed programs run: from compiled modules.
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/cache"}
        for number in range(options.rounds + 1):  # the first fills the cache and is not counted
            for name, command in commands.items():
                before, began = cpu_seconds(), time.perf_counter()
                subprocess.run(command, env=environment, capture_output=True, check=True)
                took, after = time.perf_counter() - began, cpu_seconds()
                if number:
                    wall[name].append(took)
                    cpu[name].append(after - before)
        medians = {
            name: {"wall_s": statistics.median(wall[name]), "cpu_s": statistics.median(cpu[name])}
            for name in commands
        }
    if options.json:
        print(json.dumps(medians))
        return
    base = medians["python -c pass"]["wall_s"]
    print(f"| {'command':<24} | wall, s | cpu, s | times python | bar, s |")
    print(f"|{'-' * 26}|--------:|-------:|-------------:|-------:|")
    for name, found in medians.items():
        times, bar = found["wall_s"] / base, BARS_S.get(name, "")
        print(
            f"| {name:<24} | {found['wall_s']:>7.3f} | {found['cpu_s']:>6.3f} | {times:>12.1f} | {bar:>6} |"
        )


if __name__ == "__main__":
    main()
