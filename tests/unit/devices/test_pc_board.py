"""The board: which ports answer, what is wired to what, and that all of it is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from device_rig import Rig
from virtio_driver import Driver, RamDisk

from tt.errors import BadInput, UsageError
from tt.events import Kind
from tt.vmm.disk import Disk
from tt.vmm.pc.board import MAX_DISKS, Board

EPOCH = 1_700_000_000


class Pc:
    """A board on a rig, with two disks."""

    def __init__(
        self, disks: int = 2, host_clock: Callable[[], int] | None = None, firmware: bool = False
    ) -> None:
        self.rig = Rig(1 << 18)
        self.disks = [RamDisk(16) for _ in range(disks)]
        self.power: list[str] = []
        self.intr: list[bool] = []
        handed: list[Disk] = list(self.disks)
        self.board = Board(
            self.rig.clock,
            self.rig.door,
            self.rig.memory,
            handed,
            entropy=lambda size: b"r" * size,
            epoch=EPOCH,
            on_intr=self.intr.append,
            on_power=self.power.append,
            host_clock=host_clock,
            firmware=firmware,
        )

    def out(self, port: int, value: int, size: int = 1) -> None:
        self.board.write(port, size, value)

    def inp(self, port: int, size: int = 1) -> int:
        return self.board.read(port, size)

    def config(self, slot: int, register: int) -> int:
        self.out(0xCF8, 0x8000_0000 | slot << 11 | register, 4)
        return self.inp(0xCFC, 4)

    def init_pics(self) -> None:
        for base, vector, icw3 in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
            for port, value in ((base, 0x11), (base + 1, vector), (base + 1, icw3), (base + 1, 1)):
                self.out(port, value)

    def bar(self, slot: int) -> Bar:
        return Bar(self, self.config(slot, 0x10) & ~3)


class Bar:
    """The I/O BAR of a slot, through the board's ports."""

    def __init__(self, pc: Pc, base: int) -> None:
        self.pc, self.base = pc, base

    def read(self, offset: int, size: int) -> int:
        return self.pc.inp(self.base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.pc.out(self.base + offset, value, size)


@pytest.fixture
def pc() -> Pc:
    return Pc()


@pytest.mark.parametrize("port", [0x60, 0x64, 0x80, 0x92, 0x1F7, 0x2F8, 0x3F7, 0x604, 0xC000, 0xFFFF])
def test_nobody_home(pc: Pc, port: int) -> None:
    """Unclaimed ports read all ones in any size and ignore writes; COM2 and the keyboard are not there."""
    pc.out(port, 0x12)
    assert pc.inp(port) == 0xFF
    if port not in (0x60, 0x3F7):  # their neighbours answer
        assert pc.inp(port, 2) == 0xFFFF


def test_wide_accesses_are_split(pc: Pc) -> None:
    """A word at a byte device is two bytes at two ports, as on the ISA bus."""
    pc.out(0x3F8 + 3, 0x80)
    pc.out(0x3F8, 0x0201, 2)
    assert pc.inp(0x3F8, 2) == 0x0201
    assert pc.inp(0x3F7, 2) == 0x01FF
    assert pc.inp(0x3F8, 4) >> 24 == 0x80
    assert pc.inp(0xFFFF, 2) == 0xFFFF


def test_reset_ports(pc: Pc) -> None:
    """0xFE to the keyboard controller, or the reset control register inside CONFIG_ADDRESS's ports."""
    pc.out(0x64, 0xFE)
    assert pc.power == ["reset"]
    pc.out(0xCF8, 0x80000600, 4)
    assert pc.power == ["reset"], "a double word at 0xCF8 is a configuration address"
    pc.out(0xCF9, 2)
    pc.out(0xCF9, 6)
    assert pc.power == ["reset", "reset"]


def test_wall_clock(pc: Pc) -> None:
    pc.out(0x70, 9)
    assert pc.inp(0x71) == 0x23


def test_speaker_timer(pc: Pc) -> None:
    """Linux's calibration: timer 2 in mode 0 behind the gate of port 0x61."""
    pc.out(0x61, 1)
    pc.out(0x43, 0xB0)
    pc.out(0x42, 0xFF)
    pc.out(0x42, 0x00)
    assert not pc.inp(0x61) & 0x20
    pc.rig.run(220_000)
    assert pc.inp(0x61) & 0x20


def test_timer_interrupt(pc: Pc) -> None:
    """PIT to IRQ 0 to INTR to vector; the door hears of the timer as unit 0."""
    pc.init_pics()
    pc.out(0x43, 0x34)
    pc.out(0x40, 0xA9)
    pc.out(0x40, 0x04)
    pc.board.acknowledge()
    pc.out(0x20, 0x20)
    pc.intr.clear()
    pc.rig.run(1_001_000)
    assert pc.intr == [True]
    assert pc.board.acknowledge() == 0x30
    assert pc.intr == [True, False]
    assert [(e.kind, e.unit) for e in pc.rig.events] == [(Kind.TIMER, 0)]


def test_console(pc: Pc) -> None:
    """COM1 to the door, byte by byte; input raises IRQ 4."""
    pc.init_pics()
    pc.out(0x3FB, 3)
    for byte in b"ok\n":
        pc.out(0x3F8, byte)
    assert [(e.kind, e.unit, e.data) for e in pc.rig.events] == [
        (Kind.CONSOLE, 0, b"o"),
        (Kind.CONSOLE, 0, b"k"),
        (Kind.CONSOLE, 0, b"\n"),
    ]
    pc.out(0x3F9, 1)
    assert pc.board.wants_input
    pc.board.console_input(0, b"hi")
    pc.board.console_input(7, b"nobody")
    assert pc.board.acknowledge() == 0x34
    assert bytes([pc.inp(0x3F8), pc.inp(0x3F8)]) == b"hi"
    assert pc.inp(0x3FD) == 0x60


def test_pci_population(pc: Pc) -> None:
    """Bridge, disks, entropy; interrupt lines 10 and 11 in turn, level-triggered; BARs decoded."""
    assert pc.config(0, 0) == 0x1237_8086
    assert [pc.config(slot, 0) for slot in (1, 2, 3, 4)] == [0x10011AF4, 0x10011AF4, 0x10051AF4, 0xFFFFFFFF]
    assert [pc.config(slot, 0x2C) for slot in (1, 2, 3)] == [0x21AF4, 0x21AF4, 0x41AF4]
    assert [pc.config(slot, 8) & 0xFF for slot in (1, 2, 3)] == [0, 0, 0]
    assert [pc.config(slot, 0x3C) for slot in (1, 2, 3)] == [0x10B, 0x10A, 0x10B]
    assert pc.inp(0x4D0, 2) == 0x0C00
    assert [pc.inp(pc.bar(slot).base + 0x14, 4) for slot in (1, 2, 3)] == [16, 16, 0]


def test_disk_request(pc: Pc) -> None:
    """Through ports, DMA, router, disk, door and interrupt."""
    pc.init_pics()
    driver = Driver(pc.bar(2), pc.rig.memory)
    out = (1).to_bytes(4, "little") + bytes(4) + (3).to_bytes(8, "little")
    assert driver.request([out, b"d" * 512], [1]) == (1, b"\0")
    driver.kick()
    assert pc.disks[1].log == [("write", 3, 1)]
    assert pc.rig.events[-1][1:] == (Kind.DISK_WRITE, 1, 3, b"d" * 512)
    assert pc.board.acknowledge() == 0x3A
    assert driver.request([(4).to_bytes(4, "little") + bytes(12)], [1]) == (1, b"\0")
    assert pc.rig.events[-1][1:] == (Kind.DISK_FLUSH, 1, 0, b"")


def test_entropy(pc: Pc) -> None:
    assert Driver(pc.bar(3), pc.rig.memory).request([], [3]) == (3, b"rrr")
    assert pc.rig.events[-1].kind == Kind.ENTROPY


def test_moving_a_bar(pc: Pc) -> None:
    """The port map follows the BAR; fixed ports cannot be taken over; decoding off unmaps."""
    old = pc.bar(1).base
    pc.out(0xCFC, 0xD000, 4)
    assert pc.inp(old + 0x14, 4) == 0xFFFFFFFF
    assert pc.inp(0xD014, 4) == 16
    pc.out(0xCFC, 0x3C0, 4)
    assert pc.inp(0x3D4, 4) == 16
    assert pc.inp(0x3FD) == 0x60, "COM1 is stronger"
    pc.config(1, 4)
    pc.out(0xCFC, 0, 2)
    assert pc.inp(0x3D4, 4) == 0xFFFFFFFF
    pc.out(0xCFC, 1, 2)
    assert pc.inp(0x3D4, 4) == 16


def test_too_many_disks() -> None:
    with pytest.raises(UsageError, match="31 disks"):
        Pc(MAX_DISKS + 1)
    Pc(MAX_DISKS)


def test_host_clock() -> None:
    pc = Pc(0, host_clock=lambda: (EPOCH + 7) * 1_000_000_000)
    pc.out(0x70, 0)
    assert pc.inp(0x71) == 0x27
    assert pc.rig.events[-1].kind == Kind.CLOCK


def test_every_device_is_saved(pc: Pc) -> None:
    names = ["pic", "pit", "cmos", "port61", "com1", "reset", "pci"]
    names += ["virtio-blk0", "virtio-blk1", "virtio-rng"]
    assert list(pc.board.devices) == names
    assert list(pc.board.save()) == names
    json.dumps(pc.board.save())


def test_restore_tells_the_cpu_about_intr(pc: Pc) -> None:
    """INTR is a level: after a restore the CPU must see it even if nothing changes."""
    pc.init_pics()
    assert not pc.board.intr
    pc.out(0x3F9, 2)
    assert pc.intr[-1]
    assert pc.board.intr
    other = Pc()
    other.board.load(pc.board.save())
    assert other.intr == [True]
    assert other.board.acknowledge() == 0x34


def test_restore_into_another_machine(pc: Pc) -> None:
    with pytest.raises(BadInput, match="virtio-blk1"):
        Pc(1).board.load(pc.board.save())


@pytest.mark.parametrize("device", ["pic", "pit", "cmos", "port61", "com1", "reset", "pci", "virtio-rng"])
def test_damaged_state_is_refused(pc: Pc, device: str) -> None:
    state: dict[str, Any] = pc.board.save()
    field = next(iter(state[device]))
    state[device][field] = "damaged"
    with pytest.raises(BadInput, match=device):
        pc.board.load(state)
