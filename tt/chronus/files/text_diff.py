"""The differences of two texts as `diff -u` writes them, in bounded time.

By E. W. Myers, "An O(ND) Difference Algorithm and Its Variations", Algorithmica 1 (1986), section 3.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

MAX_TEXT = 8 << 20
"""Most bytes of a file that are compared line by line."""

_MAX_EDITS = 2000
_MAX_STEPS = 4_000_000  # compared lines, some seconds: beyond it, all old lines, then all new
_PROBED = 8000  # bytes: a zero among them makes a file binary, as for git

Edit = tuple[int, int, int, int]
"""Lines `a:b` of the old text became lines `c:d` of the new."""


def is_text(data: bytes) -> bool:
    """Tell whether a file's contents are shown line by line."""
    return b"\0" not in data[:_PROBED]


def lines_of(data: bytes) -> list[str]:
    """Return the lines of a text, each with its newline; bytes that are no UTF-8 survive."""
    text = data.decode("utf-8", "surrogateescape")
    pieces = text.split("\n")
    lines = [f"{piece}\n" for piece in pieces[:-1]]
    return [*lines, pieces[-1]] if pieces[-1] else lines


def unified(old: Sequence[str], new: Sequence[str], context: int = 3) -> list[str]:
    """Return the hunks that turn `old` into `new`, lines without newlines, with `context` lines around."""
    out: list[str] = []
    for group in _hunks(edits(old, new), context):
        first, last = group[0], group[-1]
        a, b = max(0, first[0] - context), min(len(old), last[1] + context)
        c, d = max(0, first[2] - context), min(len(new), last[3] + context)
        out.append(f"@@ -{_range(a, b)} +{_range(c, d)} @@")
        at = a
        for edit in group:
            out += _marked(" ", old[at : edit[0]])
            out += _marked("-", old[edit[0] : edit[1]])
            out += _marked("+", new[edit[2] : edit[3]])
            at = edit[1]
        out += _marked(" ", old[at:b])
    return out


def edits(old: Sequence[str], new: Sequence[str]) -> list[Edit]:
    """Return the smallest set of edits that turns `old` into `new`, where it is not too large to look for."""
    head = 0
    while head < len(old) and head < len(new) and old[head] == new[head]:
        head += 1
    tail = 0
    most = min(len(old), len(new)) - head
    while tail < most and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    one, two = old[head : len(old) - tail], new[head : len(new) - tail]
    if not one and not two:
        return []
    pairs = _common(one, two)
    found: list[Edit] = []
    x = y = 0
    for i, j in [*pairs, (len(one), len(two))]:
        if i > x or j > y:
            found.append((head + x, head + i, head + y, head + j))
        x, y = i + 1, j + 1
    return found


def _common(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return the lines that the two have in common: pairs of positions, rising."""
    if not old or not new:
        return []
    numbers: dict[str, int] = {}
    a = [numbers.setdefault(line, len(numbers)) for line in old]
    b = [numbers.setdefault(line, len(numbers)) for line in new]
    most = min(len(a) + len(b), _MAX_EDITS)
    reached = array("i", bytes(4 * (2 * most + 3)))  # by diagonal k, at most + 1 + k: how far along `a`
    middle = most + 1
    trail: list[array[int]] = []
    steps = 0
    for d in range(most + 1):
        trail.append(reached[middle - d - 1 : middle + d + 2])
        for k in range(-d, d + 1, 2):
            at = middle + k
            x = reached[at + 1] if _came_down(reached, at, k, d) else reached[at - 1] + 1
            y = x - k
            start = x
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x += 1
                y += 1
            steps += 1 + x - start
            reached[at] = x
            if x >= len(a) and y >= len(b):
                return _back(trail, len(a), len(b))
        if steps > _MAX_STEPS:
            break
    return []


def _came_down(reached: array[int], at: int, k: int, d: int) -> bool:
    """Whether the best way to diagonal k with d edits is by a line that is only in the new text."""
    return k == -d or (k != d and reached[at - 1] < reached[at + 1])


def _back(trail: list[array[int]], x: int, y: int) -> list[tuple[int, int]]:
    """Walk back from the end, and gather the lines in common."""
    pairs: list[tuple[int, int]] = []
    for d in range(len(trail) - 1, 0, -1):
        reached, k = trail[d], x - y
        before = k + 1 if _came_down(reached, d + 1 + k, k, d) else k - 1
        from_x = reached[d + 1 + before]
        from_y = from_x - before
        while x > from_x and y > from_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = from_x, from_y
    while x > 0 and y > 0:
        x, y = x - 1, y - 1
        pairs.append((x, y))
    pairs.reverse()
    return pairs


def _hunks(found: list[Edit], context: int) -> Iterator[list[Edit]]:
    """Group edits whose contexts touch."""
    group: list[Edit] = []
    for edit in found:
        if group and edit[0] - group[-1][1] > 2 * context:
            yield group
            group = []
        group.append(edit)
    if group:
        yield group


def _range(first: int, last: int) -> str:
    """Return a hunk's range as diff(1) writes it: from 1; an empty range gets the line before."""
    count = last - first
    begin = first + 1 if count else first
    return f"{begin}" if count == 1 else f"{begin},{count}"


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if line.endswith("\n"):
            yield mark + line[:-1]
        else:
            yield mark + line
            yield "\\ No newline at end of file"
