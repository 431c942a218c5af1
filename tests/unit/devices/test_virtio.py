"""Transport, queues, disk and entropy, from the Virtio PCI Card Specification 0.9.5's point of view."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st
from virtio_driver import INDIRECT, NEXT, WRITE, Driver, RamDisk

from tt.errors import BadInput
from tt.events import Kind
from tt.vmm.devices.virtio_blk import VirtioBlk
from tt.vmm.devices.virtio_pci import Queue, VirtioPci
from tt.vmm.devices.virtio_rng import VirtioRng
from tt.vmm.devices.virtqueue import Chain
from tt.vmm.messages import DiskSize
from tt.vmm.router import Call, Router
from tt.vmm.wiring import wire_disk

SECTORS = 64
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8


class Bench:
    """A disk behind the transport, with a driver that has set it up."""

    def __init__(self, discard: bool = False) -> None:
        self.rig = Rig(1 << 18)
        self.disk = RamDisk(SECTORS)
        self.router = Router(self.rig.door)
        self.port = wire_disk(self.router, self.rig.door, self.disk, 0)
        self.device = VirtioPci(
            "blk", self.rig.memory, self.rig.wire(), VirtioBlk(self.port, "serial", discard)
        )
        self.driver = Driver(self.device, self.rig.memory)

    @property
    def broken(self) -> bool:
        return bool(self.device.read(0x12, 1) & 0x40)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def header(operation: int, lba: int = 0) -> bytes:
    return struct.pack("<IIQ", operation, 0, lba)


# The transport.


def test_header_registers(bench: Bench) -> None:
    """2.2.2: features, queue size, and the capacity at 0x14."""
    device = bench.device
    assert device.read(0x00, 4) == 1 << 9, "only VIRTIO_BLK_F_FLUSH"
    assert device.read(0x04, 4) == 1 << 9
    assert device.read(0x0C, 2) == 256
    assert device.read(0x14, 4) == SECTORS
    assert device.read(0x18, 4) == 0
    assert device.read(0x1C, 4) == 0, "past the configuration"
    assert device.read(0x0E, 4) == 0
    assert device.read(0x12, 1) == 7


def test_partial_and_wide_accesses(bench: Bench) -> None:
    """Parts of a register read as its bytes, several registers at once in a row; part writes do nothing."""
    device = bench.device
    assert [device.read(i, 1) for i in range(4)] == [0, 2, 0, 0]
    assert device.read(0x01, 2) == 2
    device.write(0x04, 1, 0)
    assert device.read(0x04, 4) == 1 << 9
    device.write(0x04, 4, 0xFFFFFFFF)
    assert device.read(0x04, 4) == 1 << 9, "what was not offered is not accepted"
    device.write(0x0C, 4, 5 << 16)
    assert device.read(0x0E, 2) == 5
    assert device.read(0x0C, 4) == 5 << 16
    assert device.read(0x3F, 4) == 0


def test_queue_that_is_not_there(bench: Bench) -> None:
    """2.3: a queue size of 0 says so."""
    device = bench.device
    device.write(0x0E, 2, 1)
    assert device.read(0x0C, 2) == 0
    assert device.read(0x08, 4) == 0
    device.write(0x08, 4, 77)
    device.write(0x10, 2, 1)
    device.write(0x0E, 2, 0)
    assert device.read(0x08, 4) == 1


def test_interrupt_status_clears_when_read(bench: Bench) -> None:
    """2.2.2.1: reading ISR clears it and takes the interrupt back."""
    bench.driver.request([header(FLUSH)], [1])
    assert bench.rig.levels() == [True]
    assert bench.device.read(0x13, 1) == 1
    assert bench.rig.levels() == [True, False]
    assert bench.device.read(0x13, 1) == 0


def test_interrupt_suppression(bench: Bench) -> None:
    """2.4.2: VRING_AVAIL_F_NO_INTERRUPT."""
    bench.rig.memory.write(bench.driver.available, b"\1\0")
    bench.driver.request([header(FLUSH)], [1])
    assert bench.rig.levels() == []


def test_one_interrupt_for_many_requests(bench: Bench) -> None:
    for head in (0, 4, 8):
        bench.driver.chain([header(FLUSH)], [1], head)
    bench.driver.kick()
    assert bench.driver.finished() == [(0, 1), (4, 1), (8, 1)]
    assert bench.rig.levels() == [True]
    bench.driver.kick()
    assert bench.driver.finished() == []


def test_reset(bench: Bench) -> None:
    """2.2.1: writing 0 to the status resets the device."""
    bench.driver.request([header(FLUSH)], [1])
    bench.device.write(0x12, 1, 0)
    assert bench.rig.levels() == [True, False]
    assert [bench.device.read(r, 4) for r in (4, 8)] == [0, 0]
    assert bench.device.read(0x12, 1) == 0
    bench.device.write(0x10, 2, 0)
    Driver(bench.device, bench.rig.memory).request([header(FLUSH)], [1])


def test_ring_indices_wrap(bench: Bench) -> None:
    """The ring's 16-bit indices run free; a million requests would do as well as these."""
    queue = bench.device._queues[0]
    queue.state.taken = queue.state.used = 0xFFFE
    bench.driver.added = bench.driver.seen = 0xFFFE
    bench.rig.memory.write(bench.driver.used + 2, b"\xfe\xff")
    for _ in range(4):
        assert bench.driver.request([header(FLUSH)], [1]) == (1, b"\0")
    assert queue.state.taken == 2


