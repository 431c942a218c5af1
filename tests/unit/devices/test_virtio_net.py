"""The virtio network card, as appendix C of the Virtio PCI Card Specification 0.9.5 has it."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable

import pytest
from device_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import INDIRECT, NEXT, WRITE, Driver

from tt.errors import BadInput
from tt.events import Kind
from tt.vmm.devices.virtio_net import VirtioNet
from tt.vmm.devices.virtio_pci import VirtioPci
from tt.vmm.messages import LONGEST_FRAME
from tt.vmm.router import Router
from tt.vmm.wiring import wire_ethernet

MAC = bytes.fromhex("525400740000")
F_MAC, F_MRG_RXBUF, F_STATUS = 1 << 5, 1 << 15, 1 << 16
ALL = F_MAC | F_MRG_RXBUF | F_STATUS
MEMORY = 1 << 18
both = pytest.mark.parametrize(("features", "header"), [(F_MAC | F_STATUS, 10), (ALL, 12)])


class Bench:
    """A card whose driver has accepted `features` and set both queues up."""

    def __init__(self, features: int = ALL) -> None:
        self.rig = Rig(MEMORY)
        self.router = Router(self.rig.door)
        self.port = wire_ethernet(
            self.router,
            self.rig.door,
            0,
            lambda frame: self.card.receive(frame),
            lambda up: self.card.link(up),
        )
        self.card = VirtioNet(self.port, MAC)
        self.device = VirtioPci("net0", self.rig.memory, self.rig.wire(), self.card)
        self.features = features
        self.start()

    def start(self) -> None:
        self.device.write(0x12, 1, 0)
        self.device.write(0x12, 1, 3)
        self.device.write(0x04, 4, self.features)
        memory = self.rig.memory
        self.rx = Driver(self.device, memory, pfn=1, heap=0x10000, queue=0, reset=False)
        self.tx = Driver(self.device, memory, pfn=4, heap=0x28000, queue=1, reset=False)

    @property
    def broken(self) -> bool:
        return bool(self.device.read(0x12, 1) & 0x40)

    @property
    def sent(self) -> list[bytes]:
        return [event.data for event in self.rig.events if event.kind is Kind.FRAME_OUT]

    def send(self, *pieces: bytes) -> None:
        self.tx.chain(list(pieces), [])
        self.tx.kick()

    def give(self, *sizes: int, head: int = 0) -> list[int]:
        """Offer a chain of receive buffers; return their addresses."""
        at = self.rx.chain([], list(sizes), head)
        self.rx.heap += sum(sizes)
        return at


def frame(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# ---- what the driver finds


def test_configuration() -> None:
    bench = Bench()
    device = bench.device
    assert device.read(0x00, 4) == ALL
    assert bytes(device.read(0x14 + i, 1) for i in range(6)) == MAC
    assert device.read(0x1A, 2) == 1, "VIRTIO_NET_S_LINK_UP"
    assert (bench.rx.num, bench.tx.num) == (256, 256)
    bench.card.link(False)
    assert device.read(0x1A, 2) == 0


# ---- sending


@both
@pytest.mark.parametrize("size", [14, 60, 1514, 65_549])
def test_what_is_sent_is_told(features: int, header: int, size: int) -> None:
    bench = Bench(features)
    whole = bytes(header) + frame(size)
    bench.send(whole[:header], whole[header:])
    assert bench.sent == [frame(size)] and bench.tx.finished() == [(0, 0)]
    bench.send(whole[:3], whole[3:header], whole[header : header + 9], whole[header + 9 :])
    assert bench.sent == [frame(size)] * 2
    assert bench.rig.levels() == [True] and bench.device.read(0x13, 1) == 1


@both
def test_what_is_no_frame_is_refused(features: int, header: int) -> None:
    """Too short, too long, or asking for offloads, which are not offered: taken, counted, not sent."""
    bench = Bench(features)
    none = [
        b"",
        bytes(1),
        bytes(header),
        bytes(header + 13),
        bytes(header) + bytes(LONGEST_FRAME + 1),
        bytes(70_000),
    ]
    checksum = b"\x01" + bytes(header - 1) + frame(60)
    segments = b"\x00\x01" + bytes(header - 2) + frame(60)
    for packet in (*none, checksum, segments):
        bench.send(packet)
        assert bench.tx.finished() == [(0, 0)] and not bench.broken
    assert bench.sent == []
    assert bench.card.counters == {"received": 0, "sent": 0, "dropped": 0, "refused": len(none) + 2}
    bench.send(b"\x02" + bytes(header - 1) + frame(60))  # "the checksum is good" asks for nothing
    assert bench.sent == [frame(60)]


def test_many_at_once_are_one_interrupt() -> None:
    bench = Bench()
    for number in range(100):
        bench.tx.chain([bytes(12) + frame(60, number)], [], number)
        bench.tx.heap += 72
    bench.tx.kick()
    assert bench.sent == [frame(60, number) for number in range(100)]
    assert bench.tx.finished() == [(number, 0) for number in range(100)]
    assert bench.rig.levels() == [True]


def test_nothing_is_sent_by_an_unplugged_cable() -> None:
    bench = Bench()
    bench.card.link(False)
    bench.send(bytes(12) + frame(60))
    assert bench.sent == [] and bench.tx.finished() == [(0, 0)] and bench.card.counters["sent"] == 0


# ---- receiving


@both
@pytest.mark.parametrize("size", [14, 1514, 65_549])
def test_a_frame_in_one_chain(features: int, header: int, size: int) -> None:
    bench = Bench(features)
    first, second, third = bench.give(header, 100, 70_000)
    bench.card.receive(frame(size))
    assert bench.rx.finished() == [(0, header + size)]
    count = b"\1\0" if header == 12 else b""
    assert bench.rig.memory.read(first, header) == bytes(10) + count
    stored = bench.rig.memory.read(second, 100) + bench.rig.memory.read(third, 70_000)
    assert stored[:size] == frame(size) and not any(stored[size:])
    assert bench.card.counters["received"] == 1 and bench.rig.levels() == [True]


def test_a_frame_over_several_chains() -> None:
    """VIRTIO_NET_F_MRG_RXBUF: the header says over how many, and each has its length."""
    bench = Bench()
    at = [bench.give(500, head=head)[0] for head in range(4)]
    bench.card.receive(frame(1400))
    assert bench.rx.finished() == [(0, 500), (1, 500), (2, 412)]
    memory = bench.rig.memory
    assert memory.read(at[0], 12) == bytes(10) + b"\3\0"
    pieces = memory.read(at[0] + 12, 488), memory.read(at[1], 500), memory.read(at[2], 412)
    assert b"".join(pieces) == frame(1400)
    assert bench.card.room == 1 and memory.read(at[3], 500) == bytes(500)
    assert bench.rig.levels() == [True], "one interrupt"
    bench.card.receive(frame(488, 2))
    assert bench.rx.finished() == [(3, 500)]


@both
def test_buffers_that_do_not_suffice_are_left_alone(features: int, header: int) -> None:
    bench = Bench(features)
    before = bytes(bench.rig.memory.ram)
    bench.card.receive(frame(60))  # no buffers at all
    assert bench.rig.memory.ram == before
    at = bench.give(header + 59)
    if header == 10:
        bench.give(1000, head=1)  # not mergeable: the next chain is another frame's
    before = bytes(bench.rig.memory.ram)
    state = bench.device.save()
    bench.card.receive(frame(60))
    assert bench.card.counters == {"received": 0, "sent": 0, "dropped": 2, "refused": 0}
    saved = bench.device.save()
    assert bench.rig.memory.ram == before and saved["queues"] == state["queues"]
    assert bench.rx.finished() == [] and bench.rig.levels() == []
    bench.card.receive(frame(59))
    assert bench.rx.finished() == [(0, header + 59)]
    assert bench.rig.memory.read(at[0] + header, 59) == frame(59)


@pytest.mark.parametrize("size", [0, 1, 13, LONGEST_FRAME + 1, 70_000])
def test_what_is_no_frame_is_dropped(size: int) -> None:
    bench = Bench()
    bench.give(80_000)
    bench.card.receive(bytes(size))
    assert bench.card.counters["dropped"] == 1 and bench.rx.finished() == [] and bench.card.room == 1


def test_a_first_chain_without_room_for_the_header_is_left_alone() -> None:
    bench = Bench()
    bench.give(11)
    bench.give(2000, head=1)
    bench.card.receive(frame(60))
    assert bench.card.counters["dropped"] == 1 and bench.rx.finished() == [] and not bench.broken


def test_kicks_of_the_receive_queue_do_nothing() -> None:
    bench = Bench()
    bench.give(2000)
    bench.rx.kick()
    assert bench.rx.finished() == [] and bench.rig.levels() == []


def test_a_driver_that_wants_no_interrupts() -> None:
    bench = Bench()
    bench.give(2000)
    bench.rig.memory.write(bench.rx.available, b"\1\0")
    bench.card.receive(frame(60))
    assert bench.rx.finished() == [(0, 72)] and bench.rig.levels() == []


# ---- the cable


def test_a_driver_that_knows_of_the_link_is_told() -> None:
    bench = Bench()
    bench.give(2000)
    bench.card.link(True)
    assert bench.rig.levels() == [], "it was up"
    bench.card.link(False)
    assert bench.rig.levels() == [True] and bench.device.read(0x13, 1) == 2, "configuration changed"
    bench.card.receive(frame(60))
    assert bench.card.room is None and bench.card.counters["dropped"] == 1 and bench.rx.finished() == []
    bench.card.link(True)
    assert bench.device.read(0x13, 1) == 2 and bench.card.room == 1
    bench.card.receive(frame(60))
    assert bench.rx.finished() == [(0, 72)]


def test_a_driver_that_does_not_is_not_told() -> None:
    bench = Bench(F_MAC)
    bench.card.link(False)
    assert bench.rig.levels() == [] and bench.device.read(0x1A, 2) == 0


# ---- state


def test_taken_down_in_mid_traffic() -> None:
    """A queue that the driver takes down, or a reset: what was offered is void, the counters stay."""
    take_down: list[Callable[[Bench], None]] = [
        lambda bench: (bench.device.write(0x0E, 2, 0), bench.device.write(0x08, 4, 0))[0],
        lambda bench: bench.device.write(0x12, 1, 0),
    ]
    for down in take_down:
        bench = Bench()
        bench.give(2000)
        bench.give(2000, head=1)
        bench.card.receive(frame(60))
        down(bench)
        before = bytes(bench.rig.memory.ram)
        bench.card.receive(frame(60))
        assert bench.card.room is None and bench.rig.memory.ram == before
        assert bench.card.counters == {"received": 1, "sent": 0, "dropped": 1, "refused": 0}
        bench.start()
        assert bench.card.room == 0
        bench.give(2000)
        bench.card.receive(frame(61))
        assert bench.rx.finished() == [(0, 73)]


def test_saved_and_restored_in_mid_traffic() -> None:
    bench = Bench()
    bench.give(500, 500)
    for head in range(2, 6):
        bench.give(500, head=head)
    bench.send(bytes(12) + frame(60))
    bench.card.receive(frame(700))
    bench.card.receive(bytes(3))
    bench.card.link(False)
    state = json.loads(json.dumps(bench.device.save()))
    other = Bench()
    other.rig.memory.ram[:] = bench.rig.memory.ram
    other.device.load(state)
    assert other.device.save() == state and other.card.counters == bench.card.counters
    assert other.card.room is None
    other.rig.edges.clear()
    marks = len(bench.rig.edges)
    for each in (bench, other):
        each.card.link(True)
        each.device.read(0x13, 1)
        assert each.card.room == 4
        each.card.receive(frame(1200, 9))
        each.device.write(0x10, 2, 1)
    assert other.rig.memory.ram == bench.rig.memory.ram
    assert other.device.save() == bench.device.save()
    assert other.rig.levels() == [level for _, _, level in bench.rig.edges[marks:]]


@pytest.mark.parametrize("field", [{"link": 5}, {"received": -1}, {"sent": "x"}, {"other": 1}])
def test_states_that_make_no_sense_are_refused(field: dict[str, object]) -> None:
    bench = Bench()
    state = bench.device.save()
    state["backend"] = {**state["backend"], **field}
    with pytest.raises(BadInput, match="ethernet0's card"):
        bench.device.load(state)


# ---- hostile drivers


def spoils() -> dict[str, Callable[[Driver], None]]:
    """Return what a driver can put into a ring that makes no sense."""

    def loop(driver: Driver) -> None:
        flags = WRITE if driver.queue == 0 else 0
        driver.descriptor(0, 0x10000, 16, NEXT | flags, 1)
        driver.descriptor(1, 0x10000, 16, NEXT | flags, 0)
        driver.offer(0)

    def outside(driver: Driver) -> None:
        driver.descriptor(0, MEMORY - 8, 4096, WRITE if driver.queue == 0 else 0)
        driver.offer(0)

    def far_outside(driver: Driver) -> None:
        driver.descriptor(0, (1 << 64) - 8, 16, WRITE if driver.queue == 0 else 0)
        driver.offer(0)

    def head_outside(driver: Driver) -> None:
        driver.offer(0xFFFF)

    def next_outside(driver: Driver) -> None:
        driver.descriptor(0, 0x10000, 16, NEXT | (WRITE if driver.queue == 0 else 0), 999)
        driver.offer(0)

    def indirect(driver: Driver) -> None:
        driver.descriptor(0, 0x10000, 16, INDIRECT)
        driver.offer(0)

    def readable_after_writable(driver: Driver) -> None:
        driver.descriptor(0, 0x10000, 100, NEXT | WRITE, 1)
        driver.descriptor(1, 0x10000, 100)
        driver.offer(0)

    def too_many(driver: Driver) -> None:
        driver.memory.write(driver.available + 2, struct.pack("<H", 300))

    cases = (
        loop, outside, far_outside, head_outside, next_outside, indirect, readable_after_writable, too_many,
    )  # fmt: skip
    return {case.__name__: case for case in cases}


@pytest.mark.parametrize("queue", ["rx", "tx"])
@pytest.mark.parametrize("spoil", spoils())
def test_a_broken_ring_stops_the_card_until_it_is_reset(queue: str, spoil: str) -> None:
    bench = Bench()
    spoils()[spoil](getattr(bench, queue))
    bench.tx.kick()
    bench.card.receive(frame(60))
    assert bench.broken and bench.sent == [] and bench.card.room in (0, None)
    before = bytes(bench.rig.memory.ram)
    bench.tx.kick()
    bench.card.receive(frame(60))
    bench.card.link(False)
    bench.card.link(True)
    assert bench.rig.memory.ram == before and bench.rig.levels() == []
    assert bench.card.counters["received"] == 0
    bench.start()
    bench.give(2000)
    bench.card.receive(frame(60))
    bench.send(bytes(12) + frame(61))
    assert not bench.broken and bench.rx.finished() == [(0, 72)] and bench.sent == [frame(61)]


def test_readable_buffers_in_the_receive_queue_have_no_room() -> None:
    bench = Bench(F_MAC)
    bench.rx.chain([bytes(2000)], [])
    bench.card.receive(frame(60))
    assert bench.card.counters["dropped"] == 1 and bench.rx.finished() == [] and not bench.broken


def test_many_chains_without_any_room_end() -> None:
    """Mergeable: 256 chains of which none can take a byte."""
    bench = Bench()
    bench.rx.chain([b"r"], [])
    for _ in range(255):
        bench.rx.offer(0)
    assert bench.card.room == 256
    bench.card.receive(frame(60))
    assert bench.card.counters["dropped"] == 1 and bench.card.room == 256 and not bench.broken


def test_writable_buffers_in_the_send_queue_are_no_frame() -> None:
    bench = Bench()
    bench.tx.chain([], [2000])
    bench.tx.kick()
    assert bench.card.counters["refused"] == 1 and bench.tx.finished() == [(0, 0)]
    bench.tx.chain([bytes(12) + frame(60)], [2000])
    bench.tx.kick()
    assert bench.sent == [frame(60)], "only what is readable"


def test_one_chain_offered_again_and_again() -> None:
    """The same buffers 256 times: each frame overwrites the one before, as a driver has asked for."""
    bench = Bench()
    bench.give(2000)
    for _ in range(255):
        bench.rx.offer(0)
    for number in range(300):
        bench.card.receive(frame(60, number))
    assert bench.card.counters["received"] == 256 and bench.card.counters["dropped"] == 44


@pytest.mark.parametrize("pfn", [0x3F, 0x40, 0xFFFFFFFF])
def test_queues_outside_memory(pfn: int) -> None:
    bench = Bench()
    for queue in (0, 1):
        bench.device.write(0x0E, 2, queue)
        bench.device.write(0x08, 4, pfn)
    assert bench.card.room == 0 and not bench.broken, "asking changes nothing"
    bench.card.receive(frame(60))
    bench.tx.kick()
    assert bench.broken and bench.rig.levels() == []


def test_asking_for_room_changes_nothing() -> None:
    """No replay asks for it."""
    for spoil in spoils().values():
        bench = Bench()
        spoil(bench.rx)
        state, before = bench.device.save(), bytes(bench.rig.memory.ram)
        for _ in range(3):
            assert bench.card.room in (0, 1)
        assert bench.device.save() == state and bench.rig.memory.ram == before and bench.rig.edges == []


@settings(max_examples=150, deadline=None)
@given(
    table=st.binary(min_size=128, max_size=128),
    index=st.integers(0, 300),
    heads=st.lists(st.integers(0, 8), max_size=8),
    sizes=st.lists(st.sampled_from([0, 13, 14, 60, 1514, LONGEST_FRAME, 70_000]), max_size=4),
    queue=st.sampled_from(["rx", "tx"]),
    tame=st.booleans(),
    features=st.sampled_from([F_MAC, ALL]),
)
def test_no_ring_harms_the_machine(
    table: bytes, index: int, heads: list[int], sizes: list[int], queue: str, tame: bool, features: int
) -> None:
    """Random descriptors and rings: the card may stop, nothing else may; saved, it can be restored."""
    bench = Bench(features)
    driver = getattr(bench, queue)
    if tame:  # mostly inside memory, so that more than the first descriptor is looked at
        words = list(struct.iter_unpack("<QIHH", table))
        table = b"".join(
            struct.pack("<QIHH", 0x10000 + addr % 0x8000, size % 3000, flags & 3, following % 9)
            for addr, size, flags, following in words
        )
    driver.memory.write(driver.table, table)
    driver.memory.write(driver.available + 2, struct.pack(f"<H{len(heads)}H", index, *heads))
    bench.tx.kick()
    for size in sizes:
        bench.card.receive(frame(size))
    bench.tx.kick()
    state = json.loads(json.dumps(bench.device.save()))
    other = Bench(features)
    other.device.load(state)
    assert other.device.save() == state
    bench.start()
    bench.give(2000)
    bench.card.receive(frame(60))
    assert not bench.broken and len(bench.rx.finished()) == 1
