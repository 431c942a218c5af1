"""The bus for devices in memory: who answers, in which pieces."""

from __future__ import annotations

import random

import pytest

from tt.errors import UsageError
from tt.vmm.boot.plan import BootPlan, CpuStart
from tt.vmm.bus import MemoryBus, Region
from tt.vmm.pc.machine import PcMachine


class Bytes:
    """Registers that tell of each access; `read` gives what was stored."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(range(size)) if size < 256 else bytearray(size)
        self.seen: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("r", offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("w", offset, size))
        self.data[offset : offset + size] = value.to_bytes(size, "little")


def bus_of(*places: tuple[int, int, int]) -> tuple[MemoryBus, list[Bytes], list[list[tuple[int, int]]]]:
    told: list[list[tuple[int, int]]] = []
    bus = MemoryBus(told.append)
    devices = []
    for base, size, width in places:
        devices.append(Bytes(size))
        bus.map(base, size, devices[-1], width)
    return bus, devices, told


def test_pieces_are_aligned_and_no_wider_than_the_device() -> None:
    bus, (device,), _ = bus_of((0x1000, 64, 4))
    assert bus.read(0x1000, 8) == 0x0706050403020100
    assert bus.read(0x1003, 4) == 0x06050403
    bus.write(0x1001, 7, 0x11223344556677)
    assert device.seen == [
        ("r", 0, 4), ("r", 4, 4), ("r", 3, 1), ("r", 4, 2), ("r", 6, 1),
        ("w", 1, 1), ("w", 2, 2), ("w", 4, 4),
    ]  # fmt: skip
    assert device.data[:8] == b"\x00\x77\x66\x55\x44\x33\x22\x11"


def test_beside_a_device_there_is_nothing() -> None:
    """A page with a small device on it, and another device right behind the first."""
    bus, (first, second), told = bus_of((0x1004, 4, 4), (0x1008, 2, 1))
    assert bus.read(0x1000, 8) == 0x03020100FFFFFFFF
    assert bus.read(0x1008, 8) == 0xFFFFFFFFFFFF0100
    bus.write(0x1006, 8, 0x8877665544332211)
    assert (bytes(first.data), bytes(second.data)) == (b"\x00\x01\x11\x22", b"\x33\x44")
    assert ("w", 0, 1) in second.seen and ("w", 1, 1) in second.seen
    assert bus.read(0x9000, 8) == (1 << 64) - 1
    assert told == [[(0x1004, 4)], [(0x1004, 4), (0x1008, 2)]]


def test_any_access_is_that_of_its_bytes() -> None:
    chance = random.Random(1)
    bus, devices, _ = bus_of((0x1003, 9, 8), (0x100C, 20, 2), (0x1024, 3, 4), (0x1028, 64, 8))
    ram = bytearray(b"\xff" * 0x80)
    mapped = set()
    for (base, size), device in zip(
        [(0x1003, 9), (0x100C, 20), (0x1024, 3), (0x1028, 64)], devices, strict=True
    ):
        ram[base - 0x1000 : base - 0x1000 + size] = device.data
        mapped |= set(range(base - 0x1000, base - 0x1000 + size))
    for _ in range(500):
        at, size = chance.randrange(0, 0x78), chance.randrange(1, 9)
        if chance.random() < 0.5:
            value = chance.randrange(1 << 8 * size)
            bus.write(0x1000 + at, size, value)
            for i in range(size):
                if at + i in mapped:
                    ram[at + i] = value >> 8 * i & 0xFF
        assert bus.read(0x1000 + at, size) == int.from_bytes(ram[at : at + size], "little")
    widths = [max(size for _, _, size in device.seen) for device in devices]
    assert widths == [4, 2, 2, 8], "aligned pieces within the device"


def test_overlaps_are_refused_and_devices_can_go() -> None:
    bus, _, told = bus_of((0x1000, 16, 4))
    with pytest.raises(UsageError, match="another device's"):
        bus.map(0x100F, 1, Bytes(1))
    region = bus.map(0x1010, 1, Bytes(1))
    bus.unmap(region)
    assert bus.read(0x1010, 1) == 0xFF
    assert told[-1] == [(0x1000, 16)]


def test_devices_that_move_leave_the_others_alone() -> None:
    bus, _, told = bus_of((0x1000, 16, 4))
    fixed, one, two = (0x1000, 16), Region(0x2000, 8, Bytes(8), 4), Region(0x3000, 8, Bytes(8), 4)
    bus.move([one, two])
    assert told[-1] == [fixed, (0x2000, 8), (0x3000, 8)]
    with pytest.raises(UsageError, match="another device's"):
        bus.map(0x2007, 1, Bytes(1))
    bus.move([Region(0x100C, 8, Bytes(8), 4), two, Region(0x3004, 8, Bytes(8), 4)])
    assert told[-1] == [fixed, (0x3000, 8)], "what overlaps is not reached"
    before = len(told)
    bus.move([two])
    assert len(told) == before, "nothing has changed"
    bus.move([])
    assert told[-1] == [fixed]


def test_a_device_on_the_pc() -> None:
    """A kernel of two instructions loads from it and stores to it, in the hole below 4 GB."""
    # mov eax, [0xfec00004]; mov [0xfec00000], eax; cli; hlt
    code = b"\xa1\x04\x00\xc0\xfe\xa3\x00\x00\xc0\xfe\xfa\xf4"
    start = CpuStart("protected32", 0x100000, {}, 0, 0x500, 31)
    plan = BootPlan([(0x100000, code)], start, [], b"", None, "", "multiboot")
    machine = PcMachine(plan, 2 << 20, [], epoch=1)
    device = Bytes(16)
    machine.board.memory_bus.map(0xFEC00000, 16, device)
    assert machine.run().reason == "power"
    assert device.seen == [("r", 4, 4), ("w", 0, 4)]
    assert device.data[:8] == b"\x04\x05\x06\x07\x04\x05\x06\x07"
    with pytest.raises(Exception, match="does not lie"):
        machine.board.memory_bus.map(0xA0000, 16, device)
