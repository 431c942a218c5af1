"""The search as a picture (SVG): the history from left to right, the probes from top to bottom.

Above is the whole span that was searched, with its bursts of writes; where the search went into one burst,
that is drawn again below, enlarged.  Each row shows a probe, and as a band the writes that could still be
guilty then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tt.chronus.report.markup import tag, text
from tt.chronus.search.bisect import Bisection, Probed, Turn
from tt.chronus.store.bursts import Burst
from tt.chronus.store.history import History

_WIDTH = 1000
_LEFT, _RIGHT = 46, 18
_AXIS = 54  # height of names and bursts above the rows
_GAP = 54  # between the two scales
_BAR = 26  # height of the largest burst
_MOST_BARS = 480
_MOST_ROWS = 120
_ROOMY, _CLOSE = 24, 15  # height of a row
_FEW = 40  # up to so many rows have the larger height
_ZOOMED = 0.12  # a burst that takes more of the picture than this needs no enlarging
_SHAPES = {False: "good", True: "bad", None: "skip"}


@dataclass(frozen=True)
class Scale:
    """A span of instants drawn in a height: `y` is its top."""

    low: int
    high: int
    y: float
    rows: Sequence[tuple[int, Probed]]
    row_height: int

    def x(self, instant: float) -> float:
        """Return where an instant is."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (instant - self.low) / max(self.high - self.low, 1)

    def row_y(self, row: int) -> float:
        """Return the middle of a row."""
        return self.y + _AXIS + self.row_height * (row + 0.5)

    @property
    def bottom(self) -> float:
        """Where the scale ends."""
        return self.y + _AXIS + self.row_height * max(len(self.rows), 1)


def draw(history: History, found: Bisection) -> Iterator[str]:
    """Yield the picture in pieces."""
    low, high = sorted((found.good, found.bad))
    numbered = list(enumerate(found.probed, 1))
    groups = history.bursts(low, high)
    burst = _burst_to_enlarge(groups, found, low, high)
    inner: list[tuple[int, Probed]] = []
    if burst is not None:
        inner = [each for each in numbered if burst.before < each[1].instant < burst.after]
    whole = [each for each in numbered if each not in inner]
    row_height = _ROOMY if len(numbered) <= _FEW else _CLOSE
    top = Scale(low, high, 0, whole[:_MOST_ROWS], row_height)
    scales = [top]
    if burst is not None and inner:
        scales.append(Scale(burst.before, burst.after, top.bottom + _GAP, inner[:_MOST_ROWS], row_height))
    height = scales[-1].bottom + 12
    yield (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" xmlns="http://www.w3.org/2000/svg" role="img" '
        'aria-label="the probes over the history">'
    )
    if len(scales) == 2:
        yield _wedge(top, scales[1])
    for scale in scales:
        yield from _bands(scale, found)
        yield from _turns(scale, found.turns)
        yield from _axis(history, scale, groups if scale is top else [])
        if scale is not top:
            yield from _writes(history, scale)
        yield from _probes(history, scale)
    yield "</svg>"


def left_out(found: Bisection) -> int:
    """Return how many probes are not drawn, because they are too many."""
    return max(0, len(found.probed) - _MOST_ROWS)


def legend() -> str:
    """Return what the shapes mean, as HTML."""
    shapes = []
    for state, name in ((False, "good"), (True, "bad"), (None, "cannot tell")):
        shape = _mark(_SHAPES[state], 9, 9, "")
        shapes.append(f'<svg class="key" viewBox="0 0 18 18">{shape}</svg> {name}')
    return (
        "&ensp; ".join(shapes) + "&ensp; hollow: known without a run&ensp; band: what could still be guilty"
    )


# ---- inside


def _burst_to_enlarge(groups: Sequence[Burst], found: Bisection, low: int, high: int) -> Burst | None:
    if len(found.turns) != 1:
        return None
    turn = found.turns[0]
    for burst in groups:
        if burst.first <= turn.after <= burst.last:
            small = (burst.after - burst.before) / max(high - low, 1) < _ZOOMED
            return burst if small and burst.count > 1 else None
    return None


def _turns(scale: Scale, turns: Sequence[Turn]) -> Iterator[str]:
    for turn in turns:
        if turn.after < scale.low or turn.before > scale.high:
            continue
        left, right = scale.x(max(turn.before, scale.low)), scale.x(min(turn.after, scale.high))
        state = "bad" if turn.becomes_bad else "good"
        top, bottom = scale.y + 18, scale.bottom
        yield tag(
            "rect", class_=f"turn-{state}", x=f"{left:.1f}", y=f"{top:.1f}",
            width=f"{max(right - left, 1):.1f}", height=f"{bottom - top:.1f}",
        )  # fmt: skip
        yield _line(f"edge-{state}", right, top, right, bottom)


def _axis(history: History, scale: Scale, groups: Sequence[Burst]) -> Iterator[str]:
    base = scale.y + _AXIS - 4
    yield _line("axis", _LEFT, base, _WIDTH - _RIGHT, base)
    for instant, anchor in ((scale.low, "start"), (scale.high, "end")):
        place = {"x": f"{scale.x(instant):.1f}", "y": f"{scale.y + 13:.1f}", "text_anchor": anchor}
        yield tag("text", text(_short(history, instant)), class_="name", **place)
    most = max((burst.size for burst in groups), default=1)
    for gathered in _gather(groups):
        left, right = scale.x(gathered[0].before), scale.x(gathered[-1].after)
        size = max(burst.size for burst in gathered)
        tall = 4 + (_BAR - 4) * (size / max(most, 1)) ** 0.5
        count = sum(burst.count for burst in gathered)
        name = (
            f"{_short(history, gathered[-1].last)}: {count:,} writes, {sum(b.size for b in gathered):,} bytes"
        )
        wide = max(right - left - 1, 1)
        yield _rect("bar", left, base - tall, wide, tall, name)


