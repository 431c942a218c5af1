"""Searching over instants: right with skips, lies, and several probes at once; and few probes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.bisection import INNER_PROBES, narrow, rounds_left
from tt.chronus.search.noisy import believe, hold


class World:
    """A state that turns bad at `turn`, with places that cannot tell."""

    def __init__(self, turn: int, skips: set[int] | range = range(0)) -> None:
        self.turn, self.skips = turn, skips
        self.asked: list[int] = []
        self.rounds = 0

    def __call__(self, places: Sequence[int]) -> list[tuple[int, bool | None]]:
        self.rounds += 1
        self.asked += places
        return [(place, None if place in self.skips else place >= self.turn) for place in places]


@given(
    st.integers(2, 1_000_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(1, 9)
)
@settings(max_examples=60)
def test_the_turn_is_found(size_turn: tuple[int, int], jobs: int) -> None:
    size, turn = size_turn
    world = World(turn)
    found = narrow(0, size, True, world, jobs=jobs)
    assert (found.before, found.after) == (turn - 1, turn)
    assert len(world.asked) == len(set(world.asked)), "nothing is asked twice"
    assert world.rounds <= math.log(size, jobs + 1) + 3
    if jobs == 1:
        assert len(world.asked) <= math.ceil(math.log2(size))


@given(
    st.integers(2, 100_000).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, n), st.sets(st.integers(1, n), max_size=60))
    ),
    st.integers(0, 2),
    st.integers(1, 4),
)
@settings(max_examples=60)
def test_preferred_places_cost_no_more_than_is_allowed(
    case: tuple[int, int, set[int]], spare: int, jobs: int
) -> None:
    size, turn, prefer = case
    world = World(turn)
    found = narrow(0, size, True, world, jobs=jobs, prefer=sorted(prefer), spare=spare)
    assert (found.before, found.after, found.asked) == (turn - 1, turn, len(world.asked))
    if jobs == 1:
        assert len(world.asked) <= math.ceil(math.log2(size)) + spare


def test_preferred_places_come_first() -> None:
    world = World(4711)
    narrow(0, 10_000, True, world, prefer=range(0, 10_000, 100), spare=2)
    inside = [place for place in world.asked if place % 100]
    assert world.asked[: len(world.asked) - len(inside)] == [
        place for place in world.asked if not place % 100
    ]
    assert all(4700 < place < 4800 for place in inside)


@given(
    st.integers(3, 3000).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, n), st.sets(st.integers(1, n - 1), max_size=n - 1))
    ),
    st.integers(1, 5),
)
@settings(max_examples=60)
def test_skips_never_make_it_wrong(case: tuple[int, int, set[int]], jobs: int) -> None:
    size, turn, skips = case
    found = narrow(0, size, True, World(turn, skips), jobs=jobs)
    assert found.before < turn <= found.after
    assert turn in found.candidates


@pytest.mark.parametrize("seed", range(30))
def test_a_long_run_of_skips_costs_a_logarithm(seed: int) -> None:
    chance = random.Random(seed)
    size = 1_000_000
    start = chance.randrange(1, size // 2)
    end = chance.randrange(start + 1, size)
    turn = chance.randrange(1, size)
    world = World(turn, range(start, end))
    found = narrow(0, size, True, world)
    assert found.before < turn <= found.after
    if start <= turn <= end:
        # All that can be known: it turned where nothing could tell, or at the first place after that.
        assert (found.before, found.after) == (start - 1, end)
    else:
        assert found.after - found.before == 1
    assert len(world.asked) <= 3 * math.log2(size) + INNER_PROBES


@pytest.mark.parametrize("seed", range(10))
def test_scattered_skips_cost_little(seed: int) -> None:
    chance = random.Random(seed)
    size = 100_000
    skips = {place for place in range(1, size) if chance.random() < 0.3}
    turn = chance.randrange(1, size)
    world = World(turn, skips)
    found = narrow(0, size, True, world)
    assert found.before < turn <= found.after
    assert all(place in skips for place in range(found.before + 1, found.after))
    assert len(world.asked) <= 4 * math.log2(size) + INNER_PROBES


def test_a_fix_is_found_too() -> None:
    found = narrow(10, 500, False, lambda places: [(place, place < 123) for place in places])
    assert (found.before, found.after) == (122, 123)


def test_rounds_left() -> None:
    assert [rounds_left(n) for n in (0, 1, 2, 1000, 1_000_000)] == [0, 0, 1, 10, 20]
    assert rounds_left(1000, jobs=9) == 3


# Probes that lie


def liar(turn: int, wrong: float, seed: int, skips: range = range(0)) -> World:
    chance = random.Random(seed)

    class Liar(World):
        def __call__(self, places: Sequence[int]) -> list[tuple[int, bool | None]]:
            return [
                (place, state if state is None else state != (chance.random() < wrong))
                for place, state in super().__call__(places)
            ]

    return Liar(turn, skips)


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("wrong", [0.05, 0.2, 0.35])
def test_lies_are_outvoted_as_often_as_was_said(wrong: float, jobs: int) -> None:
    searches = 40 if wrong == 0.35 else 120
    right = asked = 0
    for seed in range(searches):
        turn = random.Random(seed).randrange(1, 5001)
        found = believe(0, 5000, True, liar(turn, wrong, seed), wrong=wrong, confidence=0.95, jobs=jobs)
        right += found.after == turn
        asked += found.asked
        assert found.confidence >= 0.95
    # At 95%: fewer right than this would happen once in a thousand times.
    assert right >= searches * 0.95 - 3.1 * math.sqrt(searches * 0.95 * 0.05)
    capacity = 1 + wrong * math.log2(wrong) + (1 - wrong) * math.log2(1 - wrong)
    assert asked / searches <= 1.7 * (math.log2(5000) + math.log2(20)) / capacity


@pytest.mark.parametrize("seed", range(20))
def test_a_long_run_of_skips_costs_a_liar_a_logarithm_too(seed: int) -> None:
    chance = random.Random(seed)
    size = 100_000
    start = chance.randrange(1, size - 1)
    end = chance.randrange(start + 1, size)
    turn = chance.randrange(1, size + 1)
    found = believe(0, size, True, liar(turn, 0.1, seed, range(start, end)), wrong=0.1, confidence=0.999)
    expected = (start - 1, end) if start <= turn <= end else (turn - 1, turn)
    assert (found.before, found.after) == expected
    assert found.asked <= 100


def test_nothing_but_skips_leaves_everything_possible() -> None:
    world = World(5, range(1, 1000))
    found = believe(0, 1000, True, world, wrong=0.1)
    assert (found.before, found.after) == (0, 1000)
    assert len(world.asked) <= 2 * 10 + INNER_PROBES


def test_preferred_places_are_asked_where_they_do_about_as_well() -> None:
    world = World(2222)
    believe(0, 10_000, True, world, wrong=0.01, prefer=range(0, 10_000, 100))
    assert all(place % 100 == 0 for place in world.asked[:5])


@pytest.mark.parametrize("state", [True, False])
def test_one_place_is_held_as_surely_as_was_said(state: bool) -> None:
    right = asked = 0
    for seed in range(400):
        found = hold(7, liar(7 if state else 8, 0.2, seed), wrong=0.2, confidence=0.97, jobs=1 + seed % 3)
        right += found.state is state
        asked += found.asked
        assert found.confidence >= 0.97 - 1e-9
    assert right >= 400 * 0.97 - 3.1 * math.sqrt(400 * 0.97 * 0.03)
    assert asked / 400 < 8
    assert hold(7, World(1), wrong=0, confidence=0.999).asked == 1
    assert hold(7, World(1, {7}), wrong=0.1, confidence=0.99).state is None


def test_an_honest_probe_needs_no_more_than_halving() -> None:
    world = World(777)
    found = believe(0, 1024, True, world, wrong=0.0, confidence=0.99)
    assert (found.before, found.after) == (776, 777)
    assert len(world.asked) <= 11


def test_a_liar_that_skips() -> None:
    found = believe(0, 100, True, World(50, set(range(40, 60, 3))), wrong=0.1, confidence=0.99)
    assert abs(found.after - 50) <= 2


@pytest.mark.parametrize("wrong", [0.5, 0.9, -0.1])
def test_a_coin_says_nothing(wrong: float) -> None:
    with pytest.raises(ValueError, match="never come to confidence"):
        believe(0, 100, True, World(50), wrong=wrong)
