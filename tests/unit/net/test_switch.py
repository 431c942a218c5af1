"""A learning switch, frame by frame."""

from __future__ import annotations

import random

from tt.net.link import Conditions
from tt.net.port import Ports
from tt.net.switch import Switch, Table

L = 100
ALL = b"\xff" * 6
GROUP = bytes.fromhex("01005e000001")


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, number >> 8, number & 255])


def frame(to: bytes, sender: bytes, text: bytes = b"") -> bytes:
    return to + sender + b"\x08\x00" + text


def switch(ports: int = 3, **table: int) -> Switch:
    return Switch([Conditions(latency_ns=L)] * ports, Table(**table))


def ways(switch: Switch, port: int, data: bytes, now_ns: int = 0) -> list[int]:
    """Put a frame in; return the ports at which it comes out, checking when."""
    switch.send(port, data, now_ns)
    out = switch.advance(now_ns + L + 1)
    assert all(at == now_ns + 2 * L and what == data for _, at, what in out)
    return [other for other, _, _ in out]


def test_it_learns_where_senders_are() -> None:
    s = switch()
    assert ways(s, 0, frame(mac(2), mac(1))) == [1, 2]  # nobody knows yet where 2 is
    assert ways(s, 2, frame(mac(1), mac(2))) == [0]
    assert ways(s, 0, frame(mac(2), mac(1))) == [2]
    assert s.flooded == 1


def test_groups_go_everywhere_but_back() -> None:
    s = switch(4)
    for to in (ALL, GROUP):
        assert ways(s, 1, frame(to, mac(1))) == [0, 2, 3]


def test_no_frame_goes_back_to_its_own_port() -> None:
    s = switch()
    ways(s, 1, frame(ALL, mac(1)))
    assert ways(s, 1, frame(mac(1), mac(9))) == []  # both are behind port 1
    assert ways(s, 1, frame(mac(1), mac(1))) == []


def test_an_address_moves_with_its_last_frame() -> None:
    s = switch()
    ways(s, 0, frame(ALL, mac(1)))
    ways(s, 2, frame(ALL, mac(1)))
    assert ways(s, 1, frame(mac(1), mac(2))) == [2]


def test_an_address_that_was_silent_is_forgotten() -> None:
    s = switch(ageing_ns=10_000)
    ways(s, 0, frame(ALL, mac(1)), 0)
    assert ways(s, 1, frame(mac(1), mac(2)), 9_000) == [0]
    assert ways(s, 1, frame(mac(1), mac(2)), 10_000) == [0, 2]


def test_the_table_has_a_limit_and_keeps_who_spoke_last() -> None:
    table = Table(most=3)
    for number in (1, 2, 3, 1, 4):
        table.learn(mac(number), number, 0)
    assert len(table) == 3 and table.find(mac(2), 0) is None
    assert [table.find(mac(n), 0) for n in (1, 3, 4)] == [1, 3, 4]
    table.learn(GROUP, 5, 0)  # nobody sends from a group
    assert table.find(GROUP, 0) is None and len(table) == 3
    flooded = Table()
    for number in range(10_000):
        flooded.learn(number.to_bytes(6, "little").replace(b"\1", b"\2", 1), 0, 0)
    assert len(flooded) <= 4096


def test_what_bridges_keep_to_themselves_is_not_passed_on() -> None:
    s = switch()
    assert ways(s, 0, frame(bytes.fromhex("0180c2000000"), mac(1))) == []
    assert ways(s, 0, frame(bytes.fromhex("0180c200000f"), mac(1))) == []
    assert ways(s, 0, frame(bytes.fromhex("0180c2000010"), mac(1))) == [1, 2]


def test_what_is_no_frame_is_dropped() -> None:
    s = switch()
    for data in (b"", bytes(13), bytes(65_551)):
        assert ways(s, 0, data) == []
    assert s.lost == 3


def test_a_flood_does_not_fill_memory() -> None:
    s = switch(2)
    for _ in range(2000):
        s.send(0, frame(ALL, mac(1), bytes(65_000)), 0)
    taken = -(-(64 << 20) // 65_214)  # 64 MB, with 200 bytes for each
    assert s.lost == 2000 - taken and len(s.advance(L + 1)) == taken
    s.send(0, frame(ALL, mac(1)), 0)
    assert s.lost == 2000 - taken
    ports = Ports(1)
    for _ in range(2000):
        ports.send(0, bytes(65_014), 0)
    assert len(ports.fetch()) == taken and ports.counters()[0]["lost"] == 2000 - taken
    ports.send(0, bytes(14), 0)
    assert len(ports.fetch()) == 1


def test_frames_are_served_in_the_order_of_their_times_then_ports() -> None:
    s = Switch([Conditions(latency_ns=10), Conditions(latency_ns=30), Conditions(latency_ns=10)])
    s.send(1, frame(ALL, mac(1)), 0)
    s.send(2, frame(ALL, mac(2)), 20)
    s.send(0, frame(ALL, mac(0)), 20)
    assert s.next_ns() == 30 and s.advance(30) == []
    order = [what[6:12] for port, _, what in s.advance(31)]
    assert order == [mac(0)] * 2 + [mac(1)] * 2 + [mac(2)] * 2
    assert s.next_ns() is None and s.latency_ns == 10


def test_each_cable_has_its_own_conditions() -> None:
    s = Switch([Conditions(latency_ns=10), Conditions(latency_ns=50), Conditions(latency_ns=10, loss=1.0)])
    s.send(0, frame(ALL, mac(1)), 0)
    assert [(port, at) for port, at, _ in s.advance(1000)] == [(1, 60)]
    s.send(2, frame(ALL, mac(2)), 0)
    assert s.advance(1000) == [] and s.lost_in_cables == 2


def test_the_same_frames_give_the_same_result() -> None:
    def play() -> list[tuple[int, int, bytes]]:
        chance = random.Random(3)
        s = Switch([Conditions(latency_ns=20, loss=0.1, duplicate=0.1, reorder=0.2, corrupt=0.1)] * 4)
        out = []
        for now in range(0, 20_000, 20):
            for _ in range(3):
                to, sender = (mac(chance.randrange(6)) for _ in range(2))
                s.send(
                    chance.randrange(4), frame(to, sender, chance.randbytes(20)), now + chance.randrange(20)
                )
            out += s.advance(now + 20)
        return out

    assert len(play()) > 1000 and play() == play()


# ---- the side of a machine


def test_frames_are_brought_at_their_times_and_wait_for_room() -> None:
    ports = Ports(2)
    ports.room = lambda card: 1
    for at in (30, 10, 20):
        ports.bring(0, at, bytes([at]) * 14)
    ports.bring(1, 15, bytes(14))
    assert ports.due_ns(0) == 10 and not ports.poll(9)
    assert ports.poll(20)
    assert [(e.unit, e.data[0]) for e in ports.take(3)] == [(0, 10), (1, 0)]
    # Only in the next window: when else it is asked depends on the host.
    assert ports.blocked and not ports.poll(25) and ports.due_ns(25) == 30
    ports.open()
    assert ports.poll(25) and [e.data[0] for e in ports.take(4)] == [20]
    assert ports.counters()[0] == {"received": 2, "sent": 0, "dropped": 0, "lost": 0}


def test_nobody_listens_or_too_many_wait() -> None:
    ports = Ports(1)
    for _ in range(5000):
        ports.bring(0, 5, bytes(14))
    assert ports.counters()[0]["dropped"] == 904
    assert not ports.poll(5)
    assert ports.counters()[0]["dropped"] == 5000
    assert ports.due_ns(5) is None


def test_what_was_sent_is_fetched_once() -> None:
    ports = Ports(2)
    ports.send(1, bytes(14), 7)
    assert ports.fetch() == [(7, 1, bytes(14))] and ports.fetch() == []
    assert [c["sent"] for c in ports.counters()] == [0, 1] and ports.descriptors() == []
