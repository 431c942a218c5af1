"""A stream socket as the end of a cable, and peers that are slow, hostile, silent or gone."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.errors import TTError, UsageError
from tt.events import Kind
from tt.net.network import Cable, Network
from tt.net.stream import Stream, open_stream

MOST = 65_550


def packed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


class Pair:
    """A connected end, and the socket of its peer."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.said: list[str] = []
        self.end = Stream("stream:x", ours, say=self.said.append)

    def come(self, data: bytes, most: int = 1000) -> list[bytes]:
        self.peer.sendall(data)
        return self.end.receive(most)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.end.close()
    pair.peer.close()


def test_frames_have_their_length_before_them(pair: Pair) -> None:
    assert pair.end.up and pair.end.fileno() >= 0 and pair.end.due_ns() is None
    pair.end.send(bytes(20))
    pair.end.send(b"x" * 14)
    assert pair.peer.recv(1000) == b"\0\0\0\x14" + bytes(20) + b"\0\0\0\x0e" + b"x" * 14
    assert pair.come(packed(b"a" * 14, b"b" * 60)) == [b"a" * 14, b"b" * 60]
    assert pair.end.receive(10) == [] and pair.end.lost == 0 and pair.said == []


def test_frames_in_pieces_of_any_size(pair: Pair) -> None:
    chance = random.Random(1)
    frames = [chance.randbytes(chance.choice((14, 60, 1514, MOST))) for _ in range(40)]
    whole, found = packed(*frames), []
    while whole:
        size = chance.choice((1, 2, 3, 5, 1000, 30_000))
        found += pair.come(whole[:size], most=3)
        whole = whole[size:]
    while more := pair.end.receive(3):
        found += more
    assert found == frames


def test_no_more_than_asked_for_and_no_more_read_than_needed(pair: Pair) -> None:
    pair.peer.setblocking(False)
    flood = packed(*[bytes(14)] * 100_000)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(flood):
            sent += pair.peer.send(flood[sent:])
    assert pair.end.receive(0) == [] and len(pair.end.receive(5)) == 5
    # A flood: at most what one reading gave waits here, the rest at the peer.
    for _ in range(20):
        assert len(pair.end.receive(1)) == 1
        assert len(pair.end._frames) * 18 + len(pair.end._in) <= (256 << 10) + 18


@pytest.mark.parametrize("size", [0, MOST + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_no_frame_has_ends_the_connection(pair: Pair, size: int) -> None:
    assert pair.come(packed(b"a" * 14) + struct.pack(">I", size) + bytes(100)) == [b"a" * 14]
    assert not pair.end.up
    assert pair.end.receive(10) == [] and pair.end.fileno() == -1
    [line] = pair.said
    assert line == (
        f"stream:x is gone (it sent a frame of {size:,} bytes, which none can have (at most 65,550)): "
        "the guest's cable is unplugged"
    )
    pair.end.send(bytes(14))
    assert pair.end.lost == 1


def test_frames_that_are_too_short_are_skipped(pair: Pair) -> None:
    assert pair.come(packed(b"a", b"b" * 13, b"c" * 14)) == [b"c" * 14]
    assert pair.end.up


def test_a_peer_that_goes_in_the_middle_of_a_frame(pair: Pair) -> None:
    pair.come(packed(b"a" * 14) + b"\0\0\5\0half", most=0)
    pair.peer.close()
    assert pair.end.receive(10) == [b"a" * 14] and pair.end.up
    assert pair.end.receive(10) == [] and not pair.end.up
    assert pair.said == ["stream:x is gone (it closed the connection): the guest's cable is unplugged"]


def test_what_a_peer_sent_before_it_went_arrives(pair: Pair) -> None:
    pair.come(packed(*[b"a" * 14] * 5), most=1)
    pair.peer.close()
    pair.end.send(bytes(14))  # finds out
    assert not pair.end._peer and pair.end.up
    assert len(pair.end.receive(10)) == 4
    assert not pair.end.up


def test_a_peer_that_reads_nothing_loses_frames_and_gets_whole_ones_later(pair: Pair) -> None:
    frames = [number.to_bytes(4, "big") * 300 for number in range(4000)]
    for frame in frames:
        pair.end.send(frame)
    assert pair.end.lost > 0 and len(pair.end._out) < (1 << 20) + 2000
    got = bytearray()
    pair.peer.setblocking(False)
    while pair.end._out:
        with contextlib.suppress(BlockingIOError):
            got += pair.peer.recv(1 << 20)
        pair.end.receive(0)  # this is when the rest is sent
    with contextlib.suppress(BlockingIOError):
        while data := pair.peer.recv(1 << 20):
            got += data
    assert bytes(got) == packed(*frames[: 4000 - pair.end.lost])


# ---- listening


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Stream, str, list[str]]]:
    said: list[str] = []
    end = open_stream(f"unix:{tmp_path}/s", listen=True, say=said.append)
    yield end, f"{tmp_path}/s", said
    end.close()


