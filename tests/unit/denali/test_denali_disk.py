"""The asynchronous disks: order, latency, limits, failures."""

from __future__ import annotations

import json

import pytest
from denali_rig import RAM, RamDisk, Rig
from hypothesis import given
from hypothesis import strategies as st

from tt.events import Kind
from tt.vmm.denali.disk import FAILED, LATENCY_NS, OUTSTANDING_LIMIT, QUEUED_NS, READ_ONLY, Drive
from tt.vmm.denali.registers import REFUSED, Call, EventBit
from tt.vmm.messages import DiskRead, DiskSize
from tt.vmm.router import Call as ParentCall

PAGE = 0x4000


def fill(rig: Rig, byte: int, addr: int = PAGE) -> bytes:
    data = bytes([byte]) * 4096
    rig.memory.write(addr, data)
    return data


def test_info() -> None:
    rig = Rig(Drive(RamDisk(5)), Drive(RamDisk(5, odd_sectors=7), read_only=True), Drive(RamDisk(0, 3)))
    assert rig.call(Call.DISK_INFO, 0) == 5
    assert rig.call(Call.DISK_INFO, 1) == 5 | READ_ONLY
    assert rig.call(Call.DISK_INFO, 2) == 0
    assert rig.call(Call.DISK_INFO, 3) == REFUSED
    assert rig.call(Call.DISK_INFO, REFUSED) == REFUSED


def test_write_then_read_back() -> None:
    disk = RamDisk(4)
    rig = Rig(Drive(disk))
    old = fill(rig, 0xAA)
    assert rig.call(Call.DISK_WRITE, 0, 3, PAGE) == 1
    fill(rig, 0xBB)  # the page may be reused at once
    assert rig.call(Call.DISK_DONE) == 0
    assert disk.writes == []
    assert rig.idle(REFUSED) == (EventBit.DISK, 0)
    assert rig.now_ns == LATENCY_NS
    assert disk.writes == [24]
    assert disk.read(24, 8) == old
    assert (Kind.DISK_WRITE, 0, 24, old) in [(e.kind, e.unit, e.value, e.data) for e in rig.events]
    assert rig.call(Call.DISK_DONE) == 1
    assert rig.call(Call.DISK_DONE) == 0
    assert rig.call(Call.DISK_READ, 0, 3, PAGE) == 2
    rig.tick += 1
    assert rig.memory.read(PAGE, 1) == b"\xbb"
    rig.idle(REFUSED)
    assert rig.memory.read(PAGE, 4096) == old
    assert rig.call(Call.DISK_DONE) == 2


def test_a_computing_guest_sees_completions_at_quantum_ends_only() -> None:
    disk = RamDisk(4)
    rig = Rig(Drive(disk))
    rig.take_events()
    rig.call(Call.DISK_WRITE, 0, 0, PAGE)
    rig.tick = LATENCY_NS // 4 - 1  # one tick before the completion
    assert rig.compute() == EventBit.DISK
    assert rig.tick == LATENCY_NS // 4
    rig.call(Call.DISK_WRITE, 0, 0, PAGE)
    rig.tick += LATENCY_NS // 4 + 1
    assert rig.call(Call.DISK_DONE) == 1
    assert rig.call(Call.DISK_DONE) == 0
    rig.compute()
    assert rig.call(Call.DISK_DONE) == 2


def test_each_request_in_flight_costs_more_and_none_overtakes() -> None:
    rig = Rig(Drive(RamDisk(4)), Drive(RamDisk(4)))
    for number in (1, 2, 3):
        assert rig.call(Call.DISK_WRITE, 0, 0, PAGE) == number
    assert rig.call(Call.DISK_WRITE, 1, 0, PAGE) == 4  # the other disk has nothing to do
    times = []
    done: list[int] = []
    while len(done) < 4:
        rig.idle(REFUSED)
        while number := rig.call(Call.DISK_DONE) or 0:
            done.append(number)
            times.append(rig.now_ns)
    assert done == [1, 4, 2, 3]
    assert times == [LATENCY_NS, LATENCY_NS, LATENCY_NS + QUEUED_NS, LATENCY_NS + 2 * QUEUED_NS]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0, 5, 100, 5_000, 50_000])), max_size=60))
def test_requests_to_one_disk_never_overtake_each_other(starts: list[tuple[int, int]]) -> None:
    rig = Rig(Drive(RamDisk(4)), Drive(RamDisk(4)))
    done: list[int] = []
    for unit, gap_ticks in starts:
        rig.call(Call.DISK_READ, unit, 0, PAGE)
        rig.tick += gap_ticks
        rig.idle(0)
        while number := rig.call(Call.DISK_DONE):
            done.append(number)
    rig.clock.idle_ns = 10**9
    rig.idle(0)
    while number := rig.call(Call.DISK_DONE):
        done.append(number)
    assert sorted(done) == list(range(1, len(starts) + 1))
    for disk in (0, 1):
        numbers = [n for n in done if starts[n - 1][0] == disk]
        assert numbers == sorted(numbers)


