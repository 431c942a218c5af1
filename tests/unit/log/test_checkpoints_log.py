"""Checkpoints in a trace: what is stored comes back, also after thinning, and damage is said."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tt.errors import BadInput
from tt.log import Trace, TraceWriter
from tt.log.checkpoints import PAGE, CheckpointWriter, set_bits

PAGES = 300


def state(tick: int) -> dict[str, Any]:
    return {"tick": tick, "cpu": bytes([tick % 256]) * 10, "board": {"timer": [tick, None]}}


def write(path: Path, count: int, most: int, seed: int = 1) -> dict[int, list[bytes]]:
    """Write `count` checkpoints of a made-up RAM; return what it held at each."""
    rng = random.Random(seed)
    ram = [bytes(PAGE)] * PAGES
    contents = [bytes(PAGE), *(rng.randbytes(PAGE) for _ in range(40))]
    held: dict[int, list[bytes]] = {}
    with TraceWriter(path, {}, checkpoint_bytes=1 << 40) as writer:
        writer._checkpoints = CheckpointWriter(writer._db, writer._insert, most=most)
        for k in range(1, count + 1):
            changed = sorted(rng.sample(range(PAGES), rng.randrange(0, 150)))
            for page in changed:
                ram[page] = rng.choice(contents)
            pages = b"".join(page.to_bytes(4, "little") for page in changed)
            writer.add_checkpoint(
                1000 * k, state(k), k.to_bytes(16, "little"), pages, b"".join(ram[page] for page in changed)
            )
            held[1000 * k] = list(ram)
            writer.commit(1000 * k)
        writer.seal(1000 * count, "")
    return held


def ram_at(trace: Trace, at: int) -> list[bytes]:
    """Put a RAM together from the deltas up to checkpoint `at`."""
    ram = [bytes(PAGE)] * PAGES
    for checkpoint in trace.checkpoints[: at + 1]:
        for page in set_bits(int.from_bytes(checkpoint.changed, "little")):
            ram[page] = bytes(checkpoint.page(page))
    return ram


@pytest.mark.parametrize("most", [1000, 10, 4])
def test_pages_come_back(tmp_path: Path, most: int) -> None:
    held = write(tmp_path / "x.tt", 40, most)
    with Trace.open(tmp_path / "x.tt") as trace:
        assert len(trace.checkpoints) == min(most, 40)
        assert trace.checkpoints[-1].tick == 40_000
        for at, checkpoint in enumerate(trace.checkpoints):
            assert ram_at(trace, at) == held[checkpoint.tick]
            k = checkpoint.tick // 1000
            assert (checkpoint.state, checkpoint.digest) == (state(k), k.to_bytes(16, "little"))
        assert trace.verify_structure() == []


def test_no_way_gets_long(tmp_path: Path) -> None:
    """However many were taken, those that stay lie evenly, so that the way to any tick is bounded."""
    write(tmp_path / "x.tt", 75, 20)
    with Trace.open(tmp_path / "x.tt") as trace:
        ticks = [0, *(checkpoint.tick for checkpoint in trace.checkpoints)]
    gaps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert max(gaps) <= 2 * 75_000 // 20 + 1000


def test_thinning_lets_go_of_pages(tmp_path: Path) -> None:
    write(tmp_path / "all.tt", 60, 1000)
    write(tmp_path / "few.tt", 60, 4)
    counts = []
    for name in ("all.tt", "few.tt"):
        with Trace.open(tmp_path / name) as trace:
            counts.append(next(iter(trace.sql("select count(*) from page_packs").rows))[0])
    assert counts[1] <= counts[0]


def test_equal_contents_are_stored_once(tmp_path: Path) -> None:
    page = b"\1" * PAGE
    with TraceWriter(tmp_path / "x.tt", {}) as writer:
        for k in (1, 2):
            pages = b"".join(n.to_bytes(4, "little") for n in range(100))
            writer.add_checkpoint(k, state(k), bytes(16), pages, page * 100)
        writer.seal(2, "")
    with Trace.open(tmp_path / "x.tt") as trace:
        assert list(trace.sql("select count from page_packs").rows) == [(1,)]
        assert bytes(trace.checkpoints[1].page(99)) == page


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE checkpoints SET tick = tick + 1000000",
        "UPDATE checkpoints SET state = x'00'",
        "UPDATE checkpoints SET changed = x'28b52ffd'",
        "UPDATE page_packs SET packed = zeroblob(10)",
        "DELETE FROM page_packs",
        "UPDATE checkpoints SET digest = 'text'",
    ],
)
def test_damage_is_said(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "x.tt", 3, 1000)
    with sqlite3.connect(tmp_path / "x.tt") as db:
        db.execute(damage)
    db.close()
    with Trace.open(tmp_path / "x.tt") as trace, pytest.raises(BadInput, match="damaged"):
        ram_at(trace, 2)
