"""What happened to a disk, burst by burst: which files were touched, and which parts of the file system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tt.chronus.files.changes import Change, ChangeKind, pair_renames
from tt.chronus.files.difference import DiskIndex
from tt.chronus.files.touched import Region, regions
from tt.chronus.store.bursts import Burst
from tt.chronus.store.history import History
from tt.chronus.store.write import Write

_INVERSE: dict[ChangeKind, ChangeKind] = {"added": "removed", "removed": "added"}


@dataclass(frozen=True)
class LogEntry:
    """A burst, the files that differ after it, and what its blocks belong to.

    `changes` are what a guest started from the instant after the burst would find different from one started
    before it; data of files that have no name in a directory yet is in `regions` only. `notes` says what
    could not be read.
    """

    burst: Burst
    changes: tuple[Change, ...]
    regions: tuple[Region, ...]
    notes: tuple[str, ...] = ()


def burst_log(history: History, bursts: Sequence[Burst], *, newest_first: bool = False) -> Iterator[LogEntry]:
    """Yield an entry for each of `bursts`, which follow each other in time, as it is found."""
    if not bursts:
        return
    order = list(reversed(bursts)) if newest_first else list(bursts)
    begin = order[0].after if newest_first else order[0].before
    index = DiskIndex(history.at(begin))
    for burst in order:
        goal = burst.before if newest_first else burst.after
        written = history.changed_blocks(burst.before, burst.after)
        here = tuple(regions(index, written)) if newest_first else ()
        changes = index.move(history.at(goal), history.changed_blocks(begin, goal))
        begin = goal
        if newest_first:
            changes = [inverted(change) for change in changes]
        else:
            here = tuple(regions(index, written))
        yield LogEntry(burst, tuple(pair_renames(changes)), here, tuple(index.notes))


def single_writes(writes: Sequence[Write]) -> list[Burst]:
    """Return each of some writes as a burst of its own; their `index` is the write's number."""
    return [Burst(write.number, write.number, write.number, 1, write.size, write, write) for write in writes]


def inverted(change: Change) -> Change:
    """Return the same change in the other direction, from the new side to the old one."""
    kind = _INVERSE.get(change.kind, change.kind)
    if change.kind == "renamed":
        return replace(
            change, path=change.old_path, old_path=change.path, before=change.after, after=change.before
        )
    return replace(change, kind=kind, before=change.after, after=change.before)
