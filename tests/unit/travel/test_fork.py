"""Forks of the demo guest: whatever is changed, the child trace replays to the same states."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.errors import BadInput, Divergence, UsageError
from tt.events import Event, Kind, Role, kinds_of
from tt.log import Trace, TraceWriter
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.branches.family import family
from tt.travel.branches.fork import Fork

EDITS = kinds_of(Role.EDIT)

REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "r8", "r15", "rip", "rflags")
FREE = 0x400000  # RAM that the demo does not use


@pytest.fixture
def parent(demo_trace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_trace, tmp_path / "demo.tt"))


@pytest.fixture
def trace(parent: Path) -> Iterator[Trace]:
    with Trace.open(parent) as opened:
        yield opened


@pytest.fixture
def timeline(trace: Trace) -> Timeline:
    return Timeline(trace)


def sound(path: Path) -> None:
    """The file is whole, and a replay from power-on agrees with it."""
    with Trace.open(path) as child:
        assert child.verify_structure() == []
        verdict = verify(child)
        assert verdict.good, verdict


def test_nothing_changed_is_the_parent(trace: Trace, timeline: Timeline) -> None:
    chance = random.Random(3)
    printing = [event.tick for event in trace.events(kinds={Kind.CONSOLE})]
    happening = [event.tick for event in trace.events()]
    places = [0, 1, trace.end_tick - 1, chance.choice(happening), chance.choice(printing) + 3]
    for tick in [*places, *(chance.randrange(trace.end_tick) for _ in range(4))]:
        timeline.seek(tick)
        before = timeline.digest()
        fork = timeline.fork(keep_inputs=True)
        assert (timeline.tick, timeline.digest(), fork.digest()) == (tick, before, before)
        assert fork.run().reason == "power"
        with Trace.open(fork.close()) as child:
            assert list(child.events()) == list(trace.events()), tick
            assert (child.end_tick, child.reason) == (trace.end_tick, trace.reason)
            ours, theirs = dict(child.digests()), dict(trace.digests())
            assert {t: digest for t, digest in ours.items() if t != tick} == theirs
            writes = [(w.tick, w.lba, w.data()) for w in child.disk_writes()]
            assert writes == [(w.tick, w.lba, w.data()) for w in trace.disk_writes()]
            assert child.files == trace.files


def test_edits_show_at_once_and_in_a_replay_with_the_first_step(timeline: Timeline) -> None:
    timeline.seek(3_000_000)
    untouched = timeline.digest()
    fork = timeline.fork()
    fork.set_register("r9", 0x1234_5678)
    fork.write(FREE, b"abc", physical=True)
    fork.write_disk(0, 7, b"\x5a" * 1024)
    assert fork.registers()["r9"] == 0x1234_5678
    assert fork.read_physical(FREE, 4) == b"abc\0"
    assert fork.machine.disks[0].read(7, 2) == b"\x5a" * 1024
    fork.run(1)
    after = fork.digest()
    path = fork.close()
    sound(path)
    with Trace.open(path) as child:
        assert [event.kind for event in child.events(3_000_000) if event.kind in EDITS] == sorted(EDITS)
        assert next(child.disk_writes()).data() == b"\x5a" * 1024
        there = Timeline(child)
        there.seek(3_000_000)
        assert there.digest() == untouched
        there.step()
        assert there.digest() == after
        assert there.machine.engine.read(FREE, 3) == b"abc"
        there.reverse_step()
        assert there.digest() == untouched


def test_edits_alone_get_a_step(timeline: Timeline) -> None:
    timeline.seek(1_000_000)
    with timeline.fork() as fork:
        fork.set_register("r9", 77)
    with Trace.open(fork.path) as child:
        assert child.end_tick == 1_000_001
        there = Timeline(child)
        there.seek(child.end_tick)
        assert there.registers()["r9"] == 77
    sound(fork.path)


def wander(timeline: Timeline, path: Path, chance: random.Random) -> dict[int, bytes]:
    """Fork where the timeline is, change and run at random; return the digests of arrivals on the way."""
    fork = timeline.fork(path, keep_inputs=chance.random() < 0.5)
    places = {fork.tick: fork.digest()}
    for _ in range(chance.randrange(1, 5)):
        for _ in range(chance.randrange(4)):
            match chance.randrange(5):
                case 0:
                    name = chance.choice(REGISTERS)
                    now = fork.registers()[name]
                    values = [now, now ^ 1 << chance.randrange(12), chance.getrandbits(64)]
                    fork.set_register(name, now ^ 1 if name == "rflags" else chance.choice(values))
                case 1:
                    addr = chance.randrange(fork.machine.engine.size - 9000)
                    fork.write(addr, chance.randbytes(chance.randrange(1, 9000)), physical=True)
                case 2:
                    fork.write_disk(0, chance.randrange(8000), chance.randbytes(512 * chance.randrange(1, 5)))
                case 3:
                    fork.type(chance.randbytes(chance.randrange(1, 30)))
                case 4:
                    fork.type("hello\n", at=fork.tick + chance.randrange(1_000_000))
        stop = fork.run(chance.choice([1, 10, 1000, 100_000, 3_000_000]))
        if stop.reason != "tick":
            break
        places[fork.tick] = fork.digest()
    fork.close()
    if fork.ended:
        places.pop(fork.tick, None)
    return places


@pytest.mark.parametrize("seed", [1, 10, 33])
def test_a_family_of_random_forks(parent: Path, tmp_path: Path, seed: int) -> None:
    """Forks of forks: each verifies, and its states are those that were met live, in any order."""
    chance = random.Random(seed)
    paths = [parent]
    for number in range(5):
        with Trace.open(chance.choice(paths)) as trace:
            timeline = Timeline(trace)
            timeline.seek(chance.randrange(trace.end_tick))
            fork_tick = timeline.tick
            path = tmp_path / f"fork{number}.tt"
            places = wander(timeline, path, chance)
        sound(path)
        with Trace.open(path) as child:
            there = Timeline(child)
            for tick in sorted(places, reverse=True):
                there.seek(tick)
                assert there.digest() == places[tick], (seed, number, tick)
            if child.end_tick > fork_tick + 1:
                paths.append(path)
    assert len(family(parent).walk()) == 6


def test_other_inputs(timeline: Timeline, trace: Trace) -> None:
    """What is typed at ticks arrives at them; without `keep_inputs` the parent's is dropped."""
    timeline.seek(2_000_000)
    fork = timeline.fork()
    fork.type("b", at=2_500_000)
    fork.type("a")
    fork.type(b"c", at=3_000_000)
    fork.run(until=4_000_000)
    path = fork.close()
    sound(path)
    with Trace.open(path) as child:
        typed = list(child.events(2_000_000, kinds={Kind.INPUT}))
    assert [(event.tick, event.data) for event in typed] == [
        (2_000_000, b"a"),
        (2_500_000, b"b"),
        (3_000_000, b"c"),
    ]
    with Trace.open(path) as child:
        there = Timeline(child)
        there.seek(2_000_001)
        dropped, kept = there.fork(), there.fork(keep_inputs=True)
        for again in (dropped, kept):
            again.run(until=4_000_000)
            again.close()
    with Trace.open(dropped.path) as one, Trace.open(kept.path) as two:
        assert [event.data for event in one.events(kinds={Kind.INPUT})] == [b"a"]
        assert [event.data for event in two.events(kinds={Kind.INPUT})] == [b"a", b"b", b"c"]


