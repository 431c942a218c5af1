"""The whole search against models of histories: whatever probes say, in whatever order, cut off anywhere."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.chronus.search import bisect as module
from tt.chronus.search.bisect import Bisection, NothingToFind, Options, bisect
from tt.chronus.search.pool import Look
from tt.chronus.search.verdicts import Outcome, Probe, ProbeError, ProbeVerdict
from tt.chronus.store.history import History

Answer = Callable[[int], Outcome | str]


@dataclass
class Model:
    """A history of `count` writes as far as the search looks at one; `writes` are the blocks they go to."""

    count: int
    ends: Sequence[int] = ()
    writes: Sequence[int] = ()
    folder: Path = Path("/nowhere")
    disk: int = 0
    first: int = 0
    bookmarks: dict[str, int] = field(default_factory=dict)
    images: Sequence[Any] = ()
    starts_empty: bool = False

    def inside_image(self, _instant: int) -> None:
        """Say that no image was imported, of which an instant could hold only a part."""

    @property
    def trace(self) -> Any:
        return SimpleNamespace(path=self.folder / "x.tt", meta={"id": "model"})

    def check(self, instant: int) -> int:
        return instant

    def label(self, instant: int) -> str:
        return f"w{instant}"

    def rhythm(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        return ((number, number, 8) for number in range(max(first, 1), last + 1))

    def bursts(self, low: int, high: int) -> list[Any]:
        return [SimpleNamespace(after=end) for end in sorted({*self.ends, high}) if low < end <= high]

    def write(self, number: int) -> Any:
        block = self.writes[number - 1] if self.writes else number
        return SimpleNamespace(
            number=number, disk=0, lba=block * 8, sectors=8, blocks=range(block, block + 1)
        )

    def identity(self, block: int, instant: int) -> bytes:
        if not self.writes:
            return b"%d" % (block <= instant)
        newest = max((n for n in range(1, instant + 1) if self.write(n).blocks[0] == block), default=0)
        return b"%d" % newest

    def changed_blocks(self, one: int, other: int) -> set[int]:
        low, high = sorted((one, other))
        return {self.write(number).blocks[0] for number in range(low + 1, high + 1)}

    def at(self, instant: int) -> Any:
        return SimpleNamespace(number=instant, where=f"x.tt at w{instant}")


@dataclass
class Says:
    """A probe that is a function of the instant; `reads` are blocks that it looks at."""

    answer: Answer
    reads: frozenset[int] | None = None
    asked: list[int] = field(default_factory=list)

    def key(self) -> str:
        return "says"

    def describe(self) -> str:
        return "--says"

    def run(self, disk: Any) -> ProbeVerdict:
        self.asked.append(disk.number)
        found = self.answer(disk.number)
        if isinstance(found, str):
            return ProbeVerdict(Outcome.CRASH, found, reads=self.reads)
        return ProbeVerdict(found, reads=self.reads)


class Several:
    """A pool that answers in any order."""

    def __init__(self, jobs: int, seed: int) -> None:
        self.jobs = jobs
        self._chance = random.Random(seed)

    def run(self, probe: Probe, instants: Sequence[int]) -> Iterator[Look]:
        order = list(instants)
        self._chance.shuffle(order)
        for instant in order:
            yield Look(instant, probe.run(cast(Any, SimpleNamespace(number=instant))))

    def close(self) -> None:
        pass


def search(
    model: Model, probe: Says, good: int, bad: int, options: Options | None = None, seed: int = 0
) -> Bisection:
    """Search a model; `jobs` are pretended."""
    options = options or Options(keep=False)

    @contextmanager
    def pool_for(_history: object, _base: object, jobs: int, _scheduler: str) -> Iterator[Several]:
        yield Several(jobs, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "pool_for", pool_for)
        return bisect(cast(History, model), cast(Probe, probe), good, bad, options)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Model, int, dict[int, Outcome | str], bool]:
    """Draw a history, where it turns, instants that cannot be judged, and whether it breaks there."""
    count = draw(st.integers(1, 400))
    turn = draw(st.integers(1, count))
    ends = draw(st.sets(st.integers(1, count), max_size=40))
    odd: dict[int, Outcome | str] = {}
    unjudged = st.sampled_from([Outcome.SKIP, Outcome.HANG, "Kernel panic - not syncing", "BUG: of its own"])
    for begin, length, what in draw(
        st.lists(st.tuples(st.integers(1, count), st.integers(1, count), unjudged), max_size=4)
    ):
        odd.update(dict.fromkeys(range(begin, min(begin + length, count)), what))
    for instant in draw(st.sets(st.integers(1, count), max_size=40)):
        if instant < count:
            odd[instant] = draw(unjudged)
    return Model(count, sorted(ends)), turn, odd, draw(st.booleans())


def answers(turn: int, odd: dict[int, Outcome | str], breaks: bool) -> Answer:
    return lambda n: odd.get(n, Outcome.BAD if (n >= turn) == breaks else Outcome.GOOD)


@given(worlds(), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_what_cannot_be_judged_never_makes_it_wrong(
    world: tuple[Model, int, dict[int, Outcome | str], bool], jobs: int, seed: int
) -> None:
    model, turn, odd, breaks = world
    good, bad = (0, model.count) if breaks else (model.count, 0)
    probe = Says(answers(turn, odd, breaks))
    (found,) = search(model, probe, good, bad, Options(jobs=jobs, keep=False), seed).turns
    assert found.before < turn <= found.after
    assert found.becomes_bad is breaks
    assert turn in found.candidates
    if not odd:
        assert found.candidates == (turn,)
        assert jobs > 1 or len(probe.asked) <= 2 + max(model.count - 1, 0).bit_length() + 2
    assert len(probe.asked) == len(set(probe.asked)), "nothing is run twice"


@given(worlds())
@settings(max_examples=30, deadline=None)
def test_in_bursts_only_their_ends_are_probed(
    world: tuple[Model, int, dict[int, Outcome | str], bool],
) -> None:
    model, turn, _odd, _breaks = world
    probe = Says(answers(turn, {}, True))
    (found,) = search(model, probe, 0, model.count, Options(bursts=True, keep=False)).turns
    assert set(probe.asked) <= {0, model.count, *model.ends}
    assert found.before < turn <= found.after
    assert not [end for end in model.ends if found.before < end < found.after]


@given(st.integers(1, 200), st.integers(1, 199), st.sets(st.integers(1, 199), max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_bad_end_that_crashes(count: int, turn: int, others: set[int]) -> None:
    turn = min(turn, count)

    def answer(n: int) -> Outcome | str:
        if n and n in others and n != count:
            return "another panic"
        return "VFS: Unable to mount root fs" if n >= turn else Outcome.GOOD

    (found,) = search(Model(count), Says(answer), 0, count).turns
    assert found.before < turn <= found.after


def test_a_hang_at_the_bad_end_is_bad() -> None:
    def answer(n: int) -> Outcome:
        return Outcome.HANG if n >= 40 else Outcome.GOOD

    assert search(Model(100), Says(answer), 0, 100).turns[0].candidates == (40,)


@given(worlds(), st.integers(0, 40), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_search_that_is_cut_anywhere_goes_on(
    world: tuple[Model, int, dict[int, Outcome | str], bool], after: int, jobs: int
) -> None:
    model, turn, odd, _breaks = world

    class Cut(BaseException):
        pass

    def cut(n: int) -> Outcome | str:
        if len(first.asked) > after:
            raise Cut
        return whole(n)

    whole = answers(turn, odd, True)
    with tempfile.TemporaryDirectory() as folder:
        model.folder = Path(folder)
        options = Options(jobs=jobs)
        first, second = Says(cut), Says(whole)
        try:
            search(model, first, 0, model.count, options)
        except Cut:
            first.asked.pop()
        found = search(model, second, 0, model.count, options)
        assert not set(first.asked) & set(second.asked)
        alone = Says(whole)
        assert found.turns == search(model, alone, 0, model.count, Options(jobs=jobs, keep=False)).turns
        assert sorted(alone.asked) == sorted(first.asked + second.asked)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=80),
    st.frozensets(st.integers(0, 6), max_size=4),
    st.integers(1, 3),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_shared_verdicts_are_what_a_run_would_have_said(
    writes: list[int], reads: frozenset[int], jobs: int, seed: int
) -> None:
    model = Model(len(writes), writes=writes)

    def content(n: int) -> tuple[bytes, ...]:
        return tuple(model.identity(block, n) for block in sorted(reads))

    def answer(n: int) -> Outcome:
        chance = random.Random(repr((seed, content(n))))
        return chance.choice([Outcome.GOOD, Outcome.BAD, Outcome.SKIP])

    probe = Says(answer, reads)
    try:
        found = search(model, probe, 0, len(writes), Options(every=True, jobs=jobs, keep=False))
    except NothingToFind:
        return
    for probed in found.probed:
        assert probed.verdict.outcome is answer(probed.instant)
    if jobs == 1:
        assert len(probe.asked) == len({content(n) for n in probe.asked}), "one run for the same contents"
    for turn in found.turns:
        wanted = (Outcome.GOOD, Outcome.BAD) if turn.becomes_bad else (Outcome.BAD, Outcome.GOOD)
        assert (answer(turn.before), answer(turn.after)) == wanted


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_every_turn_that_the_grid_shows(turns: list[int], jobs: int) -> None:
    turns.sort()

    def answer(n: int) -> Outcome:
        return Outcome.BAD if sum(turn <= n for turn in turns) % 2 else Outcome.GOOD

    found = search(Model(300), Says(answer), 0, 300, Options(every=True, grid=300, jobs=jobs, keep=False))
    assert [turn.after for turn in found.turns] == turns
    coarse = search(Model(300), Says(answer), 0, 300, Options(every=True, grid=10, jobs=jobs, keep=False))
    assert {turn.after for turn in coarse.turns} <= set(turns)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_million_writes_take_at_most_21_probes(seed: int) -> None:
    chance = random.Random(seed)
    breaks = seed % 2 == 0
    count = 1_000_000
    turn = [1, count, 2, count - 1, count // 2][seed] if seed < 5 else chance.randrange(1, count + 1)
    ends = sorted(chance.sample(range(1, count), 5000))
    probe = Says(answers(turn, {}, breaks))
    good, bad = (0, count) if breaks else (count, 0)
    (found,) = search(Model(count, ends), probe, good, bad).turns
    assert found.candidates == (turn,)
    assert len(probe.asked) <= 21


@pytest.mark.slow
def test_a_good_end_that_is_none_is_found_out_among_a_million_writes_too() -> None:
    with pytest.raises(NothingToFind, match="the good end, w0, is bad"):
        search(Model(1_000_000), Says(lambda _n: Outcome.BAD), 0, 1_000_000)
    with pytest.raises(NothingToFind, match="the good end, w0, is skip"):
        search(Model(1_000_000), Says(lambda n: Outcome.BAD if n else Outcome.SKIP), 0, 1_000_000)
    said = Says(lambda n: Outcome.BAD if n == 1_000_000 else Outcome.SKIP if n else Outcome.GOOD)
    (found,) = search(Model(1_000_000), said, 0, 1_000_000).turns
    assert (found.before, found.after) == (0, 1_000_000)
    assert len(said.asked) < 120


# Probes that lie


def test_flaky_probes_are_as_right_as_they_were_said_to_be() -> None:
    right, runs = 0, 0
    for seed in range(40):
        chance = random.Random(seed)
        turn = chance.randrange(1, 301)

        def answer(n: int, turn: int = turn, chance: random.Random = chance) -> Outcome:
            return Outcome.BAD if (n >= turn) != (chance.random() < 0.15) else Outcome.GOOD

        probe = Says(answer)
        options = Options(wrong=0.15, confidence=0.9, keep=False, jobs=1 + seed % 3)
        found = search(Model(300, range(0, 300, 7)), probe, 0, 300, options)
        assert found.turns[0].confidence >= 0.9
        right += found.turns[0].candidates == (turn,)
        runs += len(probe.asked)
    # 40 searches at 90%: fewer than 30 right would be one in a thousand times.
    assert right >= 30
    assert runs / 40 < 60


@pytest.mark.parametrize("cut_at", [1, 3, 8, 15])
def test_samples_of_a_flaky_probe_are_kept_and_used_once(cut_at: int, tmp_path: Path) -> None:
    class Cut(BaseException):
        pass

    def answer(n: int) -> Outcome:
        if len(probe.asked) == cut_at:
            raise Cut
        return Outcome.BAD if (n >= 50) != (chance.random() < 0.1) else Outcome.GOOD

    chance = random.Random(1)
    model = Model(100, folder=tmp_path)
    options = Options(wrong=0.1)
    probe = Says(answer)
    with pytest.raises(Cut):
        search(model, probe, 0, 100, options)
    whole = random.Random(1)
    probe = Says(lambda n: Outcome.BAD if (n >= 50) != (whole.random() < 0.1) else Outcome.GOOD)
    for _ in range(cut_at - 1):
        whole.random()  # what was said before the cut is kept
    found = search(model, probe, 0, 100, options)
    chance = random.Random(1)
    alone = Says(lambda n: Outcome.BAD if (n >= 50) != (chance.random() < 0.1) else Outcome.GOOD)
    assert found.turns == search(Model(100), alone, 0, 100, Options(wrong=0.1, keep=False)).turns
    assert len(probe.asked) == len(alone.asked) - (cut_at - 1)
    again = Says(answer)
    assert search(model, again, 0, 100, options).turns == found.turns
    assert not again.asked


def test_flaky_ends_are_asked_until_they_are_sure() -> None:
    said = iter([Outcome.GOOD])  # a lie about the bad end, the first answer of all
    probe = Says(lambda n: next(said, Outcome.BAD if n >= 30 else Outcome.GOOD))
    assert search(Model(100), probe, 0, 100, Options(wrong=0.1, keep=False)).turns[0].candidates == (30,)
    with pytest.raises(NothingToFind, match="the bad end, w100, is good"):
        search(Model(100), Says(lambda _n: Outcome.GOOD), 0, 100, Options(wrong=0.1, keep=False))


def test_every_turn_of_a_flaky_probe() -> None:
    chance = random.Random(11)

    def answer(n: int) -> Outcome:
        return Outcome.BAD if (30 <= n < 120) != (chance.random() < 0.1) else Outcome.GOOD

    options = Options(wrong=0.1, confidence=0.99, every=True, grid=5, keep=False)
    assert [turn.after for turn in search(Model(200), Says(answer), 0, 200, options).turns] == [30, 120]


def test_repeats_end_when_the_majority_is_clear() -> None:
    probe = Says(lambda n: Outcome.BAD if n >= 30 else Outcome.GOOD)
    found = search(Model(100), probe, 0, 100, Options(repeat=9, keep=False))
    assert found.turns[0].candidates == (30,)
    assert {probe.asked.count(n) for n in probe.asked} == {5}
    assert found.ran == len(probe.asked)


def test_errors_of_the_probe_end_the_search() -> None:
    def answer(_n: int) -> Outcome:
        raise ProbeError("cannot be run")

    with pytest.raises(ProbeError):
        search(Model(100), Says(answer), 0, 100)
