"""Damaged and hostile traces, replayed: only ever `BadInput`, `Divergence`, or a run to the end."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tt.errors import BadInput, Divergence, EngineError
from tt.log import Trace
from tt.log.schema import row_crc
from tt.replay import Replay, verify

MOST_TICKS = 1_000_000

everyday = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(everyday, max_examples=1200)


def relive(path: Path) -> str:
    """Replay as much as a test has time for; return what came of it."""
    try:
        with Trace.open(path) as trace:
            replay = Replay(trace)
            replay.run_to(min(trace.end_tick, MOST_TICKS))
            if trace.end_tick <= MOST_TICKS:
                replay.finish()
    except (BadInput, Divergence) as e:
        assert "\n" not in str(e) and str(e)
        return type(e).__name__
    return "good"


def damaged(sound: Path, folder: Path, data: bytes) -> Path:
    """Write a damaged copy, without what a run before may have left beside it."""
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    (folder / "damaged").mkdir()
    path = folder / "damaged" / sound.name
    path.write_bytes(data)
    return path


places = st.floats(0, 1, exclude_max=True)


def truncate(sound: Path, folder: Path, place: float) -> None:
    data = sound.read_bytes()
    path = damaged(sound, folder, data[: int(place * len(data))])
    if relive(path) != "BadInput":
        # What is missing lies behind what was replayed, or was padding that SQLite does without.
        with Trace.open(path) as trace:
            assert trace.verify_structure() != [] or verify(trace).good


def flip(sound: Path, folder: Path, flips: list[tuple[float, int]]) -> None:
    data = bytearray(sound.read_bytes())
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    relive(damaged(sound, folder, bytes(data)))


def overwrite(sound: Path, folder: Path, place: float, junk: bytes) -> None:
    data = bytearray(sound.read_bytes())
    at = int(place * len(data))
    data[at : at + len(junk)] = junk[: len(data) - at]
    relive(damaged(sound, folder, bytes(data)))


flips = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=4)


@everyday
@given(place=places)
@example(place=0.0)
def test_truncated(demo_trace: Path, tmp_path: Path, place: float) -> None:
    truncate(demo_trace, tmp_path, place)


@everyday
@given(flips=flips)
def test_flipped_bits(demo_trace: Path, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    flip(demo_trace, tmp_path, flips)


@pytest.mark.slow
@many
@given(flips=flips)
def test_many_flipped_bits(demo_trace: Path, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    flip(demo_trace, tmp_path, flips)


@pytest.mark.slow
@many
@given(place=places, junk=st.binary(min_size=1, max_size=5000))
def test_junk_in_the_middle(demo_trace: Path, tmp_path: Path, place: float, junk: bytes) -> None:
    overwrite(demo_trace, tmp_path, place, junk)


# ---- whoever wrote this knows the format


def forge(path: Path, table: str, key: Any, **columns: Any) -> None:
    """Change a row and put its checksum right."""
    with sqlite3.connect(path) as db:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        row = dict(
            zip(
                names,
                db.execute(f"SELECT * FROM {table} WHERE {names[0]} = ?", (key,)).fetchone(),
                strict=True,
            )
        )
        row.update(columns)
        row["crc"] = row_crc(table, *(row[name] for name in names if name != "crc"))
        db.execute(f"DELETE FROM {table} WHERE {names[0]} = ?", (key,))
        db.execute(
            f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", [row[name] for name in names]
        )
    db.close()


def machine_of(path: Path) -> dict[str, Any]:
    with Trace.open(path) as trace:
        config: dict[str, Any] = trace.meta["config"]
        return config


small = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3))
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, 1, 4095, 4096, 1 << 20, (1 << 20) + 1, 1 << 40, 1 << 61, 1e9, float("inf"), -1]),
    st.sampled_from(["", "pc", "x", "host", "denali"]),
    st.text(max_size=8),
    st.lists(small, max_size=3),
    st.dictionaries(st.sampled_from(["path", "size", "digest", "x"]), small, max_size=3),
)
CONFIG_KEYS = ["machine", "mem_bytes", "period_ns", "epoch", "clock", "boot_kind", "cmdline", "disks"]
CONFIG_KEYS += ["description", "extra"]


@everyday
@given(key=st.sampled_from(CONFIG_KEYS), value=odd_values)
@example(key="machine", value="pc")
@example(key="machine", value=[])
@example(key="mem_bytes", value=1 << 61)
@example(key="mem_bytes", value=True)
@example(key="mem_bytes", value=1 << 45)
@example(key="mem_bytes", value=1 << 39)
@example(key="period_ns", value=1 << 61)
@example(key="epoch", value=(1 << 61))
@example(key="disks", value=[])
@example(key="disks", value=[{"path": 5, "size": 1, "digest": ""}])
@example(key="disks", value=[{"path": "", "size": "x", "digest": ""}])
@example(key="disks", value=[{"path": "", "size": -512, "digest": ""}])
@example(key="disks", value=[{"path": "a\0b", "size": 512, "digest": ""}])
@example(key="disks", value=[{"path": "", "size": 1 << 70, "digest": ""}] * 2)
@example(key="disks", value=[{"path": "/dev/zero", "size": 0, "digest": ""}])
def test_forged_machines(demo_trace: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = damaged(demo_trace, tmp_path, demo_trace.read_bytes())
    forge(path, "meta", "config", value=json.dumps({**machine_of(demo_trace), key: value}))
    try:
        relive(path)
    except EngineError as e:
        assert "\n" not in str(e)


def test_a_forged_memory_size_takes_no_memory(demo_trace: Path, tmp_path: Path) -> None:
    """Half a terabyte of guest memory is refused before its tables are made (they took 5 GB once)."""
    path = damaged(demo_trace, tmp_path, demo_trace.read_bytes())
    forge(path, "meta", "config", value=json.dumps({**machine_of(demo_trace), "mem_bytes": 1 << 39}))
    with Trace.open(path) as trace, pytest.raises(BadInput, match="this host only"):
        Replay(trace)


@everyday
@given(columns=st.fixed_dictionaries({}, optional={
    "end_tick": st.integers(0, (1 << 63) - 1),
    "events": st.integers(0, (1 << 63) - 1),
    "digests": st.integers(0, 3),
    "sealed": st.integers(0, 1),
    "summary": st.sampled_from(["{}", "[]", "1", '{"ended": 5}', '{"ended": "x"}', "", "nan"]),
}))  # fmt: skip
@example(columns={"end_tick": (1 << 63) - 1})
@example(columns={"end_tick": (1 << 63) - 1, "sealed": 0})
def test_forged_progress(demo_trace: Path, tmp_path: Path, columns: dict[str, Any]) -> None:
    path = damaged(demo_trace, tmp_path, demo_trace.read_bytes())
    forge(path, "progress", 1, **columns)
    relive(path)


@settings(everyday, max_examples=30)
@given(guest=st.binary(max_size=3000), keep=st.integers(0, 6000))
def test_forged_guests(demo_trace: Path, tmp_path: Path, guest: bytes, keep: int) -> None:
    """Another program under a sound log: whatever it does, it is not what was recorded."""
    from tt.log import TraceWriter

    path = tmp_path / "forged.tt"
    with Trace.open(demo_trace) as trace, TraceWriter(path, trace.meta, overwrite=True) as writer:
        original = trace.file("guest")
        writer.add_file("guest", original[:keep] + guest + original[keep + len(guest) :])
        writes = {write.event: write.data() for write in trace.disk_writes()}
        for number, event in trace.numbered_events():
            writer.add(event._replace(data=writes.get(number, event.data)))
        writer.seal(trace.end_tick, trace.reason, trace.summary)
    assert relive(path) in ("BadInput", "Divergence", "good")


def test_an_end_that_never_was(demo_trace: Path, tmp_path: Path) -> None:
    """A trace that claims to go on after its guest had ended is caught at the guest's end."""
    path = damaged(demo_trace, tmp_path, demo_trace.read_bytes())
    forge(path, "progress", 1, end_tick=1 << 62)
    with Trace.open(path) as trace, pytest.raises((Divergence, BadInput)):
        Replay(trace).finish()


def test_verify_says_where(demo_trace: Path, tmp_path: Path) -> None:
    path = damaged(demo_trace, tmp_path, demo_trace.read_bytes())
    with Trace.open(path) as trace:
        ((tick, digest),) = trace.digests()
    forge(path, "digests", tick, digest=digest[:16] + bytes(16) + digest[32:])
    with Trace.open(path) as trace:
        verdict = verify(trace)
    assert not verdict.good and "digest differs in ram" in verdict.message
    assert "the recording took another way" in verdict.detail[0]
