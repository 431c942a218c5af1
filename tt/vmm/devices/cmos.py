"""MC146818 real-time clock with its battery-backed RAM.

Source: Motorola MC146818 data sheet; the century byte at 0x32 is the AT's.
Nothing counts inside: registers are computed from the wall clock when they are
read, and the three interrupt flags when something may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from tt.events import Kind
from tt.vmm.clock import Clock
from tt.vmm.devices.calendar import from_seconds, to_seconds
from tt.vmm.line import Line
from tt.vmm.nondeterminism import Door
from tt.vmm.state import U8, Ns, pack, unpack

_SECOND_NS = 1_000_000_000
_CRYSTAL_HZ = 32_768
# An update cycle takes 1984 us, and UIP announces it 244 us before (data sheet, figure 14).
_UPDATE_NS = (1984 + 244) * 1000

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = range(8)
_TIME = {0: SECONDS, 2: MINUTES, 4: HOURS, 6: WEEKDAY, 7: DAY, 8: MONTH, 9: YEAR, 0x32: CENTURY}
_ALARM = {1: SECONDS, 3: MINUTES, 5: HOURS}
_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
_UIP = 0x80  # register A
_SET, _HOUR24, _BINARY = 0x80, 0x02, 0x04  # register B
_IRQF, _PF, _AF, _UF = 0x80, 0x40, 0x20, 0x10  # register C; the enables in B have the same bits
_PM = 0x80


@dataclass(slots=True)
class State:
    """The registers, and how far the guest has set the clock off from the machine's own."""

    index: Annotated[int, range(128)] = 0
    a: Annotated[int, range(128)] = 0x26  # 32768 Hz crystal, periodic rate 1024 Hz
    b: U8 = _HOUR24
    c: U8 = 0
    alarm: list[U8] = field(default_factory=lambda: [0, 0, 0])
    ram: bytearray = field(default_factory=lambda: bytearray(128))
    offset_ns: Annotated[int, range(-(1 << 70), 1 << 70)] = 0  # added by the guest's setting
    stopped: bool = False  # updates are off, and the time registers are what was written:
    held: list[U8] = field(default_factory=lambda: [0] * 8)
    settled_ns: Ns = 0  # guest time up to which the flags are right
    settled_s: Annotated[int, range(-(1 << 41), 1 << 41)] = 0  # the same as a wall clock second


