"""The real-time clock, from the Motorola MC146818 data sheet's point of view."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

import pytest
from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from tt.events import Kind
from tt.vmm.devices.calendar import from_seconds, to_seconds
from tt.vmm.devices.cmos import Cmos

EPOCH = 1_700_000_000  # Tuesday 2023-11-14 22:13:20 UTC
SECOND = 1_000_000_000


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def cmos(rig: Rig) -> Cmos:
    return Cmos(rig.clock, rig.door, rig.wire(), EPOCH)


def get(cmos: Cmos, register: int) -> int:
    cmos.write(0, 1, register)
    return cmos.read(1, 1)


def put(cmos: Cmos, register: int, value: int) -> None:
    cmos.write(0, 1, register)
    cmos.write(1, 1, value)


def clock(cmos: Cmos) -> list[int]:
    """Return century, year, month, day, hours, minutes, seconds as the registers spell them."""
    return [get(cmos, register) for register in (0x32, 9, 8, 7, 4, 2, 0)]


def test_time_in_bcd(rig: Rig, cmos: Cmos) -> None:
    """Time and calendar bytes, BCD, 24 hours: wall clock is the epoch plus guest time."""
    assert clock(cmos) == [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20]
    assert get(cmos, 6) == 3, "Sunday is 1"
    rig.run(2 * 3600 * SECOND)
    assert clock(cmos) == [0x20, 0x23, 0x11, 0x15, 0x00, 0x13, 0x20]


def test_time_in_binary_and_12_hours(rig: Rig, cmos: Cmos) -> None:
    """Register B: DM chooses binary, 24/12 clear chooses 12 hours with PM in bit 7."""
    put(cmos, 0x0B, 0x06)
    assert clock(cmos) == [20, 23, 11, 14, 22, 13, 20]
    put(cmos, 0x0B, 0x04)
    assert get(cmos, 4) == 0x80 | 10
    rig.run(2 * 3600 * SECOND)
    assert get(cmos, 4) == 12, "midnight is 12 AM"
    put(cmos, 0x0B, 0x00)
    assert get(cmos, 4) == 0x12


def test_update_in_progress(rig: Rig, cmos: Cmos) -> None:
    """UIP is set 244 us before the update and while it lasts, 1984 us (figure 14)."""
    rig.run(SECOND - 2_228_001)
    assert get(cmos, 0x0A) == 0x26
    rig.run(1)
    assert get(cmos, 0x0A) == 0xA6
    assert get(cmos, 0) == 0x20
    rig.run(2_228_000)
    assert get(cmos, 0x0A) == 0x26
    assert get(cmos, 0) == 0x21


def test_setting_the_clock(rig: Rig, cmos: Cmos) -> None:
    """SET stops updates, so that the bytes can be written one by one (as Linux does)."""
    rig.run(300_000_000)
    put(cmos, 0x0B, 0x82)
    for register, value in {9: 0x99, 8: 0x12, 7: 0x31, 4: 0x23, 2: 0x59, 0: 0x58, 0x32: 0x19}.items():
        put(cmos, register, value)
    rig.run(10 * SECOND)
    assert clock(cmos) == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]
    put(cmos, 0x0B, 0x02)
    rig.run(2 * SECOND)
    assert clock(cmos) == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]


def test_divider_reset_starts_with_half_a_second(rig: Rig, cmos: Cmos) -> None:
    """Register A, DV: the first update comes 500 ms after the divider is released."""
    rig.run(300_000_000)
    put(cmos, 0x0A, 0x66)
    rig.run(5 * SECOND)
    assert get(cmos, 0) == 0x20
    assert get(cmos, 0x0A) == 0x66, "no update in progress while the divider stands"
    put(cmos, 0x0A, 0x26)
    rig.run(SECOND // 2 - 1)
    assert get(cmos, 0) == 0x20
    rig.run(1)
    assert get(cmos, 0) == 0x21


def test_a_single_time_byte(cmos: Cmos) -> None:
    """Writing one byte without SET changes that byte alone."""
    put(cmos, 2, 0x45)
    assert clock(cmos) == [0x20, 0x23, 0x11, 0x14, 0x22, 0x45, 0x20]


def test_periodic_interrupt(rig: Rig, cmos: Cmos) -> None:
    """Register A RS chooses the rate (table 5): 6 is 1024 Hz; the flag waits for register C."""
    put(cmos, 0x0B, 0x42)
    rig.run(SECOND)
    assert rig.levels() == [True], "one interrupt until register C is read"
    assert get(cmos, 0x0C) == 0xD0  # an update happened too
    assert rig.levels() == [True, False]
    times = []
    for _ in range(1024):
        rig.run(SECOND // 1024 + 1000)
        times.append(rig.edges[-1][1] if rig.edges[-1][2] else 0)
        assert get(cmos, 0x0C) & 0xC0 == 0xC0
    first = times[0]
    assert first == SECOND + 976_563
    assert all(t > 0 and t * 1024 % SECOND < 1024 for t in times), "on the grid of 1/1024 s, rounded up"
    assert {e.unit for e in rig.events} == {1}
    assert {e.kind for e in rig.events} == {Kind.TIMER}


@pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (8, 256), (15, 2)])
def test_periodic_rates(rig: Rig, cmos: Cmos, rate: int, hz: int) -> None:
    """The rates of a 32.768 kHz time base, seen by polling the flag."""
    put(cmos, 0x0A, 0x20 | rate)
    get(cmos, 0x0C)
    rig.run(-(-SECOND // hz) - 1)
    assert not get(cmos, 0x0C) & 0x40
    rig.run(1)
    assert get(cmos, 0x0C) & 0x40
    assert rig.levels() == []


def test_no_periodic_rate(rig: Rig, cmos: Cmos) -> None:
    put(cmos, 0x0A, 0x20)
    put(cmos, 0x0B, 0x42)
    rig.run(SECOND // 2)
    assert get(cmos, 0x0C) == 0
    assert rig.clock.next_deadline() is None


def test_update_ended_interrupt(rig: Rig, cmos: Cmos) -> None:
    """UIE: an interrupt after each update; SET clears UIE."""
    put(cmos, 0x0A, 0x20)
    put(cmos, 0x0B, 0x12)
    for second in range(1, 4):
        rig.run(SECOND)
        assert rig.edges[-1] == ("irq", second * SECOND, True)
        assert get(cmos, 0x0C) == 0x90
    put(cmos, 0x0B, 0x92)
    assert get(cmos, 0x0B) == 0x82


@pytest.mark.parametrize(
    ("alarm", "seconds"),
    [
        ((0x22, 0x14, 0x00), 40),
        ((0xFF, 0x00, 0x00), 46 * 60 + 40),
        ((0xC0, 0xC0, 0x30), 10),
        ((0xC0, 0xC0, 0xC0), 1),
        ((0x22, 0x13, 0x20), 86_400),
        ((0x08, 0x00, 0xFF), 9 * 3600 + 46 * 60 + 40),
    ],
)
def test_alarm(rig: Rig, cmos: Cmos, alarm: tuple[int, int, int], seconds: int) -> None:
    """AIE: hours, minutes and seconds match, or are "don't care" (two top bits set)."""
    for register, value in zip((5, 3, 1), alarm, strict=True):
        put(cmos, register, value)
        assert get(cmos, register) == value
    put(cmos, 0x0A, 0x20)
    put(cmos, 0x0B, 0x22)
    rig.run(seconds * SECOND - 1)
    assert rig.levels() == []
    rig.run(1)
    assert rig.levels() == [True]
    assert get(cmos, 0x0C) == 0xB0


def test_alarm_that_never_matches(rig: Rig, cmos: Cmos) -> None:
    put(cmos, 5, 0x77)
    put(cmos, 0x0B, 0x22)
    assert rig.clock.next_deadline() is None


def test_ram_and_read_only_registers(cmos: Cmos) -> None:
    """RAM persists; C and D cannot be written; D says the battery is good; bit 7 of the index is NMI's."""
    put(cmos, 0x40 | 0x80, 0xA5)
    assert get(cmos, 0x40) == 0xA5
    put(cmos, 0x0D, 0)
    put(cmos, 0x0C, 0xFF)
    assert (get(cmos, 0x0D), get(cmos, 0x0C)) == (0x80, 0)
    assert cmos.read(0, 1) == 0xFF


