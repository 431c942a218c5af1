"""A bad cable: each mishap, alone and together, from a seed."""

from __future__ import annotations

import pytest

from tt.net.link import Conditions, Link

FRAME = bytes(range(64))
MANY = 4000


def run(conditions: Conditions, direction: int = 0, count: int = MANY) -> list[list[tuple[int, bytes]]]:
    """Put a frame in each 10 us; return what came of each."""
    link = Link(conditions, direction)
    return [link.carry(number * 10_000, FRAME) for number in range(count)]


def test_a_perfect_cable_and_one_with_latency() -> None:
    assert Conditions().perfect and Conditions(seed=7).perfect
    assert not Conditions(latency_ns=1).perfect and not Conditions(loss=0.1).perfect
    assert Link(Conditions()).carry(5, FRAME) == [(5, FRAME)]
    assert Link(Conditions(latency_ns=30)).carry(5, FRAME) == [(35, FRAME)]


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.5, 1.0])
def test_as_many_frames_are_lost_or_doubled_as_the_chance_says(chance: float) -> None:
    slack = 4 * (MANY * chance * (1 - chance)) ** 0.5  # four standard deviations of a binomial
    lost = run(Conditions(loss=chance, seed=1))
    assert abs(lost.count([]) - MANY * chance) <= slack
    twice = run(Conditions(duplicate=chance, seed=2))
    assert abs(sum(len(each) == 2 for each in twice) - MANY * chance) <= slack
    assert all(set(each) == {(at * 10_000, FRAME)} for at, each in enumerate(twice))


def test_one_bit_is_flipped_anywhere_in_a_corrupted_frame() -> None:
    flipped = set()
    for [(_at, frame)] in run(Conditions(corrupt=1.0, seed=3)):
        wrong = int.from_bytes(frame, "big") ^ int.from_bytes(FRAME, "big")
        assert wrong.bit_count() == 1 and len(frame) == len(FRAME)
        flipped.add(wrong)
    assert len(flipped) > 490  # of 512 bits; 4,000 throws leave one out in 2,500
    some = run(Conditions(corrupt=0.25, seed=4))
    assert 800 < sum(each[0][1] != FRAME for each in some) < 1200


def test_a_held_back_frame_is_overtaken() -> None:
    out = run(Conditions(reorder=0.1, seed=5))
    late = [number for number, [(at, _)] in enumerate(out) if at != number * 10_000]
    assert 300 < len(late) < 500
    assert all(out[number][0][0] == number * 10_000 + 1_000_000 for number in late)
    # With a latency above a millisecond, by that.
    [(at, _)] = Link(Conditions(latency_ns=5_000_000, reorder=1.0)).carry(0, FRAME)
    assert at == 10_000_000


def test_mishaps_follow_from_the_seed_and_the_direction() -> None:
    bad = Conditions(latency_ns=5, loss=0.2, duplicate=0.2, reorder=0.2, corrupt=0.2, seed=11)
    assert run(bad) == run(bad)
    assert run(bad) != run(bad, direction=1)
    assert run(bad) != run(Conditions(5, 0, 0.2, 0.2, 0.2, 0.2, seed=12))


def test_what_happens_to_a_frame_does_not_depend_on_the_other_mishaps() -> None:
    """Losing frames as well does not change which are doubled."""
    twice = [len(each) == 2 for each in run(Conditions(duplicate=0.3, seed=6))]
    both = run(Conditions(duplicate=0.3, loss=0.3, seed=6))
    assert [len(each) == 2 for each in both if each] == [
        t for t, each in zip(twice, both, strict=True) if each
    ]


def test_a_bandwidth_makes_frames_queue() -> None:
    link = Link(Conditions(latency_ns=7, bits_per_s=1_000_000))  # 64 bytes: 512 us
    assert [link.carry(0, FRAME)[0][0] for _ in range(3)] == [512_007, 1_024_007, 1_536_007]
    assert link.carry(10_000_000, FRAME)[0][0] == 10_512_007  # it was idle since


def test_a_queue_has_an_end() -> None:
    link = Link(Conditions(bits_per_s=1_000_000))
    out = [link.carry(0, FRAME) for _ in range(1000)]
    taken = out.index([])
    assert taken == 200_000_000 // 512_000 + 1  # as many as have left in 200 ms
    assert not any(out[taken:]) and link.lost == 1000 - taken
    assert link.carry(512_000, FRAME)  # one has left


def test_a_lost_frame_took_its_time_on_the_cable() -> None:
    link = Link(Conditions(bits_per_s=1_000_000, loss=1.0))
    assert [link.carry(0, FRAME) for _ in range(2)] == [[], []]
    link.conditions = Conditions(bits_per_s=1_000_000)
    assert link.carry(0, FRAME)[0][0] == 3 * 512_000