# Hostile rings.


def test_broken_rings_stop_the_device(bench: Bench) -> None:
    driver = bench.driver

    def too_many() -> None:
        driver.memory.write(driver.available + 2, struct.pack("<H", 257))

    def head_outside() -> None:
        driver.offer(256)

    def next_outside() -> None:
        driver.descriptor(0, 0x8000, 16, NEXT, 300)
        driver.offer(0)

    def loop() -> None:
        driver.descriptor(0, 0x8000, 16, NEXT, 1)
        driver.descriptor(1, 0x8000, 16, NEXT, 0)
        driver.offer(0)

    def indirect() -> None:
        driver.descriptor(0, 0x8000, 16, INDIRECT)
        driver.offer(0)

    def readable_after_writable() -> None:
        driver.descriptor(0, 0x8000, 16, WRITE | NEXT, 1)
        driver.descriptor(1, 0x8000, 16)
        driver.offer(0)

    def outside_memory() -> None:
        driver.descriptor(0, 1 << 40, 16)
        driver.offer(0)

    def over_the_end() -> None:
        driver.descriptor(0, (1 << 18) - 8, 16)
        driver.offer(0)

    def larger_than_memory() -> None:
        for index in range(8):
            driver.descriptor(index, 0, 1 << 17, NEXT if index < 7 else 0, index + 1)
        driver.offer(0)

    def no_header() -> None:
        driver.chain([b"short"], [1])

    def no_status() -> None:
        driver.chain([header(IN)], [])

    for spoil in (
        too_many,
        head_outside,
        next_outside,
        loop,
        indirect,
        readable_after_writable,
        outside_memory,
        over_the_end,
        larger_than_memory,
        no_header,
        no_status,
    ):
        driver.start()
        assert not bench.broken
        spoil()
        driver.kick()
        assert bench.broken, spoil.__name__
        driver.kick()
        assert driver.finished() == []
        bench.device.write(0x12, 1, 7)
        assert bench.broken, "only a reset helps"
    assert bench.disk.log == []


@pytest.mark.parametrize("pfn", [0x3F, 0x40, 0xFFFFFFFF])
def test_queue_outside_memory(bench: Bench, pfn: int) -> None:
    bench.device.write(0x08, 4, pfn)
    bench.driver.kick()
    if pfn == 0x3F:  # the descriptors are inside, nothing is available to them: the rings are outside
        assert bench.broken
    assert bench.rig.levels() == []


