"""What every device is."""

from __future__ import annotations

from typing import Any, Protocol


class Stateful(Protocol):
    """Something with a name whose whole state can be saved and put back."""

    name: str

    def save(self) -> dict[str, Any]:
        """Return the whole state as JSON-able data."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState` when the device could not have saved it."""
        ...


class Registers(Protocol):
    """A block of registers: offsets within the block, not port numbers."""

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes (1, 2 or 4) at `offset`, little-endian."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `size` bytes at `offset`."""
        ...


class Device(Stateful, Registers, Protocol):
    """A device with one block of registers."""
