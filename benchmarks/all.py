"""Every benchmark in turn, as the page `docs/benchmarks.md`: run it on a machine with nothing else to do.

    python benchmarks/all.py > page.md

It begins with the date, the commit and the machine.  Where a script fails, its section says so, and the exit
code is 1.  On a terminal, standard error names the script that runs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import side_by_side as bench

SCRIPTS = (
    "boot_vs_qemu", "recording", "travel", "far_write", "bookkeeping", "engine", "startup",
    "chronus_store", "chronus_bisect", "guest_disk", "nbd", "network", "denali_network", "switch",
    "chronus_bugs",
)  # fmt: skip
TIME_OUT_S = 3 * 3600


def output(*command: str) -> str:
    """Return what a command prints, or nothing where it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=bench.ROOT, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def state_of_the_code() -> str:
    """Return the commit, and whether files differ from it."""
    commit = output("git", "rev-parse", "--short=12", "HEAD") or "an unknown commit"
    return (
        f"{commit}, with changes that are not committed"
        if output("git", "status", "--porcelain", "-uno")
        else commit
    )


def processor() -> str:
    """Return the name of the host's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run(script: str, options: list[str]) -> bool:
    """Run one script and print its section; false if it fails."""
    print(f"## {script}.py\n", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *options]
    environment = {**os.environ, "PYTHONPATH": str(bench.ROOT)}
    begin = time.monotonic()
    if sys.stderr.isatty():
        print(f"{script}.py", file=sys.stderr)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, timeout=TIME_OUT_S, text=True)
    except subprocess.TimeoutExpired:
        print(f"No answer within {TIME_OUT_S} s.\n", flush=True)
        return False
    print(done.stdout.strip() + "\n")
    if done.returncode:
        print(f"It failed with code {done.returncode}.\n")
    print(f"It ran for {time.monotonic() - begin:.0f} s.\n", flush=True)
    return not done.returncode


def main() -> int:
    """Run all scripts, or those named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--ticks", help="quick look: passed to the scripts that take it, with one round")
    parser.add_argument("--rounds", help="passed to the scripts that take it")
    parser.add_argument("--guest", help="folder with debian.img: passed to the scripts that take it")
    options = parser.parse_args()
    now = datetime.datetime.now(datetime.UTC)
    print(f"# Benchmarks\n\nPrinted on {now:%Y-%m-%d} at {now:%H:%M} UTC by `benchmarks/all.py`,")
    print(f"of {state_of_the_code()}.")
    print(
        f"{os.cpu_count()} x {processor()}, Linux {platform.release()}, Python {platform.python_version()}."
    )
    print(f"Load before it began: {os.getloadavg()[0]:.2f}.\n", flush=True)
    good = True
    for script in options.only:
        text = Path(__file__).with_name(f"{script}.py").read_text()
        more = []
        if "bench.arguments(" in text:
            more += ["--guest", options.guest] if options.guest else []
            more += (
                ["--ticks", options.ticks, "--rounds", "1"]
                if options.ticks and "ticks=False" not in text
                else ["--rounds", options.rounds]
                if options.rounds
                else []
            )
        good = run(script, more) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
