"""Bisection over a timeline that is nothing but ticks: exact, honest about skips and contradictions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt.errors import UsageError
from tt.travel.bisect import BisectError, BisectResult, JudgedTick, Transitions, all_transitions, bisect

END = 1_000_000


class Ticks:
    """As much of a timeline as a bisection uses; `cost` counts ticks that would be run."""

    def __init__(self, checkpoints: Iterable[int] = range(0, END, 50_000)) -> None:
        self.tick = 123
        self.end_tick = END
        self.checkpoint_ticks = sorted(checkpoints)
        self.progress: Callable[[int], None] | None = None
        self.cost = 0
        self.seeks: list[int] = []

    def seek(self, tick: int) -> None:
        assert 0 <= tick <= END
        if self.progress is not None:
            self.progress(tick)
        nearest = self.checkpoint_ticks[max(bisect_right(self.checkpoint_ticks, tick) - 1, 0)]
        self.cost += tick - (self.tick if nearest <= self.tick <= tick else nearest)
        self.seeks.append(tick)
        self.tick = tick


Judge = Callable[[int], bool | None]


def find(
    judge: Judge, good: int = 0, bad: int = END, timeline: Ticks | None = None, **how: int
) -> BisectResult:
    there = timeline or Ticks()
    return bisect(there, good, bad, lambda here: judge(here.tick), **how)  # type: ignore[arg-type]


def changes(judge: Judge, first: int = 0, last: int = END, every: int = 1000) -> Transitions:
    return all_transitions(Ticks(), first, last, lambda here: judge(here.tick), every=every)  # type: ignore[arg-type]


# ---- one change


@given(st.integers(0, END), st.integers(0, END), st.data(), st.sampled_from([1, 3, 50_000, 2 * END]))
def test_the_first_bad_tick_is_exact(one: int, other: int, data: st.DataObject, spacing: int) -> None:
    low, high = sorted((one, other))
    if low == high:
        return
    first_bad = data.draw(st.integers(low + 1, high))
    timeline = Ticks(range(0, END, max(spacing, 1000)))
    verdict = find(lambda tick: tick >= first_bad, low, high, timeline)
    assert (verdict.tick, verdict.becomes_bad, verdict.monotonic) == (first_bad, True, True)
    assert timeline.tick == first_bad
    assert len(verdict.probes) <= 21 + 5 + 16
    fixed = find(lambda tick: tick < first_bad, high, low)
    assert (fixed.tick, fixed.becomes_bad, fixed.monotonic) == (first_bad, False, True)


def test_checkpoints_come_first() -> None:
    timeline = Ticks()
    find(lambda tick: tick >= 333_333, timeline=timeline, checks=0)
    assert timeline.seeks[:2] == [0, END]
    before = [tick for tick in timeline.seeks[2:] if tick % 50_000 == 0]
    assert timeline.seeks[2 : 2 + len(before)] == before and len(before) in (4, 5)
    assert timeline.cost < 50_000 + 16 * 50_000


def test_probes_tell_how_many_are_left() -> None:
    seen: list[JudgedTick] = []
    bisect(Ticks([0]), 0, 1024, lambda here: here.tick >= 700, checks=0, on_probe=seen.append)  # type: ignore[arg-type]
    assert [probe.left for probe in seen] == [10, 10, *range(9, -1, -1)]
    assert [probe.bad for probe in seen[:4]] == [False, True, False, True]


def test_no_tick_is_looked_at_twice() -> None:
    asked: list[int] = []
    verdict = find(lambda tick: asked.append(tick) or tick >= 77_777)  # type: ignore[func-returns-value]
    assert len(asked) == len(set(asked)) == len(verdict.probes)


# ---- nothing to find


@pytest.mark.parametrize(
    ("judge", "good", "bad", "said"),
    [
        (lambda tick: True, 0, 10, "at tick 0, given as good, it is bad: nor would any of the 9 places"),
        (lambda tick: False, 0, END, "at tick 1,000,000, given as bad, it is good: nor would any of the 16"),
        (lambda tick: tick > 5, END, 0, "good and bad are the wrong way round: at tick 1,000,000 it is bad"),
        (lambda tick: tick > 5, 50, END, "at tick 50, given as good, it is bad"),
        (
            lambda tick: 300_000 < tick < 700_000,
            0,
            END,
            "given as bad, it is good: tick 350,000 would do, try",
        ),
        (lambda tick: tick < 400_000, 0, END, "good and bad are the wrong way round"),
        (lambda tick: None if tick == 0 else True, 0, END, "tick 0, given as good, was skipped"),
        (lambda tick: None if tick else False, 0, END, "tick 1,000,000, given as bad, was skipped"),
    ],
)
def test_ends_that_are_not_what_they_should_be(judge: Judge, good: int, bad: int, said: str) -> None:
    timeline = Ticks()
    with pytest.raises(BisectError) as caught:
        find(judge, good, bad, timeline)
    assert said in str(caught.value)
    assert caught.value.exit_code == 1
    assert timeline.tick == 123


def test_the_same_tick_twice() -> None:
    with pytest.raises(UsageError, match="same tick, 5"):
        find(lambda tick: True, 5, 5)


# ---- not monotonic


def test_a_contradiction_is_told() -> None:
    verdict = find(lambda tick: 100_000 <= tick < 400_000 or tick >= 800_000)
    assert verdict.tick in (100_000, 800_000)
    assert not verdict.monotonic
    for probe in verdict.contradictions:
        assert probe.bad == (100_000 <= probe.tick < 400_000 or probe.tick >= 800_000)
        assert probe.bad == (probe.tick < verdict.tick)
    assert find(
        lambda tick: 100_000 <= tick < 400_000 or tick >= 800_000, checks=0
    ).monotonic  # not looked for


@given(st.lists(st.integers(1, END), unique=True, max_size=30).map(sorted), st.booleans())
def test_every_change_that_the_looks_can_see(edges: list[int], starts_bad: bool) -> None:
    def judge(tick: int) -> bool:
        return starts_bad ^ bool(bisect_right(edges, tick) % 2)

    every = 7_919
    found = changes(judge, every=every)
    assert found.starts_bad == starts_bad
    places = [*range(0, END, every), END]
    seen = sum(judge(a) != judge(b) for a, b in zip(places, places[1:], strict=False))
    assert len(found.changes) == seen
    for change in found.changes:
        assert change.earliest == change.latest and change.latest in edges
        assert judge(change.latest) == change.bad != judge(change.latest - 1)


def test_every_tick_hides_nothing() -> None:
    found = changes(lambda tick: tick % 2 == 1, 500, 530, every=1)
    assert [change.latest for change in found.changes] == list(range(501, 531))


def test_transitions_leave_the_cursor_alone_and_check_their_ticks() -> None:
    timeline = Ticks()
    all_transitions(timeline, 0, END, lambda here: here.tick > 9, every=100_000)  # type: ignore[arg-type]
    assert timeline.tick == 123
    with pytest.raises(UsageError):
        changes(lambda tick: True, every=0)
    with pytest.raises(UsageError):
        changes(lambda tick: True, 10, 9)
    with pytest.raises(BisectError, match="every look was skipped"):
        changes(lambda tick: None)


# ---- skips


@given(st.integers(1, END - 1), st.integers(0, 40_000), st.integers(0, 40_000))
def test_a_stretch_of_skips_is_narrowed_to_its_ends(middle: int, before: int, after: int) -> None:
    low, high = max(middle - before, 1), min(middle + after, END - 1)

    def judge(tick: int) -> bool | None:
        return None if low <= tick <= high else tick > high

    verdict = find(judge)
    assert (verdict.earliest, verdict.latest) == (low, high + 1)
    assert verdict.tick is None
    assert verdict.monotonic
    assert len(verdict.probes) < 120


def test_skips_beside_the_change_do_not_matter() -> None:
    def judge(tick: int) -> bool | None:
        return None if tick % 1000 == 0 and 0 < tick < END else tick >= 654_321

    verdict = find(judge)
    assert verdict.tick == 654_321
    lonely = find(lambda tick: None if 400_000 <= tick < 600_000 else tick >= 700_000)
    assert lonely.tick == 700_000
    island = find(lambda tick: None if tick in (499_999, 500_001) else tick >= 500_000)
    assert (island.earliest, island.latest) in ((499_999, 500_000), (500_000, 500_000))


def test_skips_hide_a_transition() -> None:
    found = changes(lambda tick: None if 300_000 <= tick < 310_500 else tick > 305_000)
    [change] = found.changes
    assert (change.earliest, change.latest, change.bad) == (300_000, 310_500, True)
    assert found.skipped > 10


# ---- interrupted


@pytest.mark.parametrize("after", [1, 2, 3, 10])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, UsageError])
def test_whatever_is_raised_leaves_the_cursor(after: int, error: type[BaseException]) -> None:
    timeline = Ticks()
    asked: list[int] = []

    def judge(tick: int) -> bool:
        asked.append(tick)
        if len(asked) == after:
            raise error
        return tick > 600_000

    def interrupt_again(tick: int) -> None:
        if len(asked) >= after:
            raise KeyboardInterrupt

    timeline.progress = interrupt_again
    with pytest.raises(error):
        find(judge, timeline=timeline)
    assert timeline.tick == 123
    assert timeline.progress is interrupt_again
    asked.clear()
    with pytest.raises(error):
        all_transitions(timeline, 0, END, lambda here: judge(here.tick), every=50_000)  # type: ignore[arg-type]
    assert timeline.tick == 123