@given(st.binary(min_size=64, max_size=64), st.integers(0, 300), st.lists(st.integers(0, 65535), max_size=8))
def test_no_ring_harms_the_machine(table: bytes, idx: int, heads: list[int]) -> None:
    """Random descriptors and rings: the device may break, nothing else may."""
    bench = Bench()
    driver = bench.driver
    driver.memory.write(driver.table, table)
    driver.memory.write(driver.available + 2, struct.pack(f"<H{len(heads)}H", idx, *(h % 8 for h in heads)))
    driver.kick()
    driver.kick()
    bench.device.write(0x12, 1, 0)
    assert not bench.broken


# The disk.


def test_write_and_read(bench: Bench) -> None:
    """Appendix D: OUT and IN; the used length counts data and status."""
    data = bytes(range(256)) * 4
    assert bench.driver.request([header(OUT, 5), data], [1]) == (1, b"\0")
    assert bench.disk.log == [("write", 5, 2)]
    assert bench.driver.request([header(IN, 5)], [1024, 1]) == (1025, data + b"\0")


def test_any_cut_into_buffers(bench: Bench) -> None:
    """Nothing is assumed of how a request is cut."""
    data = bytes(range(256)) * 2
    cut = header(OUT, 3)
    written, status = bench.driver.request([cut[:7], cut[7:] + data[:100], data[100:]], [0, 1])
    assert (written, status) == (1, b"\0")
    written, answer = bench.driver.request([header(IN, 3)], [1, 200, 312])
    assert (written, answer) == (513, data + b"\0")


@pytest.mark.parametrize(
    ("operation", "lba", "data", "room"),
    [
        (IN, SECTORS, b"", 512),
        (IN, SECTORS - 1, b"", 1024),
        (IN, (1 << 64) - 1, b"", 512),
        (IN, 0, b"", 511),
        (OUT, SECTORS, bytes(512), 0),
        (OUT, 0, bytes(513), 0),
    ],
)
def test_io_errors(bench: Bench, operation: int, lba: int, data: bytes, room: int) -> None:
    """VIRTIO_BLK_S_IOERR past the end or for parts of sectors; nothing reaches the disk."""
    written, answer = bench.driver.request([header(operation, lba), data], [room, 1])
    assert (written, answer) == (1, bytes(room) + b"\1")
    assert bench.disk.log == []
    assert not bench.broken


def test_flush_and_identity(bench: Bench) -> None:
    assert bench.driver.request([header(FLUSH)], [1]) == (1, b"\0")
    assert bench.disk.log == [("flush", 0, 0)]
    assert bench.driver.request([header(GET_ID)], [20, 1]) == (21, b"serial".ljust(20, b"\0") + b"\0")


def test_unsupported(bench: Bench) -> None:
    """VIRTIO_BLK_S_UNSUPP for SCSI commands and the like."""
    assert bench.driver.request([header(2)], [1]) == (1, b"\2")


def test_empty_requests(bench: Bench) -> None:
    assert bench.driver.request([header(OUT, 1)], [1]) == (1, b"\0")
    assert bench.driver.request([header(IN, SECTORS)], [1]) == (1, b"\0")


# Entropy.


def entropy_bench(live: bytes) -> tuple[Rig, Driver]:
    rig = Rig(1 << 18)
    backend = VirtioRng(rig.door, lambda size: (live * size)[:size])
    device = VirtioPci("rng", rig.memory, rig.wire(), backend)
    return rig, Driver(device, rig.memory)


def test_entropy_comes_through_the_door() -> None:
    """Appendix B: buffers are filled; each answer is an event."""
    rig, driver = entropy_bench(b"xyz")
    assert driver.request([], [4, 3]) == (7, b"xyzxyzx")
    assert [(e.kind, e.data) for e in rig.events] == [(Kind.ENTROPY, b"xyzxyzx")]


