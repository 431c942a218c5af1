"""Why it broke: the writes that a search found guilty, the files they changed, and who wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tt.chronus.bursts import Burst
from tt.chronus.changes import Change, pair_renames
from tt.chronus.difference import DiskIndex
from tt.chronus.history import History, Write
from tt.chronus.touched import Region, regions
from tt.errors import TTError

if TYPE_CHECKING:
    from tt.chronus.bisect import Bisection, Turn
    from tt.chronus.minimize import Minimal
    from tt.chronus.verdicts import Probe
    from tt.chronus.writer import Author

_MOST_PATCH_LINES = 200


@dataclass
class Finding:
    """What is known of one turn.

    `changes` are those of the files that a guest sees (not of times alone) over the guilty writes, `regions`
    what their blocks belong to, `burst` the burst they lie in and `burst_changes` all of that.  `author` is
    the process that wrote it, `minimal` the fewest files that make the difference; None where that was not
    looked for or is not known.  `notes` say why not.
    """

    turn: Turn
    writes: list[Write]
    changes: list[Change]
    regions: list[Region]
    burst: Burst | None
    burst_changes: list[Change]
    author: Author | None = None
    minimal: Minimal | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The files to name: the fewest where they were looked for, else those changed."""
        if self.minimal is not None:
            return list(self.minimal.paths)
        return [change.path for change in self.changes or self.burst_changes]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        changes = self.changes or self.burst_changes
        return {
            "before": self.turn.before,
            "after": self.turn.after,
            "files": self.paths,
            "changes": [
                {"path": change.path, "kind": change.kind, "what": list(change.what), "diff": patch(change)}
                for change in changes
            ],
            "author": None if self.author is None else self.author.plain(),
            "minimal": None if self.minimal is None else self.minimal.plain(),
            "notes": self.notes,
        }


def explain(
    history: History,
    turn: Turn,
    probe: Probe | None,
    found: Bisection,
    *,
    author: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Finding:
    """Look into a turn; with `probe`, find the fewest files that make the difference."""
    notes: list[str] = []
    writes = list(history.writes(turn.before + 1, turn.after))
    changes, touched = _changes(history, turn.before, turn.after, notes)
    burst = _burst(history, found, turn)
    burst_changes = changes
    if burst is not None and (burst.before, burst.after) != (turn.before, turn.after):
        burst_changes, _ = _changes(history, burst.before, burst.after, notes)
    finding = Finding(turn, writes, changes, touched, burst, burst_changes, notes=list(dict.fromkeys(notes)))
    if probe is not None:
        _minimize(history, finding, probe, say)
    if author and history.has_machine:
        _find_author(history, finding, say)
    return finding


def patch(change: Change, most: int = _MOST_PATCH_LINES) -> list[str]:
    """Return a change as a unified diff of at most so many lines."""
    lines = change.unified()
    return lines if len(lines) <= most else [*lines[:most], f"... {len(lines) - most:,} lines more"]


def _changes(
    history: History, before: int, after: int, notes: list[str]
) -> tuple[list[Change], list[Region]]:
    written = history.changed_blocks(before, after)
    try:
        index = DiskIndex(history.at(before))
        if not index.readable:
            notes.append("no file system can be read there: chronus cat --raw shows the bytes")
            return [], []
        changes = index.move(history.at(after), written)
        notes += index.notes
        here = regions(index, written)
    except TTError as e:
        notes.append(str(e))
        return [], []
    return [change for change in pair_renames(changes) if not change.only_times], here


def _burst(history: History, found: Bisection, turn: Turn) -> Burst | None:
    low, high = sorted((found.good, found.bad))
    for burst in history.bursts(low, high):
        if burst.first <= turn.after <= burst.last:
            return burst
    return None


def _minimize(history: History, finding: Finding, probe: Probe, say: Callable[[str], None]) -> None:
    from tt.chronus.minimize import minimize

    try:
        finding.minimal = minimize(history, finding, probe, say)
    except TTError as e:
        finding.notes.append(f"the fewest files were not found: {e}")


def _find_author(history: History, finding: Finding, say: Callable[[str], None]) -> None:
    try:
        from tt.chronus.writer import author_of

        finding.author = author_of(history, finding, say)
    except ImportError:
        return
    except TTError as e:
        finding.notes.append(f"who wrote it is not known: {e}")
