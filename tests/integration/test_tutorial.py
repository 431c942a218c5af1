"""The tutorial: every command in it prints what the page shows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_rig import ROOT

NOT_HERE = 77


def test_every_command_prints_what_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate_tutorial.py", "--check"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout
