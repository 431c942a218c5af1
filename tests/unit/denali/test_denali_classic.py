"""The network card as of old, on a board without a CPU: its registers and its rings."""

from __future__ import annotations

import struct

import pytest
from denali_rig import RAM, Rig
from test_denali_network import NETWORK, arrive, frame, info, rig_with, sent

from tt.vmm.denali.classic import RAP, RDP, RESET, Csr0
from tt.vmm.denali.registers import REFUSED, Call, CardItem
from tt.vmm.messages import EthernetLink

BLOCK, IN, OUT, BUFFERS = 0x8000, 0x8100, 0x8200, 0xA000
OWN, ERR, BUFF, WHOLE = 0x8000, 0x4000, 0x0400, 0x0300


def port(rig: Rig, number: int) -> int:
    got = rig.call(Call.NET_PORT_READ, 0, number)
    assert got is not None
    return got


def csr(rig: Rig, number: int) -> int:
    assert rig.call(Call.NET_PORT_WRITE, 0, RAP, number) == 0
    return port(rig, RDP)


def set_csr(rig: Rig, number: int, value: int) -> None:
    assert rig.call(Call.NET_PORT_WRITE, 0, RAP, number) == 0
    assert rig.call(Call.NET_PORT_WRITE, 0, RDP, value) == 0


def descriptor(rig: Rig, ring: int, at: int, addr: int, size: int, status: int = OWN) -> None:
    rig.memory.write(ring + 16 * at, struct.pack("<IHHII", addr, -size & 0xFFFF, status, 0, 0xABCD))


def entry(rig: Rig, ring: int, at: int) -> tuple[int, int]:
    """Return the status and the message of a ring's entry."""
    status, message, ours = struct.unpack("<6xHII", rig.memory.read(ring + 16 * at, 16))
    assert ours == 0xABCD
    return status, message


def started(entries: int = 4, in_ring: int = IN, out_ring: int = OUT) -> Rig:
    """Return a machine whose card runs, all receive buffers given."""
    rig = rig_with("classic")
    log = entries.bit_length() - 1
    block = struct.pack("<HH6s2x8sII", 0, log << 4 | log << 12, bytes(6), bytes(8), in_ring, out_ring)
    rig.memory.write(BLOCK, block)
    for at in range(entries):
        if in_ring == IN:
            descriptor(rig, IN, at, BUFFERS + 0x800 * at, 1600)
        if out_ring == OUT:
            descriptor(rig, OUT, at, 0, 0, 0)
    set_csr(rig, 1, BLOCK & 0xFFFF)
    set_csr(rig, 2, BLOCK >> 16)
    set_csr(rig, 0, Csr0.INIT)
    assert csr(rig, 0) == Csr0.INIT | Csr0.IDON | Csr0.INTR
    set_csr(rig, 0, Csr0.IDON | Csr0.STRT | Csr0.IENA)
    assert csr(rig, 0) == Csr0.INIT | Csr0.STRT | Csr0.TXON | Csr0.RXON | Csr0.IENA
    assert rig.compute() == 0
    return rig


def interrupt(rig: Rig) -> list[int]:
    """Do what Linux's interrupt handler does; return what each look at the register 0 said happened."""
    causes = []
    before = port(rig, RAP)
    while (status := csr(rig, 0)) & 0x8600:
        causes.append(status & 0x7F00)
        set_csr(rig, 0, status & ~0x4F)
    set_csr(rig, 0, 0x7940)
    rig.call(Call.NET_PORT_WRITE, 0, RAP, before)
    rig.take_events()
    return causes


# ---- registers


def test_ports_and_registers() -> None:
    rig = rig_with("classic")
    assert [port(rig, number) for number in (RAP, RDP, 0, 4, 0x1C, 0x20, REFUSED)] == [0, 4] + [REFUSED] * 5
    assert rig.call(Call.NET_PORT_WRITE, 0, RAP, 0x12345) == 0
    assert port(rig, RAP) == 0x2345
    assert [rig.call(Call.NET_PORT_WRITE, 0, number, 1) for number in (RESET, 0, 0x1C)] == [REFUSED] * 3
    for number in (1, 2, 3):
        set_csr(rig, number, 0xF0F0 + number)
    assert [csr(rig, number) for number in (1, 2, 3, 4, 80, 112)] == [0xF0F1, 0xF0F2, 0xF0F3, 0, 0, 0]
    assert port(rig, RESET) == 0
    assert [port(rig, RAP), csr(rig, 0), csr(rig, 1)] == [0, Csr0.STOP, 0xF0F1]


