"""Benchmarks are run by people; here only that they run, and print what programs can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from adversary_rig import ROOT

HELPERS = {"side_by_side", "one_run", "travel_report", "qemu_reverse", "all"}
SCRIPTS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - HELPERS)


def test_they_are_all_known() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert len(SCRIPTS) >= 4 and all(f"{name}.py" in readme for name in SCRIPTS)


# Of those that do not take --guest, --ticks and --rounds: what makes them quick.
QUICK = {
    "chronus_store": ["--writes", "2000", "--reads", "50"],
    "chronus_bisect": ["--writes", "3000", "--searches", "4"],
    "far_write": ["--rounds", "2", "--guest", "DEBIAN", "--ticks", "100000000"],
    "guest_disk": ["--rounds", "1", "--guest", "DEBIAN"],
    "startup": ["--rounds", "2"],
    "network": ["--rounds", "1", "--guest", "DEBIAN", "--size", "1", "--requests", "20"],
    "denali_network": ["--rounds", "1", "--frames", "64"],
    "switch": ["--rounds", "1", "--frames", "200"],
}
# It builds a server and searches for minutes; test_chronus_bugs.py does the same.
LONG = {"chronus_bugs"}


@pytest.mark.slow
@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in LONG])
def test_it_runs(debian_image: Path, script: str) -> None:
    quick = QUICK.get(script, ["--guest", "DEBIAN", "--ticks", "1000000", "--rounds", "2"])
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py")]
    command += [str(debian_image.parent) if word == "DEBIAN" else word for word in quick]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    as_json = SCRIPTS.index(script) % 2 == 1  # the other half as tables: one function prints for all
    command += ["--json"] * as_json
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    if as_json:
        assert len(json.loads(done.stdout)) >= 2 or json.loads(done.stdout)["runs"]
    else:
        assert "|--" in done.stdout or "writes" in done.stdout


@pytest.mark.slow
def test_all_of_them_print_one_page(debian: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "all.py"), "--only", "recording", "bookkeeping"]
    command += ["--ticks", "1000000", "--guest", str(debian.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(f"## {name}.py" in done.stdout for name in ("recording", "bookkeeping"))
    assert done.stdout.startswith("# Benchmarks") and " UTC by " in done.stdout and "|--" in done.stdout


def test_all_of_them_means_all() -> None:
    text = (ROOT / "benchmarks" / "all.py").read_text()
    assert all(f'"{name}"' in text for name in SCRIPTS)
