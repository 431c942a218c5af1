#!/usr/bin/env python3
"""The time-travel disk's store: a million writes, then opening it, blocks at random instants, and a search.

    python benchmarks/chronus_store.py [--writes N] [--json]

Half of the writes go to a tenth of the disk, as on a real one; contents are lines of text with a number in
them, or random bytes (a quarter), and some blocks are written again with the same contents.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tt.chronus.store.history import History
from tt.chronus.store.live import create
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter

BLOCK = 4096
DISK_BYTES = 4 << 30
OPEN_BAR_S, READ_BAR_MS = 1.0, 1.0
_BLOCKS = DISK_BYTES // BLOCK
_BATCH = 10_000
_START_NS = 1_700_000_000 * 10**9


def main() -> int:
    """Measure and print; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tt-store-") as folder:
        facts = measure(Path(folder) / "disk.tt", args.writes, args.reads)
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:<44} {value:,.3f}" if isinstance(value, float) else f"{name:<44} {value:,}")
    return int(
        facts["opening and one block, s, worst"] > OPEN_BAR_S or facts["random block, ms, p95"] > READ_BAR_MS
    )


def measure(path: Path, writes: int, reads: int) -> dict[str, Any]:
    """Fill a store of `writes` writes of 4 KB, and read it `reads` times."""
    chance = random.Random(42)
    create(path, None, DISK_BYTES)
    filled_s = 0.0
    with DiskWriter(path) as writer:
        for first in range(0, writes, _BATCH):
            batch = [
                (n, _where(chance) * 8, _what(chance, n)) for n in range(first, min(first + _BATCH, writes))
            ]
            begin = time.perf_counter()
            for number, lba, data in batch:
                writer.add(0, ChangeKind.DATA, lba, 8, data, _START_NS + number * 5_000_000)
            writer.commit()
            filled_s += time.perf_counter() - begin
        writer.seal("filled")
    opened = []
    for _ in range(5):
        begin = time.perf_counter()
        with History.open(path) as history:
            history.at(history.count).block(_where(chance))
        opened.append(time.perf_counter() - begin)
    with History.open(path) as history:
        taken = []
        for _ in range(reads):
            instant, block = chance.randrange(1, writes + 1), _where(chance)
            begin = time.perf_counter()
            history.at(instant).block(block)
            taken.append(1e3 * (time.perf_counter() - begin))
        taken.sort()
        begin = time.perf_counter()
        bursts = len(history.bursts())
        bursts_s = time.perf_counter() - begin
    size = path.stat().st_size
    return {
        "writes": writes,
        "writes a second, packed": writes / filled_s,
        "bytes stored per byte written": size / (writes * BLOCK),
        "opening and one block, s, worst": max(opened),
        "random block, ms, p50": taken[len(taken) // 2],
        "random block, ms, p95": taken[len(taken) * 95 // 100],
        "random block, ms, worst": taken[-1],
        "grouping all writes into bursts, s": bursts_s,
        "bursts": bursts,
    }


def _where(chance: random.Random) -> int:
    return chance.randrange(_BLOCKS // 10) if chance.random() < 0.5 else chance.randrange(_BLOCKS)


def _what(chance: random.Random, number: int) -> bytes:
    kind = chance.random()
    if kind < 0.25:
        return chance.randbytes(BLOCK)
    if kind < 0.35:
        return bytes([number % 7]) * BLOCK
    line = b"Nov 23 01:%02d:%02d host daemon[%d]: request %d served in %d ms\n"
    parts = [
        line % (number // 60 % 60, number % 60, number % 997, number + at, chance.randrange(900))
        for at in range(70)
    ]
    return b"".join(parts)[:BLOCK].ljust(BLOCK, b"\0")


if __name__ == "__main__":
    sys.exit(main())
