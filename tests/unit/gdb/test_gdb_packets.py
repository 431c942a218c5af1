"""gdb's frames: checksums, escapes, streams cut anywhere, garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt.gdb.packets import (
    MAX_PACKET,
    Ack,
    BadPacket,
    Decoder,
    Interrupt,
    Packet,
    escape,
    frame,
    parse_hex,
    parse_pair,
    unescape,
)


def test_frame_is_as_the_manual_has_it() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"


def test_escape_is_as_the_manual_has_it() -> None:
    assert escape(b"a}b") == b"a}\x5db"
    assert unescape(b"}\x03}\x04") == b"#$"
    assert unescape(b"cut}") == b"cut"


@given(st.binary(max_size=200))
def test_escape_and_back(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not {0x23, 0x24, 0x2A} & set(escaped)


@given(st.lists(st.binary(max_size=40).map(escape), max_size=8), st.data())
def test_packets_come_out_however_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"+".join(frame(payload) for payload in payloads) + b"\x03"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = Decoder()
    items = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        items += decoder.feed(stream[begin:end])
    assert [item.payload for item in items if isinstance(item, Packet)] == payloads
    assert all(item.good for item in items if isinstance(item, Packet))
    assert items[-1] == Interrupt()


def test_a_wrong_checksum_shows() -> None:
    assert list(Decoder().feed(b"$OK#9b$OK#9A$OK#zz")) == [
        Packet(b"OK", False),
        Packet(b"OK", True),
        Packet(b"OK", False),
    ]


def test_a_packet_that_begins_anew_replaces_the_one_before() -> None:
    assert list(Decoder().feed(b"$m12$OK#9a-+")) == [Packet(b"OK"), Ack(False), Ack(True)]


def test_a_packet_too_long_is_dropped_and_the_next_one_is_fine() -> None:
    decoder = Decoder()
    long = b"a" * (MAX_PACKET + 10)
    items = list(decoder.feed(frame(long) + frame(b"OK")))
    assert [(len(item.payload) <= MAX_PACKET, item.good) for item in items if isinstance(item, Packet)] == [
        (True, False),
        (True, True),
    ]


@given(st.binary(max_size=300))
def test_any_bytes_at_all_do_no_harm(data: bytes) -> None:
    decoder = Decoder()
    list(decoder.feed(data))
    assert list(decoder.feed(b"#00" + frame(b"OK")))[-1] == Packet(b"OK")


def test_numbers() -> None:
    assert parse_hex(b"fF") == 255
    assert parse_pair(b"ffff8000,10") == (0xFFFF8000, 16)
    for bad in (b"", b"-1", b"+1", b"0x10", b"1_0", b" 1", b"g", b"1" * 40, b"1" + b"0" * 16):
        with pytest.raises(BadPacket):
            parse_hex(bad)
    with pytest.raises(BadPacket):
        parse_pair(b"10")
