"""Guest-physical memory as devices see it: bounds-checked DMA."""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """Guest-physical RAM; both calls raise `IndexError` outside it."""

    size: int

    def read(self, addr: int, size: int) -> bytes:
        """Return `size` bytes at guest-physical `addr`."""
        ...

    def write(self, addr: int, data: bytes) -> None:
        """Store `data` at guest-physical `addr`."""
        ...


class PlainMemory:
    """RAM without a CPU: for device tests and for laying out a boot image."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ram = bytearray(size)

    def read(self, addr: int, size: int) -> bytes:
        self._check(addr, size)
        return bytes(self.ram[addr : addr + size])

    def write(self, addr: int, data: bytes) -> None:
        self._check(addr, len(data))
        self.ram[addr : addr + len(data)] = data

    def _check(self, addr: int, size: int) -> None:
        if addr < 0 or size < 0 or addr + size > self.size:
            raise IndexError(f"guest-physical {addr:#x}+{size:#x} is outside RAM ({self.size:#x} bytes)")
