#!/usr/bin/env python3
"""Searches over a history of a million writes: how many probes, and how long the search itself takes.

    python benchmarks/chronus_bisect.py [--writes N] [--searches N] [--json]

The probes themselves take no time.  There are four: one that does not report which blocks it read, so that it
has to be run at each instant; one that reports some blocks, so that instants share answers; one that gives a
wrong answer in a tenth of its runs; and one that cannot judge a fifth of the instants.  The turn from good to
bad is at random places and at both ends.  The bar is 21 probes, including the two at the ends.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt.chronus.search.bisect import Bisection, Options, bisect
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.history import History, Instant
from tt.chronus.store.live import create
from tt.chronus.store.view import DiskView, TrackedView
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter

BAR = 21
BLOCK = 4096
DISK_BYTES = 4 << 30
LOOKED_AT = 8
_BLOCKS = DISK_BYTES // BLOCK
_BATCH = 20_000
_START_NS = 1_700_000_000 * 10**9
_PAUSE = 200  # writes between two pauses, on average


@dataclass
class Probe:
    """Gives `answer` for the instant's number, or, with `blocks`, for the newest write to any of them."""

    answer: Callable[[int], Outcome]
    blocks: tuple[int, ...] = ()

    def key(self) -> str:
        """Return a text that identifies this probe."""
        return "benchmark"

    def describe(self) -> str:
        """Return one line that describes the probe."""
        return "a benchmark's"

    def run(self, disk: DiskView) -> ProbeVerdict:
        """Give the answer."""
        assert isinstance(disk, Instant)
        if not self.blocks:
            return ProbeVerdict(self.answer(disk.number))
        seen = TrackedView(disk)
        newest = max(int(seen.block(block)[:8].strip(b"\0") or 0) for block in self.blocks)
        return ProbeVerdict(self.answer(newest), reads=frozenset(seen.reads))


def main() -> int:
    """Measure and print; return 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--searches", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chronus-bisect-") as folder:
        path = Path(folder) / "disk.tt"
        chance = random.Random(2004)
        blocks = fill(path, args.writes, chance)
        with History.open(path) as history:
            facts = measure(history, args.searches, chance, blocks)
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:<52} {value:,.1f}" if isinstance(value, float) else f"{name:<52} {value:,}")
    return int(max(facts["opaque probe: probes, worst"], facts["probe that reads: probes run, worst"]) > BAR)


def fill(path: Path, writes: int, chance: random.Random) -> tuple[int, ...]:
    """Make the history, in bursts; return some blocks that were written to often."""
    create(path, None, DISK_BYTES)
    busy = [chance.randrange(_BLOCKS) for _ in range(LOOKED_AT)]
    now_ns = _START_NS
    with DiskWriter(path) as writer:
        for number in range(1, writes + 1):
            now_ns += 3_000_000 if chance.randrange(_PAUSE) else 60 * 10**9
            block = chance.choice(busy) if chance.random() < 0.001 else chance.randrange(_BLOCKS)
            writer.add(0, ChangeKind.DATA, block * 8, 8, (b"%d" % number).ljust(BLOCK, b"\0"), now_ns)
            if number % _BATCH == 0:
                writer.commit()
        writer.seal("filled")
    return tuple(busy)


def measure(
    history: History, searches: int, chance: random.Random, blocks: tuple[int, ...]
) -> dict[str, Any]:
    """Search `searches` times with each kind of probe."""
    count = history.count
    turns = [1, count, *(chance.randrange(2, count) for _ in range(max(searches - 2, 0)))]
    opaque = [search(history, Probe(turned(turn)), turn) for turn in turns]
    reading = [search(history, Probe(turned(turn), blocks), None) for turn in turns[2:]]
    gaps = [search(history, Probe(with_gap(turn, count, chance)), turn) for turn in turns]
    flaky = [
        search(history, Probe(lying(turn, chance)), None, Options(wrong=0.1, keep=False)) for turn in turns
    ]
    right = sum(found.turns[0].after == turn for found, turn in zip(flaky, turns, strict=True))
    return {
        "writes": count,
        "bursts": len(history.bursts()),
        "opaque probe: probes, worst": max(found.ran for found in opaque),
        "opaque probe: probes, mean": mean(opaque),
        "opaque probe: seconds of the search itself, worst": max(found.seconds for found in opaque),
        "probe that reads: probes run, worst": max(found.ran for found in reading),
        "probe that reads: probes run, mean": mean(reading),
        "probe that reads: seconds, worst": max(found.seconds for found in reading),
        "a fifth cannot be judged: probes, worst": max(found.ran for found in gaps),
        "a tenth of answers wrong, 99%: probes, mean": mean(flaky),
        "a tenth of answers wrong, 99%: found, of all": right,
        "searches of each kind": len(turns),
    }


def search(history: History, probe: Probe, turn: int | None, options: Options | None = None) -> Bisection:
    """Search from end to end; raises `AssertionError` for a wrong answer."""
    found = bisect(history, probe, 0, history.count, options or Options(keep=False))
    assert turn is None or found.turns[0].before < turn <= found.turns[0].after
    return found


def mean(found: list[Bisection]) -> float:
    """Return how many probes were run on average."""
    return sum(one.ran for one in found) / len(found)


def turned(turn: int) -> Callable[[int], Outcome]:
    """Return the answers of a reliable probe."""
    return lambda number: Outcome.BAD if number >= turn else Outcome.GOOD


def with_gap(turn: int, count: int, chance: random.Random) -> Callable[[int], Outcome]:
    """Return the answers of a probe that cannot judge a fifth of the instants, which are neighbours."""
    begin = chance.randrange(1, count - count // 5)
    gap = range(begin, begin + count // 5)
    return lambda number: Outcome.SKIP if number in gap else turned(turn)(number)


def lying(turn: int, chance: random.Random) -> Callable[[int], Outcome]:
    """Return the answers of a probe that is wrong in a tenth of its runs."""
    return lambda number: Outcome.BAD if (number >= turn) != (chance.random() < 0.1) else Outcome.GOOD


if __name__ == "__main__":
    sys.exit(main())
