"""The PCI bus, from the PCI Local Bus Specification 2.1's point of view."""

from __future__ import annotations

import pytest
from device_rig import Rig

from tt.errors import BadInput
from tt.vmm.devices.pci import PciBus, PciFunction, host_bridge

ONES = 0xFFFFFFFF


class Nothing:
    """Registers that read as their offset."""

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("nobody writes here")


class Bench:
    """A bus with a host bridge and a card with an I/O BAR of 64 ports in slot 3."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.maps = 0
        self.bus = PciBus([self.rig.wire("a"), self.rig.wire("b")], self._mapped)
        self.bus.add(0, host_bridge())
        self.registers = Nothing()
        self.card = PciFunction(
            "card",
            0x1AF4,
            0x1001,
            0x010000,
            subsystem_vendor=0x1AF4,
            subsystem=2,
            registers=self.registers,
            bar_size=0x40,
            bar=0xC0C0,
            irq=11,
        )
        self.bus.add(3, self.card)
        self.maps = 0

    def _mapped(self) -> None:
        self.maps += 1

    def select(self, register: int, slot: int = 3, function: int = 0, bus: int = 0) -> None:
        self.bus.write(0, 4, 0x8000_0000 | bus << 16 | slot << 11 | function << 8 | register)

    def get(self, register: int, size: int = 4, slot: int = 3) -> int:
        self.select(register & ~3, slot)
        return self.bus.read(4 + (register & 3), size)

    def put(self, register: int, size: int, value: int) -> None:
        self.select(register & ~3)
        self.bus.write(4 + (register & 3), size, value)

    def base(self) -> int | None:
        regions = self.bus.io_regions()
        return regions[0][0] if regions else None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_mechanism_one_probe(bench: Bench) -> None:
    """3.2.2.3.2: only whole double words reach CONFIG_ADDRESS (this is how Linux probes for it)."""
    bench.bus.write(3, 1, 0x01)
    assert bench.bus.read(0, 4) == 0
    bench.bus.write(0, 4, 0x8000_0000)
    assert bench.bus.read(0, 4) == 0x8000_0000
    bench.bus.write(0, 2, 0x1234)
    assert bench.bus.read(0, 4) == 0x8000_0000
    assert bench.bus.read(0, 1) == 0xFF
    bench.bus.write(0, 4, ONES)
    assert bench.bus.read(0, 4) == 0x80FF_FFFC, "reserved bits read 0"


def test_identity(bench: Bench) -> None:
    """6.2.1 device identification, in each access size."""
    assert bench.get(0, slot=0) == 0x1237_8086
    assert bench.get(8, slot=0) == 0x0600_0002
    assert bench.get(0) == 0x1001_1AF4
    assert [bench.get(i, 1) for i in range(4)] == [0xF4, 0x1A, 0x01, 0x10]
    assert (bench.get(0, 2), bench.get(2, 2)) == (0x1AF4, 0x1001)
    assert bench.get(0x2C) == 0x0002_1AF4
    assert bench.get(0x3C, 2) == 0x010B
    bench.put(0, 4, 0)
    assert bench.get(0) == 0x1001_1AF4


def test_absent(bench: Bench) -> None:
    """A read that nobody claims ends in master abort: all ones."""
    assert bench.get(0, slot=7) == ONES
    bench.select(0, function=1)
    assert bench.bus.read(4, 4) == ONES
    bench.select(0, bus=1)
    assert bench.bus.read(4, 2) == 0xFFFF
    bench.bus.write(4, 4, 0)
    bench.bus.write(0, 4, 3 << 11)
    assert bench.bus.read(4, 4) == ONES, "bit 31 of the address enables"


def test_sizing_a_base_address(bench: Bench) -> None:
    """6.2.5.1: write all ones, read back the size; I/O BARs have bit 0 set."""
    assert bench.get(0x10) == 0xC0C1
    bench.put(0x10, 4, ONES)
    assert bench.get(0x10) == 0xFFFF_FFC1
    assert (~(bench.get(0x10) & ~3) & ONES) + 1 == 0x40
    assert bench.base() is None, "nothing is decoded up there"
    bench.put(0x10, 4, 0xD000)
    assert bench.base() == 0xD000
    assert bench.maps == 2
    bench.put(0x14, 4, ONES)
    assert bench.get(0x14) == 0, "no other base address"


def test_io_decoding(bench: Bench) -> None:
    """6.2.2: command bit 0 enables I/O; other bits that mean nothing here stay 0."""
    assert bench.bus.io_regions() == [(0xC0C0, 0x40, bench.registers)]
    bench.put(4, 2, 0)
    assert bench.base() is None
    bench.put(4, 2, 0xFFFF)
    assert bench.get(4, 2) == 7
    assert bench.base() == 0xC0C0
    bench.put(4, 2, 5)
    assert bench.maps == 2, "no change of decoding, no call"


def test_scratch_registers(bench: Bench) -> None:
    """Cache line size, latency timer and interrupt line keep what is written, the pin does not."""
    bench.put(0x0C, 4, ONES)
    assert bench.get(0x0C) == 0x0000_FFFF
    bench.put(0x3C, 4, 0x0000_FF05)
    assert bench.get(0x3C) == 0x0000_0105


def test_access_that_runs_over_the_window(bench: Bench) -> None:
    """Only four bytes are behind CONFIG_DATA; what sticks out is not there."""
    bench.select(0)
    assert bench.bus.read(7, 2) == 0xFF10
    bench.select(0xFC)
    bench.bus.write(7, 4, ONES)
    assert bench.bus.read(7, 1) == 0


def test_interrupt_lines_are_shared(bench: Bench) -> None:
    """INTA# of several slots on one line: it is up while any of them is."""
    one, three, two = bench.bus.interrupt(1), bench.bus.interrupt(3), bench.bus.interrupt(2)
    one.set(True)
    three.set(True)
    one.set(False)
    assert bench.rig.levels("b") == [True]
    three.set(False)
    assert bench.rig.levels("b") == [True, False]
    two.set(True)
    assert bench.rig.levels("a") == [True]


def test_restore(bench: Bench) -> None:
    """Configuration space and the mapping of the BAR come back."""
    bench.put(0x10, 4, 0xD000)
    bench.put(0x3C, 1, 5)
    other = Bench()
    other.bus.load(bench.bus.save())
    assert other.maps == 1
    assert other.base() == 0xD000
    assert other.bus.read(4, 4) == bench.bus.read(4, 4)
    assert other.bus.save() == bench.bus.save()


def test_restore_of_another_bus(bench: Bench) -> None:
    bench.bus.add(9, PciFunction("extra", 1, 2, 3))
    with pytest.raises(BadInput, match="slots"):
        Bench().bus.load(bench.bus.save())
