"""The keyboard controller of a PC, an 8042 with no keyboard and no mouse, and its fast twin, port 0x92.

Source: IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and
auxiliary device controller" and "System control port A".  Every command is carried
out at once, so the input buffer is never full; a kernel that waits for the
controller gets on, and a driver that looks for it finds it and, soon after, that
nothing is plugged in: a byte to the keyboard is answered with 0xFE and the time-out
bit, as after 20 ms of silence on the wire, and there is no second port.

    status (0x64)   bit 0 output buffer full     bit 4 keyboard not locked: always
                    bit 1 input buffer full: never   bit 5 the byte is of the second port
                    bit 2 self-test passed       bit 6 time-out
                    bit 3 last write was a command

The A20 gate stays open: commands that would close it are taken and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from tt.vmm.line import Line
from tt.vmm.state import U8, misfit, pack, unpack

DATA, COMMAND = 0, 4  # offsets from port 0x60

_FULL, _SYSTEM, _WAS_COMMAND, _UNLOCKED, _SECOND, _TIMEOUT = 1, 4, 8, 0x10, 0x20, 0x40
_INTERRUPT, _KEYBOARD_OFF, _SECOND_OFF = 1, 0x10, 0x20  # of the command byte
_OUTPUT_PORT = 0xCF  # not in reset, A20 open, and lines that nothing drives
_RESEND = 0xFE


@dataclass(slots=True)
class State:
    """The controller's registers; `argument` is the command whose data byte comes next, 0 for none."""

    control: U8 = 0x65  # as firmware leaves it: interrupt, self-test passed, no second port, translation
    output: U8 = 0
    flags: Annotated[int, range(0x80)] = 0  # bits 0, 3, 5 and 6 of the status
    argument: U8 = 0


class KeyboardController:
    """Data at offset 0, status and commands at offset 4; `irq` is interrupt request 1.

    `on_power("reset")` is called when the guest pulses or clears the reset line.
    """

    name = "kbc"

    def __init__(self, irq: Line, on_power: Callable[[str], None]) -> None:
        self._irq = irq
        self._on_power = on_power
        self.state = State()

    def read(self, offset: int, size: int) -> int:
        """Return the byte in the output buffer, which is empty then, or the status."""
        s = self.state
        if offset == COMMAND:
            return s.flags | s.control & _SYSTEM | _UNLOCKED
        s.flags &= ~(_FULL | _SECOND | _TIMEOUT)
        self._update()
        return s.output

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command, or a byte of data: of the command before it, or else for the keyboard."""
        s = self.state
        value &= 0xFF
        if offset == COMMAND:
            s.flags |= _WAS_COMMAND
            s.argument = 0
            self._command(value)
            return
        s.flags &= ~_WAS_COMMAND
        command, s.argument = s.argument, 0
        if command == 0x60:
            s.control = value | _SECOND_OFF
            self._update()
        elif command == 0xD1:
            if not value & 1:
                self._on_power("reset")
        elif command in (0xD2, 0xD3):  # without a second port both fill the one buffer
            self._answer(value)
        elif command == 0xD4:
            self._answer(_RESEND, _SECOND | _TIMEOUT)
        elif not command:
            s.control &= ~_KEYBOARD_OFF
            self._answer(_RESEND, _TIMEOUT)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        loaded = unpack(State, state, self.name)
        if loaded.flags & ~(_FULL | _WAS_COMMAND | _SECOND | _TIMEOUT):
            raise misfit(f"{self.name}.flags", f"{loaded.flags:#x} has bits that are kept elsewhere")
        self.state = loaded
        self._irq.level = self._interrupting()

    def _command(self, command: int) -> None:
        s = self.state
        answers = {0xA9: 0x01, 0xAA: 0x55, 0xAB: 0x00, 0xC0: 0x80, 0xD0: _OUTPUT_PORT, 0xE0: 0x00}
        if command == 0xAA:
            s.control |= _SYSTEM | _KEYBOARD_OFF
        if command in answers:
            self._answer(answers[command])
        elif 0x20 <= command < 0x40:
            self._answer(s.control if command == 0x20 else 0)
        elif 0x60 <= command < 0x80 or 0xD1 <= command <= 0xD4:
            s.argument = command
        elif command == 0xAD:
            s.control |= _KEYBOARD_OFF
        elif command == 0xAE:
            s.control &= ~_KEYBOARD_OFF
        elif command >= 0xF0 and not command & 1:
            self._on_power("reset")

    def _answer(self, value: int, flags: int = 0) -> None:
        s = self.state
        s.output = value
        s.flags = s.flags & _WAS_COMMAND | _FULL | flags
        self._irq.set(False)  # a new byte is a new edge
        self._update()

    def _interrupting(self) -> bool:
        s = self.state
        return bool(s.flags & _FULL and not s.flags & _SECOND and s.control & _INTERRUPT)

    def _update(self) -> None:
        self._irq.set(self._interrupting())


class SystemControlA:
    """Port 0x92: a rising edge of bit 0 resets; bit 1, the A20 gate, is always set."""

    name = "port92"

    def __init__(self, on_power: Callable[[str], None]) -> None:
        self._on_power = on_power
        self.state = ControlState()

    def read(self, offset: int, size: int) -> int:
        """Return the register."""
        return self.state.control | 2

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the register, and reset when bit 0 goes from 0 to 1."""
        before, self.state.control = self.state.control, value & 9
        if value & 1 and not before & 1:
            self._on_power("reset")

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        loaded = unpack(ControlState, state, self.name)
        if loaded.control & ~9:
            raise misfit(f"{self.name}.control", f"{loaded.control:#x} has bits that are not kept")
        self.state = loaded


@dataclass(slots=True)
class ControlState:
    """The bits of port 0x92 that read back: reset, and the lock of the password."""

    control: U8 = 0
