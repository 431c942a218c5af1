"""Where places are kept: about as far apart in host time, or in ticks where that is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tt.vmm.engine import FOREVER
from tt.vmm.machine import Machine
from tt.vmm.spacing import DISTANCE_NS, TICKS_PER_PAGE, Spacing


class Engine:
    def __init__(self) -> None:
        self.statistics = dict.fromkeys(("tlb_fills", "blocks_made", "blocks_revived", "io_exits"), 0)


def machine() -> Any:
    return SimpleNamespace(tick=5, engine=Engine())


def run(spacing: Spacing, here: Any, ticks: int, **each_million: int) -> list[int]:
    """Run as a recorder does; return the ticks at which a place is kept."""
    kept, end = [], here.tick + ticks
    while spacing.next <= end:
        assert spacing.next > here.tick
        for name, count in each_million.items():
            here.engine.statistics[name] += count * (spacing.next - here.tick) // 1_000_000
        here.tick = spacing.next
        if spacing.due():
            kept.append(here.tick)
            spacing.kept()
    return kept


def gap(ticks: list[int]) -> int:
    gaps = {b - a for a, b in zip(ticks, ticks[1:], strict=False)}
    assert len(gaps) == 1
    return gaps.pop()


def test_slow_ground_has_more_places() -> None:
    plain, filling, translating, talking = (
        gap(run(Spacing(cast(Machine, here)), here, 200_000_000, **what))
        for here, what in [
            (machine(), {}),
            (machine(), {"tlb_fills": 10_000}),
            (machine(), {"blocks_made": 200}),
            (machine(), {"io_exits": 1_000}),
        ]
    )
    assert plain == DISTANCE_NS * 2 // 5
    assert filling < plain // 2 and translating < plain * 2 // 3 and talking < plain // 2


def test_pages_that_were_stored_put_the_next_place_off() -> None:
    here = machine()
    spacing = Spacing(here)
    spacing.kept(pages=20_000)
    assert run(spacing, here, 60_000_000)[0] == 5 + 20_000 * TICKS_PER_PAGE


@pytest.mark.parametrize("ticks", [1, 1_000, 3_000_000])
def test_ticks_are_kept_to(ticks: int) -> None:
    here = machine()
    assert run(Spacing(here, ticks), here, 5 * ticks, tlb_fills=10**6) == [5 + k * ticks for k in range(1, 6)]
    spacing = Spacing(here, ticks)
    spacing.put_off()
    assert here.tick < spacing.next <= here.tick + ticks


def test_none_at_all() -> None:
    here = machine()
    assert Spacing(here, 0).next == FOREVER