def connected(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    return peer


def test_one_that_says_nothing_and_then_the_next(listener: tuple[Stream, str, list[str]]) -> None:
    end, path, said = listener
    assert not end.up and end.receive(10) == []
    end.send(bytes(14))
    assert end.lost == 1
    silent = connected(path)
    waiting = end.fileno()
    assert end.receive(10) == [] and end.up and end.fileno() != waiting
    with connected(path) as second:  # waits until the first has gone
        second.sendall(packed(b"b" * 14))
        assert end.receive(10) == []
        silent.close()
        assert end.receive(10) == [] and not end.up
        assert end.receive(10) == [b"b" * 14] and end.up
        end.send(b"c" * 14)
        assert second.recv(100) == packed(b"c" * 14)  # nothing that was for the first
    assert said == [f"stream:unix:{path} is gone (it closed the connection): the guest's cable is unplugged"]


def test_one_that_comes_again_and_again(listener: tuple[Stream, str, list[str]]) -> None:
    end, path, said = listener
    network = Network([Cable(end)], lambda card: 8)
    links = []
    for number in range(50):
        with connected(path) as peer:
            peer.sendall(packed(bytes([number]) * 14) + b"\0\0")  # and the beginning of another
            network.poll(0)
            links += [(e.kind, e.value) for e in network.take(0)]
        network.poll(0)
        links += [(e.kind, e.value) for e in network.take(0)]
    assert links.count((Kind.FRAME_IN, 0)) == 50
    assert [value for kind, value in links if kind is Kind.LINK] == [0] + [1, 0] * 49  # at power-on it was up
    assert len(said) == 5 and said[-1].endswith("; no more is said of it")


def test_the_socket_is_removed_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    end = open_stream(f"unix:{path}", listen=True)
    with pytest.raises(TTError, match="cannot listen at unix:.*: Address already in use"):
        open_stream(f"unix:{path}", listen=True)
    end.close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    open_stream(f"unix:{path}", listen=True).close()
    path.write_text("somebody's notes")
    with pytest.raises(TTError, match="Address already in use"):
        open_stream(f"unix:{path}", listen=True)
    assert path.read_text() == "somebody's notes"


def test_tcp_on_the_loopback_both_ways() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.closing(open_stream(f":{port}", listen=True)) as one:
        assert one._listening is not None and one._listening.getsockname() == ("127.0.0.1", port)
        with contextlib.closing(open_stream(f"127.0.0.1:{port}", listen=False)) as two:
            one.receive(1)
            one.send(b"a" * 14)
            two.send(b"b" * 14)
            assert (one.receive(1), two.receive(1)) == ([b"b" * 14], [b"a" * 14])


@pytest.mark.parametrize("where", ["unix:", "x", "x:", ":0", "x:65536", "x:y"])
def test_places_that_are_none(where: str) -> None:
    with pytest.raises(UsageError, match="^--net stream:"):
        open_stream(where, listen=False)


def test_nobody_answers(tmp_path: Path) -> None:
    for where in (f"unix:{tmp_path}/nobody", "127.0.0.1:1"):
        with pytest.raises(TTError, match=r"cannot connect to .*; is the other side up, or should this one"):
            open_stream(where, listen=False)
    with pytest.raises(TTError, match="too long"):
        open_stream(f"unix:/{'x' * 200}", listen=True)
