"""Breakpoints, watchpoints and catchpoints as plain data: no machine in sight."""

from __future__ import annotations

import pytest

from tt.errors import UsageError
from tt.travel.stops import (
    CATCHABLE,
    MAX_WATCHPOINTS,
    Breakpoint,
    Catchpoint,
    StopPoint,
    Stops,
    Watchpoint,
    split_device,
)


def test_numbers_rise_and_are_not_used_again() -> None:
    stops = Stops()
    assert [stops.add(Breakpoint(addr)) for addr in (1, 2, 3)] == [1, 2, 3]
    stops.remove(3)
    stops.remove(1)
    assert stops.add(Watchpoint(0x1000)) == 4
    assert [point.number for point in stops] == [2, 4]
    assert len(stops) == 2
    stops.clear()
    assert stops.add(Breakpoint(9)) == 5


def test_a_number_that_is_not_there() -> None:
    stops = Stops()
    with pytest.raises(UsageError, match="no stop 1: there is none"):
        stops.get(1)
    stops.add(Breakpoint(1))
    stops.add(Breakpoint(2))
    with pytest.raises(UsageError, match="no stop 7: there is 1, 2"):
        stops.remove(7)


def test_only_enabled_ones_are_active() -> None:
    stops = Stops()
    first, second = Breakpoint(1), Breakpoint(2, enabled=False)
    stops.add(first)
    stops.add(second)
    assert stops.active == [first]
    stops.enable(2)
    stops.disable(1)
    assert stops.active == [second]


def test_the_same_point_twice() -> None:
    stops, point = Stops(), Breakpoint(1)
    stops.add(point)
    with pytest.raises(UsageError, match="breakpoint 1 is there already"):
        stops.add(point)
    stops.remove(1)
    assert stops.add(point) == 2


def test_while_walking_over_them_one_may_remove_some() -> None:
    stops = Stops()
    for addr in range(4):
        stops.add(Breakpoint(addr))
    for point in stops:
        stops.remove(point.number)
    assert not len(stops)


def test_too_many() -> None:
    stops = Stops()
    for addr in range(MAX_WATCHPOINTS):
        stops.add(Watchpoint(addr))
    with pytest.raises(UsageError, match="60 watchpoints already"):
        stops.add(Watchpoint(0x1000))
    stops.add(Breakpoint(0))


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Breakpoint(0x1000), "0x1000"),
        (Breakpoint(0x1000, text="schedule"), "schedule"),
        (Watchpoint(0x10, 4), "writes of 4 bytes at 0x10"),
        (Watchpoint(0x10, 4, True, False, True), "reads of 4 bytes at physical 0x10"),
        (Watchpoint(0x10, reads=True, text="jiffies"), "accesses of 8 bytes at jiffies"),
        (Catchpoint("interrupt"), "interrupt"),
        (Catchpoint("interrupt", number_wanted=0x30), "interrupt vector 48"),
        (Catchpoint("device", device="disk0"), "device disk0"),
        (Catchpoint("disk-write", disk=0, lba=2, last_lba=9), "disk-write disk 0 from block 2 to block 9"),
        (Catchpoint("console", pattern="login:"), "console login:"),
        (Catchpoint("syscall", number_wanted=1), "syscall 1"),
        (Catchpoint("power"), "power"),
    ],
)
def test_in_words(point: StopPoint, words: str) -> None:
    assert point.describe() == words


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Breakpoint(-1), "not a place in memory"),
        (lambda: Breakpoint(1 << 64), "not a place in memory"),
        (lambda: Watchpoint(0, 0), "not a place in memory"),
        (lambda: Watchpoint((1 << 64) - 4, 8), "not a place in memory"),
        (lambda: Watchpoint(0, 8, False, False), "never stops"),
        (lambda: Catchpoint("thunder"), "cannot be caught: give interrupt, device"),
        (lambda: Catchpoint("console"), "needs a regular expression"),
        (lambda: Catchpoint("console", pattern="(") and None, "not a regular expression"),
        (lambda: Catchpoint("exception", number_wanted=256), "not a vector"),
        (lambda: Catchpoint("device", device="toaster"), "not a device"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()  # type: ignore[operator]


def test_which_are_in_the_log() -> None:
    made = [Catchpoint(what, pattern="x") for what in CATCHABLE]
    assert {point.what for point in made if not point.in_log} == {"syscall", "exception"}


def test_devices() -> None:
    assert split_device("disk12") == ("disk", 12)
    assert split_device("timer") == ("timer", None)
