"""Who wrote it: the process of a recorded guest behind a change of its disk.

A change reaches the disk late, from a kernel thread that writes back what processes left in the page cache.
So the memory that the disk write came from is found (`tt.chronus.why.requests`), and from there the replay
goes back in time to the last store that changed the guilty bytes: the process that ran then made the change.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tt.chronus.files.changes import Change
from tt.chronus.store.history import History
from tt.chronus.store.write import Write
from tt.chronus.why.evidence import Evidence, evidence, raw_evidence
from tt.chronus.why.requests import request_of
from tt.chronus.why.tasks import Task, current_task
from tt.errors import BadInput, TTError
from tt.symbols import for_timeline
from tt.travel import Timeline
from tt.travel.search import Search, excursion
from tt.travel.stops import Watchpoint
from tt.vmm.disk import BaseImage


@dataclass(frozen=True)
class Author:
    """Who made a change: `task` stored the bytes at `tick`, by the instruction at `rip` (`symbol`).

    `write` is the number of the disk write that carried it, `submitter` the task that sent that to the disk,
    and `what` the bytes that were followed.  `stored` is False where the store is not known (a device put the
    bytes there): then `task` is the submitter, and `tick` the write's.
    """

    path: str
    what: str
    task: Task
    tick: int
    rip: int
    symbol: str
    write: int
    submitter: Task
    stored: bool = True

    def describe(self) -> str:
        """Return who it was in a line."""
        task = self.task
        who = f"{task.name} ({task.pid})" + ("" if task.uid in (0, None) else f" of user {task.uid}")
        if not self.stored:
            return f"{who} sent it to the disk at tick {self.tick:,}; who stored it in memory is not known"
        family = f", started by {_family(task)}" if task.parents else ""
        return f"{who}{_command(task)} at tick {self.tick:,}{family}"

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "path": self.path,
            "evidence": self.what,
            "task": self.task.plain(),
            "tick": self.tick,
            "rip": self.rip,
            "symbol": self.symbol,
            "write": self.write,
            "submitter": self.submitter.plain(),
            "stored": self.stored,
        }


class Writers:
    """Finds who made changes in a history that is a recording.

    Holds a timeline: close it, or use it with `with`.  Raises `BadInput` where the history has no machine.
    """

    def __init__(self, history: History) -> None:
        if not history.has_machine:
            raise BadInput(f"{history.name} is a disk's history alone: it does not know processes")
        self._history = history
        base = history.base
        bases = {history.disk: base.path} if isinstance(base, BaseImage) else None
        self._timeline = Timeline(history.trace, bases)

    def of_change(self, change: Change, instant: int) -> Author:
        """Return who made `change`, which an instant shows; raises `BadInput` where that is not known."""
        why = "nothing on the disk shows it"
        for each in evidence(self._history, change, instant):
            try:
                return self._author(change.path, each)
            except BadInput as e:
                why = str(e)
        raise BadInput(f"who changed {change.path} is not known: {why}")

    def of_write(self, write: Write) -> Author:
        """Return who made a write to the disk, by the first bytes that it changed."""
        found = raw_evidence(self._history, write)
        if found is None:
            raise BadInput(f"w{write.number} changed nothing: it wrote what was there")
        return self._author("", found)

    # ---- inside

    def _author(self, path: str, found: Evidence) -> Author:
        timeline, write = self._timeline, found.write
        request = request_of(timeline, write)
        submitter = current_task(timeline)
        sent = timeline.tick
        addr, size = request.place(found.inside, found.size)
        store = last_change(timeline, addr, size)
        if store is None:
            return Author(path, found.what, submitter, sent, 0, "", write.number, submitter, stored=False)
        tick, rip = store
        return Author(
            path, found.what, current_task(timeline), tick, rip, self._symbol(rip), write.number, submitter
        )

    def _symbol(self, rip: int) -> str:
        found = for_timeline(self._timeline).at(rip)
        return "" if found is None else f"{found[0]}+{found[1]:#x}"


def last_change(timeline: Timeline, addr: int, size: int) -> tuple[int, int] | None:
    """Return (tick, rip) of the last store by an instruction before here that changed guest-physical bytes.

    Goes to right after it.  A store that changes nothing, as when a process touches an inode, is skipped.
    Returns None, and does not move, if a device changed them later, or nothing changed them.
    """
    start = timeline.tick
    with excursion(timeline):
        for group in Search(timeline, [Watchpoint(addr, size, physical=True)]).backward():
            found = group[0]
            if found.old == found.new:
                continue
            if found.by != "instruction":
                break
            timeline.seek(found.tick - 1)
            rip = timeline.registers()["rip"]
            timeline.seek(found.tick)
            return found.tick, rip
        timeline.seek(start)
    return None


def authors_of(
    writers: Writers,
    changes: Sequence[Change],
    instant: int,
    *,
    most: int = 8,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Author], list[str]]:
    """Return who made the first `most` of `changes`, which an instant shows, and notes on the others."""
    found: list[Author] = []
    notes: list[str] = []
    for change in changes[:most]:
        say(f"looking for who wrote {change.path}")
        try:
            found.append(writers.of_change(change, instant))
        except TTError as e:
            notes.append(str(e))
    return found, notes


def _family(task: Task) -> str:
    return ", by ".join(f"{name} ({pid})" for pid, name in task.parents)


def _command(task: Task) -> str:
    """Return the command line, unless it belongs to the program that the process ran before this one."""
    named = any(part.lstrip("-").rpartition("/")[2].startswith(task.name) for part in task.command)
    return f", {shlex.join(task.command)}," if named else ""
