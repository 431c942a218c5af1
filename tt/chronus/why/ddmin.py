"""Delta debugging: the smallest part of a set that still has an effect.

The algorithm `ddmin` of A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input",
IEEE Transactions on Software Engineering 28 (2002), section 3.2 and figure 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Test = Callable[[tuple[Item, ...]], bool | None]


class Tester:
    """Asks `test` of subsets of `items`, each subset once.

    Subsets are given by the positions of their items.  `answers` holds the subsets asked for, in that order.
    """

    def __init__(self, items: Sequence[Item], test: Test[Item]) -> None:
        self._items = items
        self._test = test
        self.answers: dict[frozenset[int], bool | None] = {}

    def __call__(self, subset: Sequence[int]) -> bool:
        """Tell whether a subset has the effect; an unclear answer counts as no."""
        key = frozenset(subset)
        if key not in self.answers:
            self.answers[key] = self._test(tuple(self._items[at] for at in sorted(key)))
        return self.answers[key] is True


def ddmin(items: Sequence[Item], test: Test[Item]) -> tuple[Item, ...]:
    """Return a part of `items`, in their order, for which `test` is true, but not with any one less.

    `test` is true for all `items`, and false for none of them: the caller has checked that.  It gets items in
    their order and returns True, False, or None where it cannot tell.  No subset is asked for twice.
    A single guilty item among n costs at most 2 log2(n) tests, and the worst case is n² + 3n.

    What belongs together should be neighbours in `items`: the first pieces that are tried are halves.
    """
    ask = Tester(items, test)
    chosen = list(range(len(items)))
    pieces = 2
    while len(chosen) >= 2:
        parts = _split(chosen, pieces)
        part = next((part for part in parts if ask(part)), None)
        if part is not None:
            chosen, pieces = part, 2
            continue
        # With two parts the complement of one is the other, which was just asked for.
        rest = next((rest for rest in _complements(parts) if ask(rest)), None) if pieces > 2 else None
        if rest is not None:
            chosen, pieces = rest, max(pieces - 1, 2)
        elif pieces < len(chosen):
            pieces = min(2 * pieces, len(chosen))
        else:
            break
    return tuple(items[at] for at in chosen)


def _split(chosen: Sequence[int], pieces: int) -> list[list[int]]:
    """Cut into `pieces` parts whose lengths differ by one at most."""
    cuts = [len(chosen) * at // pieces for at in range(pieces + 1)]
    return [list(chosen[low:high]) for low, high in zip(cuts, cuts[1:], strict=False)]


def _complements(parts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [
        [at for other, part in enumerate(parts) if other != left_out for at in part]
        for left_out in range(len(parts))
    ]
