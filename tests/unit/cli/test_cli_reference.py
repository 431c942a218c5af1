"""docs/cli.md says what the help says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.version_info[:2] not in ((3, 11), (3, 12)), reason="other help texts in argparse")
def test_the_reference_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate_cli.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
