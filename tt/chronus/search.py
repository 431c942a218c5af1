"""Binary search over instants, with probes that may not be able to tell, or may lie; it knows no disks.

Places are indexes; `ask` is given some and returns what each is: True (bad), False (good), or None (it
cannot tell: a skip).  Between a good and a bad place the search halves the largest gap between places whose
state it does not know; skips cut gaps too, so that a long run of them costs a logarithm at each of its ends,
and a bounded number of probes inside.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Ask = Callable[[Sequence[int]], Mapping[int, bool | None]]
INNER_PROBES = 16
"""Probes between two skips, before what lies between is taken for skips too."""


@dataclass(frozen=True)
class Narrowed:
    """Where the state changes: after place `before`, not later than at `after`.

    They are neighbours unless only skips lie between them.
    """

    before: int
    after: int

    @property
    def candidates(self) -> range:
        """The places of which one is the first of the new state."""
        return range(self.before + 1, self.after + 1)


def narrow(before: int, after: int, state_after: bool, ask: Ask, *, jobs: int = 1) -> Narrowed:
    """Find where the state turns to `state_after`, which it is at `after` and is not at `before`.

    With `jobs`, so many places are asked for at once.  One at a time and with nothing skipped, it asks
    log2(after - before) times.
    """
    skips: list[int] = []
    inner = INNER_PROBES
    while after - before > 1:
        points = [before, *skips, after]
        gaps = [
            (high - low, low, high) for low, high in zip(points, points[1:], strict=False) if high - low > 1
        ]
        outer = [gap for gap in gaps if gap[1] == before or gap[2] == after]
        if not gaps or (not outer and not inner):
            break
        chosen = _spread(outer or gaps, jobs)
        if not outer:
            inner -= min(inner, len(chosen))
        for place, state in sorted(ask(chosen).items()):
            if not before < place < after:
                continue
            if state is None:
                insort(skips, place)
            elif state == state_after:
                after = place
            else:
                before = place
        skips = [place for place in skips if before < place < after]
    return Narrowed(before, after)


def _spread(gaps: Sequence[tuple[int, int, int]], jobs: int) -> list[int]:
    """Choose at most `jobs` places that cut the gaps, the largest first, evenly."""
    ordered = sorted(gaps, reverse=True)[:jobs]
    each, more = divmod(jobs, len(ordered))
    places: list[int] = []
    for at, (size, low, high) in enumerate(ordered):
        cuts = min(each + (at < more), size - 1)
        places += [low + size * cut // (cuts + 1) for cut in range(1, cuts + 1)]
        assert all(low < place < high for place in places[-cuts:])
    return sorted(set(places))


def probes_left(places: int, jobs: int = 1) -> int:
    """Return roughly how many rounds of probes a search over so many places still takes."""
    return max(0, math.ceil(math.log(max(places, 1), jobs + 1)))


@dataclass(frozen=True)
class Believed:
    """What a search with unreliable answers came to: the most likely place, and how likely it is."""

    before: int
    after: int
    confidence: float
    asked: int


def believe(
    before: int,
    after: int,
    state_after: bool,
    ask: Ask,
    *,
    wrong: float,
    confidence: float = 0.99,
    most: int = 10_000,
) -> Believed:
    """Find the turn with answers each of which is wrong with probability `wrong`, below one half.

    Keeps the probability of every place to be the first of the new state, asks where it is halved, and
    stops when one has `confidence` (Burnashev and Zigangirov 1974; Ben-Or and Hassidim 2008).  A skip
    says nothing: its neighbours are asked.  Raises `ValueError` for a `wrong` that allows no answer.
    """
    if not 0 <= wrong < 0.5 or not 0.5 < confidence < 1:
        raise ValueError(f"answers wrong with probability {wrong} never come to confidence {confidence}")
    # Runs of places with equal probability: (first, last, probability of each).
    runs = [(before + 1, after, 1.0 / (after - before))]
    skipped: set[int] = set()
    asked = 0
    while asked < most:
        best = max(runs, key=lambda run: run[2])
        if best[2] >= confidence:
            break
        place = _median(runs)
        place = _beside(place, skipped, before, after)
        if place is None:
            break
        answer = ask([place])[place]
        asked += 1
        if answer is None:
            skipped.add(place)
            continue
        turned = answer == state_after
        updated = []
        for first, last, chance in runs:
            # The turn is at or before `place` where the new state is seen there.
            for low, high, new in ((first, min(last, place), True), (max(first, place + 1), last, False)):
                if low <= high:
                    updated.append((low, high, chance * (1 - wrong if new == turned else max(wrong, 1e-12))))
        total = sum((last - first + 1) * chance for first, last, chance in updated)
        runs = [(first, last, chance / total) for first, last, chance in updated]
    first, _last, chance = max(runs, key=lambda run: run[2])
    return Believed(first - 1, first, chance, asked)


def _median(runs: Sequence[tuple[int, int, float]]) -> int:
    """Return the place at which the probability of a turn up to it comes closest to one half."""
    total = 0.0
    for first, last, chance in runs:
        mass = (last - first + 1) * chance
        if total + mass >= 0.5:
            inside = (0.5 - total) / chance
            whole = int(inside)
            return max(first - 1, min(last, first - 1 + whole + (inside - whole >= 0.5)))
        total += mass
    return runs[-1][1]


def _beside(place: int, skipped: set[int], before: int, after: int) -> int | None:
    """Return the nearest place strictly between the two ends that was not skipped."""
    place = min(max(place, before + 1), after - 1)
    for distance in range(after - before):
        for at in (place - distance, place + distance):
            if before < at < after and at not in skipped:
                return at
    return None