def test_a_read_sees_the_writes_started_before_it() -> None:
    rig = Rig(Drive(RamDisk(4)))
    data = fill(rig, 0x11)
    rig.call(Call.DISK_WRITE, 0, 2, PAGE)
    rig.call(Call.DISK_READ, 0, 2, PAGE + 4096)
    data2 = fill(rig, 0x22)
    rig.call(Call.DISK_WRITE, 0, 2, PAGE)
    rig.clock.idle_ns = 10**9
    rig.compute()
    assert rig.memory.read(PAGE + 4096, 4096) == data != data2
    assert [rig.call(Call.DISK_DONE) for _ in range(4)] == [1, 2, 3, 0]


def test_writes_to_a_read_only_disk_fail_late() -> None:
    disk = RamDisk(4)
    rig, other = Rig(Drive(disk, read_only=True)), Rig(Drive(disk, read_only=True))
    disk.data[:4096] = b"s" * 4096
    assert rig.call(Call.DISK_WRITE, 0, 0, PAGE) == 1
    assert rig.call(Call.DISK_READ, 0, 0, PAGE) == 2
    other.call(Call.DISK_READ, 0, 0, PAGE)
    rig.clock.idle_ns = other.clock.idle_ns = 10**9
    rig.compute()
    other.compute()
    assert rig.call(Call.DISK_DONE) == 1 | FAILED
    assert rig.call(Call.DISK_DONE) == 2
    assert disk.writes == []
    assert rig.memory.read(PAGE, 4096) == other.memory.read(PAGE, 4096) == b"s" * 4096


@pytest.mark.parametrize("call", [Call.DISK_READ, Call.DISK_WRITE])
@pytest.mark.parametrize(
    ("unit", "block", "addr"),
    [
        (2, 0, PAGE),
        (REFUSED, 0, PAGE),
        (0, 4, PAGE),
        (0, REFUSED, PAGE),
        (0, 0, PAGE + 1),
        (0, 0, RAM),
        (0, 0, RAM - 2048),
        (0, 0, 0x1000),
        (0, 0, REFUSED - 4095),
        (1, 0, PAGE),
    ],
)
def test_refused(call: Call, unit: int, block: int, addr: int) -> None:
    rig = Rig(Drive(RamDisk(4)), Drive(RamDisk(0, 7)))
    assert rig.call(call, unit, block, addr) == REFUSED
    assert rig.board.disks.next_deadline_ns() is None
    assert rig.call(Call.DISK_READ, 0, 3, PAGE) == 1  # refused requests have no number


def test_outstanding_requests_have_a_limit() -> None:
    rig = Rig(Drive(RamDisk(4)))
    for number in range(1, OUTSTANDING_LIMIT + 1):
        assert rig.call(Call.DISK_READ, 0, 0, PAGE) == number
    assert rig.call(Call.DISK_READ, 0, 0, PAGE) == REFUSED
    rig.clock.idle_ns = 10**9
    rig.compute()
    assert rig.call(Call.DISK_READ, 0, 0, PAGE) == REFUSED  # done, but not yet taken
    assert rig.call(Call.DISK_DONE) == 1
    assert rig.call(Call.DISK_READ, 0, 0, PAGE) == OUTSTANDING_LIMIT + 1


def test_requests_in_flight_at_the_end_never_happened() -> None:
    disk = RamDisk(4)
    rig = Rig(Drive(disk))
    rig.call(Call.DISK_WRITE, 0, 0, PAGE)
    rig.call(Call.TERMINATE, 0)
    assert disk.writes == []


# ---- parents (tt.vmm.router)


def take_later(rig: Rig, device: str = "disk0") -> list[ParentCall]:
    """Put a parent before a disk that keeps each message, and return the list of them."""
    calls: list[ParentCall] = []

    def keep(call: ParentCall) -> None:
        if isinstance(call.message, DiskSize):
            call.pass_on()
        else:
            calls.append(call)

    rig.board.router.interpose(device, keep)
    take_inputs(rig)
    return calls


def take_inputs(rig: Rig) -> None:
    """Do between two instructions what parents have put off, as the run loop does."""
    rig.tick += 1
    list(rig.door.take_inputs())


