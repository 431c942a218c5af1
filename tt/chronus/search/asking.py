"""Asking a probe about instants: from the log where the answer is known, else by running it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tt.chronus.search.pool import Pool, fingerprint
from tt.chronus.search.verdict_log import SAMPLE, VerdictLog
from tt.chronus.search.verdicts import Outcome, Probe, ProbeVerdict
from tt.chronus.store.history import History


@dataclass(frozen=True)
class Probed:
    """A look at one instant: `bad` is None for a skip; `runs` of the probe, 0 where it was known."""

    instant: int
    verdict: ProbeVerdict
    bad: bool | None
    runs: int = 1


class Asker:
    """Asks, and judges the answers.

    `states` holds what every instant that was asked for is: bad (True), good (False), or a skip (None).
    With `repeat` a probe is run so often and the majority counts.  With `samples` no answer is taken twice:
    answers may be wrong, and the caller weighs them.
    """

    def __init__(
        self,
        history: History,
        probe: Probe,
        pool: Pool,
        log: VerdictLog,
        on_probe: Callable[[Probed], None],
        *,
        repeat: int = 1,
        samples: bool = False,
    ) -> None:
        self.states: dict[int, bool | None] = {}
        self._history, self._probe, self._pool, self._log = history, probe, pool, log
        self._on_probe, self._repeat, self._samples = on_probe, repeat, samples
        self._taken: dict[int, int] = {}  # how many of the samples that were kept were used
        self._prints: dict[int, bytes | None] = {}
        self._bad_like: tuple[Outcome, str] | None = None

    @property
    def jobs(self) -> int:
        """How many instants to ask for at once."""
        return self._pool.jobs

    @property
    def sees(self) -> bool:
        """Whether the probe can say without a run what it would see."""
        return hasattr(self._probe, "fingerprint")

    def ask(self, instants: Sequence[int]) -> Iterator[tuple[int, bool | None]]:
        """Yield (instant, state) as they come; instants may repeat where `samples` are asked for."""
        for instant, verdict, runs in self._verdicts(instants):
            yield instant, self._note(instant, verdict, runs)

    def ends(self, instants: Sequence[int], bad: int) -> dict[int, ProbeVerdict]:
        """Return the verdicts of the ends; the one at instant `bad` decides what counts as bad."""
        verdicts: dict[int, tuple[ProbeVerdict, int]] = {}
        for instant, verdict, runs in self._verdicts(instants):
            verdicts[instant] = (verdict, runs)
        last = verdicts[bad][0]
        if last.outcome in (Outcome.HANG, Outcome.CRASH):
            self._bad_like = (last.outcome, last.signature)
        for instant in instants:
            if self._samples and self._log.samples(self._probe, instant):
                self._taken[instant] -= 1  # this answer will count as one of the samples
            else:
                self._note(instant, *verdicts[instant])
        return {instant: verdict for instant, (verdict, _runs) in verdicts.items()}

    def judge(self, verdict: ProbeVerdict) -> bool | None:
        """Return whether a verdict is bad; None where it does not say."""
        if verdict.outcome is Outcome.GOOD:
            return False
        if verdict.outcome is Outcome.BAD or (verdict.outcome, verdict.signature) == self._bad_like:
            return True
        return None

    # ---- inside

    def _note(self, instant: int, verdict: ProbeVerdict, runs: int) -> bool | None:
        bad = self.judge(verdict)
        self.states[instant] = bad
        self._on_probe(Probed(instant, verdict, bad, runs))
        return bad

    def _verdicts(self, instants: Sequence[int]) -> Iterator[tuple[int, ProbeVerdict, int]]:
        """Yield (instant, verdict, runs that it took) of each."""
        if self._samples:
            yield from self._sampled(instants)
        elif self._repeat > 1:
            yield from self._repeated(instants)
        else:
            yield from self._once(instants)

    def _once(self, instants: Sequence[int]) -> Iterator[tuple[int, ProbeVerdict, int]]:
        """Take the answers that are known, and run the others, as many at a time as the pool does.

        Their results may answer for instants that come later in the list.
        """
        waiting = deque(instants)
        while waiting:
            batch: list[int] = []
            alike: dict[bytes, list[int]] = {}  # what the probe would see -> instants that wait for the first
            while waiting and len(batch) < self._pool.jobs:
                instant = waiting.popleft()
                seen = self._seen(instant)
                known = self._log.find(self._probe, instant, seen)
                if known is not None:
                    yield instant, known, 0
                elif seen is not None and seen in alike:
                    alike[seen].append(instant)
                else:
                    batch.append(instant)
                    if seen is not None:
                        alike[seen] = []
            for look in self._pool.run(self._probe, batch):
                if look.keep:
                    self._log.add(self._probe, look.instant, look.verdict, look.seen)
                yield look.instant, look.verdict, 1
            waiting.extendleft(instant for others in alike.values() for instant in others)

    def _seen(self, instant: int) -> bytes | None:
        if self.sees and instant not in self._prints:
            self._prints[instant] = fingerprint(self._probe, self._history, instant)
        return self._prints.get(instant)

    def _sampled(self, instants: Sequence[int]) -> Iterator[tuple[int, ProbeVerdict, int]]:
        """Yield an answer for each that was not used before: kept ones first."""
        missing = []
        for instant in instants:
            kept = self._log.samples(self._probe, instant)
            at = self._taken.get(instant, 0)
            self._taken[instant] = at + 1
            if at < len(kept):
                yield instant, kept[at], 0
            else:
                missing.append(instant)
        for look in self._pool.run(self._probe, missing):
            if look.keep:
                self._log.add(self._probe, look.instant, look.verdict, None, SAMPLE)
            yield look.instant, look.verdict, 1

    def _repeated(self, instants: Sequence[int]) -> Iterator[tuple[int, ProbeVerdict, int]]:
        """Run each until no other answer can come to a majority of `repeat`."""
        said: dict[int, list[ProbeVerdict]] = {instant: [] for instant in instants}
        runs = dict.fromkeys(instants, 0)
        open_ = list(said)
        while open_:
            batch = [instant for instant in open_ for _ in range(self._missing(said[instant]))]
            for instant, verdict, run in self._sampled(batch):
                said[instant].append(verdict)
                runs[instant] += run
            for instant in [instant for instant in open_ if not self._missing(said[instant])]:
                open_.remove(instant)
                yield instant, self._majority(said[instant]), runs[instant]

    def _missing(self, verdicts: Sequence[ProbeVerdict]) -> int:
        """Return how many runs more may settle it, 0 where it is settled."""
        best = max((len(group) for group in self._by_state(verdicts)), default=0)
        return max(0, min(self._repeat // 2 + 1 - best, self._repeat - len(verdicts)))

    def _by_state(self, verdicts: Sequence[ProbeVerdict]) -> list[list[ProbeVerdict]]:
        groups: dict[object, list[ProbeVerdict]] = {}
        for verdict in verdicts:
            groups.setdefault((verdict.outcome, verdict.signature), []).append(verdict)
        return sorted(groups.values(), key=len, reverse=True)

    def _majority(self, verdicts: Sequence[ProbeVerdict]) -> ProbeVerdict:
        """Return the most frequent verdict; a skip where two are equally frequent."""
        groups = self._by_state(verdicts)
        seconds = sum(verdict.seconds for verdict in verdicts)
        first = replace(groups[0][0], seconds=seconds)
        if len(groups) > 1 and len(groups[0]) == len(groups[1]):
            return replace(first, outcome=Outcome.SKIP, signature="")
        return first
