"""Virtual instructions, events, idling and hand-over."""

from __future__ import annotations

import pytest
from denali_rig import EPOCH, QUANTUM, RAM, RamDisk, Rig

from tt.errors import UsageError
from tt.events import Kind
from tt.vmm.denali.board import NEVER_NS, DenaliBoard
from tt.vmm.denali.console import TYPED_LIMIT
from tt.vmm.denali.disk import Drive
from tt.vmm.denali.image import GuestImage, Segment
from tt.vmm.denali.registers import MAGIC, REFUSED, REGISTER_PAGE, Call, EventBit, Register
from tt.vmm.memory import PlainMemory

TIMER, INPUT, DISK = EventBit.TIMER, EventBit.INPUT, EventBit.DISK
IMAGE = GuestImage("test", 0x100010, (Segment(0x80000, memoryview(b"\x90" * 0x20), 0x40),))


def test_power_on() -> None:
    rig = Rig()
    start = rig.board.start(IMAGE)
    assert start == (0x100010, RAM)
    assert rig[Register.MAGIC] == MAGIC
    assert rig.memory.read(REGISTER_PAGE, 8) == b"DENALI1\0"
    assert rig[Register.CPU_HZ] == 250_000_000
    assert rig[Register.MEM_BYTES] == RAM
    assert rig[Register.QUANTUM_TICKS] == QUANTUM
    assert rig[Register.WALL_NS] == EPOCH * 10**9
    zeros = set(Register) - {
        Register.MAGIC,
        Register.CPU_HZ,
        Register.MEM_BYTES,
        Register.QUANTUM_TICKS,
        Register.WALL_NS,
    }
    assert all(rig[r] == 0 for r in zeros)
    assert rig.memory.read(0x80000, 0x40) == b"\x90" * 0x20 + bytes(0x20)
    assert rig.board.hand_over() == 0


@pytest.mark.parametrize(
    ("size", "quantum_ticks"), [(RAM, 0), (RAM, -1), (0x1800, 1), (0x2000, 1), (RAM + 1, 1)]
)
def test_nonsense_configuration(size: int, quantum_ticks: int) -> None:
    rig = Rig()
    with pytest.raises(UsageError):
        DenaliBoard(
            rig.clock,
            PlainMemory(size),
            rig.door,
            set_rax=lambda value: None,
            epoch=0,
            quantum_ticks=quantum_ticks,
        )


def test_quanta_end_at_multiples() -> None:
    rig = Rig()
    ends = []
    for tick, idle in ((0, False), (1000, False), (1001, True), (1999, True), (2000, True), (2000, False)):
        rig.tick = tick
        if idle:
            rig.idle(5)
        else:
            rig.board.hand_over()
        ends.append(rig.board.next_hand_over_tick)
    assert ends == [1000, 2000, 2000, 2000, 3000, 3000]


def test_terminate() -> None:
    rig = Rig()
    assert rig.board.terminated is None
    assert rig.call(Call.TERMINATE, 42) is None
    assert rig.board.terminated == 42


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 13, 99, REFUSED])
def test_unknown_numbers_are_refused(number: int) -> None:
    assert Rig().call(number, 1, 2, 3) == REFUSED


# ---- events


def test_timer_register_fires_at_the_quantum_end_and_is_cleared() -> None:
    rig = Rig()
    rig.take_events()
    rig[Register.TIMER_NS] = 4 * QUANTUM + 1
    assert rig.compute() == 0
    assert rig[Register.TIME_NS] == 4 * QUANTUM
    assert rig.compute() == TIMER
    assert rig[Register.TIMER_NS] == 0
    assert rig[Register.PENDING] == 0
    assert rig.kinds() == [(Kind.TIMER, 4 * QUANTUM + 1), (Kind.BATCH, 1)]
    assert {e.tick for e in rig.events} == {2 * QUANTUM}


def test_events_wait_while_they_are_not_enabled_and_come_as_one_batch() -> None:
    disk = RamDisk(4)
    rig = Rig(Drive(disk))
    rig.take_events(on=False)
    rig.call(Call.DISK_WRITE, 0, 1, 0x3000)
    rig.board.typed(b"x")
    rig.tick = 60_000
    rig[Register.TIMER_NS] = 1
    assert rig.compute() == 0
    assert rig[Register.PENDING] == TIMER | INPUT | DISK
    rig.take_events()
    assert rig.compute() == TIMER | INPUT | DISK
    assert rig[Register.PENDING] == 0
    assert rig.kinds() == [(Kind.DISK_WRITE, 8), (Kind.TIMER, 1), (Kind.BATCH, 7)]
    rig.take_events()
    assert rig.compute() == 0  # each happens once


