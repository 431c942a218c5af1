"""A fork in the middle of a Debian guest: another kernel name, other commands, and all of it replays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tt.events import Kind
from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.branches.compare import first_difference
from tt.travel.branches.family import family
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource


@pytest.mark.slow
def test_another_kernel_name_and_other_commands(debian_image: Path, tmp_path: Path) -> None:
    boot = tmp_path / "boot.tt"
    source = LiveSource(script=[b"echo parent was here\n"])
    record(configure(debian_image, epoch=1_700_000_000), boot, source)
    with Trace.open(boot) as trace:
        typed = next(event.tick for event in trace.events(kinds={Kind.INPUT}))
        timeline = Timeline(trace)
        timeline.seek(typed)
        before = timeline.digest()
        fork = timeline.fork(script=[b"uname -v\n", b"echo fork was here\n"])
        assert fork.digest() == before == timeline.digest()
        ram = fork.read_physical(0, fork.machine.engine.size)
        places = [match.start() for match in re.finditer(rb"SMP PREEMPT_DYNAMIC", ram)]
        for place in places:
            fork.write(place, b"TT!", physical=True)
        assert places and fork.run(until_prompt=True).reason == "prompt"
        met = fork.tick, fork.digest()
        child = fork.close()
        with timeline.fork(keep_inputs=True) as same:
            same.run(until=trace.end_tick)
            timeline.seek(trace.end_tick)
            assert same.digest() == timeline.digest()
    for path in (child, same.path):
        with Trace.open(path) as opened:
            verdict = verify(opened)
            assert verdict.good, verdict
    with Trace.open(child) as opened, Trace.open(boot) as trace:
        printed = "\n".join(line for _tick, _unit, line in opened.console_lines())
        assert "TT! PREEMPT_DYNAMIC" in printed and "fork was here" in printed
        assert "parent was here" not in printed
        there = Timeline(opened)
        there.seek(met[0])
        assert there.digest() == met[1]
        parting = first_difference(Timeline(trace), there)
        assert parting.tick == typed + 1
        assert parting.right_event is not None and parting.right_event[1].kind is Kind.EDIT_MEMORY
        assert {each.part for each in parting.differences} >= {"memory"}
    assert family(child).root.path == boot
