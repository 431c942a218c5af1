"""What firmware leaves behind: the keyboard controller, the A20 ports, and devices ready for a kernel."""

from __future__ import annotations

from typing import Any

import pytest
from device_rig import Op, Rig, Session, check_restore, traffic
from hypothesis import given
from hypothesis import strategies as st
from test_pc_board import EPOCH, Pc

from tt.errors import BadInput
from tt.vmm.boot.plan import BootPlan, CpuStart
from tt.vmm.config import MachineConfig
from tt.vmm.devices.kbc8042 import KeyboardController, SystemControlA
from tt.vmm.pc import firmware
from tt.vmm.pc.machine import PcMachine

FULL, BUSY, SYSTEM, SECOND, TIMEOUT = 1, 2, 4, 0x20, 0x40


@pytest.fixture
def pc() -> Pc:
    return Pc(firmware=True)


def answer(pc: Pc, command: int) -> int:
    """Return the controller's answer to a command, fetched as a careful kernel does."""
    assert not pc.inp(0x64) & BUSY
    pc.out(0x64, command)
    assert pc.inp(0x64) & FULL
    value = pc.inp(0x60)
    assert not pc.inp(0x64) & FULL
    return value


def test_waits_for_the_keyboard_controller_end(pc: Pc) -> None:
    """At power-on its buffers are empty, so both of a kernel's loops end at once."""
    assert pc.inp(0x64) & (FULL | BUSY) == 0
    assert pc.inp(0x64) & SYSTEM
    for command in range(256):
        if command < 0xF0:
            pc.out(0x64, command)
            assert not pc.inp(0x64) & BUSY
            pc.inp(0x60)
            assert not pc.inp(0x64) & FULL
    assert pc.power == []


def test_keyboard_controller_commands(pc: Pc) -> None:
    assert answer(pc, 0xAA) == 0x55
    assert answer(pc, 0xAB) == 0
    assert answer(pc, 0xD0) & 3 == 3, "A20 is open, nothing is in reset"
    pc.out(0x64, 0x60)
    pc.out(0x60, 0x44)
    assert answer(pc, 0x20) == 0x64, "bit 5 stays set: there is no second port"


def test_a20_through_the_keyboard_controller(pc: Pc) -> None:
    """The dance of a thousand boot loaders; none of its waits is for ever, and nothing resets."""
    output = answer(pc, 0xD0)
    pc.out(0x64, 0xD1)
    pc.out(0x60, output | 2)
    pc.out(0x64, 0xDF)
    assert answer(pc, 0xD0) == output
    assert pc.power == []
    pc.out(0x64, 0xD1)
    pc.out(0x60, 0xFE)
    assert pc.power == ["reset"]


def test_a_byte_to_the_keyboard_times_out_with_its_interrupt(pc: Pc) -> None:
    pc.init_pics()
    pc.out(0x60, 0xF2)
    assert pc.inp(0x64) & (FULL | SECOND | TIMEOUT) == FULL | TIMEOUT
    assert pc.board.acknowledge() == 0x31
    assert pc.inp(0x60) == 0xFE
    assert pc.inp(0x64) & (FULL | TIMEOUT) == 0
    pc.out(0x64, 0xD4)
    pc.out(0x60, 0xF2)
    assert pc.inp(0x64) & (FULL | SECOND | TIMEOUT) == FULL | SECOND | TIMEOUT


def test_resets(pc: Pc) -> None:
    pc.out(0x92, pc.inp(0x92) | 2)
    assert pc.power == [], "fast A20, as every loader writes it"
    assert pc.inp(0x92) == 2
    pc.out(0x92, 1)
    pc.out(0x64, 0xFE)
    assert pc.power == ["reset", "reset"]


def test_timer_and_pics_are_as_firmware_leaves_them(pc: Pc) -> None:
    """The first tick comes after a period of 18.2 Hz, at vector 8, without a single port written."""
    assert pc.board.intr is False
    assert (pc.inp(0x21), pc.inp(0xA1)) == (0xB8, 0x8E)
    pc.out(0x43, 0xE2)  # read back the status of counter 0
    assert pc.inp(0x40) & 0x3F == 0x36
    pc.rig.run(54_925_000)
    assert pc.board.intr is False
    pc.rig.run(2_000)
    assert pc.board.intr is True
    assert pc.board.acknowledge() == 8
    pc.out(0x20, 0x20)
    pc.rig.run(54_926_000)
    assert pc.board.acknowledge() == 8


