"""Random travel while frames come and go: every place is the same however it was reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cycles_rig import Reference, Walker, reference
from denali_net_rig import ECHO, Wires, build, net_config, record_net, shower

from tt.events import Kind
from tt.log import BackgroundWriter, Trace


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reference, Trace]]:
    """Record a guest with a card of each model that sends everything back, a cable pulled meanwhile."""
    folder = tmp_path_factory.mktemp("cycles")
    later = shower(3, 200, [4096, 1518])
    later += [(3_000_000, 0, False), (3_100_000, 0, True), (6_000_000, 1, False), (6_200_000, 1, True)]
    wires = Wires(later=later)
    path = folder / "echo.tt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tt.vmm.spacing.TICKS_PER_PAGE", 10)
        patch.setattr(BackgroundWriter, "behind", False)  # the same checkpoints each time
        record_net(
            net_config(build(folder, ECHO), "denali", "classic"), path, wires, checkpoint_ticks=200_000
        )
    with Trace.open(path) as trace:
        assert len(trace.checkpoints) > 5
        assert {event.unit for event in trace.events() if event.kind is Kind.FRAME_OUT} == {0, 1}
        yield reference(trace, 500, 500), trace


def walk(ground: tuple[Reference, Trace], seed: int, cycles: int, folder: Path) -> None:
    known, trace = ground
    openings: list[tuple[Trace, dict[str, Any]]] = [
        (trace, {}),
        (trace, {"spacing_ticks": 100_000}),
        (trace, {"memory_budget": 1}),
        (trace, {"checkpoints": False}),
    ]
    Walker(known, openings, seed, folder, span=1_000_000).walk(cycles)
    known.confirm()


def test_cycles(ground: tuple[Reference, Trace], tmp_path: Path) -> None:
    walk(ground, 0, 15, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_many_cycles(ground: tuple[Reference, Trace], seed: int, tmp_path: Path) -> None:
    walk(ground, seed, 500, tmp_path)