def test_entropy_is_bounded() -> None:
    _, driver = entropy_bench(b"z")
    written, data = driver.request([], [10_000])
    assert (written, data.count(b"z")) == (4096, 4096)


@pytest.mark.parametrize("answer", [b"", b"ab", b"abcdefgh"])
def test_entropy_of_another_length(answer: bytes) -> None:
    """A damaged record may answer too little or too much: the guest's buffer is never overrun."""
    rig = Rig(1 << 18)
    device = VirtioPci("rng", rig.memory, rig.wire(), VirtioRng(rig.door, lambda size: answer))
    written, data = Driver(device, rig.memory).request([], [4])
    assert (written, data) == (min(4, len(answer)), answer[:4].ljust(4, b"\0"))


def test_entropy_request_without_room() -> None:
    rig, driver = entropy_bench(b"z")
    assert driver.request([b"what is this"], []) == (0, b"")
    assert rig.events == []


# State.


def test_restore_in_the_middle_of_a_conversation(bench: Bench) -> None:
    """Saved with an interrupt up and requests waiting, restored elsewhere, both go on alike."""
    bench.driver.request([header(OUT, 1), b"a" * 512], [1])
    bench.driver.chain([header(IN, 1)], [512, 1])
    other = Bench()
    other.rig.memory.ram[:] = bench.rig.memory.ram
    other.disk.data[:] = bench.disk.data
    other.device.load(bench.device.save())
    other.rig.edges.clear()
    for b in (bench, other):
        b.device.write(0x10, 2, 0)
        assert b.device.read(0x13, 1) == 1
    assert other.rig.levels() == [False]
    assert other.rig.memory.ram == bench.rig.memory.ram
    assert other.device.save() == bench.device.save()


def test_restore_of_another_device(bench: Bench) -> None:
    state = bench.device.save()
    state["queues"] = []
    with pytest.raises(BadInput, match="queues"):
        bench.device.load(state)


# Requests that are answered later.


def later(bench: Bench) -> list[Call]:
    """Put a parent before the disk that keeps each message; return them."""
    calls: list[Call] = []
    bench.router.interpose("disk0", calls.append)
    between(bench)
    return calls


def between(bench: Bench) -> None:
    """Do between two instructions what parents have put off, as the run loop does."""
    bench.rig.ns += 1
    list(bench.rig.door.take_inputs())


def test_a_request_that_is_answered_later() -> None:
    """In the used ring only then, with an interrupt then; another may be answered before it."""
    bench = Bench()
    calls = later(bench)
    into = bench.driver.chain([header(IN, 5)], [512, 1], 0)
    bench.driver.heap = 0x9000
    bench.driver.chain([header(OUT, 7), b"w" * 512], [1], 4)
    bench.driver.kick()
    assert bench.driver.finished() == [] and bench.rig.levels() == []
    calls[1].pass_on()
    between(bench)
    assert bench.driver.finished() == [(4, 1)] and bench.rig.levels() == [True]
    assert bench.disk.log == [("write", 7, 1)]
    bench.device.read(0x13, 1)
    calls[0].answer(b"i" * 512)
    between(bench)
    assert bench.driver.finished() == [(0, 513)]
    assert bench.rig.memory.read(into[0], 512) == b"i" * 512
    assert bench.rig.levels() == [True, False, True]


def test_saved_with_a_request_under_way() -> None:
    bench = Bench()
    calls = later(bench)
    bench.driver.chain([header(IN, 5)], [200, 313], 0)
    bench.driver.kick()
    state = json.loads(json.dumps([bench.device.save(), bench.router.save()]))
    other = Bench()
    other.device.load(state[0])
    other.router.load(state[1])
    other.rig.memory.ram[:] = bench.rig.memory.ram
    assert [other.device.save(), other.router.save()] == state
    calls[0].answer(b"i" * 512)
    between(bench)
    other.router.take(bench.rig.events[-1])
    assert other.rig.memory.ram == bench.rig.memory.ram
    assert other.device.save() == bench.device.save() and "backend" not in other.device.save()
    assert other.rig.levels() == [True]