def test_kept_inputs_bring_the_parents_later_edits_along(timeline: Timeline) -> None:
    timeline.seek(1_000_000)
    with timeline.fork() as first:
        first.run(1000)
        first.set_register("r9", 5)
        first.run(1000)
        end = first.digest()
    with Trace.open(first.path) as trace:
        there = Timeline(trace)
        there.seek(1_000_500)
        with there.fork(keep_inputs=True) as second:
            second.run(until=1_002_000)
            assert second.digest() == end
    sound(second.path)


def test_what_cannot_be(timeline: Timeline, trace: Trace, tmp_path: Path) -> None:
    timeline.seek(1_000_000)
    fork = timeline.fork(tmp_path / "x.tt")
    before = fork.digest()
    size = fork.machine.engine.size
    for attempt in (
        lambda: fork.set_register("zax", 1),
        lambda: fork.set_register("cs", 1),
        lambda: fork.set_register("é", 1),
        lambda: fork.set_register("rax", 1 << 64),
        lambda: fork.write(size - 2, b"abc", physical=True),
        lambda: fork.write(-5, b"abc", physical=True),
        lambda: fork.write(0xFFFF_FFFF_FFFF_F000, b"abc"),
        lambda: fork.write_disk(1, 0, bytes(512)),
        lambda: fork.write_disk(-1, 0, bytes(512)),
        lambda: fork.write_disk(0, 0, bytes(511)),
        lambda: fork.write_disk(0, fork.machine.disks[0].sectors, bytes(512)),
        lambda: fork.write_disk(0, -1, bytes(512)),
        lambda: fork.type("x", at=999_999),
        lambda: fork.run(until=5),
        lambda: timeline.fork(tmp_path / "x.tt"),
        lambda: timeline.fork(tmp_path / "nowhere" / "x.tt"),
    ):
        with pytest.raises((UsageError, BadInput)) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert fork.digest() == before
    fork.run(10)
    fork.close()
    fork.close()
    with Trace.open(fork.path) as child:
        assert not [event for event in child.events() if event.kind in EDITS]
    for late in (lambda: fork.run(1), lambda: fork.type("x"), lambda: fork.set_register("rax", 1)):
        with pytest.raises(UsageError, match="closed"):
            late()
    timeline.seek(trace.end_tick)
    if timeline.machine.ended:
        with pytest.raises(UsageError, match="fork earlier"):
            timeline.fork()