class Cmos:
    """The clock: index register at offset 0, data at offset 1.

    The wall clock is `epoch` (seconds since 1970, UTC) plus guest time.  With
    `host_clock` (ns since 1970) it is the host's instead, and each look at it
    is a question to the door (`Kind.CLOCK`, 8 bytes, little-endian ns); which
    looks happen depends on the guest alone.  Interrupts go to `irq`; each time
    the timer behind them fires the door is told (`Kind.TIMER`, the given `unit`).
    """

    name = "cmos"

    def __init__(
        self,
        clock: Clock,
        door: Door,
        irq: Line,
        epoch: int,
        host_clock: Callable[[], int] | None = None,
        unit: int = 1,
    ) -> None:
        self._clock = clock
        self._door = door
        self._irq = irq
        self._epoch_ns = epoch * _SECOND_NS
        self._host_clock = host_clock
        self._unit = unit
        self._timer = clock.timer("cmos", self._fire)
        self.state = State(settled_s=epoch)

    def read(self, offset: int, size: int) -> int:
        """Return the register that the index selects; the index itself reads as all ones."""
        if offset == 0:
            return 0xFF
        s = self.state
        index = s.index
        if index in _TIME:
            return self._time_registers()[_TIME[index]]
        if index in _ALARM:
            return s.alarm[_ALARM[index]]
        if index == _A:
            return s.a | (_UIP if self._updating() else 0)
        if index == _B:
            return s.b
        if index == _C:
            return self._read_flags()
        if index == _D:
            return 0x80  # the battery is good
        return s.ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register (offset 0, bit 7 masks NMI), or store into it."""
        s = self.state
        value &= 0xFF
        index = s.index
        if offset == 0:
            s.index = value & 0x7F
        elif index in _TIME:
            self._write_time(_TIME[index], value)
        elif index in _ALARM or index in (_A, _B):
            self._write_control(index, value)
        elif index not in (_C, _D):
            s.ram[index] = value

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; the clock saves the timer."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the clock restores the timer."""
        self.state = unpack(State, state, self.name)
        self._irq.level = bool(self.state.c & _IRQF)

    # The wall clock.

    def _source_ns(self) -> int:
        host = self._host_clock
        if host is None:
            return self._epoch_ns + self._clock.now()
        answer = self._door.ask(Kind.CLOCK, lambda: host().to_bytes(8, "little"))
        return int.from_bytes(answer[:8], "little")

    def _wall_ns(self) -> int:
        return self._source_ns() + self.state.offset_ns

    def _updating(self) -> bool:
        if self.state.stopped:
            return False
        return self._wall_ns() % _SECOND_NS >= _SECOND_NS - _UPDATE_NS

    def _time_registers(self) -> list[int]:
        s = self.state
        if s.stopped:
            return s.held
        return self._encode(self._wall_ns() // _SECOND_NS)

    def _write_time(self, which: int, value: int) -> None:
        s = self.state
        if s.stopped:
            s.held[which] = value
            return
        _, wall = self._settle()
        registers = self._encode(wall // _SECOND_NS)
        registers[which] = value
        s.offset_ns += (self._decode(registers) - wall // _SECOND_NS) * _SECOND_NS
        self._restart()

    def _write_control(self, index: int, value: int) -> None:
        s = self.state
        self._settle()
        was_stopped = s.a & 0x60 == 0x60
        if index == _A:
            s.a = value & 0x7F
        elif index == _B:
            s.b = value & ~_UF if value & _SET else value  # SET clears UIE
        else:
            s.alarm[_ALARM[index]] = value
        stop = bool(s.b & _SET) or s.a & 0x60 == 0x60  # divider held in reset
        if stop and not s.stopped:
            s.held = self._encode(self._wall_ns() // _SECOND_NS)
        elif not stop and s.stopped:
            source = self._source_ns()
            # The first update comes half a second after the divider is let go.
            phase = _SECOND_NS // 2 if was_stopped else (source + s.offset_ns) % _SECOND_NS
            s.offset_ns = self._decode(s.held) * _SECOND_NS + phase - source
        s.stopped = stop
        self._restart()

    def _encode(self, seconds: int) -> list[int]:
        year, month, day, weekday, hour, minute, second = from_seconds(seconds)
        pm = 0
        if not self.state.b & _HOUR24:
            pm = _PM if hour >= 12 else 0
            hour = hour % 12 or 12
        fields = [second, minute, hour, weekday, day, month, year % 100, year // 100 % 100]
        if not self.state.b & _BINARY:
            fields = [f // 10 << 4 | f % 10 for f in fields]
        fields[HOURS] |= pm
        return fields

    def _decode(self, registers: list[int]) -> int:
        f = [self._number(r) for r in registers]
        midnight = to_seconds(f[CENTURY] * 100 + f[YEAR], f[MONTH], f[DAY])
        return midnight + self._hour(registers[HOURS]) * 3600 + f[MINUTES] * 60 + f[SECONDS]

    def _number(self, register: int) -> int:
        return register if self.state.b & _BINARY else (register >> 4) * 10 + (register & 15)

    def _hour(self, register: int) -> int:
        if self.state.b & _HOUR24:
            return self._number(register)
        return self._number(register & ~_PM) % 12 + (12 if register & _PM else 0)

    # Interrupts.

    def _settle(self) -> tuple[int, int]:
        # Bring the flags up to date; return guest ns and wall ns.
        s = self.state
        now = self._clock.now()
        period = self._period()
        if period and _crystal(now) // period != _crystal(s.settled_ns) // period:
            s.c |= _PF
        s.settled_ns = now
        wall = 0
        if not s.stopped:
            wall = self._wall_ns()
            second = wall // _SECOND_NS
            if second > s.settled_s:
                s.c |= _UF
                alarm = self._next_alarm(s.settled_s)
                if alarm is not None and alarm <= second:
                    s.c |= _AF
            s.settled_s = second
        if s.c & s.b & (_PF | _AF | _UF):
            s.c |= _IRQF
            self._irq.set(True)
        return now, wall

    def _restart(self) -> None:
        # After the clock was set, or its controls changed: no second has passed yet.
        s = self.state
        if not s.stopped:
            s.settled_s = self._wall_ns() // _SECOND_NS
        self._rearm(*self._settle())

    def _read_flags(self) -> int:
        now, wall = self._settle()
        s = self.state
        flags, s.c = s.c, 0
        self._irq.set(False)
        self._rearm(now, wall)
        return flags

    def _fire(self) -> None:
        self._door.note(Kind.TIMER, self._unit, self._clock.now())
        self._rearm(*self._settle())

    def _rearm(self, now: int, wall: int) -> None:
        # A flag that is set raises no new interrupt until register C is read.
        s = self.state
        wanted = s.b & ~s.c
        times = []
        period = self._period()
        if wanted & _PF and period:
            boundary = (_crystal(now) // period + 1) * period
            times.append(-(-boundary * _SECOND_NS // _CRYSTAL_HZ))
        if not s.stopped:
            if wanted & _UF:
                times.append(now + _SECOND_NS - wall % _SECOND_NS)
            alarm = self._next_alarm(wall // _SECOND_NS) if wanted & _AF else None
            if alarm is not None:
                times.append(now + alarm * _SECOND_NS - wall)
        deadline = min(times, default=None)
        if deadline is None:
            self._timer.disarm()
        elif deadline != self._timer.deadline:
            self._timer.arm(deadline)

    def _period(self) -> int:
        # The periodic rate in crystal clocks, 0 for none (data sheet, table 5).
        rate, divider = self.state.a & 15, self.state.a >> 4
        if rate == 0 or divider != 2:
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)

    def _next_alarm(self, after: int) -> int | None:
        # The first wall clock second past `after` that matches the alarm, if any does.
        raw_second, raw_minute, raw_hour = self.state.alarm
        hours = _matching(24, raw_hour, self._hour(raw_hour))
        minutes = _matching(60, raw_minute, self._number(raw_minute))
        seconds = _matching(60, raw_second, self._number(raw_second))
        if not (hours and minutes and seconds):
            return None
        day = after - after % 86400
        for start in (day, day + 86400):
            for hour in hours:
                if start + hour * 3600 + 3599 <= after:
                    continue
                for minute in minutes:
                    base = start + hour * 3600 + minute * 60
                    for second in seconds:
                        if base + second > after:
                            return base + second
        return None


def _crystal(ns: int) -> int:
    return ns * _CRYSTAL_HZ // _SECOND_NS


def _matching(limit: int, register: int, number: int) -> range:
    # The two top bits make an alarm byte match anything (data sheet, "Time, calendar and alarm").
    if register & 0xC0 == 0xC0:
        return range(limit)
    return range(number, number + 1) if number < limit else range(0)
