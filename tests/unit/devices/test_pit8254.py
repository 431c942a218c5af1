"""The timer, from the Intel 8254 data sheet's point of view."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from tt.events import Kind
from tt.vmm.devices.pit8254 import HZ, Channel, Pit8254, ns_at, pit_clock

MODES = {0: 0x30, 1: 0x32, 2: 0x34, 3: 0x36, 4: 0x38, 5: 0x3A}


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def pit(rig: Rig) -> Pit8254:
    return Pit8254(rig.clock, rig.door, rig.wire("irq0"))


def program(pit: Pit8254, mode: int, count: int, channel: int = 0) -> None:
    pit.write(3, 1, MODES[mode] | channel << 6)
    pit.write(channel, 1, count & 0xFF)
    pit.write(channel, 1, count >> 8)


def counter(pit: Pit8254, channel: int = 0) -> int:
    """Latch and read a 16-bit counter."""
    pit.write(3, 1, channel << 6)
    return pit.read(channel, 1) | pit.read(channel, 1) << 8


def at_clock(rig: Rig, clock: int) -> None:
    rig.run(ns_at(clock) - rig.ns)


def fired(rig: Rig) -> list[int]:
    """Return the PIT clocks at which channel 0 fired."""
    return [pit_clock(e.value) for e in rig.events if e.kind == Kind.TIMER]


# The reference: a counter stepped one CLK at a time, as the data sheet describes it.


@dataclass
class Stepped:
    mode: int
    ce: int = 0
    out: bool = True
    pending: int | None = None  # a count on its way into the counter
    counting: bool = False
    armed: bool = False  # terminal count has not come yet
    n: int = 0

    def write(self, count: int) -> None:
        self.pending = count
        if self.mode == 0:
            self.out = False

    def step(self) -> None:
        if self.mode in (0, 4):
            self._one_shot()
        elif self.mode == 2:
            self._rate()
        else:
            self._square()

    def _load(self) -> None:
        assert self.pending is not None
        self.ce = self.n = self.pending
        self.pending = None
        self.counting = True

    def _one_shot(self) -> None:
        if self.mode == 4:
            self.out = True
        if self.pending is not None:
            self._load()
            self.armed = True
            return
        if self.counting:
            self.ce = (self.ce - 1) & 0xFFFF
            if self.ce == 0 and self.armed:
                self.out = self.mode == 0
                self.armed = False

    def _rate(self) -> None:
        if not self.counting:
            if self.pending is not None:
                self._load()
            return
        if self.ce == 1:
            if self.pending is not None:
                self._load()
            else:
                self.ce = self.n
            self.out = True
        else:
            self.ce -= 1
            self.out = self.ce != 1

    def _square(self) -> None:
        if not self.counting:
            if self.pending is not None:
                self._load()
            return
        # An odd count: N, N-1, ... 2 in the high half, N, N-3, ... 2 in the low one.
        if self.ce == 2:
            self.out = not self.out
            if self.pending is not None:
                self._load()
            self.ce = self.n
        elif self.ce == self.n and self.n & 1:
            self.ce -= 1 if self.out else 3
        else:
            self.ce -= 2


@given(
    mode=st.sampled_from([0, 2, 3, 4]),
    counts=st.lists(st.tuples(st.integers(4, 40), st.integers(1, 90)), min_size=1, max_size=4),
)
def test_against_a_stepped_counter(mode: int, counts: list[tuple[int, int]]) -> None:
    """Count and OUT agree at each CLK with the data sheet's mode descriptions, re-loads included."""
    channel, reference = Channel(), Stepped(mode)
    channel.control(MODES[mode], 0)
    t = 0
    for count, clocks in counts:
        channel.load_count(count, t)
        reference.write(count)
        for _ in range(clocks):
            t += 1
            reference.step()
            channel.settle(t)
            assert channel.value(t) == reference.ce
            assert channel.out(t) == reference.out


@given(
    mode=st.sampled_from([0, 2, 3, 4]),
    first=st.integers(2, 60),
    second=st.integers(2, 60),
    when=st.integers(1, 130),
)
def test_predicted_rise_is_when_out_rises(mode: int, first: int, second: int, when: int) -> None:
    """What the interrupt timer is set to is where OUT, looked at each CLK, goes from low to high."""
    channel = Channel()
    channel.control(MODES[mode], 0)
    channel.load_count(first, 0)
    channel.settle(when)
    channel.load_count(second, when)
    predicted = channel.next_rise(when)
    assert predicted is not None
    before = channel.out(when)
    for t in range(when + 1, predicted + 1):
        channel.settle(t)
        now = channel.out(t)
        assert (now and not before) == (t == predicted)
        before = now