def test_a_discarded_fork_leaves_nothing(timeline: Timeline) -> None:
    timeline.seek(5)
    before = sorted(timeline.trace.path.parent.iterdir())
    fork = timeline.fork()
    fork.run(100)
    fork.discard()
    assert sorted(timeline.trace.path.parent.iterdir()) == before


def test_the_parent_may_go(parent: Path, timeline: Timeline) -> None:
    timeline.seek(4_000_000)
    with timeline.fork() as fork:
        fork.set_register("rax", 1)
        fork.run(1000)
    timeline.trace.close()
    parent.unlink()
    sound(fork.path)


def test_a_damaged_parent_makes_no_child(parent: Path, tmp_path: Path) -> None:
    """A flipped byte in the event log is noticed, and no half child stays unnoticed."""
    import sqlite3

    with sqlite3.connect(parent) as db:
        db.execute("UPDATE chunks SET packed = zeroblob(length(packed))")
    db.close()
    with Trace.open(parent) as trace, pytest.raises(BadInput, match="checksum"):
        timeline = Timeline(trace, checkpoints=False)
        timeline.seek(15_000_000)
        timeline.fork(tmp_path / "x.tt")


def test_killed_in_the_middle_it_opens_to_its_last_commit(timeline: Timeline, tmp_path: Path) -> None:
    timeline.seek(2_000_000)
    fork = timeline.fork(tmp_path / "x.tt")
    fork.set_register("r9", 1)
    fork.run(5000)
    fork._live.commit()
    fork._writer.wait()
    fork._let_go()  # as a killed process would, it seals nothing
    with Trace.open(fork.path) as child:
        assert not child.sealed
        assert child.end_tick == 2_005_000
    sound(fork.path)


def test_progress_may_break_a_run_off(timeline: Timeline) -> None:
    class Enough(Exception):
        pass

    def progress(tick: int) -> None:
        raise Enough

    timeline.seek(1000)
    fork = timeline.fork(progress=progress)
    with pytest.raises(Enough):
        fork.run()
    fork.progress = None
    fork.set_register("r9", 42)
    fork.run(1000)
    sound(fork.close())


def test_ctrl_c_comes_between_two_instructions(timeline: Timeline) -> None:
    import os
    import signal

    timeline.seek(1000)
    fork = timeline.fork(progress=lambda tick: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fork.run()
    assert signal.getsignal(signal.SIGINT) is before
    fork.progress = None
    fork.set_register("r9", 42)
    fork.run(1000)
    sound(fork.close())


@pytest.mark.parametrize(
    "event",
    [
        Event(500, Kind.EDIT_REGISTER, 0, 5, b"nosuch"),
        Event(500, Kind.EDIT_REGISTER, 0, 5, b"\xff\xfe"),
        Event(500, Kind.EDIT_MEMORY, 0, 1 << 63, b"x"),
        Event(500, Kind.EDIT_MEMORY, 0, (16 << 20) - 1, b"xx"),
        Event(500, Kind.EDIT_DISK, 9, 0, bytes(512)),
        Event(500, Kind.EDIT_DISK, 0, 0, bytes(5)),
        Event(500, Kind.EDIT_DISK, 0, 1 << 62, bytes(512)),
    ],
    ids=lambda event: f"{event.kind.name}-{event.value:#x}",
)
def test_forged_edits_are_refused_in_a_line(trace: Trace, tmp_path: Path, event: Event) -> None:
    path = tmp_path / "forged.tt"
    with TraceWriter(path, trace.meta) as writer:
        for name in trace.files:
            writer.add_file(name, trace.file(name))
        writer.add(event)
        writer.seal(1000, "forged")
    with Trace.open(path) as forged, pytest.raises((BadInput, Divergence)) as caught:
        Timeline(forged).seek(1000)
    assert "\n" not in str(caught.value) and "500" in str(caught.value)


def test_a_fork_is_a_machine_of_its_own(timeline: Timeline) -> None:
    """Two forks at once, and the timeline between them, do not disturb one another."""
    timeline.seek(6_000_000)
    forks = [timeline.fork(keep_inputs=True) for _ in range(2)]
    forks[0].set_register("r9", 99)
    for _ in range(5):
        for fork in forks:
            fork.run(10_000)
        timeline.step(10_000)
        assert timeline.digest() == forks[1].digest() != forks[0].digest()
    for fork in forks:
        assert isinstance(fork, Fork)
        sound(fork.close())
