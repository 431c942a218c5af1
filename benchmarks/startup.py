"""How long the commands take to start: medians of runs that take turns, and as multiples of `python -c pass`.

    python benchmarks/startup.py [--rounds 15]

Bars: `tt --help` at most 0.15 s, `tt replay TRACE --batch where` at most 0.3 s, on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cpu_seconds() -> float:
    """Return how long the processes that have ended kept a CPU busy."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
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
        for number in range(rounds + 1):  # the first fills the cache and is not counted
            for name, command in commands.items():
                before, began = cpu_seconds(), time.perf_counter()
                subprocess.run(command, env=environment, capture_output=True, check=True)
                took, after = time.perf_counter() - began, cpu_seconds()
                if number:
                    wall[name].append(took)
                    cpu[name].append(after - before)
        base = statistics.median(wall["python -c pass"])
        print(f"{'':<26}{'wall, s':>9}{'cpu, s':>9}{'times python':>15}")
        for name, times in wall.items():
            median = statistics.median(times)
            print(f"{name:<26}{median:>9.3f}{statistics.median(cpu[name]):>9.3f}{median / base:>15.1f}")


if __name__ == "__main__":
    main()
