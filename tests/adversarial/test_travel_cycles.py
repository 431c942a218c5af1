"""Random travel through recordings: every place is the same however it was reached."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adversary_rig import debian_config, demo_config
from cycles_rig import Reference, Walker, reference

from tt.log import BackgroundWriter, Trace
from tt.log.checkpoints import CheckpointWriter
from tt.recording import record
from tt.travel import Timeline
from tt.travel.stops import Catchpoint
from tt.vmm.config import MachineConfig
from tt.vmm.live import LiveSource, seeded_entropy

DEMO_CYCLES, DEMO_PARTS = 5_000, 10
DEBIAN_CYCLES, DEBIAN_PARTS = 250, 2
DEBIAN_TICKS = 400_000_000


@dataclass
class Ground:
    """A reference, and the ways to open a timeline on what it is of."""

    reference: Reference
    openings: list[tuple[Trace, dict[str, Any]]]
    span: int


def recorded(
    config: MachineConfig,
    path: Path,
    *,
    every: int,
    ticks_per_page: int,
    most: int = 1000,
    **options: Any,
) -> Path:
    """Record with a checkpoint about every `every` ticks, the trace thinned to `most` of them."""
    defaults = CheckpointWriter.__init__.__kwdefaults__
    assert defaults is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tt.vmm.spacing.TICKS_PER_PAGE", ticks_per_page)
        patch.setattr(BackgroundWriter, "behind", False)  # the same checkpoints each time
        patch.setitem(defaults, "most", most)
        record(config, path, checkpoint_ticks=every, entropy=seeded_entropy(1), **options)
    return path


@pytest.fixture(scope="module")
def demo_ground(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("walks")
    config = demo_config(demo, disk_bytes=8 * 4096)
    ways: dict[str, dict[str, int]] = {
        "none": {"every": 1 << 40, "ticks_per_page": 1},
        "many": {"every": 300_000, "ticks_per_page": 10},
        "thinned": {"every": 200_000, "ticks_per_page": 10, "most": 7},
    }
    with ExitStack() as stack:
        traces = {}
        for name, how in ways.items():
            source = LiveSource(script=[b"typed\n"], prompts=False)
            path = recorded(config, folder / f"{name}.tt", source=source, **how)
            traces[name] = stack.enter_context(Trace.open(path))
        assert not traces["none"].checkpoints
        assert len(traces["many"].checkpoints) > 30
        assert 2 < len(traces["thinned"].checkpoints) <= 7
        assert len({trace.end_tick for trace in traces.values()}) == 1
        options: list[dict[str, Any]] = [
            {},
            {"spacing_ticks": 1_000_000},
            {"spacing_ticks": 150_000, "memory_budget": 1 << 20},
            {"spacing_ticks": 400_000, "memory_budget": 1},
        ]
        openings = [(trace, how) for trace in traces.values() for how in options]
        openings.append((traces["many"], {"checkpoints": False}))
        yield Ground(reference(traces["none"], 3_000, 10_000), openings, 6_000_000)


@pytest.fixture(scope="module")
def debian_ground(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    path = recorded(
        debian_config(debian_image, mem_bytes=160 << 20),
        tmp_path_factory.mktemp("walks") / "debian.tt",
        every=20_000_000,
        ticks_per_page=1_000,
        max_ticks=DEBIAN_TICKS,
    )
    with Trace.open(path) as trace:
        assert len(trace.checkpoints) > 8
        openings: list[tuple[Trace, dict[str, Any]]] = [
            (trace, {}),
            (trace, {"spacing_ticks": 5_000_000, "memory_budget": 64 << 20}),
            (trace, {"memory_budget": 1}),
        ]
        yield Ground(reference(trace, 300, 100), openings, 15_000_000)


def walk(ground: Ground, seed: int, cycles: int, folder: Path, forks: int = 2) -> Walker:
    """Walk, and replay once more to all the places that the walk came to."""
    walker = Walker(ground.reference, ground.openings, seed, folder, span=ground.span, forks=forks)
    walker.walk(cycles)
    assert ground.reference.confirm() > cycles // 10
    return walker


@pytest.mark.parametrize("seed", range(1))
def test_demo(demo_ground: Ground, seed: int, tmp_path: Path) -> None:
    walk(demo_ground, seed, 100, tmp_path)


# ---- what such walks have found


def test_single_steps_agree_with_a_straight_run(demo_ground: Ground) -> None:
    """While TLB misses come and go: flags put back after one showed in the next frame, till the next stop."""
    trace, _options = demo_ground.openings[0]
    straight, stepping = Timeline(trace), Timeline(trace)
    chance = random.Random(1)
    for _ in range(40):
        goal = int(trace.end_tick * chance.uniform(0.97, 0.99))
        straight.seek(goal - 2_000)
        straight.seek(goal)
        stepping.seek(goal - 100)
        for _ in range(100):
            stepping.step()
        assert stepping.digest() == straight.digest(), goal


def test_reading_at_the_end_of_the_address_space(demo_ground: Ground) -> None:
    """With paging off an address there is physical, and its end wraps around."""
    timeline = Timeline(demo_ground.openings[0][0])
    with pytest.raises(IndexError, match="not mapped"):
        timeline.read((1 << 64) - 32, 64)


def test_all_that_is_caught_at_a_tick_is_told(demo_ground: Ground) -> None:
    timeline = Timeline(demo_ground.openings[0][0])
    for point in (Catchpoint("console", pattern="\n"), Catchpoint("device", device="console")):
        timeline.stops.add(point)
    there = timeline.proceed()
    while there.reason == "catch" and len(there.points) < 2:
        there = timeline.proceed()
    timeline.step()
    back = timeline.reverse_proceed()
    assert len(there.points) == 2 and (back.tick, set(back.points)) == (there.tick, set(there.points))


# ---- the long walks


@pytest.mark.slow
@pytest.mark.parametrize("part", range(DEMO_PARTS))
def test_demo_5000(demo_ground: Ground, part: int, tmp_path: Path) -> None:
    walk(demo_ground, 1_000 + part, DEMO_CYCLES // DEMO_PARTS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(DEBIAN_PARTS))
def test_debian_250(debian_ground: Ground, part: int, tmp_path: Path) -> None:
    walk(debian_ground, 2_000 + part, DEBIAN_CYCLES // DEBIAN_PARTS, tmp_path, forks=1)
