"""Bisecting the boot of a real kernel: its own symbols, its own state, and what it printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot

from tt.log import Trace
from tt.symbols import for_timeline
from tt.travel import Timeline
from tt.travel.bisect import bisect, cause, watched_transitions
from tt.travel.expressions import compile_condition, evaluate, evaluate_any
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

SCHEDULING, RUNNING = 1, 3  # enum system_states, include/linux/kernel.h


@pytest.fixture(scope="module")
def timeline(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timeline]:
    """Return a timeline of the boot, up to the kernel's last words before it starts init."""
    path = tmp_path_factory.mktemp("debian") / "boot.tt"
    config = configure_pc(debian_image, mem_bytes=128 << 20, epoch=EPOCH)
    Boot(config, path, until=b"/init as init process")
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        timeline.seek(trace.end_tick)
        yield timeline


def test_the_kernels_own_state(timeline: Timeline) -> None:
    names = for_timeline(timeline)
    running = compile_condition(f"*(int*)system_state >= {RUNNING}", names)
    verdict = bisect(timeline, 0, timeline.end_tick, running)
    assert verdict.tick is not None and verdict.monotonic
    found = cause(timeline, verdict.tick)
    assert (names.at(found.addr) or ("", 0))[0] == "kernel_init"
    assert evaluate("*(int*)system_state", timeline, names) == RUNNING
    timeline.seek(verdict.tick - 1)
    assert SCHEDULING <= evaluate("*(int*)system_state", timeline, names) < RUNNING
    assert running.places is not None
    every = watched_transitions(timeline, 0, timeline.end_tick, running, running.places)
    assert [(change.earliest, change.latest, change.bad) for change in every.changes] == [
        (verdict.tick, verdict.tick, True)
    ]


def test_what_it_printed_to_the_byte(timeline: Timeline) -> None:
    verdict = bisect(timeline, 0, timeline.end_tick, compile_condition('console ~ "Linux version [0-9]"'))
    assert verdict.tick is not None
    printed = evaluate_any("console", timeline)
    assert isinstance(printed, bytes) and printed[-1:].isdigit()
    assert b"Linux version " + printed[-1:] == printed[-15:]
    timeline.seek(verdict.tick - 1)
    assert evaluate_any("console", timeline) == printed[:-1]
    found = cause(timeline, verdict.tick)
    assert found.code[:1] == b"\xee"  # out dx, al
