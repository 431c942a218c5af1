"""A shell's session in a recording of the demo guest, with no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.log import Trace
from tt.shell import Session


@pytest.fixture
def session(demo_trace: Path, tmp_path: Path) -> Iterator[Session]:
    """Return a session at the middle of a copy of the demo's recording."""
    path = tmp_path / "demo.tt"
    path.write_bytes(demo_trace.read_bytes())
    with Trace.open(path) as trace:
        opened = Session(trace)
        opened.timeline.seek(trace.end_tick // 2)
        yield opened
        opened.close()
