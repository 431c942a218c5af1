"""Benchmarks are run by people; here only that they run, and print what programs can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from adversary_rig import ROOT

HELPERS = {"side_by_side", "one_run", "travel_report", "qemu_reverse"}
SCRIPTS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - HELPERS)


def test_they_are_all_known() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert len(SCRIPTS) >= 4 and all(f"{name}.py" in readme for name in SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(debian: Path, script: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--guest", str(debian.parent)]
    command += ["--ticks", "1000000", "--rounds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        if more:
            assert json.loads(done.stdout)["runs"]
        else:
            assert "|--" in done.stdout
