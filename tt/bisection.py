"""Binary search over places, with probes that may not be able to tell: ticks, instants, whatever has numbers.

Places are numbers; `ask` is given some and yields what each is: True (bad), False (good), or None (it
cannot tell: a skip).  Between a good and a bad place the search halves the largest gap between places whose
state it does not know; skips cut gaps too, so that a long run of them costs a logarithm at each of its ends,
and a bounded number of probes inside.  With several probes at a time it cuts into more parts (k-section).

For probes whose answers may be wrong see `tt.chronus.search.noisy`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Answers = Iterable[tuple[int, bool | None]]
Ask = Callable[[Sequence[int]], Answers]

INNER_PROBES = 16
"""Probes between two skips with no answer among them, before what lies between is taken for skips too."""
MOST_INNER_PROBES = 64
"""The same, however many answers there were."""


@dataclass(frozen=True)
class Narrowed:
    """Where the state changes: after place `before`, not later than at `after`.

    They are neighbours unless skips lie between them, and `asked` is how many probes it took.
    """

    before: int
    after: int
    asked: int = 0

    @property
    def candidates(self) -> range:
        """The places of which one is the first of the new state."""
        return range(self.before + 1, self.after + 1)


def narrow(
    before: int,
    after: int,
    state_after: bool,
    ask: Ask,
    *,
    jobs: int = 1,
    prefer: Sequence[int] = (),
    spare: int = 0,
    middle: Callable[[int, int], int] | None = None,
) -> Narrowed:
    """Find where the state turns to `state_after`, which it is at `after` and is not at `before`.

    With `jobs`, so many places are asked for at once.  Of places that are about as good to ask for, one
    of `prefer` (in their order) is taken.  One at a time and with nothing skipped, it asks at most
    log2(after - before) times, rounded up, and `spare` times more for the sake of `prefer`.  `middle`, if
    it is given, chooses that one place instead, between two others.
    """
    skips: list[int] = []
    inner, inner_left = INNER_PROBES, MOST_INNER_PROBES
    rounds = halvings(after - before) + spare
    asked = 0
    while after - before > 1:
        gaps = _gaps([before, *skips, after])
        outer = [gap for gap in gaps if gap[0] == before or gap[1] == after]
        if not gaps or (not outer and not (inner and inner_left)):
            break
        if jobs == 1 and not skips:
            chosen = [
                middle(before, after) if middle else _middle(before, after, 1 << max(rounds - 1, 0), prefer)
            ]
        else:
            chosen = _spread(outer or gaps, jobs, prefer)
        asked += len(chosen)
        rounds -= 1
        if not outer:
            inner, inner_left = max(inner - len(chosen), 0), max(inner_left - len(chosen), 0)
        for place, state in ask(chosen):
            if not before < place < after:
                continue  # of several at a time: another answer made this one needless
            if state is None:
                insort(skips, place)
                continue
            inner = INNER_PROBES
            if state == state_after:
                after = place
            else:
                before = place
        skips = skips[bisect_right(skips, before) : bisect_left(skips, after)]
        rounds = max(rounds, halvings(after - before))
    return Narrowed(before, after, asked)


def halvings(places: int) -> int:
    """Return how many probes find one among so many places."""
    return max(places - 1, 0).bit_length()


def rounds_left(places: int, jobs: int = 1) -> int:
    """Return roughly how many rounds of `jobs` probes find one among so many places."""
    rounds, told_apart = 0, 1
    while told_apart < places:
        told_apart *= jobs + 1
        rounds += 1
    return rounds


def _gaps(points: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of neighbours with something between them."""
    return [pair for pair in zip(points, points[1:], strict=False) if pair[1] - pair[0] > 1]


def _middle(before: int, after: int, reach: int, prefer: Sequence[int]) -> int:
    """Return the place to ask for: the one of `prefer` next to the middle, else the middle.

    Neither side may keep more than `reach` places.
    """
    middle = (before + after) // 2
    return nearest(prefer, middle, max(before + 1, after - reach), min(after - 1, before + reach), middle)


def nearest(prefer: Sequence[int], place: int, first: int, last: int, otherwise: int) -> int:
    """Return the one of `prefer`, from `first` to `last`, nearest to `place`; else `otherwise`."""
    at = bisect_left(prefer, place)
    near = [found for found in prefer[max(at - 1, 0) : at + 1] if first <= found <= last]
    return min(near, key=lambda found: abs(found - place), default=otherwise)


def _spread(gaps: Sequence[tuple[int, int]], jobs: int, prefer: Sequence[int]) -> list[int]:
    """Choose at most `jobs` places that cut the gaps, the largest first, evenly."""
    ordered = sorted(gaps, key=lambda gap: (gap[0] - gap[1], gap))[:jobs]
    each, more = divmod(jobs, len(ordered))
    places: set[int] = set()
    for at, (low, high) in enumerate(ordered):
        cuts = min(each + (at < more), high - low - 1)
        part = (high - low) // (cuts + 1)
        for cut in range(1, cuts + 1):
            place = low + (high - low) * cut // (cuts + 1)
            first, last = max(low + 1, place - part // 4), min(high - 1, place + part // 4)
            places.add(nearest(prefer, place, first, last, place))
    return sorted(places)