@pytest.mark.parametrize(
    ("register", "value"),
    [(Register.ENABLED, 0), (Register.EVENT_HANDLER, 0), (Register.EXCEPTION_ACTIVE, 1)],
)
def test_what_holds_delivery_back(register: Register, value: int) -> None:
    rig = Rig()
    rig.take_events()
    before = rig[register]
    rig[register] = value
    rig.board.raise_event(DISK)
    assert rig.compute() == 0
    rig[register] = before
    assert rig.compute() == DISK


def test_any_value_but_zero_enables() -> None:
    rig = Rig()
    rig.take_events()
    rig[Register.ENABLED] = 1 << 63
    rig.board.raise_event(INPUT)
    assert rig.compute() == INPUT


@pytest.mark.parametrize("timer_ns", [0, NEVER_NS, REFUSED])
def test_timers_that_never_fire(timer_ns: int) -> None:
    rig = Rig()
    rig.take_events()
    rig[Register.TIMER_NS] = timer_ns
    rig.clock.idle_ns = NEVER_NS - 1
    assert rig.compute() == 0
    assert rig[Register.TIMER_NS] == timer_ns


def test_the_register_page_is_only_written_at_a_hand_over() -> None:
    rig = Rig()
    rig.board.start(IMAGE)
    before = rig.memory.read(REGISTER_PAGE, 4096)
    rig.tick += 10
    rig.board.typed(b"hello")
    rig.board.raise_event(DISK)
    assert rig.call(Call.CONSOLE_READ, 0x3000, 10) == 0  # not readable before, either
    assert rig.memory.read(REGISTER_PAGE, 4096) == before
    rig.compute()
    assert rig[Register.PENDING] == INPUT | DISK
    assert rig.call(Call.CONSOLE_READ, 0x3000, 10) == 5


# ---- idling


def test_idle_times_out_on_the_nanosecond() -> None:
    rig = Rig()
    rig.take_events()
    rig.tick = 10
    assert rig.idle(123_457) == (0, 0)
    assert rig.now_ns == 40 + 123_457 == rig[Register.TIME_NS]
    assert rig.events == []


def test_idle_delivers_when_events_are_enabled() -> None:
    rig = Rig()
    rig.take_events()
    rig[Register.TIMER_NS] = 5000
    assert rig.idle(REFUSED) == (TIMER, TIMER)
    assert rig.now_ns == 5000
    assert rig.board.pending == 0


def test_idle_takes_the_events_when_they_are_not_enabled() -> None:
    rig = Rig()
    rig[Register.TIMER_NS] = 5000
    assert rig.idle(REFUSED) == (TIMER, 0)
    assert rig.kinds() == [(Kind.TIMER, 5000), (Kind.BATCH, 1)]
    assert rig[Register.PENDING] == 0
    assert rig.idle(7) == (0, 0)


def test_idle_with_something_pending_takes_no_time() -> None:
    rig = Rig()
    rig.board.raise_event(DISK)
    assert rig.idle(REFUSED) == (DISK, 0)
    assert rig.now_ns == 0


def test_idle_of_no_time_is_a_hand_over() -> None:
    rig = Rig()
    rig.tick = 123
    assert rig.idle(0) == (0, 0)
    assert rig[Register.TIME_NS] == 123 * 4


def test_idle_with_a_timer_in_the_past() -> None:
    rig = Rig()
    rig.tick = 500
    rig[Register.TIMER_NS] = 3
    assert rig.idle(REFUSED) == (TIMER, 0)
    assert rig.now_ns == 2000


@pytest.mark.parametrize("timeout_ns", [REFUSED, NEVER_NS, 1 << 63])
def test_idle_without_an_end(timeout_ns: int) -> None:
    rig = Rig()
    rig.call(Call.IDLE_WITH_TIMEOUT, timeout_ns)
    assert rig.board.next_wake_ns() is None
    assert rig.board.hand_over() == 0
    assert rig.board.idling
    assert rig.rax is None
    rig.board.typed(b"a")
    assert rig.board.next_wake_ns() == 0
    assert rig.sleep() == (INPUT, 0)


