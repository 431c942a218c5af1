"""Checkpoints that somebody forged: a clear error, the way from power-on, or a place; never a crash."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.errors import BadInput, Divergence, UsageError
from tt.log import Trace
from tt.log.checkpoints import decode_state, encode_state
from tt.log.schema import row_crc
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.indexing import add_checkpoints

everyday = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(everyday, max_examples=300)


@pytest.fixture(scope="module")
def indexed(demo_trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo's recording with checkpoints."""
    path = Path(shutil.copy(demo_trace, tmp_path_factory.mktemp("indexed")))
    add_checkpoints(path, every_ticks=2_000_000)
    return path


def forge(sound: Path, folder: Path, change: Callable[[dict[str, Any], Trace], dict[str, Any]]) -> Path:
    """Change every checkpoint's row and put its checksum right; return the copy."""
    path = folder / "forged.tt"
    shutil.copy(sound, path)
    with sqlite3.connect(path) as db, Trace.open(sound) as trace:
        names = ("tick", "digest", "state", "changed", "refs")
        for row in db.execute(f"SELECT {', '.join(names)} FROM checkpoints").fetchall():
            new = change(dict(zip(names, row, strict=True)), trace)
            db.execute("DELETE FROM checkpoints WHERE tick = ?", (row[0],))
            values = [new[name] for name in names]
            db.execute(
                "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)",
                (*values, row_crc("checkpoints", *values)),
            )
    db.close()
    return path


def travel(path: Path) -> None:
    with Trace.open(path) as trace:
        try:
            timeline = Timeline(trace)
            for percent in (90, 30, 60):
                tick = trace.end_tick * percent // 100
                timeline.seek(tick)
                timeline.digest()
                timeline.step(1000)
                timeline.reverse_step(10)
        except (BadInput, Divergence, UsageError) as e:
            assert str(e) and "\n" not in str(e)


def change_cpu(sound: Path, folder: Path, places: list[tuple[float, int]]) -> None:
    def change(row: dict[str, Any], trace: Trace) -> dict[str, Any]:
        state = decode_state(zstandard.decompress(row["state"]), trace)
        cpu = bytearray(state["cpu"])
        for place, value in places:
            cpu[int(place * len(cpu))] = value
        state["cpu"] = bytes(cpu)
        return {**row, "state": zstandard.compress(encode_state(state))}

    travel(forge(sound, folder, change))


# The first 1,000 bytes are registers, flags, segments, the FPU: what QEMU trusts.
changes = st.lists(
    st.tuples(st.one_of(st.floats(0, 0.05), st.floats(0, 1, exclude_max=True)), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@everyday
@given(places=changes)
def test_forged_cpus(indexed: Path, tmp_path: Path, places: list[tuple[float, int]]) -> None:
    change_cpu(indexed, tmp_path, places)


@pytest.mark.slow
@many
@given(places=changes)
def test_many_forged_cpus(indexed: Path, tmp_path: Path, places: list[tuple[float, int]]) -> None:
    change_cpu(indexed, tmp_path, places)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.text(max_size=4),
    st.lists(st.none(), max_size=3),
    st.just({}),
    st.just("x" * 300),
)


@everyday
@given(data=st.data())
def test_forged_states(indexed: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any part of the devices' state, replaced by something odd."""

    def change(row: dict[str, Any], trace: Trace) -> dict[str, Any]:
        state = json.loads(zstandard.decompress(row["state"]))
        at: Any = state
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            deeper = isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans())
            if not deeper:
                at[key] = data.draw(odd)
                break
            at = at[key]
        return {**row, "state": zstandard.compress(json.dumps(state).encode())}

    travel(forge(indexed, tmp_path, change))


@everyday
@given(
    changed=st.binary(max_size=5000), refs=st.binary(max_size=400), digest=st.binary(min_size=16, max_size=16)
)
def test_forged_pages(indexed: Path, tmp_path: Path, changed: bytes, refs: bytes, digest: bytes) -> None:
    def change(row: dict[str, Any], trace: Trace) -> dict[str, Any]:
        packed = {"changed": zstandard.compress(changed), "refs": zstandard.compress(refs), "digest": digest}
        return {**row, **packed}

    travel(forge(indexed, tmp_path, change))


def test_verify_notices(indexed: Path, tmp_path: Path) -> None:
    """A checkpoint that is only a little wrong is named."""

    def change(row: dict[str, Any], trace: Trace) -> dict[str, Any]:
        state = decode_state(zstandard.decompress(row["state"]), trace)
        state["cpu"] = bytes([state["cpu"][0] ^ 1]) + state["cpu"][1:]
        return {**row, "state": zstandard.compress(encode_state(state))}

    path = forge(indexed, tmp_path, change)
    with Trace.open(path) as trace:
        verdict = verify(trace)
    assert (
        not verdict.good
        and "tick 2,000,000: the checkpoint there is of another state (cpu)" in verdict.message
    )
