"""A live source: whatever comes wakes it, and it leaves no descriptors behind."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.events import Event, Kind
from tt.net.network import Cable, Network
from tt.net.stream import Stream
from tt.vmm.live import LiveSource

LONG_S = 60.0  # what a wait would take that nothing ends; the tests end it at once


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def connected() -> Iterator[tuple[LiveSource, socket.socket]]:
    """Yield a source with a card at one end of a socket, and the other end."""
    ours, theirs = socket.socketpair()
    network = Network([Cable(Stream("peer", ours))], room=lambda card: 10)
    try:
        with theirs:
            yield LiveSource(pace=True, network=network), theirs
    finally:
        network.close()


def waits(source: LiveSource, seconds: float = LONG_S) -> float:
    """Let a source sleep; return how long it did."""
    began = time.monotonic()
    source._wait(seconds)
    return time.monotonic() - began


def frame(size: int) -> bytes:
    return size.to_bytes(4, "big") + bytes(size)


def test_sources_leave_no_descriptors_behind() -> None:
    gc.collect()
    before = open_descriptors()
    for _ in range(300):
        source = LiveSource()
        source.type(b"x")
    del source
    assert open_descriptors() == before


def test_what_is_typed_before_a_sleep_ends_it() -> None:
    source = LiveSource(pace=True)
    for _ in range(100_000 // 50):
        source.type(b"x")  # far more rings than a pipe holds
    assert waits(source) < LONG_S / 2
    assert b"".join(event.data for event in source.take_inputs(7)) == b"x" * 2000
    assert waits(source, 0.001) < LONG_S / 2, "and nothing is left of it"


@pytest.mark.parametrize("what", ["type", "stop", "feed", "end_feeding"])
def test_what_comes_during_a_sleep_ends_it(what: str) -> None:
    source = LiveSource(pace=True, feeding=True)
    calls = {
        "type": lambda: source.type(b"x"),
        "stop": source.stop,
        "feed": lambda: source.feed(b"x\n"),
        "end_feeding": source.end_feeding,
    }
    timer = threading.Timer(0.02, calls[what])
    timer.start()
    assert waits(source) < LONG_S / 2
    timer.join()


def test_a_source_that_was_stopped_does_not_sleep() -> None:
    source = LiveSource(pace=True)
    source.stop()
    for _ in range(3):
        assert waits(source) < LONG_S / 2


def test_a_frame_ends_a_sleep_and_a_peer_that_goes_does() -> None:
    with connected() as (source, peer):
        peer.sendall(frame(60))
        assert waits(source) < LONG_S / 2
        assert [event.data for event in source.take_inputs(1)] == [bytes(60)]
        peer.shutdown(socket.SHUT_RDWR)
        assert waits(source) < LONG_S / 2
        assert [(e.kind, e.value) for e in source.take_inputs(2)] == [(Kind.LINK, 0)]


def test_descriptors_beyond_those_of_select() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("the host allows fewer descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with connected() as (source, peer):
            assert source._bell > 1024
            assert waits(source, 0.001) < LONG_S / 2
            source.type(b"x")
            assert waits(source) < LONG_S / 2
            peer.sendall(frame(60))
            assert waits(source) < LONG_S / 2
            assert [event.kind for event in source.take_inputs(1)] == [Kind.INPUT, Kind.FRAME_IN]
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Counted(Network):
    """A network that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked = 0
        self.there: list[bytes] = []

    def poll(self, now_ns: int) -> bool:
        self.asked += 1
        return bool(self.there)

    def take(self, tick: int) -> list[Event]:
        taken, self.there = self.there, []
        return [Event(tick, Kind.FRAME_IN, 0, 0, data) for data in taken]


def test_the_network_is_asked_once_at_each_instant() -> None:
    network = Counted()
    source = LiveSource(network=network)
    now = 0
    source.now_ns = lambda: now
    for now in range(0, 100, 10):
        assert source.take_inputs(now) == [] and source.next_input(now) is None
    assert network.asked == 10
    now = 200
    network.there.append(bytes(60))
    assert source.next_input(200) == 200, "time has passed since inputs were taken"
    assert len(source.take_inputs(200)) == 1