def test_a_reset_forgets_what_is_under_way() -> None:
    bench = Bench()
    calls = later(bench)
    bench.driver.chain([header(IN, 5)], [512, 1], 0)
    bench.driver.kick()
    bench.driver.start()
    bench.driver.chain([header(IN, 6)], [512, 1], 0)
    bench.driver.kick()
    calls[0].answer(b"0" * 512)
    between(bench)
    assert bench.driver.finished() == []
    calls[1].answer(b"1" * 512)
    between(bench)
    assert bench.driver.finished() == [(0, 513)]


def test_the_same_chain_twice_makes_no_sense() -> None:
    bench = Bench()
    later(bench)
    bench.driver.chain([header(IN, 5)], [512, 1], 0)
    bench.driver.offer(0)
    bench.driver.kick()
    assert bench.broken


def test_a_failed_answer_is_an_io_error_and_a_capacity_can_be_another() -> None:
    bench = Bench()

    def odd(call: Call) -> None:
        if isinstance(call.message, DiskSize):
            call.answer((1 << 40).to_bytes(8, "little"))
        else:
            call.fail()

    bench.router.interpose("disk0", odd)
    between(bench)
    assert bench.driver.request([header(IN, 5)], [512, 1]) == (1, bytes(512) + b"\1")
    assert [bench.device.read(0x14, 4), bench.device.read(0x18, 4)] == [0, 1 << 8]


# A device with a receive queue: it holds buffers, and fills them when something comes.


class Receiver:
    """Queue 0 receives, queue 1 sends; each byte sent arrives 1,000 ns later in a buffer of its own."""

    device_type = 1
    pci_device = 0x1000
    features = 0
    queue_sizes: tuple[int, ...] = (8, 4)
    config = b""

    def __init__(self, rig: Rig) -> None:
        self.clock = rig.clock
        self.timer = rig.clock.timer("receiver", self.arrive)
        self.queues: list[Queue | None] = [None, None]
        self.buffers: list[Chain] = []
        self.coming = b""
        self.told: list[int] = []

    def activate(self, index: int, queue: Queue | None) -> None:
        self.queues[index] = queue
        if index == 0:
            self.buffers.clear()

    def notified(self, index: int) -> None:
        self.told.append(index)
        queue = self.queues[index]
        assert queue is not None
        while (chain := queue.take()) is not None:
            if index == 0:
                self.buffers.append(chain)
            else:
                self.coming += chain.read()
                queue.put(chain, 0)
                self.timer.arm(self.clock.now() + 1000)
        queue.tell()

    def arrive(self) -> None:
        queue = self.queues[0]
        while self.coming and self.buffers and queue is not None:
            chain = self.buffers.pop(0)
            chain.write(0, self.coming[:1])
            self.coming = self.coming[1:]
            queue.put(chain, 1)
        if queue is not None:
            queue.tell()

    def save(self) -> dict[str, Any]:
        held = [chain.save() for chain in self.buffers]
        return {"held": held, "coming": self.coming.hex()} if held or self.coming else {}

    def load(self, state: dict[str, Any]) -> None:
        queue = self.queues[0]
        self.coming = bytes.fromhex(state.get("coming", ""))
        self.buffers = [queue.held(saved, "net") for saved in state.get("held", []) if queue is not None]


class ReceiveBench:
    def __init__(self) -> None:
        self.rig = Rig(1 << 18)
        self.receiver = Receiver(self.rig)
        self.device = VirtioPci("net", self.rig.memory, self.rig.wire(), self.receiver)
        self.receive = Driver(self.device, self.rig.memory)
        self.send = Driver(self.device, self.rig.memory, pfn=8, heap=0x10000, queue=1, reset=False)