def test_a_hand_over_too_early_changes_nothing() -> None:
    rig = Rig()
    rig.call(Call.IDLE_WITH_TIMEOUT, 100)
    before = rig.memory.read(REGISTER_PAGE, 4096)
    rig.clock.idle_ns += 99
    assert rig.board.hand_over() == 0
    assert rig.board.idling
    assert rig.memory.read(REGISTER_PAGE, 4096) == before
    rig.clock.idle_ns += 1
    rig.board.hand_over()
    assert not rig.board.idling
    assert rig.rax == 0


# ---- console


def test_console_write() -> None:
    rig = Rig()
    rig.memory.write(0x3000, b"hello")
    assert rig.call(Call.CONSOLE_WRITE, 0x3000, 5) == 5
    assert rig.call(Call.CONSOLE_WRITE, 0x3000, 0) == 0
    assert [(e.kind, e.data) for e in rig.events] == [(Kind.CONSOLE, b"hello")]
    assert rig.call(Call.CONSOLE_WRITE, RAM - 4096, 4096) == 4096
    assert rig.call(Call.CONSOLE_WRITE, REGISTER_PAGE, 7) == 7


BAD_BUFFERS = [(0x3000, 4097), (RAM - 4, 5), (RAM, 1), (REFUSED, 1), (REFUSED, REFUSED), (0, REFUSED)]


@pytest.mark.parametrize(("addr", "size"), BAD_BUFFERS)
def test_console_write_refuses(addr: int, size: int) -> None:
    rig = Rig()
    assert rig.call(Call.CONSOLE_WRITE, addr, size) == REFUSED
    assert rig.events == []


@pytest.mark.parametrize(
    ("addr", "size"), [*BAD_BUFFERS, (0xFFF, 2), (0x1000, 1), (0x1FFF, 1), (0x800, 4096)]
)
def test_console_read_refuses(addr: int, size: int) -> None:
    rig = Rig()
    rig.board.typed(b"abcdef")
    rig.compute()
    ram = bytes(rig.memory.ram)
    assert rig.call(Call.CONSOLE_READ, addr, size) == REFUSED
    assert bytes(rig.memory.ram) == ram
    assert rig.call(Call.CONSOLE_READ, 0x3000, 4096) == 6


def test_console_read_in_pieces() -> None:
    rig = Rig()
    rig.board.typed(b"abc")
    rig.board.typed(b"def")
    rig.compute()
    assert rig.call(Call.CONSOLE_READ, 0x3000, 4) == 4
    assert rig.memory.read(0x3000, 5) == b"abcd\0"
    assert rig.call(Call.CONSOLE_READ, 0x3000, 4) == 2
    assert rig.memory.read(0x3000, 4) == b"efcd"
    assert rig.call(Call.CONSOLE_READ, 0x3000, 4) == 0


def test_typed_bytes_have_a_limit() -> None:
    rig = Rig()
    rig.board.typed(b"a" * (TYPED_LIMIT - 1))
    rig.compute()
    rig.board.typed(b"bcd")
    rig.board.typed(b"e")
    rig.compute()
    total = b""
    while size := rig.call(Call.CONSOLE_READ, 0x3000, 4096):
        total += rig.memory.read(0x3000, size)
    assert len(total) == TYPED_LIMIT
    assert total.endswith(b"ab")


def test_wants_input() -> None:
    rig = Rig()
    assert rig.board.wants_input
    rig.board.typed(b"ab")
    assert not rig.board.wants_input
    rig.compute()
    assert not rig.board.wants_input
    rig.call(Call.CONSOLE_READ, 0x3000, 10)
    assert rig.board.wants_input


# ---- wall clock


def test_wall_clock_follows_guest_time() -> None:
    rig = Rig(epoch=0)
    rig.compute()
    assert rig[Register.WALL_NS] == 4 * QUANTUM
    assert rig.events == []


def test_wall_clock_of_the_host_comes_through_the_door() -> None:
    rig = Rig(host_clock=lambda: 777)
    rig.compute()
    assert rig[Register.WALL_NS] == 777
    assert [(e.kind, e.data) for e in rig.events] == [(Kind.CLOCK, (777).to_bytes(8, "little"))]
