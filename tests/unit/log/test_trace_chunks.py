"""Chunks: what goes in comes out, and nothing else makes trouble."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.events import Event, Kind
from tt.log import chunks
from tt.log.blobs import contents_digest, pack, unpack
from tt.log.schema import row_crc
from tt.log.sectors import piece_count, piece_sizes, split_on_grid

U64 = (1 << 64) - 1


def events_of() -> st.SearchStrategy[list[Event]]:
    """Any list of events whose ticks do not fall."""
    ticks = st.one_of(st.integers(0, 300), st.integers(0, chunks.MAX_TICK))
    numbers = st.one_of(st.integers(0, 300), st.integers(0, U64))
    event = st.builds(
        Event,
        ticks,
        st.sampled_from(list(Kind)),
        st.one_of(st.just(0), numbers),
        numbers,
        st.binary(max_size=100),
    )
    return st.lists(event, min_size=1, max_size=60).map(lambda events: sorted(events, key=lambda e: e.tick))


@given(events_of())
def test_round_trip(events: list[Event]) -> None:
    raw_size, packed = chunks.encode(events)
    assert chunks.decode(packed, raw_size, len(events), events[0].tick) == events


def test_the_bytes_are_the_documented_ones() -> None:
    events = [
        Event(1000, Kind.TIMER, 0, 5),
        Event(1300, Kind.INPUT, 2, 0, b"hi"),
        Event(1300, Kind.TIMER, 0, 3),
    ]
    raw_size, packed = chunks.encode(events)
    raw = bytes.fromhex(
        "01 07 01"  # kinds
        "00 02 00"  # units
        "00 ac02 00"  # ticks: +0, +300, +0
        "0a 00 03"  # values: +5, +0, -2
        "00 02 00"  # lengths
        "6869"
    )
    assert zstandard.decompress(packed) == raw
    assert raw_size == len(raw)


def test_ticks_must_not_fall() -> None:
    with pytest.raises(ValueError, match="after one at tick 9"):
        chunks.encode([Event(9, Kind.IRQ), Event(8, Kind.IRQ)])


@pytest.mark.parametrize(
    "event", [Event(0, Kind.IRQ, 0, 1 << 64), Event(0, Kind.IRQ, -1), Event(1 << 63, Kind.IRQ)]
)
def test_numbers_must_fit(event: Event) -> None:
    with pytest.raises(ValueError):
        chunks.encode([event])


@given(st.binary(max_size=200), st.integers(-1, 40), st.integers(0, 5))
def test_garbage_columns_are_refused_or_decoded(raw: bytes, count: int, tick: int) -> None:
    frame = zstandard.compress(raw)
    try:
        events = chunks.decode(frame, len(raw), count, tick)
    except BadInput:
        return
    assert len(events) == count
    assert all(0 <= event.value <= U64 for event in events)


@given(st.binary(max_size=100), st.integers(0, 1 << 40))
def test_garbage_frames_are_refused(frame: bytes, raw_size: int) -> None:
    with pytest.raises(BadInput):
        chunks.decode(frame, raw_size, 1, 0)


def test_a_frame_cannot_make_more_than_it_states() -> None:
    bomb = zstandard.compress(bytes(100 << 20))
    with pytest.raises(BadInput, match="frame says otherwise"):
        unpack(bomb, 1000)
    with pytest.raises(BadInput, match="at most"):
        unpack(bomb, 100 << 20)


@given(st.binary(max_size=5000))
def test_blobs_round_trip(data: bytes) -> None:
    packed = pack(data)
    assert len(packed) <= len(data)
    assert unpack(packed, len(data)) == data
    assert len(contents_digest(data)) == 16


@given(st.integers(0, 100), st.integers(0, 40))
def test_pieces_end_on_the_grid(lba: int, sectors: int) -> None:
    data = bytes(range(256)) * 2 * sectors
    pieces = split_on_grid(lba, data)
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == piece_sizes(lba, sectors)
    assert len(pieces) == piece_count(lba, sectors)
    at = lba
    for piece in pieces[:-1]:
        at += len(piece) // 512
        assert at % 8 == 0


def test_row_crc_tells_columns_apart() -> None:
    crcs = {
        row_crc("meta", "a", "bc"),
        row_crc("meta", "ab", "c"),
        row_crc("meta", "ab", b"c"),
        row_crc("files", "a", "bc"),
        row_crc("meta", 1, "bc"),
    }
    assert len(crcs) == 5