def test_host_clock_goes_through_the_door(rig: Rig) -> None:
    """With a host clock each look at the time is one question, answered in 8 bytes."""
    host = (EPOCH + 5) * SECOND
    cmos = Cmos(rig.clock, rig.door, rig.wire(), 0, host_clock=lambda: host)
    assert clock(cmos) == [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x25]
    assert [e.kind for e in rig.events] == [Kind.CLOCK] * 7
    assert rig.events[0].data == host.to_bytes(8, "little")
    host += 60 * SECOND
    assert get(cmos, 2) == 0x14
    put(cmos, 2, 0x30)
    assert get(cmos, 2) == 0x30
    count = len(rig.events)
    assert get(cmos, 0x0B) == 2
    assert get(cmos, 0x40) == 0
    assert len(rig.events) == count, "what is no time asks nothing"


def test_host_clock_that_goes_back(rig: Rig) -> None:
    host = EPOCH * SECOND
    cmos = Cmos(rig.clock, rig.door, rig.wire(), EPOCH, host_clock=lambda: host)
    put(cmos, 0x0B, 0x12)
    host -= 3600 * SECOND
    rig.run(2 * SECOND)
    assert get(cmos, 4) == 0x21
    host += SECOND
    rig.run(2 * SECOND)
    assert rig.levels() == [True]


@given(st.datetimes(datetime(1970, 1, 1), datetime(2399, 12, 31)))
def test_calendar_agrees_with_datetime(moment: datetime) -> None:
    seconds = calendar.timegm(moment.timetuple())
    year, month, day, weekday, hour, minute, second = from_seconds(seconds)
    assert (year, month, day, hour, minute, second) == moment.timetuple()[:6]
    assert weekday == moment.isoweekday() % 7 + 1
    assert to_seconds(year, month, day) == seconds - seconds % 86400
    assert datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None) == moment.replace(microsecond=0)


@given(
    st.lists(st.tuples(st.sampled_from([0, 2, 4, 6, 7, 8, 9, 0x32, 0x0B]), st.integers(0, 255)), max_size=20)
)
def test_no_date_is_too_strange(writes: list[tuple[int, int]]) -> None:
    """Whatever a guest writes, the clock goes on and shows bytes."""
    rig = Rig()
    cmos = Cmos(rig.clock, rig.door, rig.wire(), EPOCH)
    for register, value in writes:
        put(cmos, register, value)
    rig.run(3 * SECOND)
    assert all(0 <= get(cmos, register) <= 255 for register in range(128))
