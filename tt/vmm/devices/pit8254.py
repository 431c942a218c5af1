"""Intel 8254 interval timer: three 16-bit counters at 1.193182 MHz.

Source: Intel 8254 data sheet (231164-005).  A counter is never stepped: what it
shows is computed from the PIT clock at which its count was loaded.  The PIT
clock is guest ns in exact integers, so nothing drifts.

    PIT clock:  write | load | N-1 | N-2 ...      "elapsed" counts from the load
    elapsed:      -1     0      1     2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from tt.events import Kind
from tt.vmm.clock import Clock
from tt.vmm.line import Line
from tt.vmm.nondeterminism import Door
from tt.vmm.state import U8, U16, pack, unpack

HZ = 1_193_182
_SECOND_NS = 1_000_000_000
_CONTROL = 3
_LATCH, _LOW, _HIGH, _BOTH = range(4)  # the access field of a control word
# The largest count is 0x10000, in BCD 10000 (or 16665, where the guest writes digits above 9).
Count = Annotated[int, range(1, 0x10001)]
PitClock = Annotated[int, range(-(1 << 20), 1 << 53)]


def pit_clock(ns: int) -> int:
    """Return how many PIT clocks have passed at guest time `ns`."""
    return ns * HZ // _SECOND_NS


def ns_at(clock: int) -> int:
    """Return the first guest ns at which `clock` PIT clocks have passed."""
    return -(-clock * _SECOND_NS // HZ)


@dataclass(slots=True)
class Channel:
    """One counter.  `t` below is the PIT clock at the moment of a call."""

    mode: Annotated[int, range(6)] = 0
    bcd: bool = False
    access: Annotated[int, range(_LOW, _BOTH + 1)] = _BOTH
    gate: bool = True
    loaded: bool = False  # a whole count was written since the control word
    running: bool = False  # counting: elapsed = t - start; otherwise `elapsed` stands still
    count: Count = 0x10000  # N
    start: PitClock = 0  # PIT clock at which N was loaded
    elapsed: PitClock = 0
    shown: U16 = 0  # what the counter shows while no count is loaded
    next_count: Count | None = None  # N from PIT clock `switch_at` on (modes 1 and 5: from the next trigger)
    next_start: PitClock = 0
    switch_at: PitClock = 0
    low_byte: U8 | None = None  # first half of a 16-bit write
    high_next: bool = False  # second half of a 16-bit read comes next
    latch: U16 | None = None
    status: U8 | None = None

    def settle(self, t: int) -> None:
        """Take over a new count whose time has come."""
        if self.next_count is not None and self.mode in (2, 3) and t >= self.switch_at:
            self.count, self.start = self.next_count, self.next_start
            self.next_count = None

    def position(self, t: int) -> int:
        """Return PIT clocks since the load; -1 while the load is still to come."""
        return max(t - self.start, -1) if self.running else self.elapsed

    def value(self, t: int) -> int:
        """Return what the counter shows, as the guest would read it (16 bits)."""
        if not self.loaded:
            return self.shown
        d, n = max(self.position(t), 0), self.count
        if self.mode == 2:
            number = n - d % n
        elif self.mode == 3:
            number = _square(n, d % n)
        else:
            number = n - d
        return _to_bcd(number % 10000) if self.bcd else number & 0xFFFF

    def out(self, t: int) -> bool:
        """Return the level of OUT."""
        d, n = self.position(t), self.count
        if self.mode == 0:
            return self.loaded and d >= n
        if not self.running or d < 0:
            return True
        if self.mode == 1:
            return d >= n
        if self.mode == 2:
            return d % n != n - 1
        if self.mode == 3:
            return d % n < (n + 1) // 2
        return d != n

    def next_rise(self, t: int) -> int | None:
        """Return the first PIT clock after `t` at which OUT rises by itself, or None."""
        if not (self.loaded and self.running):
            return None
        n = self.count
        if self.mode in (2, 3):
            rise = self.start + (max(t - self.start, 0) // n + 1) * n
            if self.next_count is not None and self.switch_at < rise:
                return self.next_start + self.next_count
            return rise
        rise = self.start + (n + 1 if self.mode in (4, 5) else n)
        return rise if rise > t else None

    def control(self, word: int, t: int) -> None:
        """Take a control word that selects this counter."""
        self.settle(t)
        access = word >> 4 & 3
        if access == _LATCH:
            if self.latch is None:
                self.latch = self.value(t)
            return
        mode = word >> 1 & 7
        self.shown = self.value(t)
        self.mode = mode - 4 if mode > 5 else mode
        self.bcd = bool(word & 1)
        self.access = access
        self.loaded = self.running = self.high_next = False
        self.next_count = self.low_byte = self.latch = self.status = None

    def read_back(self, word: int, t: int) -> None:
        """Latch count (bit 5 clear) and status (bit 4 clear)."""
        self.settle(t)
        if not word & 0x20 and self.latch is None:
            self.latch = self.value(t)
        if not word & 0x10 and self.status is None:
            null = not self.loaded or self.next_count is not None or self.position(t) < 0
            self.status = self.out(t) << 7 | null << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self, t: int) -> int:
        """Return the next byte the guest reads."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        self.settle(t)
        value = self.value(t) if self.latch is None else self.latch
        if self.access == _BOTH and not self.high_next:
            self.high_next = True
            return value & 0xFF
        high = self.access != _LOW
        self.high_next = False
        self.latch = None
        return value >> 8 if high else value & 0xFF

    def write(self, byte: int, t: int) -> None:
        """Take the next byte of a count."""
        self.settle(t)
        if self.access == _LOW:
            self.load_count(byte, t)
        elif self.access == _HIGH:
            self.load_count(byte << 8, t)
        elif self.low_byte is None:
            self.low_byte = byte
            if self.mode == 0:  # half a count stops the counter and pulls OUT low
                self.shown = self.value(t)
                self.loaded = self.running = False
        else:
            raw = byte << 8 | self.low_byte
            self.low_byte = None
            self.load_count(raw, t)

    def load_count(self, raw: int, t: int) -> None:
        """Take a whole count; it reaches the counter with the next PIT clock, or as the mode says."""
        n = _from_bcd(raw) if self.bcd else raw
        n = n or (10000 if self.bcd else 0x10000)
        periodic = self.mode in (2, 3)
        if periodic:
            n = max(n, 2)  # a count of 1 is illegal there
        if periodic and self.loaded and self.running and t >= self.start:
            self._switch_later(n, t)
            return
        if self.mode in (1, 5) and self.loaded and self.running:
            self.next_count = n
            return
        self.count = n
        self.loaded = True
        self.next_count = None
        self.start = t + 1
        self.elapsed = 0
        self.running = self.gate and self.mode not in (1, 5)

    def set_gate(self, level: bool, t: int) -> None:
        """Drive GATE: a level in modes 0, 2, 3 and 4, a rising edge in modes 1, 2, 3 and 5."""
        if level == self.gate:
            return
        self.settle(t)
        self.gate = level
        if not self.loaded:
            return
        if self.mode in (0, 4):
            if level:
                self.start = t - self.elapsed
            else:
                self.elapsed = max(self.position(t), 0)
            self.running = level
        elif level:
            if self.next_count is not None:
                self.count, self.next_count = self.next_count, None
            self.start = t + 1
            self.running = True
        elif self.mode in (2, 3):
            self.elapsed = max(self.position(t), 0)
            self.running = False

    def _switch_later(self, n: int, t: int) -> None:
        d = t - self.start
        period = self.start + d // self.count * self.count
        half = (self.count + 1) // 2
        if self.mode == 3 and d % self.count < half:
            self.switch_at = period + half
            self.next_start = self.switch_at - (n + 1) // 2  # so that the low half comes next
        else:
            self.switch_at = self.next_start = period + self.count
        self.next_count = n