def test_an_answer_that_comes_later() -> None:
    """The request completes at the first hand-over after the answer, and the guest is told."""
    rig = Rig(Drive(RamDisk(4)))
    calls = take_later(rig)
    rig.call(Call.DISK_READ, 0, 1, PAGE)
    rig.clock.idle_ns = 10**6
    assert rig.compute() == 0
    assert [call.message for call in calls] == [DiskRead(8, 8)]
    assert rig.call(Call.DISK_DONE) == 0
    assert rig.board.next_wake_ns() is None
    calls[0].answer(b"%" * 4096)
    take_inputs(rig)
    assert rig.memory.read(PAGE, 4096) == bytes(4096), "nothing between hand-overs"
    assert rig.board.next_wake_ns() == rig.now_ns
    rig.take_events()
    assert rig.compute() == EventBit.DISK
    assert rig.memory.read(PAGE, 4096) == b"%" * 4096
    assert rig.call(Call.DISK_DONE) == 1


def test_requests_do_not_overtake_one_at_a_parent() -> None:
    """One disk works in order; another goes on meanwhile."""
    rig = Rig(Drive(RamDisk(4)), Drive(RamDisk(4)))
    calls = take_later(rig)
    rig.memory.write(PAGE, b"w" * 4096)
    rig.call(Call.DISK_WRITE, 0, 1, PAGE)
    rig.call(Call.DISK_READ, 0, 1, PAGE + 4096)
    rig.call(Call.DISK_READ, 1, 1, PAGE + 8192)
    rig.clock.idle_ns = 10**6
    rig.compute()
    assert [rig.call(Call.DISK_DONE), rig.call(Call.DISK_DONE)] == [3, 0]
    assert len(calls) == 1
    calls[0].pass_on()
    take_inputs(rig)
    rig.compute()
    calls[1].pass_on()
    take_inputs(rig)
    rig.compute()
    assert [rig.call(Call.DISK_DONE) for _ in range(3)] == [1, 2, 0]
    assert rig.memory.read(PAGE + 4096, 4096) == b"w" * 4096


@pytest.mark.parametrize("answered", [False, True])
def test_saved_with_a_request_at_a_parent(answered: bool) -> None:
    rig = Rig(Drive(RamDisk(4)))
    calls = take_later(rig)
    rig.call(Call.DISK_READ, 0, 1, PAGE)
    rig.call(Call.DISK_READ, 0, 2, PAGE + 4096)
    rig.clock.idle_ns = 10**6
    rig.compute()
    if answered:
        calls[0].answer(b"%" * 4096)
        take_inputs(rig)
    state = json.loads(json.dumps(rig.board.save()))
    other = Rig(Drive(RamDisk(4)))
    other.board.load(state)
    assert other.board.save() == state
    if not answered:
        calls[0].answer(b"%" * 4096)
        take_inputs(rig)
        other.board.router.take(rig.events[-1])
    other.tick, other.clock.idle_ns = rig.tick, rig.clock.idle_ns
    assert other.board.save() == rig.board.save()
    for one in (rig, other):
        one.compute()
    assert other.memory.read(PAGE, 4096) == rig.memory.read(PAGE, 4096) == b"%" * 4096
    # The second one is at the parent of one machine, and the default handler has answered the other's.
    assert rig.board.save()["disks"]["done"] == [1]
    assert other.board.save()["disks"]["done"] == [1, 2]


def test_a_parent_that_fails_a_write() -> None:
    rig = Rig(Drive(RamDisk(4)))
    calls = take_later(rig)
    assert rig.call(Call.DISK_INFO, 0) == 4
    rig.call(Call.DISK_WRITE, 0, 1, PAGE)
    rig.clock.idle_ns = 10**6
    rig.compute()
    calls[0].fail()
    take_inputs(rig)
    rig.compute()
    assert rig.call(Call.DISK_DONE) == 1 | FAILED


def test_a_parent_makes_a_disk_larger() -> None:
    rig = Rig(Drive(RamDisk(4)))

    def grow(call: ParentCall) -> None:
        if isinstance(call.message, DiskSize):
            call.answer((100 * 8).to_bytes(8, "little"))
        elif isinstance(call.message, DiskRead):
            call.answer(bytes([call.message.lba & 255]) * 4096)

    rig.board.router.interpose("disk0", grow)
    take_inputs(rig)
    assert rig.call(Call.DISK_INFO, 0) == 100
    assert rig.call(Call.DISK_READ, 0, 20, PAGE) == 1
    assert rig.call(Call.DISK_READ, 0, 100, PAGE) == REFUSED
    rig.clock.idle_ns = 10**6
    rig.compute()
    assert rig.memory.read(PAGE, 4096) == bytes([160]) * 4096
