"""The tutorial: every command in it prints what the page shows, and the hunt works with any compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import ROOT

from tt.guests import denali
from tt.log import Trace
from tt.recording import record
from tt.symbols import for_timeline
from tt.travel import Timeline
from tt.vmm.configure import configure

NOT_HERE = 77
JOBS, JOB_BYTES, NEXT = 12, 40, 32  # guests/denali/bug.c
FIRST_EPOCH = 1_700_000_001


@pytest.mark.slow
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


def test_the_bug_can_be_found(tmp_path: Path) -> None:
    """Whatever the compiler made of it: some runs fail, some do not; the culprit is found."""
    denali.build(tmp_path)
    ends = {}
    for epoch in range(FIRST_EPOCH, FIRST_EPOCH + 30):
        path = tmp_path / f"{epoch}.tt"
        result = record(configure(denali.bug_guest(tmp_path), epoch=epoch), path)
        ends[result.reason] = path
        if len(ends) == 2:
            break
    assert set(ends) == {"terminated with status 0", "terminated with status 1"}
    with Trace.open(ends["terminated with status 1"]) as trace:
        timeline = Timeline(trace)
        timeline.seek(timeline.end_tick)
        names = for_timeline(timeline)
        queue, jobs = names.find("queue"), names.find("jobs")
        assert queue is not None and jobs is not None
        first = timeline.read(queue, 8)
        assert (int.from_bytes(first, "little") - jobs) % JOB_BYTES  # no job begins there
        taken = timeline.last_write(queue)
        assert taken is not None and names.describe(taken.rip).startswith("take_job+")
        timeline.seek(taken.tick)
        broken = [
            addr
            for addr in range(jobs + NEXT, jobs + JOBS * JOB_BYTES, JOB_BYTES)
            if timeline.read(addr, 8) == first
        ]
        assert len(broken) == 1
        culprit = timeline.last_write(broken[0])
        assert culprit is not None and names.describe(culprit.rip).startswith("write_stamp+")
        assert taken.tick - culprit.tick > 10_000
