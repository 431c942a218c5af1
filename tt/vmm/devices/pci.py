"""A PCI bus behind configuration mechanism 1, with an I/O BAR and a memory BAR a function.

Source: PCI Local Bus Specification 2.1, section 3.2.2.3.2 (configuration
mechanism 1), 6.1 (configuration space) and 6.2.5 (base addresses).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tt.vmm.devices.device import Registers
from tt.vmm.line import Line
from tt.vmm.state import U32, misfit, pack, unpack

SLOTS = 32
_COMMAND, _INTERRUPT_LINE, _BAR0 = 0x04, 0x3C, 0x10
_IO_ENABLE, _MEMORY_ENABLE = 1, 2


@dataclass(slots=True)
class FunctionState:
    """The 256 bytes of configuration space."""

    config: bytearray = field(default_factory=lambda: bytearray(256))


class PciFunction:
    """The configuration space of one single-function device.

    `bar_size` (bytes, a power of two, or 0) is the size of the I/O BAR, number `bar_number`, behind
    which `registers` answers; `memory_size` that of BAR 0 in memory (32 bits wide), behind which
    `memory_registers` does.  `bar`, `memory_bar`, `irq` and decoding are set up as firmware would
    leave them.
    """

    def __init__(
        self,
        name: str,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
        registers: Registers | None = None,
        bar_size: int = 0,
        bar: int = 0,
        irq: int = 0,
        bar_number: int = 0,
        memory_registers: Registers | None = None,
        memory_size: int = 0,
        memory_bar: int = 0,
    ) -> None:
        self.name = name
        self.registers = registers
        self.bar_size = bar_size
        self.memory_registers = memory_registers
        self.memory_size = memory_size
        self._io_bar = _BAR0 + 4 * bar_number
        self.on_map: Callable[[], None] = lambda: None
        self.state = FunctionState()
        self._writable = bytearray(256)
        config = self.state.config
        config[0x00:0x04] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
        config[0x08:0x0C] = (class_code << 8 | revision).to_bytes(4, "little")
        config[0x2C:0x30] = subsystem_vendor.to_bytes(2, "little") + subsystem.to_bytes(2, "little")
        self._writable[_COMMAND] = 0x07  # I/O, memory, bus master
        self._writable[0x0C] = self._writable[0x0D] = 0xFF  # cache line size, latency timer
        if bar_size:
            config[_COMMAND] = _IO_ENABLE
            at = self._io_bar
            config[at : at + 4] = (bar | 1).to_bytes(4, "little")
            self._writable[at : at + 4] = (0x1_0000_0000 - bar_size).to_bytes(4, "little")
        if memory_size:
            config[_COMMAND] |= _MEMORY_ENABLE
            config[_BAR0 : _BAR0 + 4] = memory_bar.to_bytes(4, "little")
            self._writable[_BAR0 : _BAR0 + 4] = (0x1_0000_0000 - memory_size).to_bytes(4, "little")
        if irq:
            config[_INTERRUPT_LINE : _INTERRUPT_LINE + 2] = bytes((irq, 1))  # INTA#
            self._writable[_INTERRUPT_LINE] = 0xFF

    def could_hold(self, config: bytes | bytearray) -> bool:
        """Tell whether the guest can have made this configuration space of it."""
        mine = self.state.config
        return all((mine[i] ^ config[i]) & ~self._writable[i] == 0 for i in range(len(mine)))

    def io_base(self) -> int | None:
        """Return the first port of the I/O BAR, or None while nothing is decoded there."""
        config = self.state.config
        if not self.bar_size or not config[_COMMAND] & _IO_ENABLE:
            return None
        base = int.from_bytes(config[self._io_bar : self._io_bar + 4], "little") & ~3
        return base if base + self.bar_size <= 0x10000 else None

    def memory_base(self) -> int | None:
        """Return the first address of the memory BAR, or None while nothing is decoded there."""
        config = self.state.config
        if not self.memory_size or not config[_COMMAND] & _MEMORY_ENABLE:
            return None
        return int.from_bytes(config[_BAR0 : _BAR0 + 4], "little") & ~15

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes of configuration space."""
        return int.from_bytes(self.state.config[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the writable bits of `size` bytes of configuration space."""
        config = self.state.config
        before = self.io_base(), self.memory_base()
        for i in range(offset, offset + size):
            mask = self._writable[i]
            config[i] = config[i] & ~mask | value & mask
            value >>= 8
        if (self.io_base(), self.memory_base()) != before:
            self.on_map()


@dataclass(slots=True)
class State:
    """The address register and each function's configuration space, by slot (None: empty)."""

    address: U32 = 0
    slots: list[FunctionState | None] = field(default_factory=lambda: [None] * SLOTS)


class PciBus:
    """Bus 0 and the configuration ports: address at offset 0, data at offset 4.

    INTA# of slot n is wired to `intx[n % len(intx)]`, several slots to one line;
    `on_map` is called whenever a BAR may have moved, appeared or gone.
    """

    name = "pci"

    def __init__(self, intx: list[Line], on_map: Callable[[], None]) -> None:
        self._intx = intx
        self._sources: list[list[Line]] = [[] for _ in intx]
        self._on_map = on_map
        self._address = 0
        self._slots: list[PciFunction | None] = [None] * SLOTS

    def interrupt(self, slot: int) -> Line:
        """Return a line for the INTA# pin of `slot`."""
        sources, target = self._sources[slot % len(self._intx)], self._intx[slot % len(self._intx)]
        line = Line(lambda _: target.set(any(source.level for source in sources)))
        sources.append(line)
        return line

    def add(self, slot: int, function: PciFunction) -> None:
        """Put a device into `slot` (0-31)."""
        self._slots[slot] = function
        function.on_map = self._on_map
        self._on_map()

    def io_regions(self) -> list[tuple[int, int, Registers]]:
        """Return (first port, size, registers) of each I/O BAR that is decoded, by slot."""
        regions = []
        for function in self._slots:
            if function is not None and function.registers is not None:
                base = function.io_base()
                if base is not None:
                    regions.append((base, function.bar_size, function.registers))
        return regions

    def memory_regions(self) -> list[tuple[int, int, Registers]]:
        """Return (first address, size, registers) of each memory BAR that is decoded, by slot."""
        regions = []
        for function in self._slots:
            if function is not None and function.memory_registers is not None:
                base = function.memory_base()
                if base is not None:
                    regions.append((base, function.memory_size, function.memory_registers))
        return regions

    def read(self, offset: int, size: int) -> int:
        """Return the address register (whole only), or configuration data; absent devices read all ones."""
        if offset < 4:
            return self._address if (offset, size) == (0, 4) else _ones(size)
        function, register = self._selected(offset)
        size_here = min(size, 8 - offset)
        if function is None:
            return _ones(size)
        return function.read(register, size_here) | _ones(size) & ~_ones(size_here)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the address register (whole only), or configuration data."""
        if offset < 4:
            if (offset, size) == (0, 4):
                self._address = value & 0x80FF_FFFC
            return
        function, register = self._selected(offset)
        if function is not None:
            function.write(register, min(size, 8 - offset), value)

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(State(self._address, [f.state if f else None for f in self._slots]))

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back and map the I/O BARs accordingly."""
        s = unpack(State, state, self.name)
        pairs = list(zip(self._slots, s.slots, strict=True))
        if any((function is None) != (saved is None) for function, saved in pairs):
            raise misfit(f"{self.name}.slots", "other slots are in use")
        for slot, (function, saved) in enumerate(pairs):
            if function is not None and saved is not None and not function.could_hold(saved.config):
                raise misfit(f"{self.name}.slots[{slot}].config", "bytes differ that cannot be written")
        self._address = s.address
        for function, saved in pairs:
            if function is not None and saved is not None:
                function.state = saved
        self._on_map()

    def _selected(self, offset: int) -> tuple[PciFunction | None, int]:
        address = self._address
        register = address & 0xFC | offset & 3
        if not address & 0x8000_0000 or address & 0x00FF_0700:
            return None, register  # disabled, or another bus or function
        return self._slots[address >> 11 & 31], register


def host_bridge() -> PciFunction:
    """Return the host bridge of an i440FX (82441FX data sheet, section 3.2), configuration only."""
    return PciFunction("host-bridge", 0x8086, 0x1237, 0x06_00_00, revision=2)


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1
