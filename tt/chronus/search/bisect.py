"""Chronus's search (OSDI'04): the write that broke a machine, by probing the disk as it was.

First both ends are probed.  Then instants in between, the ends of bursts rather than others, until the last
good one and the first bad one are neighbours.  A hang or a crash cannot be judged, so it counts as a skip,
unless the bad end itself is one: then the same one counts as bad.

With more than half a million writes between the ends, the good end is not probed first, but only if no other
instant was good: a search of 20 probes then needs one more for its ends, not two.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tt.bisection import Answers, halvings, narrow, rounds_left
from tt.chronus.search.asking import Asker
from tt.chronus.search.asking import Probed as Probed
from tt.chronus.search.noisy import Held, believe, hold
from tt.chronus.search.pool import pool_for
from tt.chronus.search.verdict_log import VerdictLog
from tt.chronus.search.verdicts import Probe
from tt.chronus.store.history import History
from tt.errors import TTError, UsageError

GRID = 24
_DENSE_GRID = 16  # times as many bursts, where most need no run to be told apart
_WELL_UNDER = 19  # probes between the ends: with both ends 21 in all
_NEVER = -1  # no instant
_BURST_PROBES = 2  # that may be spent on ends of bursts rather than the middle


class NothingToFind(TTError):
    """An end is not good or bad as the user said (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Options:
    """How to search.

    `bursts`: do not go into the guilty burst.  `every`: find every turn that shows in `grid` probes, and in
    more between those that differ.  `repeat`: run each probe so often and take the majority.  `wrong`: the
    probability of a wrong answer, for which probes are repeated until the turn is known with `confidence`.
    `jobs` processes (0: as many as there are processors), or a Dask `scheduler`.  `keep` verdicts in the file
    `log`, by default the one beside the history, and use those that are there.
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

    def check(self) -> None:
        """Raise `UsageError` for numbers that make no sense."""
        if self.repeat < 1 or self.jobs < 0 or self.grid < 1:
            raise UsageError("--repeat and --grid: give 1 or more; --jobs: 0 (all processors) or more")
        if not 0 <= self.wrong < 0.5 or not 0.5 < self.confidence < 1:
            raise UsageError("--flaky: give a probability below 0.5; --confidence: one between 0.5 and 1")
        if self.wrong and self.repeat > 1:
            raise UsageError("--flaky repeats probes as often as is needed: leave --repeat out")


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
    """What a search found, for reports.

    `path` is the history's, `probe` described in a line; `good` and `bad` are the ends, `probed` the looks in
    their order, `turns` the answer (in the order of instants).  `notes` are further remarks.
    """

    path: Path
    probe: str
    good: int
    bad: int
    probed: list[Probed] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def ran(self) -> int:
        """How many probes were run."""
        return sum(one.runs for one in self.probed)

    @property
    def shared(self) -> int:
        """How many looks used an answer that was known already."""
        return sum(not one.runs for one in self.probed)


def bisect(
    history: History,
    probe: Probe,
    good: int,
    bad: int,
    options: Options | None = None,
    *,
    base: Path | None = None,
    on_probe: Callable[[Probed], None] = lambda probed: None,
    say: Callable[[str], None] = lambda line: None,
) -> Bisection:
    """Find what made `probe` bad between instants `good` and `bad` of `history`.

    With `good` after `bad` the fix is searched.  `on_probe` is told of every look, `say` how far it is, in
    git's words.  Raises `NothingToFind` where an end is not what it should be, `ProbeError` for a probe
    that cannot be run, `UsageError` for instants and options that make no sense.
    """
    options = options or Options()
    options.check()
    if good == bad:
        raise UsageError(
            f"good and bad are the same instant, {history.label(good)}: there is nothing in between"
        )
    for name, instant in (("good", good), ("bad", bad)):
        history.check(instant)
        _check_images(history, name, instant)
    result = Bisection(history.trace.path, probe.describe(), good, bad)
    begin = time.monotonic()
    log = VerdictLog(history, (options.log or default_log(history)) if options.keep else None)
    with pool_for(history, base, options.jobs, options.scheduler) as pool:

        def note(probed: Probed) -> None:
            result.probed.append(probed)
            on_probe(probed)

        asker = Asker(history, probe, pool, log, note, repeat=options.repeat, samples=options.wrong > 0)
        search = _Search(history, options, asker, result, say)
        result.turns = search.all_turns() if options.every else search.one_turn()
    if log.trouble:
        result.notes.append(f"verdicts were not kept: {log.trouble}")
    result.seconds = time.monotonic() - begin
    return result


def _check_images(history: History, name: str, instant: int) -> None:
    """Raise `UsageError` for an end before the first imported image, or inside an import."""
    if not instant and history.starts_empty:
        first = history.images[0]
        raise UsageError(
            f"--{name}: w0 is an empty disk, before the first image was imported: "
            f"the oldest image is @{first.name} ({history.label(first.last)})"
        )
    if span := history.inside_image(instant):
        raise UsageError(
            f"--{name}: {history.label(instant)} is inside the import of an image; the disk never was so: "
            f"give @{span.name} ({history.label(span.last)})"
            + (f" or {history.label(span.before)}, before it" if span.before else "")
        )


def default_log(history: History) -> Path:
    """Return the file beside a history in which verdicts are kept."""
    return history.trace.path.with_name(f"{history.trace.path.name}.verdicts")


class _Search:
    """One search.  `_low` to `_high` are the ends in the order of instants."""

    def __init__(
        self,
        history: History,
        options: Options,
        asker: Asker,
        result: Bisection,
        say: Callable[[str], None],
    ) -> None:
        self._history, self._options, self._asker = history, options, asker
        self._result, self._say = result, say
        self._low, self._high = sorted((result.good, result.bad))
        self._doubt = 1 - options.confidence

    # ---- the two kinds of search

    def one_turn(self) -> list[Turn]:
        """Probe the ends, and find the turn between them; raises `NothingToFind`."""
        good, bad = self._result.good, self._result.bad
        places = self._places(self._low, self._high)
        if self._options.wrong:
            sure = self._end("bad", bad) * self._end("good", good)
            turn = self._noisy_turn(places, bad > good, self._doubt / 2, sure)
            return [turn]
        last = len(places) - 1
        if self._asker.jobs > 1 or halvings(last) <= _WELL_UNDER:
            self._ends([good, bad])
            return [self._turn(places, bad > good)]
        # The good end becomes one of the places, after one that is never asked for.
        self._ends([bad])
        places = [_NEVER, *places] if good < bad else [*places, _NEVER]
        turn = self._turn(places, bad > good)
        if _NEVER in (turn.before, turn.after):
            if good not in self._asker.states:
                self._ends([good])
            self._check("good", good, False)
            edges = sorted((good, turn.after if good < bad else turn.before))  # only skips lie between
            turn = Turn(edges[0], edges[1], bad > good, self._writes(*edges))
        return [turn]

    def all_turns(self) -> list[Turn]:
        """Find every turn between the ends that looks at a grid of instants show.

        The ends may be anything here; raises `NothingToFind` where nothing could tell.
        """
        places = self._grid()
        self._ask([self._result.bad])  # first: it says whether a crash counts as bad
        sure = 1.0
        if self._options.wrong:
            doubt = self._doubt / 2 / len(places)
            for at, place in enumerate(places):
                self._tell("place", len(places) - at - 1, len(places) - at - 1)
                held = self._hold(place, doubt)
                sure *= held.confidence if held.state is not None else 1.0
        else:
            self._tell("place", len(places), len(places))
            self._ask(places)
        states = self._asker.states
        known = [place for place in places if states.get(place) is not None]
        if not known:
            raise NothingToFind("nothing could be judged: every probe was skipped, hung or crashed")
        turns = [(a, b) for a, b in zip(known, known[1:], strict=False) if states[a] != states[b]]
        found = []
        for one, other in turns:
            becomes_bad = states[other] is True
            between = self._places(one, other)
            if self._options.wrong:
                found.append(self._noisy_turn(between, becomes_bad, self._doubt / 2 / len(turns), sure))
            else:
                found.append(self._turn(between, becomes_bad))
        return found

    # ---- one turn

    def _turn(self, places: Sequence[int], becomes_bad: bool) -> Turn:
        """Narrow down the turn between the first and the last of `places`."""
        last = len(places) - 1
        budget = halvings(last)
        spare = min(max(_WELL_UNDER - budget, 0), _BURST_PROBES)
        bounds = [0, last]  # of what is not known yet, for messages only

        def ask(indexes: Sequence[int]) -> Answers:
            self._tell_left(bounds[1] - bounds[0] - 1, len(indexes))
            index_of = {places[index]: index for index in indexes}
            for instant, state in self._asker.ask(list(index_of)):
                index = index_of[instant]
                if state is not None and bounds[0] < index < bounds[1]:
                    bounds[state == becomes_bad] = index
                yield index, state

        found = narrow(
            0, last, becomes_bad, ask, jobs=self._asker.jobs, prefer=self._preferred(places), spare=spare
        )
        before, after = places[found.before], places[found.after]
        return Turn(before, after, becomes_bad, self._writes(before, after))

    def _noisy_turn(self, places: Sequence[int], becomes_bad: bool, doubt: float, sure: float) -> Turn:
        def ask(indexes: Sequence[int]) -> Answers:
            index_of = {places[index]: index for index in indexes}
            for instant, state in self._asker.ask([places[index] for index in indexes]):
                yield index_of[instant], state

        last = len(places) - 1
        if last == 1:
            return Turn(places[0], places[1], becomes_bad, self._writes(places[0], places[1]), sure)
        found = believe(
            0, last, becomes_bad, ask, wrong=self._options.wrong, confidence=1 - doubt,
            jobs=self._asker.jobs, prefer=self._preferred(places),
        )  # fmt: skip
        before, after = places[found.before], places[found.after]
        return Turn(before, after, becomes_bad, self._writes(before, after), sure * found.confidence)

    # ---- the ends

    def _ends(self, instants: Sequence[int]) -> None:
        """Probe ends, and see that they are what they were said to be."""
        good, bad = self._result.good, self._result.bad
        if bad in instants:
            self._asker.ends(instants, bad)
        else:
            self._ask(instants)
        states = self._asker.states
        if len(instants) == 2 and states[good] is True and states[bad] is False:
            raise NothingToFind(
                f"good and bad are the wrong way round: {self._history.label(good)} is bad, "
                f"{self._history.label(bad)} is good"
            )
        for name, instant, wanted in (("good", good, False), ("bad", bad, True)):
            if instant in instants:
                self._check(name, instant, wanted)

    def _end(self, name: str, instant: int) -> float:
        """Ask for an end until it is sure, with a probe that may be wrong; return how sure it is."""
        if name == "bad":
            self._asker.ends([instant], instant)
        held = self._hold(instant, self._doubt / 4)
        self._check(name, instant, name == "bad")
        return held.confidence

    def _hold(self, instant: int, doubt: float) -> Held:
        wrong, jobs = self._options.wrong, self._asker.jobs
        held = hold(instant, self._asker.ask, wrong=wrong, confidence=1 - doubt, jobs=jobs)
        self._asker.states[instant] = held.state
        return held

    def _check(self, name: str, instant: int, wanted: bool) -> None:
        """Check that an end that was probed is what it should be."""
        if self._asker.states[instant] is wanted:
            return
        verdict = next(one.verdict for one in reversed(self._result.probed) if one.instant == instant)
        what = verdict.outcome.value + (f" ({verdict.signature})" if verdict.signature else "")
        lines = verdict.output.strip().splitlines()
        said = f"; it said: {lines[-1][:200]}" if lines else ""
        where = self._history.label(instant)
        raise NothingToFind(
            f"the {name} end, {where}, is {what}: give another --{name}, or correct the probe{said}"
        )

    # ---- instants

    def _places(self, low: int, high: int) -> Sequence[int]:
        """Return the instants to search between two: after each burst, or each write to this disk.

        An imported image is one.
        """
        if self._options.bursts:
            return [low, *self._burst_ends(low, high), high]
        inside = [number for number, _ns, _sectors in self._history.rhythm(low + 1, high) if number < high]
        if self._history.images:
            inside = [number for number in inside if not self._history.inside_image(number)]
        return range(low, high + 1) if len(inside) == high - low - 1 else [low, *inside, high]

    def _preferred(self, places: Sequence[int]) -> Sequence[int]:
        """Return the indexes in `places` of the ends of bursts."""
        if self._options.bursts or len(places) < 3:
            return ()
        first, last = places[places[0] == _NEVER], places[-2 if places[-1] == _NEVER else -1]
        inside = range(places[0] == _NEVER, len(places) - (places[-1] == _NEVER))
        found = []
        for end in self._burst_ends(first, last):
            at = bisect_left(places, end, inside.start, inside.stop)
            if places[at] == end:
                found.append(at)
        return found

    def _burst_ends(self, low: int, high: int) -> list[int]:
        return [
            burst.after
            for burst in self._history.bursts(low, high)
            if low < burst.after < high and not self._history.inside_image(burst.after)
        ]

    def _grid(self) -> list[int]:
        """Return the instants to look at for every turn: ends of bursts, and where those are few, others."""
        low, high, grid = self._low, self._high, self._options.grid
        ends = [low, *self._burst_ends(low, high), high]
        most = grid * _DENSE_GRID if self._asker.sees else grid
        if len(ends) - 1 > most:
            ends = [ends[(len(ends) - 1) * at // most] for at in range(most + 1)]
        elif len(ends) - 1 < grid and not self._options.bursts:
            all_places = self._places(low, high)
            cuts = min(grid, len(all_places) - 1)
            ends += [all_places[(len(all_places) - 1) * at // cuts] for at in range(cuts + 1)]
        return sorted(set(ends))

    def _writes(self, before: int, after: int) -> tuple[int, ...]:
        return tuple(number for number, _ns, _sectors in self._history.rhythm(before + 1, after))

    # ---- asking

    def _ask(self, instants: Sequence[int]) -> None:
        for _answer in self._asker.ask(instants):
            pass

    def _tell_left(self, left: int, asked: int) -> None:
        after_this = max(left - asked, 0) // (asked + 1)
        images = self._history.images
        what = "image" if images and self._high <= images[-1].last else "write"
        self._tell("burst" if self._options.bursts else what, after_this, None)

    def _tell(self, what: str, left: int, steps: int | None) -> None:
        if steps is None:
            steps = rounds_left(left + 1, self._asker.jobs)
        whats = what if left == 1 else f"{what}s"
        step = "step" if steps == 1 else "steps"
        self._say(f"Bisecting: {left:,} {whats} left to test after this (roughly {steps:,} {step})")
