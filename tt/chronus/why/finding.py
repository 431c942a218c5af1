"""Why it broke: the writes that a search found guilty, the files they changed, and who wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tt.chronus.files.changes import Change, pair_renames
from tt.chronus.files.difference import DiskIndex
from tt.chronus.files.touched import Region, regions
from tt.chronus.store.bursts import Burst
from tt.chronus.store.history import History
from tt.chronus.store.write import Write
from tt.errors import BadInput, TTError

if TYPE_CHECKING:
    from tt.chronus.files.patch import Delta
    from tt.chronus.search.bisect import Bisection, Turn
    from tt.chronus.search.verdicts import Probe
    from tt.chronus.why.minimize import Minimal
    from tt.chronus.why.writer import Author

_MOST_PATCH_LINES = 200
_MOST_AUTHORS = 8  # each takes about a second


@dataclass
class Finding:
    """What is known of one turn.

    `changes` are those of the files that a guest sees (not of times alone) over the guilty writes, `regions`
    what their blocks belong to, `burst` the burst they lie in and `burst_changes` all of that.  `authors` are
    the processes that wrote it, where the history is a recording.  `minimal` is the smallest set of files
    that makes the difference, None where that was not looked for.  `notes` say what is not known, and why.
    """

    turn: Turn
    writes: list[Write]
    changes: list[Change]
    regions: list[Region]
    burst: Burst | None
    burst_changes: list[Change]
    authors: list[Author] = field(default_factory=list)
    minimal: Minimal | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The files to name: the fewest where they were looked for, else those changed."""
        if self.minimal is not None and self.minimal.names:
            return self.minimal.paths
        return [change.path for change in self.changes or self.burst_changes]

    @property
    def shown(self) -> list[Change]:
        """The changes to show, those of the smallest set first."""
        changes = self.changes or self.burst_changes
        if self.minimal is None or not self.minimal.names:
            return changes
        guilty = set(self.minimal.paths)
        chosen = [change for delta in self.minimal.deltas for change in delta.changes]
        return [*chosen, *(change for change in changes if not {change.path, change.old_path} & guilty)]

    def author_of(self, path: str) -> Author | None:
        """Return who made the change of a file, None where that is not known."""
        return next((author for author in self.authors if author.path == path), None)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "before": self.turn.before,
            "after": self.turn.after,
            "files": self.paths,
            "changes": [
                {"path": change.path, "kind": change.kind, "what": list(change.what), "diff": patch(change)}
                for change in self.shown
            ],
            "authors": [author.plain() for author in self.authors],
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
        _minimize(history, finding, probe, found, say)
    if author and history.has_machine:
        _find_authors(history, finding, say)
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


def _minimize(
    history: History, finding: Finding, probe: Probe, found: Bisection, say: Callable[[str], None]
) -> None:
    """Minimize the changes of the guilty writes; if they do not turn the verdict alone, the burst's.

    A write may be the last of several that belong together: the files' data reach the disk first, and what
    makes them seen comes last, with the journal.
    """
    from tt.chronus.why.minimize import Trial, judge_of, minimize

    turn, burst = finding.turn, finding.burst
    known = {one.instant: one.verdict for one in found.probed}
    spans = [(turn.before, turn.after)]
    if burst is not None and burst.before < turn.before:
        spans.append((burst.before, turn.after))

    def tell(trial: Trial) -> None:
        state = {True: "turns it", False: "does not turn it", None: "tells nothing"}[trial.turned]
        shown = ", ".join(trial.names[:3]) + (", ..." if len(trial.names) > 3 else "")
        count = "1 change" if len(trial.names) == 1 else f"{len(trial.names)} changes"
        say(f"minimizing: {count} ({shown}): {state}")

    for before, after in spans:
        one, other = history.at(before), history.at(after)
        try:
            old = known.get(before) or probe.run(one)
            new = known.get(after) or probe.run(other)
            parts = _parts(history, before, after)
            finding.minimal = minimize(probe, one, other, parts, judge_of(old, new), on_trial=tell)
        except BadInput as e:
            finding.notes.append(f"the smallest set of files was not found: {e}")
            return
        if finding.minimal.names:
            return


def _parts(history: History, before: int, after: int) -> list[Delta]:
    """Return what changed between two instants, as deltas."""
    from tt.chronus.files.patch import deltas, raw_deltas

    written = history.changed_blocks(before, after)
    old, new = history.at(before), history.at(after)
    index = DiskIndex(old)
    changes = index.move(new, written) if index.readable else []
    return [*deltas(changes), *raw_deltas(old, new, written)]


def _find_authors(history: History, finding: Finding, say: Callable[[str], None]) -> None:
    from tt.chronus.why.writer import Writers, authors_of

    after = finding.turn.after
    if not finding.changes and finding.burst is not None and finding.minimal is None:
        after = max(after, finding.burst.after)
    try:
        writers = Writers(history)
        shown: Sequence[Change] = finding.shown
        if finding.minimal is not None and finding.minimal.names:
            shown = [change for delta in finding.minimal.deltas for change in delta.changes]
        if shown:
            finding.authors, notes = authors_of(writers, shown, after, most=_MOST_AUTHORS, say=say)
            finding.notes += notes
        else:
            finding.authors = [writers.of_write(history.write(finding.turn.after))]
    except TTError as e:
        finding.notes.append(f"who wrote it is not known: {e}")
