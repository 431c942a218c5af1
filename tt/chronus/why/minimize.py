"""The smallest set of changed files that turns good into bad, and whether undoing only those turns it back.

What changed is cut down by delta debugging (`tt.chronus.why.ddmin`): each probe gets the disk as it was
before, with some of the changes done to it.  The result is verified the other way round: on the disk
as it was after, with only those changes undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tt.chronus.files.patch import Delta, Patcher, undo
from tt.chronus.search.verdicts import Outcome, Probe, ProbeVerdict
from tt.chronus.store.view import DiskView
from tt.chronus.why.ddmin import ddmin
from tt.errors import BadInput

Judge = Callable[[ProbeVerdict], bool | None]
"""Says whether a verdict is that of the disk after the burst (True), before it (False), or tells nothing."""


@dataclass(frozen=True)
class Trial:
    """One probe of a patched disk: which changes were done to it, and whether that `turned` the verdict.

    `problem` says why a disk could not be made, which then tells nothing.
    """

    names: tuple[str, ...]
    verdict: ProbeVerdict | None
    turned: bool | None
    problem: str = ""


@dataclass(frozen=True)
class Minimal:
    """What was found: `names` of the smallest set, out of `among` changes; empty with a `note` on why not.

    Without any one of them the verdict does not turn.  `verified`: undoing only these on the disk after the
    burst gives the verdict of before; None where that was not tried.
    """

    names: tuple[str, ...]
    among: int
    verified: bool | None = None
    note: str = ""
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0
    deltas: tuple[Delta, ...] = field(default=(), repr=False, compare=False)

    @property
    def probes(self) -> int:
        """How many probes ran."""
        return sum(trial.verdict is not None for trial in self.trials)

    @property
    def paths(self) -> list[str]:
        """The files of the set, by path; other changes by their names."""
        found: list[str] = []
        for delta in self.deltas:
            found += [change.path for change in delta.changes] or [delta.name]
        return found

    def lines(self) -> list[str]:
        """Return the result in lines to read."""
        how = f"{self.probes} probes of patched disks, {self.seconds:.1f} s"
        if not self.names:
            return [f"no smallest set of files: {self.note} ({how})"]
        many = len(self.names) > 1
        if self.among == 1:
            what = "the only change makes"
        elif many:
            what = f"{len(self.names)} of the {self.among:,} changes together make"
        else:
            what = f"one of the {self.among:,} changes alone makes"
        lines = [f"{what} the difference ({how}):", *(f"  {name}" for name in self.names)]
        if self.verified:
            lines.append(f"verified: undoing only {'these' if many else 'this'} turns it back")
        elif self.note:
            lines.append(f"not verified: {self.note}")
        return lines

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "files": self.paths,
            "among": self.among,
            "verified": self.verified,
            "note": self.note,
            "probes": self.probes,
            "seconds": round(self.seconds, 3),
            "trials": [
                {
                    "changes": list(trial.names),
                    "outcome": None if trial.verdict is None else trial.verdict.outcome.value,
                    "turned": trial.turned,
                    "problem": trial.problem,
                }
                for trial in self.trials
            ],
        }


def judge_of(before: ProbeVerdict, after: ProbeVerdict) -> Judge:
    """Return a judge for what turned `before` into `after`: as the search judges its two ends.

    Where one of them is a hang or a crash, only the same one (with the same signature) is like it.
    """

    def kind(verdict: ProbeVerdict) -> tuple[Outcome, str]:
        crash = verdict.outcome in (Outcome.CRASH, Outcome.HANG)
        return verdict.outcome, verdict.signature if crash else ""

    states = {kind(before): False, kind(after): True}
    return lambda verdict: states.get(kind(verdict))


def minimize(
    probe: Probe,
    before: DiskView,
    after: DiskView,
    changes: Sequence[Delta],
    judge: Judge,
    *,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Minimal:
    """Find the smallest part of `changes`, which lead from `before` to `after`, that turns the verdict.

    Raises `ProbeError` as the probe does, and `BadInput` where disks cannot be patched at all.
    """
    begin = time.monotonic()
    trials: list[Trial] = []

    def look(patcher: Patcher, chosen: Sequence[Delta], others: Sequence[Delta]) -> bool | None:
        verdict, problem = None, ""
        try:
            verdict = probe.run(patcher.apply(chosen, others))
        except BadInput as e:
            problem = str(e)
        turned = judge(verdict) if verdict is not None else None
        trials.append(Trial(tuple(delta.name for delta in chosen), verdict, turned, problem))
        on_trial(trials[-1])
        return turned

    def result(found: Sequence[Delta], verified: bool | None, note: str) -> Minimal:
        names = tuple(delta.name for delta in found)
        seconds = time.monotonic() - begin
        return Minimal(names, len(changes), verified, note, tuple(trials), seconds, tuple(found))

    if not changes:
        return result((), None, "no files changed in between")
    with Patcher(before) as patcher:
        if look(patcher, changes, changes) is not True:
            return result((), None, _why_not(trials[-1]))
        found = ddmin(changes, lambda chosen: look(patcher, chosen, changes))
    with Patcher(after) as patcher:
        backwards = [undo(delta, before) for delta in found]
        turned = look(patcher, backwards, [undo(delta, before) for delta in changes])
    if turned is False:
        return result(found, True, "")
    last = trials[-1]
    what = last.problem or (f"that is {last.verdict.outcome.value}" if last.verdict else "")
    return result(found, False, f"undoing only these does not turn it back: {what}")


def _why_not(trial: Trial) -> str:
    if trial.verdict is None:
        return f"the changes cannot be done file by file: {trial.problem}"
    return (
        f"all changed files together, done to the disk before, are {trial.verdict.outcome.value}: "
        "what turned it is in no file that can be told apart (file system structures, free space)"
    )
