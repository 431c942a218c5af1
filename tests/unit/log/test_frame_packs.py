"""Frames in a trace: stored once, read whole; and packs and references that lie are found out."""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tt.errors import BadInput
from tt.events import Event, Kind
from tt.log import Trace, TraceWriter
from tt.log.blobs import pack
from tt.log.frames import MAX_FRAME, FrameWriter, Reference
from tt.log.schema import row_crc

SIZES = (14, 60, 1514, 65_550, 14)


def frames(count: int = 40) -> list[bytes]:
    chance = random.Random(5)
    made = [chance.randbytes(SIZES[number % len(SIZES)]) for number in range(count)]
    return [*made, made[0], made[-1], b"", bytes(MAX_FRAME)]


def write(path: Path, contents: Sequence[bytes]) -> Path:
    with TraceWriter(path, {"period_ns": 4}) as writer:
        for number, data in enumerate(contents):
            kind = Kind.FRAME_IN if number % 2 else Kind.FRAME_OUT
            writer.add(Event(number * 10, kind, number % 3, 0, data), host_ns=1000 + number)
            writer.add(Event(number * 10 + 5, Kind.IRQ, 0, 11, b"abcd"))
            if number % 15 == 14:
                writer.commit(number * 10 + 5)
        writer.seal(len(contents) * 10, "done", {})
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("frames") / "frames.tt", frames())


def test_frames_are_read_as_they_were(sound: Path) -> None:
    with Trace.open(sound) as trace:
        assert trace.verify_structure() == []
        found = list(trace.frames())
        assert [frame.data for frame in found] == frames()
        assert [frame.number for frame in found] == list(range(1, len(found) + 1))
        assert [frame.host_ns for frame in found] == [1000 + i for i in range(len(found))]
        assert [frame.card for frame in found] == [i % 3 for i in range(len(found))]
        assert [frame.incoming for frame in found] == [bool(i % 2) for i in range(len(found))]
        assert [event.data for event in trace.events() if event.kind is not Kind.IRQ] == frames()


def test_the_same_frame_is_stored_once(tmp_path: Path) -> None:
    same = random.Random(1).randbytes(9000)
    path = write(tmp_path / "same.tt", [same] * 200)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count, raw_size FROM frame_packs").fetchall() == [(1, 9004)]
    db.close()
    with Trace.open(path) as trace:
        assert {frame.data for frame in trace.frames()} == {same}