def test_a_receive_queue() -> None:
    """Buffers are held as long as nothing comes, and filled at any time; each queue is told by its number."""
    bench = ReceiveBench()
    buffers = [bench.receive.chain([], [4], head)[0] for head in (0, 1)]
    bench.receive.kick()
    assert bench.receive.finished() == [] and bench.rig.levels() == []
    bench.send.chain([b"abc"], [])
    bench.send.kick()
    assert bench.receiver.told == [0, 1]
    assert bench.send.finished() == [(0, 0)] and bench.receive.finished() == []
    bench.device.read(0x13, 1)
    bench.rig.run(1000)
    assert bench.receive.finished() == [(0, 1), (1, 1)]
    assert bench.rig.memory.read(buffers[1], 1) == b"b"
    assert bench.rig.levels() == [True, False, True]
    bench.receive.chain([], [4], 2)
    bench.receive.kick()
    assert bench.receive.finished() == [], "only when it looks again"
    bench.receiver.arrive()
    assert bench.receive.finished() == [(2, 1)]


def test_a_receive_queue_in_a_saved_state() -> None:
    bench, other = ReceiveBench(), ReceiveBench()
    bench.receive.chain([], [4], 0)
    bench.receive.kick()
    bench.send.chain([b"x"], [])
    bench.send.kick()
    state = json.loads(json.dumps([bench.device.save(), bench.rig.clock.save()]))
    other.device.load(state[0])
    other.rig.clock.load(state[1])
    other.rig.memory.ram[:] = bench.rig.memory.ram
    for one in (bench, other):
        one.rig.run(1000)
    assert other.rig.memory.ram == bench.rig.memory.ram
    assert other.device.save() == bench.device.save()
    other.device.write(0x12, 1, 0)
    assert other.receiver.queues == [None, None] and other.receiver.buffers == []


def test_filling_a_buffer_of_a_broken_ring() -> None:
    """Found at any time, not only while the driver notifies: the device stops, nothing raises."""
    bench = ReceiveBench()
    bench.receive.chain([], [4], 0)
    bench.receive.kick()
    bench.send.chain([b"x"], [])
    bench.send.kick()
    bench.device._queues[0].state.pfn = 0x3FF  # as a guest's own ring can be, but for the check on taking
    bench.rig.run(1000)
    assert bench.device.read(0x12, 1) & 0x40


# Discards (virtio 1.1, 5.2).

DISCARD, WRITE_ZEROES = 11, 13


@pytest.mark.parametrize("operation", [DISCARD, WRITE_ZEROES])
def test_discarded_sectors_read_as_zeros(operation: int) -> None:
    bench = Bench(discard=True)
    assert bench.device.read(0x00, 4) == 1 << 9 | 1 << 13 | 1 << 14
    assert bench.device.read(0x14 + 36, 4) == 8192, "max_discard_sectors"
    assert bench.device.read(0x14 + 40, 4) == 1, "max_discard_seg"
    bench.disk.write(0, b"x" * 512 * 8)
    bench.driver.request([header(operation) + struct.pack("<QII", 2, 3, 0)], [1])
    assert bench.disk.read(0, 8) == b"x" * 1024 + bytes(1536) + b"x" * 1536


def test_discards_that_make_no_sense_are_refused() -> None:
    bench = Bench(discard=True)
    bench.disk.write(0, b"x" * 512 * 8)
    for ranges in (
        struct.pack("<QII", SECTORS, 1, 0),
        struct.pack("<QII", 0, 8193, 0),
        struct.pack("<QII", 1 << 63, 8, 0),
        struct.pack("<QIIQII", 0, 1, 0, 4, 1, 0),
        b"",
    ):
        bench.driver.request([header(DISCARD) + ranges], [1])
        assert not bench.broken
    assert bench.disk.read(0, 8) == b"x" * 512 * 8


def test_discards_are_not_taken_where_they_were_not_offered(bench: Bench) -> None:
    bench.disk.write(0, b"x" * 512)
    bench.driver.request([header(DISCARD) + struct.pack("<QII", 0, 1, 0)], [1])
    assert bench.disk.read(0, 1) == b"x" * 512