@given(st.integers(0, 1 << 50))
def test_clocks_and_ns_agree(clock: int) -> None:
    """Exact integers both ways: the ns of a PIT clock is the first one at which it has come."""
    assert pit_clock(ns_at(clock)) == clock
    assert clock == 0 or pit_clock(ns_at(clock) - 1) == clock - 1


def test_mode_2_interrupts_never_drift(rig: Rig, pit: Pit8254) -> None:
    """Rate generator: a period of N clocks, exactly, for as long as it runs."""
    program(pit, 2, 11932)
    rig.run(10_000_000_000)
    times = fired(rig)
    assert times == [1 + 11932 * k for k in range(1, len(times) + 1)]
    assert len(times) == (10 * HZ - 1) // 11932
    assert rig.levels("irq0") == [True] + [False, True] * len(times)
    assert all(e.unit == 0 and e.value == e.tick for e in rig.events)


def test_mode_3_square_wave(rig: Rig, pit: Pit8254) -> None:
    """A whole period of N clocks, count 0 meaning 65536."""
    program(pit, 3, 0)
    rig.run(1_000_000_000)
    assert fired(rig) == [1 + 65536 * k for k in range(1, 19)]


def test_mode_0_fires_once(rig: Rig, pit: Pit8254) -> None:
    """Interrupt on terminal count: OUT rises N + 1 clocks after the count was written, and stays."""
    program(pit, 0, 1000)
    assert rig.levels("irq0") == []
    rig.run(1_000_000_000)
    assert fired(rig) == [1001]
    assert rig.levels("irq0") == [True]
    program(pit, 0, 10)
    assert rig.levels("irq0") == [True, False]


def test_mode_4_strobe(rig: Rig, pit: Pit8254) -> None:
    """Software triggered strobe: OUT falls N + 1 clocks after the write, for one clock."""
    program(pit, 4, 1000)
    assert rig.levels("irq0") == [True]
    rig.run(1_000_000_000)
    assert fired(rig) == [1002]
    program(pit, 4, 10)  # Linux's one-shot clock event, over and over
    rig.run(1_000_000)
    assert len(fired(rig)) == 2


def test_mode_change_stops_the_interrupts(rig: Rig, pit: Pit8254) -> None:
    """A control word alone stops the counter until a count is written."""
    program(pit, 2, 1000)
    at_clock(rig, 2500)
    pit.write(3, 1, 0x30)
    rig.run(1_000_000_000)
    assert len(fired(rig)) == 2
    assert rig.clock.next_deadline() is None


def test_new_count_waits_for_the_period_to_end(rig: Rig, pit: Pit8254) -> None:
    """Mode 2: "a new count does not affect the current counting sequence"."""
    program(pit, 2, 1000)
    at_clock(rig, 500)
    pit.write(0, 1, 100)
    pit.write(0, 1, 0)
    at_clock(rig, 1250)
    assert fired(rig) == [1001, 1101, 1201]


@pytest.mark.parametrize(
    ("access", "written", "count", "bytes_read"),
    [(1, [0x34], 0x34, [0x34]), (2, [0x12], 0x1200, [0x12]), (3, [0x34, 0x12], 0x1234, [0x34, 0x12])],
    ids=["low", "high", "both"],
)
def test_access_modes(
    pit: Pit8254, access: int, written: list[int], count: int, bytes_read: list[int]
) -> None:
    """Control word bits 5-4: low byte only, high byte only, low then high."""
    pit.write(3, 1, access << 4 | 4)
    for byte in written:
        pit.write(0, 1, byte)
    channel = pit.state.channels[0]
    assert channel.count == count
    channel.count = 0x1234
    assert [pit.read(0, 1) for _ in bytes_read] == bytes_read


def test_latch_holds_until_read(rig: Rig, pit: Pit8254) -> None:
    """Counter latch command: the count freezes, a second latch is ignored, counting goes on."""
    program(pit, 2, 0x4000)
    at_clock(rig, 1 + 0x100)
    pit.write(3, 1, 0)
    at_clock(rig, 1 + 0x200)
    pit.write(3, 1, 0)
    assert pit.read(0, 1) | pit.read(0, 1) << 8 == 0x3F00
    assert pit.read(0, 1) | pit.read(0, 1) << 8 == 0x3E00


def test_read_back(rig: Rig, pit: Pit8254) -> None:
    """Read-back command: status first, then count; null count until the counter is loaded."""
    program(pit, 2, 0x1234, channel=1)
    pit.write(3, 1, 0xC0 | 1 << 2)
    assert pit.read(1, 1) == 0x80 | 0x40 | 3 << 4 | 2 << 1
    assert pit.read(1, 1) | pit.read(1, 1) << 8 == 0x1234
    at_clock(rig, 11)
    pit.write(3, 1, 0xE0 | 1 << 2)  # status only
    assert pit.read(1, 1) == 0x80 | 3 << 4 | 2 << 1
    pit.write(3, 1, 0xD0 | 1 << 2)  # count only
    assert pit.read(1, 1) | pit.read(1, 1) << 8 == 0x1234 - 10
    assert pit.read(3, 1) == 0xFF