def _writes(history: History, scale: Scale) -> Iterator[str]:
    """Mark each write of an enlarged burst, if they can be told apart."""
    count = scale.high - scale.low
    base = scale.y + _AXIS - 4
    step = (_WIDTH - _LEFT - _RIGHT) / max(count, 1)
    if count > _MOST_BARS:
        yield _rect("bar", scale.x(scale.low), base - 8, scale.x(scale.high) - scale.x(scale.low), 8, "")
        return
    for write in history.writes(scale.low + 1, scale.high):
        name = f"w{write.number}: {write.size:,} bytes at sector {write.lba:,}"
        yield _rect("bar", scale.x(write.number - 1) + 0.5, base - 12, max(step - 1, 0.8), 12, name)


def _bands(scale: Scale, found: Bisection) -> Iterator[str]:
    """Draw what could still be guilty before each probe; with several turns that is not defined."""
    if len(found.turns) != 1:
        return
    becomes_bad = found.turns[0].becomes_bad
    low, high = sorted((found.good, found.bad))
    rows = {number: row for row, (number, _) in enumerate(scale.rows)}
    for number, one in enumerate(found.probed, 1):
        row = rows.get(number)
        if row is not None and number > 2:
            left, right = scale.x(max(low, scale.low)), scale.x(min(high, scale.high))
            top = scale.row_y(row) - scale.row_height / 2 + 1
            yield _rect("open", left, top, max(right - left, 1), scale.row_height - 2, "")
        if one.bad is None or number <= 2:
            continue
        if one.bad == becomes_bad:
            high = min(high, one.instant)
        else:
            low = max(low, one.instant)


def _probes(history: History, scale: Scale) -> Iterator[str]:
    if not scale.rows:
        return
    points = " ".join(
        f"{scale.x(one.instant):.1f},{scale.row_y(row):.1f}" for row, (_, one) in enumerate(scale.rows)
    )
    yield tag("polyline", class_="path", points=points)
    for row, (number, one) in enumerate(scale.rows):
        x, y = scale.x(one.instant), scale.row_y(row)
        yield tag("text", str(number), class_="count", x=str(_LEFT - 16), y=f"{y + 4:.1f}")
        verdict = one.verdict
        how = "known without a run" if verdict.cached else f"{verdict.seconds:.1f} s"
        what = verdict.outcome.value + (f": {verdict.signature}" if verdict.signature else "")
        name = f"{number}. {history.describe(one.instant)}: {what} ({how})"
        yield _mark(_SHAPES[one.bad], x, y, name, known=verdict.cached)
        if scale.row_height < _ROOMY:
            continue
        side = -1 if x > _WIDTH * 0.6 else 1
        place = {
            "x": f"{x + 13 * side:.1f}",
            "y": f"{y + 4:.1f}",
            "text_anchor": "end" if side < 0 else "start",
        }
        label = f"{history.label(one.instant)} {verdict.outcome.value}"
        yield tag("text", text(label), class_="label", **place)


def _mark(state: str, x: float, y: float, name: str, known: bool = False) -> str:
    """Return a probe's mark: a disc is good, a square bad, a triangle neither."""
    title = tag("title", text(name)) if name else ""
    how = f"dot dot-{state}" + (" known" if known else "")
    if state == "good":
        return tag("circle", title, class_=how, cx=f"{x:.1f}", cy=f"{y:.1f}", r="5.5")
    if state == "bad":
        return tag("rect", title, class_=how, x=f"{x - 5:.1f}", y=f"{y - 5:.1f}", width="10", height="10")
    corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
    return tag("polygon", title, class_=how, points=corners)


def _wedge(outer: Scale, inner: Scale) -> str:
    """Return the shape that connects a burst with its enlargement."""
    left, right = outer.x(inner.low), max(outer.x(inner.high), outer.x(inner.low) + 1)
    top, bottom = outer.bottom, inner.y + 16
    corners = (
        f"{left:.1f},{top:.1f} {right:.1f},{top:.1f} {_WIDTH - _RIGHT},{bottom:.1f} {_LEFT},{bottom:.1f}"
    )
    return tag("polygon", class_="zoom", points=corners)


def _gather(groups: Sequence[Burst]) -> Iterator[Sequence[Burst]]:
    """Put neighbours together where there are more bursts than can be drawn."""
    step = max(1, -(-len(groups) // _MOST_BARS))
    for at in range(0, len(groups), step):
        yield groups[at : at + step]


def _short(history: History, instant: int) -> str:
    parts = history.describe(instant).split(" · ")
    return " · ".join(part for part in parts if not part.startswith("tick "))


def _rect(kind: str, x: float, y: float, width: float, height: float, name: str) -> str:
    title = tag("title", text(name)) if name else ""
    place = {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "width": f"{width:.1f}",
        "height": f"{height:.1f}",
        "rx": "1.5",
    }
    return tag("rect", title, class_=kind, **place)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return tag("line", class_=kind, x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}")