def test_a_frame_that_is_too_long_is_not_written(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.tt", {}) as writer, pytest.raises(ValueError, match="frame of 131073"):
        writer.add(Event(0, Kind.FRAME_IN, 0, 0, bytes(MAX_FRAME + 1)))


# ---- whoever wrote this knows the format

Change = Callable[[sqlite3.Connection], None]


def first_pack(db: sqlite3.Connection) -> tuple[int, int, int, bytes]:
    row: tuple[int, int, int, bytes] = db.execute(
        "SELECT number, count, raw_size, packed FROM frame_packs ORDER BY number"
    ).fetchone()
    return row


def put(db: sqlite3.Connection, number: int, count: int, size: int, packed: bytes) -> None:
    """Put a pack in the place of the one with its number, with its checksum right."""
    db.execute("DELETE FROM frame_packs WHERE number = ?", (number,))
    crc = row_crc("frame_packs", number, count, size, packed)
    db.execute("INSERT INTO frame_packs VALUES (?, ?, ?, ?, ?)", (number, count, size, packed, crc))


def missing(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM frame_packs WHERE number = 0")


def all_missing(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM frame_packs")


def another_number(db: sqlite3.Connection) -> None:
    number, count, size, packed = first_pack(db)
    missing(db)
    put(db, number + 1, count, size, packed)


def damaged(db: sqlite3.Connection) -> None:
    _number, _count, _size, packed = first_pack(db)
    spoilt = packed[:-1] + bytes([packed[-1] ^ 1])
    db.execute("UPDATE frame_packs SET packed = ? WHERE number = 0", (spoilt,))


def fewer(db: sqlite3.Connection) -> None:
    number, count, size, packed = first_pack(db)
    put(db, number, count - 1, size, packed)


def more(db: sqlite3.Connection) -> None:
    number, count, size, packed = first_pack(db)
    put(db, number, count + 1, size, packed)


def far_too_many(db: sqlite3.Connection) -> None:
    number, _count, size, packed = first_pack(db)
    put(db, number, 1 << 40, size, packed)


def none_at_all(db: sqlite3.Connection) -> None:
    number, _count, size, packed = first_pack(db)
    put(db, number, 0, size, packed)


def negative(db: sqlite3.Connection) -> None:
    number, _count, size, packed = first_pack(db)
    put(db, number, -1, size, packed)


def another_raw_size(db: sqlite3.Connection) -> None:
    number, count, size, packed = first_pack(db)
    put(db, number, count, size + 1, packed)


def a_huge_raw_size(db: sqlite3.Connection) -> None:
    number, count, _size, packed = first_pack(db)
    put(db, number, count, 1 << 50, packed)


def a_bomb(db: sqlite3.Connection) -> None:
    raw = struct.pack("<I", 1 << 26) + bytes(1 << 26)
    put(db, 0, 1, len(raw), pack(raw))


def a_frame_too_long(db: sqlite3.Connection) -> None:
    raw = struct.pack("<I", MAX_FRAME + 1) + bytes(MAX_FRAME + 1)
    put(db, 0, 1, len(raw), pack(raw))


def sizes_that_lie(db: sqlite3.Connection) -> None:
    raw = struct.pack("<3I", 14, 0xFFFFFFF0, 60) + bytes(74)
    put(db, 0, 3, len(raw), raw)


def sizes_of_others(db: sqlite3.Connection) -> None:
    """The right number of frames, but not as long as their events say."""
    _number, count, _size, _packed = first_pack(db)
    raw = struct.pack(f"<{count}I", *[20] * count) + bytes(20 * count)
    put(db, 0, count, len(raw), pack(raw))


def no_bytes(db: sqlite3.Connection) -> None:
    number, count, size, _packed = first_pack(db)
    put(db, number, count, size, b"")


CHANGES: tuple[Change, ...] = (
    missing, all_missing, another_number, damaged, fewer, more, far_too_many, none_at_all, negative,
    another_raw_size, a_huge_raw_size, a_bomb, a_frame_too_long, sizes_that_lie, sizes_of_others, no_bytes,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_packs_that_lie_are_found_out(sound: Path, tmp_path: Path, change: Change) -> None:
    path = tmp_path / "lies.tt"
    path.write_bytes(sound.read_bytes())
    with sqlite3.connect(path) as db:
        change(db)
    db.close()
    found_out(path)


def found_out(path: Path) -> None:
    """Reading says what is wrong, in a line; so does the check of the whole file."""
    with Trace.open(path) as trace:
        for read in (trace.frames, trace.events):
            with pytest.raises(BadInput) as told:
                list(read())
            assert "\n" not in str(told.value) and str(path) in str(told.value)
        assert trace.verify_structure() != []


REFERENCES = {
    "past the end": struct.pack("<QQI", 1000, 0, 14),
    "far past the end": struct.pack("<QQI", (1 << 64) - 1, 0, 14),
    "another size": struct.pack("<QQI", 0, 0, 15),
    "too short": b"\0" * 19,
    "too long": b"\0" * 21,
    "the frame itself": bytes(60),
    "empty": b"",
}


@pytest.mark.parametrize("stored", REFERENCES.values(), ids=REFERENCES.keys())
def test_references_that_lie_are_found_out(
    tmp_path: Path, stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tt.log.frames.FrameWriter.put", _writer_of(stored))
        patch.setattr("tt.log.writer.reference", lambda data: Reference(0, 0, 14))
        write(tmp_path / "lies.tt", [bytes(14)] * 3)
    found_out(tmp_path / "lies.tt")


def _writer_of(stored: bytes) -> Callable[..., bytes]:
    """Return a `FrameWriter.put` that stores the frame and refers to it by `stored`."""
    true = FrameWriter.put

    def write(self: FrameWriter, frame: bytes, host_ns: int) -> bytes:
        true(self, frame, host_ns)
        return stored

    return write


def test_a_trace_of_format_4_has_no_frames(sound: Path, tmp_path: Path) -> None:
    """The table and the events came with format 5: a file that says 4 and has them is no such trace."""
    path = tmp_path / "old.tt"
    path.write_bytes(sound.read_bytes())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 4")
    db.close()
    with pytest.raises(BadInput, match="frame_packs"):
        Trace.open(path)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE frame_packs")
    db.close()
    with Trace.open(path) as trace:
        for read in (trace.frames, trace.events):
            with pytest.raises(BadInput) as told:
                list(read())
            assert "\n" not in str(told.value)
        assert trace.verify_structure() != []