def test_bcd(rig: Rig, pit: Pit8254) -> None:
    """Control word bit 0: four decades, 0 standing for 10000."""
    pit.write(3, 1, 0x31)
    pit.write(0, 1, 0x00)
    pit.write(0, 1, 0x10)
    at_clock(rig, 2)
    assert counter(pit) == 0x0999
    at_clock(rig, 1002)
    assert counter(pit) == 0x9999
    pit.write(3, 1, 0x31)
    pit.write(0, 1, 0)
    pit.write(0, 1, 0)
    assert pit.state.channels[0].count == 10000


def test_half_a_count_stops_mode_0(rig: Rig, pit: Pit8254) -> None:
    """Mode 0: "writing the first byte disables counting" and OUT goes low at once."""
    program(pit, 0, 100)
    at_clock(rig, 200)
    assert rig.levels("irq0") == [True]
    pit.write(0, 1, 5)
    assert rig.levels("irq0") == [True, False]
    held = counter(pit)
    at_clock(rig, 300)
    assert counter(pit) == held
    pit.write(0, 1, 0)
    at_clock(rig, 400)
    assert rig.levels("irq0") == [True, False, True]


def test_gate_pauses_mode_0(rig: Rig, pit: Pit8254) -> None:
    """Channel 2, as Linux calibrates with it: GATE low stops the count, OUT2 shows the end."""
    program(pit, 0, 1000, channel=2)
    at_clock(rig, 500)
    assert counter(pit, 2) == 1000
    pit.gate2 = True
    at_clock(rig, 900)
    pit.gate2 = False
    at_clock(rig, 5000)
    assert counter(pit, 2) == 600
    assert not pit.out2()
    pit.gate2 = True
    at_clock(rig, 5599)
    assert not pit.out2()
    at_clock(rig, 5600)
    assert pit.out2()


def test_gate_restarts_modes_2_and_3(rig: Rig, pit: Pit8254) -> None:
    """GATE low sets OUT high; its rise reloads the counter, with a new count if there is one."""
    pit.gate2 = True
    program(pit, 3, 1000, channel=2)
    at_clock(rig, 601)
    assert not pit.out2()
    pit.write(2, 1, 100)
    pit.write(2, 1, 0)
    pit.gate2 = False
    assert pit.out2()
    at_clock(rig, 2000)
    assert pit.out2()
    pit.gate2 = True
    at_clock(rig, 2001)
    assert counter(pit, 2) == 100
    at_clock(rig, 2051)
    assert not pit.out2()


def test_gate_triggers_modes_1_and_5(rig: Rig, pit: Pit8254) -> None:
    """One-shot: OUT low for N clocks from the trigger; strobe: low for one clock at its end."""
    program(pit, 1, 10, channel=2)
    at_clock(rig, 100)
    assert pit.out2()
    pit.gate2 = True
    seen = []
    for clock in range(101, 113):
        at_clock(rig, clock)
        seen.append(pit.out2())
    assert seen == [False] * 10 + [True] * 2
    pit.gate2 = False
    pit.write(2, 1, 20)
    pit.write(2, 1, 0)
    program(pit, 5, 3, channel=2)
    pit.gate2 = True
    start = pit_clock(rig.ns) + 1
    seen = []
    for clock in range(start, start + 6):
        at_clock(rig, clock)
        seen.append(pit.out2())
    assert seen == [True, True, True, False, True, True]


def test_new_count_of_a_one_shot_waits_for_its_trigger(rig: Rig, pit: Pit8254) -> None:
    """Mode 1: a new count does not affect the pulse under way."""
    pit.gate2 = False
    program(pit, 1, 10, channel=2)
    pit.gate2 = True
    at_clock(rig, 3)
    pit.write(2, 1, 50)
    pit.write(2, 1, 0)
    at_clock(rig, 11)
    assert pit.out2()
    pit.gate2 = False
    pit.gate2 = True
    at_clock(rig, 61)
    assert not pit.out2()
    at_clock(rig, 62)
    assert pit.out2()


def test_illegal_count_of_one(rig: Rig, pit: Pit8254) -> None:
    """A count of 1 is illegal in mode 2; it is taken for 2, the shortest period."""
    program(pit, 2, 1)
    at_clock(rig, 10)
    assert fired(rig) == [3, 5, 7, 9]
