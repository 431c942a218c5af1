"""Where states and timelines first differ, each answer known beforehand."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tt.log import Trace
from tt.recording import record
from tt.travel import Timeline
from tt.travel.branches.compare import Parting, diff_states, first_difference
from tt.travel.branches.fork import Fork
from tt.vmm.configure import configure

AT = 5_000_000
FREE = 0x400000


@pytest.fixture
def parent(demo_trace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_trace, tmp_path / "demo.tt"))


@pytest.fixture
def timeline(parent: Path) -> Iterator[Timeline]:
    with Trace.open(parent) as trace:
        yield Timeline(trace)


def child(
    timeline: Timeline, change: Callable[[Fork], object], ticks: int = 20_000, keep: bool = True
) -> Path:
    """Fork at AT, go on a thousand ticks, change something, and go on."""
    timeline.seek(AT)
    with timeline.fork(keep_inputs=keep) as fork:
        fork.run(1000)
        change(fork)
        fork.run(ticks)
    return fork.path


def part(left: Path, right: Path) -> Parting:
    with Trace.open(left) as one, Trace.open(right) as two:
        return first_difference(Timeline(one), Timeline(two))


def test_a_register(timeline: Timeline, parent: Path) -> None:
    path = child(timeline, lambda fork: fork.set_register("r9", 0x77))
    for parting in (part(parent, path), part(path, parent)):
        assert (parting.tick, parting.same_until) == (AT + 1001, AT + 1000)
        assert [each.where for each in parting.differences] == ["r9"]
    text = "\n".join(part(parent, path).lines())
    assert f"demo-1.tt leaves demo at tick {AT:,}" in text
    assert "edit-register r9 = 0x77" in text and "register r9: 0 | 0x77" in text


def test_memory_and_disk(timeline: Timeline, parent: Path) -> None:
    def change(fork: Fork) -> None:
        fork.write(FREE + 10, b"hello", physical=True)
        fork.write(FREE + 3000, b"x", physical=True)
        fork.write_disk(0, 9, b"\1" * 512)

    parting = part(parent, child(timeline, change))
    assert parting.tick == AT + 1001
    found = [(each.part, each.where, each.right) for each in parting.differences]
    assert found == [
        ("memory", FREE + 10, b"hello"),
        ("memory", FREE + 3000, b"x"),
        ("disk", 9, b"\1" * 512),
    ]


def test_a_change_to_what_it_was_is_none(timeline: Timeline, parent: Path) -> None:
    path = child(timeline, lambda fork: fork.set_register("rax", fork.registers()["rax"]))
    parting = part(parent, path)
    assert parting.tick is None and parting.compared_to == AT + 21_000
    assert parting.right_event is not None
    assert "are the same up to tick" in "\n".join(parting.lines())


def test_the_second_of_two_changes_may_be_the_first_that_counts(timeline: Timeline, parent: Path) -> None:
    def change(fork: Fork) -> None:
        fork.write(FREE, b"\0", physical=True)  # as it was
        fork.run(500)
        fork.type("\n")
        fork.run(7)
        fork.set_register("r9", 1)

    parting = part(parent, child(timeline, change))
    assert parting.tick == AT + 1501
    assert parting.right_event is not None and parting.right_event[1].data == b"\n"


def test_brothers_and_the_same(timeline: Timeline, parent: Path) -> None:
    one = child(timeline, lambda fork: fork.set_register("r9", 1))
    two = child(timeline, lambda fork: fork.run(3_000) and fork.set_register("r9", 1))
    assert part(one, two).tick == AT + 1001
    assert part(one, one).tick is None
    three = child(timeline, lambda fork: None, ticks=30_000_000)
    assert part(parent, three).tick is None
    assert part(parent, three).lines()[-1].startswith("demo.tt and demo-3.tt are the same up to")


def test_random_changes_are_found_exactly(timeline: Timeline, parent: Path) -> None:
    """Against the slow way: stepping both in turns."""
    chance = random.Random(5)
    for _ in range(4):
        bit = 1 << chance.randrange(64)
        name = chance.choice(["rax", "rdx", "rcx", "r9", "r11"])
        path = child(timeline, lambda fork: fork.set_register(name, fork.registers()[name] ^ bit))  # noqa: B023
        with Trace.open(parent) as one, Trace.open(path) as two:
            left, right = Timeline(one), Timeline(two)
            slow = next(tick for tick in range(AT + 990, AT + 1100) if differ(left, right, tick))
        assert part(parent, path).tick == slow


def differ(left: Timeline, right: Timeline, tick: int) -> bool:
    left.seek(tick)
    right.seek(tick)
    return left.digest() != right.digest()


def test_different_from_power_on(denali_demo: Path, parent: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tt"
    record(configure(denali_demo, epoch=1_600_000_000), other, max_ticks=100_000)
    parting = part(parent, other)
    assert parting.tick is not None and parting.lines()
    larger = tmp_path / "larger.tt"
    record(configure(denali_demo, epoch=1_700_000_000, mem_bytes=32 << 20), larger, max_ticks=1000)
    parting = part(parent, larger)
    assert parting.tick == 0 and "differ from power-on" in parting.lines()[0]


def test_states(timeline: Timeline) -> None:
    timeline.seek(AT)
    fork = timeline.fork(keep_inputs=True)
    assert diff_states(fork, timeline) == [] == diff_states(timeline.machine, fork)
    fork.run(50_000)
    timeline.step(50_000)
    assert diff_states(fork, timeline) == []
    fork.write(FREE, bytes([1] * 100), physical=True)
    (only,) = diff_states(timeline, fork)
    assert (only.part, only.where, only.left, only.right) == ("memory", FREE, bytes(100), bytes([1] * 100))
    fork.run(1_000)
    parts = {each.part for each in diff_states(timeline, fork)}
    assert {"tick", "memory", "register"} <= parts
    assert len([each for each in diff_states(timeline, fork, limit=2) if each.part == "register"]) == 2
    fork.discard()
