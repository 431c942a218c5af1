"""The two ways a PC without ACPI resets itself: the keyboard controller and port 0xCF9.

The machine of older traces has no keyboard controller (those of newer ones do:
`kbc8042.py`): its ports read all ones, so that drivers give up at once.  Only its
"pulse output line 0" command, which is wired to reset, is heard
(8042 command 0xFE).  Port 0xCF9 is the reset control register of the 82371 (PIIX)
data sheet, section 2.5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tt.vmm.state import U8, misfit, pack, unpack

_PULSE_RESET = 0xFE


@dataclass(slots=True)
class State:
    """The reset control register's two bits that read back."""

    control: U8 = 0


class KeyboardReset:
    """The command port (0x64) of a keyboard controller that is not there.

    `on_power("reset")` is called when the guest asks for a reset.
    """

    def __init__(self, on_power: Callable[[str], None]) -> None:
        self._on_power = on_power

    def read(self, offset: int, size: int) -> int:
        """Return all ones."""
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Obey the reset command, ignore all others."""
        if value & 0xFF == _PULSE_RESET:
            self._on_power("reset")


class ResetControl:
    """The reset control register (0xCF9): a rising edge of bit 2 resets.

    Bit 1 chooses between a soft and a hard reset, which are the same here;
    `on_power("reset")` is called for both.
    """

    name = "reset"

    def __init__(self, on_power: Callable[[str], None]) -> None:
        self._on_power = on_power
        self.state = State()

    def read(self, offset: int, size: int) -> int:
        """Return the register."""
        return self.state.control

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the register, and reset when bit 2 goes from 0 to 1."""
        before, self.state.control = self.state.control, value & 6
        if value & 4 and not before & 4:
            self._on_power("reset")

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        loaded = unpack(State, state, self.name)
        if loaded.control & ~6:
            raise misfit(f"{self.name}.control", f"{loaded.control:#x} has bits that cannot be set")
        self.state = loaded
