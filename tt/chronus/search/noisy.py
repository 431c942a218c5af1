"""Search with probes whose answers are wrong now and then, to a stated confidence.

Every place has a probability to be the one where the state turns; at first all are equal.  A probe is made
where it halves the probability, and its answer makes one side more likely: `1 - wrong` against `wrong` (M.
Horstein 1963; M. Burnashev and K. Zigangirov 1974; M. Ben-Or and A. Hassidim, FOCS 2008: it takes about
log2(n) / (1 - H(wrong)) probes).  Between places that were asked for the probability is constant, so that it
is stored in as many pieces as there were probes, however many places there are.

A skip gives no information.  The ends of a run of skips are searched as in `tt.bisection`; the run itself is
one piece that probes cannot divide.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

from tt.bisection import INNER_PROBES, Ask, nearest

MOST_PROBES = 10_000
_MOST_SKIPS = 3  # of one place, before it counts as skipped
_LEAST_WRONG = 1e-9  # even a probe said to be always right gets this, so that answers may contradict
_CUT = 0.1  # a preferred place may be so far from the middle, in probability


@dataclass(frozen=True)
class Believed:
    """The turn lies after place `before` and up to `after`, with probability `confidence`.

    They are neighbours unless skips lie between; `asked` is how many probes it took.
    """

    before: int
    after: int
    confidence: float
    asked: int


@dataclass(frozen=True)
class Held:
    """A state that is believed with probability `confidence`; None where the probe cannot tell."""

    state: bool | None
    confidence: float
    asked: int


def check(wrong: float, confidence: float) -> None:
    """Raise `ValueError` where answers that are `wrong` so often never come to `confidence`."""
    if not 0 <= wrong < 0.5 or not 0.5 < confidence < 1:
        raise ValueError(f"answers wrong with probability {wrong} never come to confidence {confidence}")


def hold(
    place: int, ask: Ask, *, wrong: float, confidence: float, jobs: int = 1, most: int = MOST_PROBES
) -> Held:
    """Ask for one place until its state is sure (A. Wald's sequential test, 1945, with even odds at first).

    Raises `ValueError` as `check` does.
    """
    check(wrong, confidence)
    step = _step(wrong)
    enough = math.log(confidence / (1 - confidence))
    odds, asked, skipped = 0.0, 0, 0
    while abs(odds) < enough * (1 - 1e-12) and asked < most:
        least = math.ceil((enough - abs(odds)) / step - 1e-9)  # if all agree
        for _place, answer in ask([place] * max(1, min(jobs, least))):
            asked += 1
            if answer is None:
                skipped += 1
            else:
                odds += step if answer else -step
        if skipped >= _MOST_SKIPS and skipped * 2 > asked:
            return Held(None, 0.0, asked)
    return Held(odds > 0, 1 / (1 + math.exp(-abs(odds))), asked)


def believe(
    before: int,
    after: int,
    state_after: bool,
    ask: Ask,
    *,
    wrong: float,
    confidence: float = 0.99,
    jobs: int = 1,
    prefer: Sequence[int] = (),
    most: int = MOST_PROBES,
) -> Believed:
    """Find where the state turns to `state_after`, which it is at `after` and is not at `before`.

    Each answer is wrong with probability `wrong`, independently; `jobs` are asked for at once, the same place
    more than once too.  Raises `ValueError` as `check` does.  After `most` probes the likeliest place
    is returned, with the confidence that there is.
    """
    check(wrong, confidence)
    belief = _Belief(before, after, math.exp(_step(wrong)))
    asked = 0
    while True:
        best = belief.best()
        if best.confidence >= confidence or asked >= most:
            break
        chosen: list[int] = []
        for cut in range(1, jobs + 1):
            found = belief.choose(cut / (jobs + 1), prefer)
            if isinstance(found, int):
                chosen.append(found)
                continue
            if found.confidence >= confidence or found.before <= before and found.after >= after:
                return Believed(found.before, found.after, found.confidence, asked)
            # Probes cannot divide this piece: ask at its nearer end whether the turn lies in it.
            chosen.append(belief.edge(found.before, found.after))
        for place, answer in ask(sorted(chosen)):
            asked += 1
            belief.learn(place, None if answer is None else answer == state_after)
    return Believed(best.before, best.after, best.confidence, asked)


def _step(wrong: float) -> float:
    wrong = max(wrong, _LEAST_WRONG)
    return math.log((1 - wrong) / wrong)


class _Belief:
    """The probability of each place from `before` + 1 to `after` to be the first of the new state."""

    def __init__(self, before: int, after: int, odds: float) -> None:
        self._before, self._after = before, after
        self._odds = odds  # by which an answer makes one side likelier
        # Pieces: the first place of each, and the probability of each of its places; a last bound behind.
        self._firsts = [before + 1, after + 1]
        self._each = [1.0 / (after - before)]
        self._answered = [before, after]
        self._skips: list[int] = []
        self._inner = INNER_PROBES

    def learn(self, place: int, turned: bool | None) -> None:
        """Take an answer into account: whether `place` has the new state."""
        if turned is None:
            if place not in self._skips and place not in self._answered:
                insort(self._skips, place)
            return
        if place not in self._answered:
            insort(self._answered, place)
            self._inner = INNER_PROBES
        if place in self._skips:
            self._skips.remove(place)  # this time it gave an answer
        at = bisect_right(self._firsts, place) - 1
        if self._firsts[at + 1] != place + 1:
            self._firsts.insert(at + 1, place + 1)
            self._each.insert(at, self._each[at])
        for piece in range(len(self._each)):
            if (piece <= at) == turned:
                self._each[piece] *= self._odds
        total = sum(self._masses())
        self._each = [each / total for each in self._each]

    def best(self) -> Believed:
        """Return the likeliest place."""
        at = max(range(len(self._each)), key=self._each.__getitem__)
        first = self._firsts[at]
        return Believed(first - 1, first, self._each[at], 0)

    def upto(self, place: int) -> float:
        """Return the probability that the turn is at `place` or before it."""
        total = 0.0
        for first, end, each in zip(self._firsts, self._firsts[1:], self._each, strict=False):
            if place < end:
                return total + max(0, place - first + 1) * each
            total += (end - first) * each
        return total

    def choose(self, share: float, prefer: Sequence[int]) -> int | Believed:
        """Return the place to ask for: where the probability up to it is nearest to `share`.

        Where skips are in the way, return a place that shows how far they reach; where that is known too,
        return the two places between which no probe gives an answer.
        """
        place = self._quantile(share)
        near = nearest(prefer, place, self._before + 1, self._after - 1, place)
        if near != place and abs(self.upto(near) - share) <= _CUT and near not in self._skips:
            place = near
        low = self._answered[bisect_right(self._answered, place) - 1]
        if low == place:
            return place
        high = self._answered[bisect_right(self._answered, place)]
        skips = self._skips[bisect_right(self._skips, low) : bisect_left(self._skips, high)]
        if not skips or not skips[0] <= place <= skips[-1]:
            return place
        outer = [gap for gap in ((low, skips[0]), (skips[-1], high)) if gap[1] - gap[0] > 1]
        if outer:
            begin, end = max(outer, key=lambda gap: self.upto(gap[1]) - self.upto(gap[0]))
            return (begin + end) // 2
        begin, end = max(zip(skips, skips[1:], strict=False), key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if end - begin > 1 and self._inner:
            self._inner -= 1
            return (begin + end) // 2
        return Believed(low, high, self.upto(high) - self.upto(low), 0)

    def edge(self, low: int, high: int) -> int:
        """Return that one of two answered places, not an end of the search, that halves better."""
        inside = [place for place in (low, high) if self._before < place < self._after]
        return min(inside, key=lambda place: abs(self.upto(place) - 0.5))

    def _masses(self) -> list[float]:
        return [
            (end - first) * each
            for first, end, each in zip(self._firsts, self._firsts[1:], self._each, strict=False)
        ]

    def _quantile(self, share: float) -> int:
        """Return the place, not an end, up to which the probability is nearest to `share`."""
        total = 0.0
        place = self._after - 1
        for first, end, each, mass in zip(
            self._firsts, self._firsts[1:], self._each, self._masses(), strict=False
        ):
            if total + mass >= share:
                place = min(first - 1 + round((share - total) / each), end - 1) if each else end - 1
                break
            total += mass
        return min(max(place, self._before + 1), self._after - 1)
