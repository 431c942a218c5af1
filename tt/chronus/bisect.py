"""Chronus's search (OSDI'04): the write that broke a machine, by probing the disk as it was.

First both ends are probed.  Then the ends of bursts are searched, and then the writes inside the guilty
burst.  A hang or a crash cannot be judged, so it counts as a skip, unless the bad end itself is one: then
the same one counts as bad.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tt.chronus.history import History
from tt.chronus.pool import Dask, Here, Pool, Processes, Where, fingerprint
from tt.chronus.search import believe, narrow, probes_left
from tt.chronus.verdict_log import VerdictLog
from tt.chronus.verdicts import Outcome, Probe, ProbeError, Verdict
from tt.errors import TTError, UsageError

GRID = 24


class NothingToFind(TTError):
    """An end is not what it was said to be (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Options:
    """How to search.

    `bursts`: do not go into the guilty burst.  `every`: find every turn that `grid` probes show.
    `repeat`: run each probe so often and take the majority.  `wrong`: the probability of a wrong answer, for
    which answers are weighed until one place has `confidence`.  `jobs` processes, or a Dask `scheduler`.
    `log`: where verdicts are kept; None for the file beside the history.
    """

    bursts: bool = False
    every: bool = False
    grid: int = GRID
    repeat: int = 1
    wrong: float = 0.0
    confidence: float = 0.99
    jobs: int = 1
    scheduler: str = ""
    keep: bool = True
    log: Path | None = None


@dataclass(frozen=True)
class Probed:
    """A look at one instant, in the order of looking: `bad` is None for a skip."""

    instant: int
    verdict: Verdict
    bad: bool | None


@dataclass(frozen=True)
class Turn:
    """Where the state changes: to bad (`becomes_bad`) or to good, after instant `before` and up to `after`.

    They are neighbours among the instants searched, unless skips lie between; `candidates` are the writes
    one of which did it.  `confidence` is below 1 for unreliable probes.
    """

    before: int
    after: int
    becomes_bad: bool
    candidates: tuple[int, ...]
    confidence: float = 1.0


@dataclass
class Bisection:
    """What a search found, for reports."""

    path: Path
    probe: str
    good: int
    bad: int
    probed: list[Probed] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ran(self) -> int:
        """How many probes were run."""
        return sum(not one.verdict.cached for one in self.probed)

    @property
    def shared(self) -> int:
        """How many looks took another's answer."""
        return len(self.probed) - self.ran


Progress = Callable[[str], None]


def bisect(
    history: History,
    probe: Probe,
    good: int,
    bad: int,
    options: Options | None = None,
    *,
    base: Path | None = None,
    on_probe: Callable[[Probed], None] = lambda probed: None,
    say: Progress = lambda line: None,
) -> Bisection:
    """Find what made `probe` bad between instants `good` and `bad` of `history`.

    With `good` after `bad` the fix is searched.  Raises `NothingToFind` where an end is not what it should
    be, `ProbeError` for a probe that cannot be run, `UsageError` for instants that make no sense.
    """
    options = options or Options()
    if good == bad:
        raise UsageError(
            f"good and bad are the same instant, {history.label(good)}: there is nothing in between"
        )
    for instant in (good, bad):
        history.check(instant)
    log = VerdictLog(history, (options.log or default_log(history)) if options.keep else None)
    result = Bisection(history.trace.path, probe.describe(), good, bad)
    begin = time.monotonic()
    with _pool(history, base, options) as pool:
        search = _Search(history, probe, options, pool, log, result, on_probe, say)
        search.ends()
        result.turns = search.all_turns() if options.every else [search.turn(min(good, bad), max(good, bad))]
    result.seconds = time.monotonic() - begin
    return result


def default_log(history: History) -> Path:
    """Return the file beside a history in which verdicts are kept."""
    return history.trace.path.with_name(f"{history.trace.path.name}.verdicts")


class _Search:
    """One search: what was asked, and how verdicts are judged."""

    def __init__(
        self,
        history: History,
        probe: Probe,
        options: Options,
        pool: Pool,
        log: VerdictLog,
        result: Bisection,
        on_probe: Callable[[Probed], None],
        say: Progress,
    ) -> None:
        self._history, self._probe, self._options = history, probe, options
        self._pool, self._log, self._result = pool, log, result
        self._on_probe, self._say = on_probe, say
        self._bad_like: tuple[Outcome, str] = (Outcome.BAD, "")
        self._known: dict[int, bool | None] = {}

    def ends(self) -> None:
        """Probe the two ends; raises `NothingToFind`."""
        good, bad = self._result.good, self._result.bad
        verdicts = dict(self._verdicts([good, bad]))
        last = verdicts[bad]
        if last.outcome in (Outcome.HANG, Outcome.CRASH):
            self._bad_like = (last.outcome, last.signature)
        for instant in (good, bad):
            self._note(instant, verdicts[instant])
        if self._known[good] is not False:
            raise NothingToFind(self._complaint("good", good, verdicts[good]))
        if self._known[bad] is not True:
            raise NothingToFind(self._complaint("bad", bad, last))

    def turn(self, low: int, high: int) -> Turn:
        """Find one turn between two instants of opposite states."""
        becomes_bad = self._known[high] is True
        groups = self._history.bursts(low, high)
        ends = [low, *(burst.after for burst in groups if burst.after < high), high]
        found = self._turn_among(ends, becomes_bad, "burst")
        if self._options.bursts or found.after - found.before == 1:
            return found
        inside = [write.number for write in self._history.writes(found.before + 1, found.after)]
        if len(inside) < 2:
            return found
        places = [found.before, *inside]
        places[-1] = found.after
        return self._turn_among(places, becomes_bad, "write", found.confidence)

    def all_turns(self) -> list[Turn]:
        """Find every turn between the ends that looks at a grid of instants show."""
        low, high = sorted((self._result.good, self._result.bad))
        ends = [low, *(burst.after for burst in self._history.bursts(low, high) if burst.after < high), high]
        if hasattr(self._probe, "fingerprint"):
            places = ends  # what it sees tells most of them apart without a run
        else:
            step = max(1, (len(ends) - 1) // self._options.grid)
            places = sorted({*ends[::step], high})
        self._ask(places)
        known = [(place, state) for place in places if (state := self._known.get(place)) is not None]
        return [
            self.turn(one, other)
            for (one, was), (other, now) in zip(known, known[1:], strict=False)
            if was != now
        ]

    # ---- inside

    def _turn_among(self, places: Sequence[int], becomes_bad: bool, what: str, so_far: float = 1.0) -> Turn:
        def ask(indexes: Sequence[int]) -> Mapping[int, bool | None]:
            left = self._left(places) - len(indexes)
            rounds = probes_left(left + 1, self._pool.jobs)
            self._say(f"Bisecting: {left:,} {what}s left to test after this (roughly {rounds} probes)")
            states = self._ask([places[index] for index in indexes])
            return {index: states[places[index]] for index in indexes}

        last = len(places) - 1
        if self._options.wrong and last > 1:
            believed = believe(
                0, last, becomes_bad, ask, wrong=self._options.wrong, confidence=self._options.confidence
            )  # fmt: skip
            before, after = places[believed.before], places[believed.after]
            return Turn(before, after, becomes_bad, self._writes(before, after), so_far * believed.confidence)
        narrowed = narrow(0, last, becomes_bad, ask, jobs=self._pool.jobs)
        before, after = places[narrowed.before], places[narrowed.after]
        return Turn(before, after, becomes_bad, self._writes(before, after), so_far)

    def _left(self, places: Sequence[int]) -> int:
        """Return how many places still may be the turn's."""
        known = [index for index, place in enumerate(places) if self._known.get(place) is not None]
        gaps = [
            high - low - 1
            for low, high in zip(known, known[1:], strict=False)
            if self._known[places[low]] != self._known[places[high]]
        ]
        return min(gaps, default=len(places) - 2)

    def _writes(self, before: int, after: int) -> tuple[int, ...]:
        return tuple(write.number for write in self._history.writes(before + 1, after))

    def _ask(self, instants: Sequence[int]) -> Mapping[int, bool | None]:
        for instant, verdict in self._verdicts(instants):
            self._note(instant, verdict)
        return {instant: self._known[instant] for instant in instants}

    def _note(self, instant: int, verdict: Verdict) -> None:
        bad = self._judge(verdict)
        self._known[instant] = bad
        probed = Probed(instant, verdict, bad)
        self._result.probed.append(probed)
        self._on_probe(probed)

    def _judge(self, verdict: Verdict) -> bool | None:
        if verdict.outcome is Outcome.GOOD:
            return False
        if verdict.outcome is Outcome.BAD:
            return True if self._bad_like[0] is Outcome.BAD else None
        return True if (verdict.outcome, verdict.signature) == self._bad_like else None

    def _verdicts(self, instants: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Yield a verdict for each instant: from the log where there is one that holds, else by running."""
        if self._options.wrong:
            for instant in instants:
                yield from self._run([instant])
            return
        waiting = []
        for instant in instants:
            seen = fingerprint(self._probe, self._history, instant)
            known = self._log.find(self._probe, instant, seen)
            if known is not None:
                yield instant, known
            else:
                waiting.append(instant)
        if self._options.repeat == 1:
            yield from self._run(waiting)
            return
        for instant in waiting:
            yield (
                instant,
                self._majority([v for _ in range(self._options.repeat) for _, v in self._run([instant])]),
            )

    def _run(self, instants: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        for instant, verdict, seen in self._pool.run(self._probe, instants):
            if not self._options.wrong and self._options.repeat == 1:
                self._log.add(self._probe, instant, verdict, seen)
            yield instant, verdict

    def _majority(self, verdicts: list[Verdict]) -> Verdict:
        by_state: dict[bool | None, list[Verdict]] = {}
        for verdict in verdicts:
            by_state.setdefault(self._judge(verdict), []).append(verdict)
        ordered = sorted(by_state.values(), key=len, reverse=True)
        seconds = sum(verdict.seconds for verdict in verdicts)
        if len(ordered) > 1 and len(ordered[0]) == len(ordered[1]):
            return replace(ordered[0][0], outcome=Outcome.SKIP, seconds=seconds)
        return replace(ordered[0][0], seconds=seconds)

    def _complaint(self, name: str, instant: int, verdict: Verdict) -> str:
        where = self._history.label(instant)
        what = verdict.outcome.value + (f" ({verdict.signature})" if verdict.signature else "")
        lines = verdict.output.strip().splitlines()
        said = f"; it said: {lines[-1][:200]}" if lines else ""
        return f"the {name} end, {where}, is {what}: give another --{name}, or correct the probe{said}"


@contextmanager
def _pool(history: History, base: Path | None, options: Options) -> Iterator[Pool]:
    where = Where(history.trace.path.absolute(), base.absolute() if base else None, history.disk)
    pool: Pool
    if options.scheduler:
        pool = Dask(where, options.scheduler, options.jobs if options.jobs > 1 else None)
    elif options.jobs > 1:
        pool = Processes(where, options.jobs)
    else:
        pool = Here(history)
    try:
        yield pool
    finally:
        pool.close()


__all__ = ["Bisection", "NothingToFind", "Options", "ProbeError", "Probed", "Turn", "bisect", "default_log"]