def test_a_card_that_was_not_initialized_does_nothing() -> None:
    rig = rig_with("classic")
    set_csr(rig, 0, Csr0.STRT | Csr0.TDMD | Csr0.IENA)
    assert csr(rig, 0) == Csr0.STOP | Csr0.IENA
    arrive(rig, frame(1))
    assert rig.board.cards.room(0) is None
    assert rig.compute() == 0
    assert info(rig, CardItem.DROPPED) == 1


@pytest.mark.parametrize("block", [BLOCK + 2, RAM - 24, RAM, 0xFFFFFFFC])
def test_an_initialization_block_that_cannot_be(block: int) -> None:
    rig = rig_with("classic")
    set_csr(rig, 1, block & 0xFFFF)
    set_csr(rig, 2, block >> 16)
    set_csr(rig, 0, Csr0.INIT | Csr0.STRT)
    assert csr(rig, 0) == Csr0.STOP | Csr0.MERR | Csr0.ERR | Csr0.INTR


def test_stop_lets_everything_go() -> None:
    rig = started()
    arrive(rig, frame(1))
    set_csr(rig, 0, Csr0.STOP | Csr0.INIT | Csr0.STRT)
    assert csr(rig, 0) == Csr0.STOP
    assert rig.compute() == 0
    assert info(rig, CardItem.DROPPED) == 1


# ---- frames


def test_a_frame_that_comes_costs_ten_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = started()
    arrive(rig, frame(1, 100))
    assert rig.compute() == NETWORK
    calls = []
    whole = rig.call
    monkeypatch.setattr(rig, "call", lambda *args: (calls.append(args), whole(*args))[1])
    assert interrupt(rig) == [Csr0.RINT]
    assert len(calls) == 10
    assert entry(rig, IN, 0) == (WHOLE, 104)
    assert rig.memory.read(BUFFERS, 100) == frame(1, 100)
    assert entry(rig, IN, 1) == (OWN, 0)
    assert rig.compute() == 0


def test_a_frame_that_goes_out_costs_twelve_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = started()
    rig.memory.write(BUFFERS, frame(7, 200))
    descriptor(rig, OUT, 0, BUFFERS, 200, OWN | WHOLE)
    calls = []
    whole = rig.call
    monkeypatch.setattr(rig, "call", lambda *args: (calls.append(args), whole(*args))[1])
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert sent(rig) == [(0, frame(7, 200))]
    assert rig.compute() == NETWORK
    assert interrupt(rig) == [Csr0.TINT]
    assert len(calls) == 12
    assert entry(rig, OUT, 0) == (WHOLE, 0)


def test_rings_go_round() -> None:
    rig = started(2)
    for number in range(5):
        at = number % 2
        arrive(rig, frame(number))
        rig.memory.write(BUFFERS + 0x3000, frame(100 + number))
        descriptor(rig, OUT, at, BUFFERS + 0x3000, 60, OWN | WHOLE)
        set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
        assert rig.compute() == NETWORK
        assert interrupt(rig) == [Csr0.RINT | Csr0.TINT]
        assert rig.memory.read(BUFFERS + 0x800 * at, 60) == frame(number)
        descriptor(rig, IN, at, BUFFERS + 0x800 * at, 1600)
    assert [data for _, data in sent(rig)] == [frame(100 + number) for number in range(5)]
    assert [info(rig, item) for item in (CardItem.RECEIVED, CardItem.SENT, CardItem.DROPPED)] == [5, 5, 0]


def test_one_demand_sends_all_that_is_ready() -> None:
    rig = started()
    for at in range(3):
        rig.memory.write(BUFFERS + 0x100 * at, frame(at))
        descriptor(rig, OUT, at, BUFFERS + 0x100 * at, 60, OWN | WHOLE)
    set_csr(rig, 0, Csr0.TDMD)
    assert [data for _, data in sent(rig)] == [frame(at) for at in range(3)]


def test_frames_that_find_no_buffer() -> None:
    rig = started(2)
    descriptor(rig, IN, 1, BUFFERS, 50)
    assert rig.board.cards.room(0) == 2
    arrive(rig, frame(0), frame(1), frame(2), frame(3))
    assert rig.board.cards.room(0) == 0
    assert rig.compute() == NETWORK
    assert interrupt(rig) == [Csr0.RINT | Csr0.MISS]
    assert entry(rig, IN, 0) == (WHOLE, 64)
    assert entry(rig, IN, 1) == (WHOLE | ERR | BUFF, 0)  # it has room for 50 bytes
    assert csr(rig, 112) == 2
    assert info(rig, CardItem.DROPPED) == 3


