"""Cables of a live machine: who gets which frame when, and what is counted."""

from __future__ import annotations

from collections import deque

from tt.events import Kind
from tt.net.ends import Nothing, Silence
from tt.net.link import Conditions
from tt.net.network import Cable, Network


def frame(number: int) -> bytes:
    return bytes([number]) * 20


class Peer:
    """An end that a test holds in its hands."""

    name = "peer"

    def __init__(self) -> None:
        self.lost = 0
        self.up = True
        self.got: list[tuple[int, bytes]] = []
        self.coming: deque[bytes] = deque()
        self.closed = False

    def fileno(self) -> int:
        return 77

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        self.got.append((now_ns, frame))

    def receive(self, most: int, now_ns: int = 0) -> list[bytes]:
        return [self.coming.popleft() for _ in range(min(most, len(self.coming)))]

    def due_ns(self) -> int | None:
        return None

    def close(self) -> None:
        self.closed = True


PERFECT = Conditions()


def one(conditions: Conditions = PERFECT, room: int | None = 8) -> tuple[Network, Peer]:
    peer = Peer()
    return Network([Cable(peer, conditions)], lambda card: room), peer


def taken(network: Network, now_ns: int) -> list[tuple[Kind, int, bytes]]:
    network.poll(now_ns)
    return [(event.kind, event.value, event.data) for event in network.take(1)]


def test_frames_go_both_ways_at_once_on_a_perfect_cable() -> None:
    network, peer = one()
    network.send(0, frame(1), 5)
    peer.coming += [frame(2), frame(3)]
    assert peer.got == [(5, frame(1))]
    assert network.poll(6)
    events = network.take(40)
    assert [(e.tick, e.kind, e.unit, e.data) for e in events] == [
        (40, Kind.FRAME_IN, 0, frame(2)),
        (40, Kind.FRAME_IN, 0, frame(3)),
    ]
    assert not network.poll(7) and network.take(41) == []
    assert network.counters() == [{"received": 2, "sent": 1, "dropped": 0, "lost": 0}]
    assert network.due_ns(7) is None
    network.close()
    assert peer.closed


def test_a_guest_without_room_finds_frames_waiting() -> None:
    network, peer = one(room=2)
    peer.coming += map(frame, range(5))
    assert len(taken(network, 0)) == 2
    network.room = lambda card: 0
    assert taken(network, 1) == [] and len(peer.coming) == 3
    assert network.descriptors() == []  # else an idle guest would never sleep
    network.room = lambda card: 8
    assert [data for _, _, data in taken(network, 2)] == [frame(2), frame(3), frame(4)]
    assert network.descriptors() == [77]


def test_what_was_found_is_not_looked_for_again_before_it_is_taken() -> None:
    network, peer = one()
    peer.coming.append(frame(0))
    assert network.poll(0) and network.poll(1)
    peer.coming.append(frame(1))
    assert network.poll(2) and len(network.take(1)) == 1  # memory stays bounded by a look


def test_a_guest_that_does_not_listen_loses_frames() -> None:
    network, peer = one(room=None)
    peer.coming += [frame(1)] * 300
    assert not network.poll(0)
    assert not network.poll(1) and not peer.coming
    assert network.counters()[0]["dropped"] == 300


def test_latency_each_way_in_guest_time() -> None:
    network, peer = one(Conditions(latency_ns=100))
    network.send(0, frame(1), 50)
    peer.coming.append(frame(2))
    assert not network.poll(50) and peer.got == [] and network.due_ns(50) == 150
    assert not network.poll(149)
    assert network.poll(150) and peer.got == [(150, frame(1))]
    assert [data for _, _, data in taken(network, 150)] == [frame(2)]


def test_a_bad_cable_has_room_for_so_many_frames() -> None:
    network, peer = one(Conditions(latency_ns=100))
    for _ in range(5000):
        network.send(0, frame(1), 0)
    network.poll(100)
    assert len(peer.got) == 4096 and network.counters()[0]["lost"] == 904
    peer.coming += [frame(2)] * 5000
    for _ in range(30):
        network.poll(101)
    assert len(network.cables[0].coming) == 4096 and len(peer.coming) == 904
    assert network.descriptors() == []


def test_a_bad_cable_has_room_for_so_many_bytes() -> None:
    network, peer = one(Conditions(latency_ns=100))
    for at in (0, 1000):  # the room is there again when they have left
        for _ in range(2000):
            network.send(0, bytes(65_000), at)
        network.poll(at + 100)
    assert len(peer.got) == 2 * (-(-(64 << 20) // 65_000)) and network.cables[0].held_bytes == 0
    assert network.counters()[0]["lost"] == 4000 - len(peer.got)


def test_the_guest_hears_of_a_link_once_and_in_order() -> None:
    network, peer = one()
    peer.up = False
    peer.coming.append(frame(1))  # came before the peer went
    assert taken(network, 0) == [(Kind.FRAME_IN, 0, frame(1)), (Kind.LINK, 0, b"")]
    assert taken(network, 1) == []
    peer.up = True
    network.room = lambda card: None  # so a card without a link says
    peer.coming.append(frame(2))
    assert taken(network, 2) == [(Kind.LINK, 1, b""), (Kind.FRAME_IN, 0, frame(2))]


def test_a_cable_is_pulled_out_and_plugged_in_by_hand() -> None:
    network, peer = one()
    assert taken(network, 0) == []
    network.plug(0, False)
    peer.coming.append(frame(1))
    network.send(0, frame(2), 1)
    assert taken(network, 1) == [(Kind.LINK, 0, b"")]
    assert network.counters()[0] == {"received": 0, "sent": 1, "dropped": 0, "lost": 2} and not peer.got
    network.plug(0, True)
    assert taken(network, 2) == [(Kind.LINK, 1, b"")]


def test_nothing_and_silence() -> None:
    network = Network([Cable(Nothing()), Cable(Silence())], lambda card: 8)
    assert [(e.kind, e.unit, e.value) for e in (network.poll(0), network.take(1))[1]] == [(Kind.LINK, 0, 0)]
    network.send(0, frame(1), 0)
    network.send(1, frame(1), 0)
    assert [card["lost"] for card in network.counters()] == [1, 1]
    assert network.descriptors() == []
    network.close()


def test_the_cards_are_told_apart() -> None:
    peers = [Peer(), Peer()]
    network = Network([Cable(peer) for peer in peers], lambda card: 8)
    network.send(1, frame(9), 0)
    peers[1].coming.append(frame(1))
    network.poll(0)
    assert [(e.unit, e.data) for e in network.take(0)] == [(1, frame(1))]
    assert not peers[0].got and peers[1].got == [(0, frame(9))]