@dataclass(slots=True)
class State:
    """The three counters and the level of channel 0's line."""

    channels: list[Channel] = field(default_factory=lambda: [Channel(), Channel(), Channel(gate=False)])
    line: bool = False


class Pit8254:
    """The timer: counters 0-2 at offsets 0-2, the control word at offset 3.

    Counter 0 drives `irq0`; each time it fires the door is told (`Kind.TIMER`,
    the given `unit`, guest ns).  The gate of counter 2 and its output belong
    to port 0x61; the other gates are tied high.
    """

    name = "pit"

    def __init__(self, clock: Clock, door: Door, irq0: Line, unit: int = 0) -> None:
        self._clock = clock
        self._door = door
        self._irq0 = irq0
        self._unit = unit
        self._timer = clock.timer("pit", self._fire)
        self.state = State()

    @property
    def gate2(self) -> bool:
        """The gate of counter 2."""
        return self.state.channels[2].gate

    @gate2.setter
    def gate2(self, level: bool) -> None:
        self.state.channels[2].set_gate(level, self._now())

    def out2(self) -> bool:
        """Return the output of counter 2."""
        t = self._now()
        channel = self.state.channels[2]
        channel.settle(t)
        return channel.out(t)

    def read(self, offset: int, size: int) -> int:
        """Return the next byte of counter `offset`; the control word reads as all ones."""
        if offset == _CONTROL:
            return 0xFF
        return self.state.channels[offset].read(self._now())

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a byte of a count, or a control word at offset 3."""
        t = self._now()
        value &= 0xFF
        channels = self.state.channels
        if offset != _CONTROL:
            channels[offset].write(value, t)
        elif value >> 6 == 3:
            for index, channel in enumerate(channels):
                if value >> 1 >> index & 1:
                    channel.read_back(value, t)
            return
        else:
            offset = value >> 6
            channels[offset].control(value, t)
            if not value & 0x30:
                return  # a latch command changes nothing
        if offset == 0:
            # OUT's low pulses last one PIT clock, and no guest can see them: the line stays high,
            # except in mode 0, where OUT is low until the count has run out.
            channel = channels[0]
            self._drive(channel.mode != 0 or channel.out(t))
            self._rearm(t)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; the clock saves the timer."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the clock restores the timer."""
        self.state = unpack(State, state, self.name)
        self._irq0.level = self.state.line

    def _now(self) -> int:
        return self._clock.now() * HZ // _SECOND_NS

    def _drive(self, level: bool) -> None:
        self.state.line = level
        self._irq0.set(level)

    def _fire(self) -> None:
        now = self._clock.now()
        t = pit_clock(now)
        channel = self.state.channels[0]
        channel.settle(t)
        self._door.note(Kind.TIMER, self._unit, now)
        if channel.mode != 0:
            self._drive(False)
        self._drive(True)
        self._rearm(t)

    def _rearm(self, t: int) -> None:
        rise = self.state.channels[0].next_rise(t)
        if rise is None:
            self._timer.disarm()
            return
        deadline = ns_at(rise)
        if deadline != self._timer.deadline:
            self._timer.arm(deadline)


def _square(n: int, d: int) -> int:
    # Mode 3 counts down by two, twice a period; an odd count holds N for one clock
    # (data sheet, figure 18: N=5 shows 5 4 2 in the high half and 5 2 in the low one).
    half = (n + 1) // 2
    if d < half:
        return n - 2 * d + (n & 1 if d else 0)
    d -= half
    return n - 2 * d - (n & 1 if d else 0)


def _from_bcd(raw: int) -> int:
    return sum((raw >> 4 * digit & 15) * 10**digit for digit in range(4))


def _to_bcd(number: int) -> int:
    return sum(number // 10**digit % 10 << 4 * digit for digit in range(4))