@pytest.mark.parametrize(
    ("addr", "size", "status"),
    [
        (BUFFERS, 13, WHOLE),
        (BUFFERS, 0, WHOLE),
        (BUFFERS, 1519, WHOLE),
        (BUFFERS, 60, 0x200),
        (BUFFERS, 60, 0),
    ],
)
def test_what_is_no_frame_is_not_sent(addr: int, size: int, status: int) -> None:
    rig = started()
    descriptor(rig, OUT, 0, addr, size, OWN | status)
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert entry(rig, OUT, 0) == (ERR | status, 1 << 31)
    assert not sent(rig)
    assert interrupt(rig) == [Csr0.TINT]


def test_no_link_no_carrier() -> None:
    rig = started()
    rig.board.router.deliver("ethernet0", EthernetLink(False))
    arrive(rig, frame(1))
    descriptor(rig, OUT, 0, BUFFERS, 60, OWN | WHOLE)
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert entry(rig, OUT, 0) == (ERR | WHOLE, 1 << 27)
    assert rig.board.cards.room(0) is None
    assert info(rig, CardItem.DROPPED) == 2
    assert not sent(rig)


def test_frames_that_no_card_takes() -> None:
    rig = started()
    arrive(rig, b"", frame(1, 13), frame(2, 1519), frame(3, 70_000))
    assert rig.compute() == 0
    assert info(rig, CardItem.DROPPED) == 4


# ---- memory that is not there


@pytest.mark.parametrize("addr", [RAM - 30, RAM, 0xFFFFFFF0, 0x1000, 0xFF0])
def test_buffers_that_cannot_be(addr: int) -> None:
    rig = started()
    descriptor(rig, OUT, 0, addr, 60, OWN | WHOLE)
    descriptor(rig, IN, 0, addr, 60)
    arrive(rig, frame(1))
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert rig.compute() == NETWORK
    assert interrupt(rig) == [Csr0.MERR]
    assert [entry(rig, OUT, 0)[0], entry(rig, IN, 0)[0]] == [OWN | WHOLE, OWN]
    assert not sent(rig)


@pytest.mark.parametrize("ring", [RAM - 8, RAM, 0xFFFFFFF8, 0x1000])
def test_rings_that_cannot_be(ring: int) -> None:
    rig = started(in_ring=ring, out_ring=ring)
    assert rig.board.cards.room(0) is None
    arrive(rig, frame(1))
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert rig.compute() == NETWORK
    assert interrupt(rig) == [Csr0.MERR]
    assert info(rig, CardItem.DROPPED) == 1


def test_a_ring_over_itself_ends() -> None:
    """Both rings are one, and its entries are their own buffers."""
    rig = started(512, in_ring=IN, out_ring=IN)
    for at in range(512):
        descriptor(rig, IN, at, IN + 16 * at, 60, OWN | WHOLE)
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert len(sent(rig)) == 512
    arrive(rig, *(frame(i) for i in range(600)))
    assert rig.compute() == NETWORK


# ---- interrupts


def test_masked_and_disabled_interrupts_come_when_they_may() -> None:
    rig = started()
    set_csr(rig, 3, Csr0.RINT)
    arrive(rig, frame(1))
    assert rig.compute() == 0
    assert csr(rig, 0) & (Csr0.RINT | Csr0.INTR) == Csr0.RINT
    set_csr(rig, 3, 0)
    assert rig.compute() == NETWORK
    rig.take_events()
    assert rig.compute() == 0  # told once
    set_csr(rig, 0, 0)
    arrive(rig, frame(2))
    assert rig.compute() == 0
    set_csr(rig, 0, Csr0.IENA)
    assert rig.compute() == NETWORK


def test_an_idling_guest_wakes_for_an_interrupt() -> None:
    rig = started()
    rig.take_events(on=False)
    descriptor(rig, OUT, 0, BUFFERS, 60, OWN | WHOLE)
    set_csr(rig, 0, Csr0.IENA | Csr0.TDMD)
    assert rig.idle(REFUSED) == (NETWORK, 0)
    interrupt(rig)
    rig.take_events(on=False)
    assert rig.call(Call.IDLE_WITH_TIMEOUT, REFUSED) is None
    assert rig.board.next_wake_ns() is None
    arrive(rig, frame(1))
    assert rig.sleep() == (NETWORK, 0)
