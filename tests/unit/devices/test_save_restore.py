"""Random traffic, a save and restore at a random point, and the same continuation, for every device."""

from __future__ import annotations

from typing import Any

import pytest
from device_rig import Op, Session, check_restore, traffic
from hypothesis import given
from hypothesis import strategies as st
from test_pc_board import Pc
from test_pci import Bench as PciBench
from test_pic8259 import ready
from virtio_driver import Driver, RamDisk

from tt.vmm.devices.cmos import Cmos
from tt.vmm.devices.device import Device, Registers
from tt.vmm.devices.pic8259 import Pic8259
from tt.vmm.devices.pit8254 import Pit8254
from tt.vmm.devices.port61 import Port61
from tt.vmm.devices.uart16550 import Uart16550
from tt.vmm.devices.virtio_blk import VirtioBlk
from tt.vmm.devices.virtio_pci import VirtioPci
from tt.vmm.router import Router
from tt.vmm.wiring import wire_disk

Cut = st.integers(0, 40)


class Views:
    """Several blocks of registers as one target, 16 offsets each, saved by their owners."""

    def __init__(self, owners: list[Any], views: list[Registers]) -> None:
        self.owners, self.views = owners, views

    def read(self, offset: int, size: int) -> int:
        return self.views[offset >> 4].read(offset & 15, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.views[offset >> 4].write(offset & 15, size, value)

    def save(self) -> dict[str, Any]:
        return {str(i): owner.save() for i, owner in enumerate(self.owners)}

    def load(self, state: dict[str, Any]) -> None:
        for i, owner in enumerate(self.owners):
            owner.load(state[str(i)])


def pic_session() -> Session:
    rig = PciBench().rig
    pic = ready(Pic8259(rig.wire()))
    session = Session(rig, Views([pic], [pic.master, pic.slave, pic.elcr]))

    def line(value: int) -> None:
        irq = value & 15
        if irq != 2:
            pic.line(irq).set(bool(value & 16))

    session.extra = {"line": line, "inta": lambda _: rig.reads.append(pic.acknowledge())}
    return session


@given(traffic([0, 1, 16, 17, 32, 33], extra=["line", "inta"]), Cut)
def test_pic(ops: list[Op], cut: int) -> None:
    check_restore(pic_session, ops, cut)


def timer_session() -> Session:
    rig = PciBench().rig
    pit = Pit8254(rig.clock, rig.door, rig.wire())
    return Session(rig, Views([pit, port := Port61(rig.clock, pit)], [pit, port]))


@given(traffic([0, 1, 2, 3, 16]), Cut)
def test_pit_and_port61(ops: list[Op], cut: int) -> None:
    check_restore(timer_session, ops, cut)


@pytest.mark.parametrize("host", [False, True])
@given(ops=traffic([0, 1], most_ns=3_000_000_000), cut=Cut)
def test_cmos(host: bool, ops: list[Op], cut: int) -> None:
    def session() -> Session:
        rig = PciBench().rig
        clock = (lambda: 1_000_000_000 + rig.ns * 3 // 2) if host else None
        return Session(rig, Cmos(rig.clock, rig.door, rig.wire(), 1_700_000_000, clock))

    check_restore(session, ops, cut)


def uart_session() -> Session:
    rig = PciBench().rig
    uart = Uart16550("com1", rig.clock, rig.door, rig.wire(), rig.reads.extend)
    return Session(rig, uart, {"key": lambda value: uart.receive(bytes([value] * (value % 24)))})


@given(traffic(range(8), extra=["key"]), Cut)
def test_uart(ops: list[Op], cut: int) -> None:
    check_restore(uart_session, ops, cut)


def pci_session() -> Session:
    bench = PciBench()
    session = Session(bench.rig, bench.bus)
    session.extra = {"regions": lambda _: bench.rig.reads.extend(r[0] for r in bench.bus.io_regions())}
    return session


@given(traffic(range(8), sizes=(1, 2, 4), extra=["regions"]), Cut)
def test_pci(ops: list[Op], cut: int) -> None:
    check_restore(pci_session, [Op("write", 0, 4, 0x80001810), *ops], cut)


def virtio_session() -> Session:
    rig = PciBench().rig
    disk = RamDisk(16)
    port = wire_disk(Router(rig.door), rig.door, disk, 0)
    device = VirtioPci("blk", rig.memory, rig.wire(), VirtioBlk(port, "serial"))
    Driver(device, rig.memory, heap=0x4000).chain([bytes(16)], [512, 1])
    target: Device = device
    return Session(rig, target)


@given(traffic(range(0x20), sizes=(1, 2, 4)), Cut)
def test_virtio(ops: list[Op], cut: int) -> None:
    check_restore(virtio_session, ops, cut)


PORTS = [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, *range(0x3F8, 0x400)]
PORTS += [0x4D0, 0x4D1, 0xCF8, 0xCF9, 0xCFC, 0xCFE, 0xC040, 0xC048, 0xC04E, 0xC050, 0xC052, 0xC053, 0xC0D0]


def board_session() -> Session:
    pc = Pc()
    pc.init_pics()
    board, rig = pc.board, pc.rig
    driver = Driver(pc.bar(1), rig.memory)
    driver.chain([bytes(16)], [512, 1])
    rig.edges.clear()
    session = Session(rig, board)
    session.extra = {
        "key": lambda value: board.console_input(0, bytes([value] * (value % 24))),
        "inta": lambda _: rig.reads.append(board.acknowledge()),
        "kick": lambda _: driver.kick(),
    }
    return session


@given(traffic(PORTS, sizes=(1, 2, 4), extra=["key", "inta", "kick"]), Cut)
def test_whole_board(ops: list[Op], cut: int) -> None:
    """Everything wired together goes on alike, interrupts, events and memory included."""
    check_restore(board_session, ops, cut)
