"""What a CPU's accesses reach besides RAM: ports, and devices at guest-physical addresses.

A device's registers are offsets to it; the bus knows where they lie.  An access wider than a
device takes, or one that is not aligned, is split as a real bus does it: into aligned pieces,
upwards, of what the device takes.  Where nobody is, reads are all ones and writes do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tt.errors import UsageError
from tt.vmm.devices.device import Registers

_Read = Callable[[int, int], int]
_Write = Callable[[int, int, int], None]
# (read, write, offset in the device, widest access the device takes at once)
_Port = tuple[_Read, _Write, int, int]


class PortSpan(NamedTuple):
    """`size` ports from `base` are the registers of a device, from offset 0."""

    base: int
    size: int
    registers: Registers
    width: int = 1


class Ports:
    """The 65536 ports of x86's IN and OUT."""

    def __init__(self) -> None:
        self._fixed: dict[int, _Port] = {}
        self._ports: dict[int, _Port] = {}

    def claim(self, base: int, count: int, registers: Registers, width: int = 1, offset: int = 0) -> None:
        """Make `count` ports from `base` the registers from `offset` of a device.

        The device takes at most `width` bytes at once.
        """
        for i in range(count):
            self._fixed[base + i] = (registers.read, registers.write, offset + i, width)

    def move(self, spans: Iterable[PortSpan]) -> None:
        """Replace the ports that can move.

        Where things overlap, claimed ports win, and then the first span.
        """
        ports: dict[int, _Port] = {}
        for base, size, registers, width in reversed(list(spans)):
            for i in range(size):
                ports[base + i] = (registers.read, registers.write, i, width)
        ports.update(self._fixed)
        self._ports = ports

    def read(self, port: int, size: int) -> int:
        """Return what the guest reads: `size` bytes (1, 2 or 4) from `port`."""
        entry = self._ports.get(port)
        if entry is not None and size <= entry[3]:
            return entry[0](entry[2], size)
        if size == 1:
            return 0xFF
        # Wider than what is there: the bus splits the access, byte by byte upwards.
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """Store `size` bytes (1, 2 or 4) at `port`."""
        entry = self._ports.get(port)
        if entry is not None and size <= entry[3]:
            entry[1](entry[2], size, value)
        elif size > 1:
            for i in range(size):
                self.write(port + i & 0xFFFF, 1, value >> 8 * i & 0xFF)


class Region(NamedTuple):
    """`size` bytes from guest-physical `base` are a device's, which takes at most `width` bytes at once."""

    base: int
    size: int
    registers: Registers
    width: int

    def overlaps(self, other: Region) -> bool:
        """Whether an address is in both."""
        return self.base < other.base + other.size and other.base < self.base + self.size


class MemoryBus:
    """Devices at guest-physical addresses outside RAM.

    `on_change(spans)` is told where they lie, as (address, bytes), whenever that changes;
    the engine's `map_devices` is what to give.
    """

    def __init__(self, on_change: Callable[[list[tuple[int, int]]], None]) -> None:
        self._fixed: list[Region] = []
        self._regions: list[Region] = []  # those that can move too
        self._on_change = on_change

    def map(self, base: int, size: int, registers: Registers, width: int = 4) -> Region:
        """Let a device answer at `size` bytes from `base`, in pieces of at most `width` (1, 2, 4 or 8) bytes.

        Raises `UsageError` where something else answers.
        """
        region = Region(base, size, registers, width)
        if any(region.overlaps(other) for other in self._regions):
            raise UsageError(f"addresses {base:#x} to {base + size:#x} are another device's already")
        self._fixed.append(region)
        self._regions.append(region)
        self._changed()
        return region

    def move(self, regions: Iterable[Region]) -> None:
        """Replace the regions that can move; one that overlaps another is left out."""
        kept = list(self._fixed)
        for region in regions:
            if not any(region.overlaps(other) for other in kept):
                kept.append(region)
        if kept != self._regions:
            self._regions = kept
            self._changed()

    def unmap(self, region: Region) -> None:
        """Take a device that `map` has put there away again."""
        self._fixed.remove(region)
        self._regions.remove(region)
        self._changed()

    def read(self, addr: int, size: int) -> int:
        """Return what the guest loads: `size` bytes (1 to 8) at `addr`."""
        value = 0
        for at, length, region in self._pieces(addr, size):
            piece = (1 << 8 * length) - 1
            if region is not None:
                piece &= region.registers.read(at - region.base, length)
            value |= piece << 8 * (at - addr)
        return value

    def write(self, addr: int, size: int, value: int) -> None:
        """Store `size` bytes (1 to 8) at `addr`."""
        for at, length, region in self._pieces(addr, size):
            if region is not None:
                piece = value >> 8 * (at - addr) & (1 << 8 * length) - 1
                region.registers.write(at - region.base, length, piece)

    def _pieces(self, addr: int, size: int) -> Iterable[tuple[int, int, Region | None]]:
        # Aligned, upwards, each of one region or of none.
        at, end = addr, addr + size
        while at < end:
            region = self._at(at)
            length = region.width if region else 8
            while at % length or at + length > end or not self._fits(region, at, length):
                length //= 2
            yield at, length, region
            at += length

    def _fits(self, region: Region | None, at: int, length: int) -> bool:
        if region is not None:
            return at + length <= region.base + region.size
        return all(self._at(at + i) is None for i in range(1, length))

    def _at(self, addr: int) -> Region | None:
        for region in self._regions:
            if region.base <= addr < region.base + region.size:
                return region
        return None

    def _changed(self) -> None:
        self._on_change([(region.base, region.size) for region in self._regions])
