"""ddmin: what it finds is as small as it says, and it asks little."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.chronus.why.ddmin import ddmin


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_result_does_it_and_nothing_of_it_can_be_left_out(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 24))
    # Any set that holds one of these does it: a function that is true for more wherever it is for less.
    causes = data.draw(
        st.lists(st.frozensets(st.integers(0, size - 1), min_size=1, max_size=4), min_size=1, max_size=3)
    )
    asked: list[tuple[int, ...]] = []

    def test(items: tuple[int, ...]) -> bool | None:
        assert list(items) == sorted(items)
        asked.append(items)
        if any(cause <= set(items) for cause in causes):
            return True
        return None if hash(items) % 3 == 0 else False

    found = ddmin(range(size), test)
    assert any(cause == set(found) for cause in causes)
    assert len(asked) == len(set(asked)), "something was asked twice"
    assert len(asked) <= size * size + 3 * size


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_without_any_order_among_sets_it_is_1_minimal_all_the_same(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 1 << 32))

    def does_it(items: tuple[int, ...]) -> bool | None:
        if len(items) == size:
            return True
        if not items:
            return False
        return (True, False, None)[hash((seed, *items)) % 3]

    found = ddmin(range(size), does_it)
    assert does_it(found) is True
    for left_out in found:
        rest = tuple(item for item in found if item != left_out)
        assert not rest or does_it(rest) is not True


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 4096])
@pytest.mark.parametrize("place", [0.0, 0.33, 0.999])
def test_one_culprit_among_many_costs_twice_the_logarithm(size: int, place: float) -> None:
    culprit = int(size * place)
    asked = []

    def test(items: tuple[int, ...]) -> bool:
        asked.append(items)
        return culprit in items

    assert ddmin(range(size), test) == (culprit,)
    assert len(asked) <= 2 * math.ceil(math.log2(size))


def test_the_example_of_the_paper() -> None:
    """Zeller and Hildebrandt 2002, table 1: 8 changes, of which 1, 7 and 8 together do it."""
    assert ddmin(range(1, 9), lambda items: {1, 7, 8} <= set(items)) == (1, 7, 8)
