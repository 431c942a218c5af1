"""Port 0x61 of a PC: speaker, gate and output of timer 2, refresh toggle.

Source: NMI status and control register, 82371 (PIIX) data sheet, section 2.5.4.1.

    bit 0  gate of timer 2       bit 4  refresh toggle (read only)
    bit 1  speaker on            bit 5  output of timer 2 (read only)
    bit 2  SERR# disabled        bit 6  IOCHK# happened: never
    bit 3  IOCHK# disabled       bit 7  SERR# happened: never
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tt.vmm.clock import Clock
from tt.vmm.devices.pit8254 import Pit8254
from tt.vmm.state import pack, unpack

REFRESH_NS = 15_085  # one DRAM row: 18 PIT clocks


@dataclass(slots=True)
class State:
    """The four bits that can be written."""

    control: Annotated[int, range(16)] = 0


class Port61:
    """One register; time and timer 2 come from `clock` and `pit`."""

    name = "port61"

    def __init__(self, clock: Clock, pit: Pit8254) -> None:
        self._clock = clock
        self._pit = pit
        self.state = State()

    def read(self, offset: int, size: int) -> int:
        """Return the register."""
        refresh = self._clock.now() // REFRESH_NS & 1
        return self.state.control | refresh << 4 | self._pit.out2() << 5

    def write(self, offset: int, size: int, value: int) -> None:
        """Store bits 0-3; bit 0 drives the gate of timer 2."""
        self.state.control = value & 0x0F
        self._pit.gate2 = bool(value & 1)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the timer restores its own gate."""
        self.state = unpack(State, state, self.name)
