"""A search's result as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tt.chronus.search.bisect import Bisection, Turn
from tt.chronus.store.history import History
from tt.chronus.why.finding import Finding, patch
from tt.log.text import printable

_MOST_CHANGES = 12
_MOST_CANDIDATES = 20
_MOST_LINES = 60  # of a file's diff
_WIDTH = 72


def render(
    history: History, found: Bisection, findings: Sequence[Finding], *, colours: bool = False
) -> Iterator[str]:
    """Yield the report, line by line."""
    paint = _Paint(colours)
    yield from _strip(history, found, paint)
    yield f"{found.ran} probes run, {found.shared} shared, {found.seconds:.1f} s"
    if not found.turns:
        yield "no turn was found between the probes that were made"
    for number, turn in enumerate(found.turns):
        yield ""
        finding = findings[number] if number < len(findings) else None
        yield from _turn(history, turn, finding, paint)
        if finding is not None:
            yield from _finding(history, finding, paint)


def _turn(history: History, turn: Turn, finding: Finding | None, paint: _Paint) -> Iterator[str]:
    verb = "breaks" if turn.becomes_bad else "is fixed"
    sure = "" if turn.confidence == 1 else f" (with {turn.confidence:.1%} confidence)"
    if len(turn.candidates) <= 1:
        yield paint("bold", f"it {verb} with {history.describe(turn.after)}{sure}")
        return
    image = history.image_at(turn.after)
    if image is not None and image.before == turn.before:
        yield paint("bold", f"it {verb} with the image @{image.name}, {history.describe(turn.after)}{sure}")
        return
    burst = finding.burst if finding is not None else None
    if burst is not None and (burst.before, burst.after) == (turn.before, turn.after):
        yield paint("bold", f"it {verb} in the burst that ends with {history.describe(turn.after)}{sure}")
        return
    where = f"{history.label(turn.before)} to {history.label(turn.after)}"
    yield paint(
        "bold", f"it {verb} somewhere from {where}{sure}: {len(turn.candidates):,} writes, not told apart"
    )
    shown = ", ".join(history.label(number) for number in turn.candidates[:_MOST_CANDIDATES])
    yield f"candidates: {shown}{', ...' if len(turn.candidates) > _MOST_CANDIDATES else ''}"


def _finding(history: History, finding: Finding, paint: _Paint) -> Iterator[str]:
    burst = finding.burst
    if burst is not None and history.image_at(burst.after) is None:
        yield f"burst {history.label(burst.first)} to {history.label(burst.last)}: {burst.count:,} writes"
    if finding.minimal is not None:
        for line in finding.minimal.lines():
            yield printable(line)
    changes = finding.shown
    if not finding.changes and finding.burst_changes:
        yield "the write itself changes no file that can be seen yet; its burst does:"
    for change in changes[:_MOST_CHANGES]:
        for line in patch(change, _MOST_LINES):
            yield "  " + paint.patch(printable(line.replace("\t", "    ")))
        author = finding.author_of(change.path)
        if author is not None:
            yield f"  written by {printable(author.describe())}"
    if len(changes) > _MOST_CHANGES:
        yield f"  ... and {len(changes) - _MOST_CHANGES} files more: chronus diff shows them"
    if not changes and finding.regions:
        kinds = {f"{each.volume} {each.kind} {each.path}".strip() for each in finding.regions}
        yield "  no file changed; blocks of: " + ", ".join(printable(kind) for kind in sorted(kinds)[:6])
    for author in finding.authors if not changes else ():
        yield f"written by {printable(author.describe())}"
    for note in finding.notes:
        yield f"note: {printable(note)}"


def _strip(history: History, found: Bisection, paint: _Paint) -> Iterator[str]:
    """Draw the probes over the instants searched: + good, - bad, ? a skip."""
    low, high = sorted((found.good, found.bad))
    cells = ["·"] * _WIDTH
    for probed in found.probed:
        at = (probed.instant - low) * (_WIDTH - 1) // max(high - low, 1)
        cells[at] = {False: "+", True: "-", None: "?"}[probed.bad]
    colours = {"+": "green", "-": "red", "?": "yellow", "·": "dim"}
    left, right = history.label(low), history.label(high)
    yield f"{left} " + "".join(paint(colours[cell], cell) for cell in cells) + f" {right}"


class _Paint:
    _STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{self._STYLES[style]}m{text}\x1b[0m" if self._on else text

    def patch(self, line: str) -> str:
        """Return a line of a diff in its colour."""
        if line.startswith(("+++", "---", "diff ")):
            return self("bold", line)
        styles = {"+": "green", "-": "red", "@": "cyan"}
        return self(styles[line[0]], line) if line[:1] in styles else line