def test_a_masked_timer_wakes_nobody(pc: Pc) -> None:
    """... so a guest that sleeps with it masked sleeps for ever, as before there was one."""
    assert pc.board.wakes_ns() is not None
    pc.out(0x21, 0xFF)
    assert pc.board.wakes_ns() is None
    pc.out(0x70, 0x0B)
    pc.out(0x71, 0x12)  # the clock's update interrupt
    assert pc.board.wakes_ns() is not None


def cmos(pc: Pc, index: int) -> int:
    pc.out(0x70, index)
    return pc.inp(0x71)


@pytest.mark.parametrize("mem", [16 << 20, 256 << 20, 6 << 30])
def test_cmos_sizes_and_checksum(mem: int) -> None:
    fields = firmware.cmos_fields(mem)
    word = {at: fields[at] | fields[at + 1] << 8 for at in (0x15, 0x17, 0x30, 0x34, 0x5B)}
    assert word[0x15] == 640
    assert word[0x17] == word[0x30] == min((mem >> 10) - 1024, 0xFFFF)
    below_4g = min(mem, 4 << 30)
    assert word[0x34] == min((below_4g - (16 << 20)) >> 16, 0xFFFF)
    assert word[0x5B] << 16 == mem - below_4g
    total = sum(fields.get(i, 0) for i in range(0x10, 0x2E))
    assert fields[0x2E] << 8 | fields[0x2F] == total


def test_cmos_is_read_through_its_ports(pc: Pc) -> None:
    assert cmos(pc, 0x14) == 2
    assert cmos(pc, 0x15) | cmos(pc, 0x16) << 8 == 640
    assert cmos(pc, 0x0F) == 0, "no shutdown status"


def test_the_board_of_older_traces_is_as_it_was() -> None:
    old = Pc()
    assert "kbc" not in old.board.devices
    assert old.inp(0x64) == old.inp(0x60) == old.inp(0x92) == 0xFF
    assert old.board.wakes_ns() is None
    with pytest.raises(BadInput, match="kbc"):
        old.board.load(Pc(firmware=True).board.save())


def machine(*, with_firmware: bool) -> PcMachine:
    start = CpuStart("protected32", 0x100000, {}, 0, 0x500, 31)
    plan = BootPlan([(0x100000, b"\xfa\xf4")], start, [], b"", None, "", "multiboot")
    return PcMachine(plan, 2 << 20, [], epoch=EPOCH, firmware=with_firmware)


def test_the_bios_data_area() -> None:
    ram = machine(with_firmware=True).engine
    assert ram.read(0x400, 2) == b"\xf8\x03"
    assert int.from_bytes(ram.read(0x413, 2), "little") == 639
    assert int.from_bytes(ram.read(0x40E, 2), "little") << 4 == 0x9FC00
    ticks = int.from_bytes(ram.read(0x46C, 4), "little")
    assert abs(ticks / 18.2065 - EPOCH % 86400) < 1
    assert not any(machine(with_firmware=False).engine.read(0, 0x500))


def test_a_description_without_the_field_is_of_an_older_machine() -> None:
    plain: dict[str, Any] = {
        "machine": "pc", "mem_bytes": 1 << 21, "period_ns": 4, "epoch": 0, "clock": "virtual",
        "boot_kind": "multiboot", "cmdline": "", "disks": [], "description": [],
    }  # fmt: skip
    assert MachineConfig.from_plain(plain, {}).firmware is False
    assert MachineConfig.from_plain({**plain, "firmware": True}, {}).firmware is True
    with pytest.raises(BadInput, match="damaged"):
        MachineConfig.from_plain({**plain, "firmware": 1}, {})


class Both:
    """The controller and port 0x92, as one target."""

    def __init__(self, rig: Rig) -> None:
        self.kbc = KeyboardController(rig.wire(), lambda reason: rig.reads.append(-1))
        self.port92 = SystemControlA(lambda reason: rig.reads.append(-2))

    def read(self, offset: int, size: int) -> int:
        return self.port92.read(0, size) if offset == 0x32 else self.kbc.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        (self.port92.write(0, size, value) if offset == 0x32 else self.kbc.write(offset, size, value))

    def save(self) -> dict[str, Any]:
        return {"kbc": self.kbc.save(), "port92": self.port92.save()}

    def load(self, state: dict[str, Any]) -> None:
        self.kbc.load(state["kbc"])
        self.port92.load(state["port92"])


def both_session() -> Session:
    rig = Rig()
    return Session(rig, Both(rig))


@given(traffic([0, 4, 0x32]), st.integers(0, 40))
def test_save_and_restore(ops: list[Op], cut: int) -> None:
    check_restore(both_session, ops, cut)
