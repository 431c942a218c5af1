"""Port 0x61 and the reset ports, from the 82371 (PIIX) data sheet's point of view."""

from __future__ import annotations

from device_rig import Rig

from tt.vmm.devices.pit8254 import Pit8254, ns_at
from tt.vmm.devices.port61 import REFRESH_NS, Port61
from tt.vmm.devices.reset import KeyboardReset, ResetControl


def test_gate_output_and_speaker() -> None:
    """NMI status and control: bit 0 gates timer 2, bit 5 shows its output, bits 1-3 read back."""
    rig = Rig()
    pit = Pit8254(rig.clock, rig.door, rig.wire())
    port = Port61(rig.clock, pit)
    pit.write(3, 1, 0xB0)
    pit.write(2, 1, 100)
    pit.write(2, 1, 0)
    port.write(0, 1, 0xFF)
    assert pit.gate2
    assert port.read(0, 1) & 0xEF == 0x0F
    rig.run(ns_at(101))
    assert port.read(0, 1) & 0xEF == 0x2F
    port.write(0, 1, 0)
    assert not pit.gate2
    assert port.read(0, 1) & 0x0F == 0


def test_refresh_toggles() -> None:
    """Bit 4 toggles with every DRAM refresh, about 15 us."""
    rig = Rig()
    port = Port61(rig.clock, Pit8254(rig.clock, rig.door, rig.wire()))
    bits = []
    for _ in range(6):
        bits.append(port.read(0, 1) >> 4 & 1)
        rig.run(REFRESH_NS)
    assert bits == [0, 1, 0, 1, 0, 1]


def test_restore() -> None:
    rig = Rig()
    pit = Pit8254(rig.clock, rig.door, rig.wire())
    port = Port61(rig.clock, pit)
    port.write(0, 1, 3)
    other_rig = Rig()
    other_pit = Pit8254(other_rig.clock, other_rig.door, other_rig.wire())
    other = Port61(other_rig.clock, other_pit)
    other_pit.load(pit.save())
    other.load(port.save())
    assert other.read(0, 1) == port.read(0, 1)
    assert other_pit.gate2


def test_keyboard_reset() -> None:
    """8042 command 0xFE pulses the reset line; everything else goes unheard, and reads are all ones."""
    reasons: list[str] = []
    keyboard = KeyboardReset(reasons.append)
    keyboard.write(0, 1, 0xAA)
    assert reasons == []
    assert keyboard.read(0, 1) == 0xFF
    keyboard.write(0, 1, 0xFE)
    assert reasons == ["reset"]


def test_reset_control() -> None:
    """Reset control register: a rising edge of bit 2 resets; bit 1 says how hard, before or with it."""
    reasons: list[str] = []
    reset = ResetControl(reasons.append)
    reset.write(0, 1, 0x02)
    assert (reset.read(0, 1), reasons) == (2, [])
    reset.write(0, 1, 0x06)
    assert reasons == ["reset"]
    saved = reset.save()
    again = ResetControl(reasons.append)
    again.load(saved)
    again.write(0, 1, 0x06)
    assert reasons == ["reset"], "bit 2 was up already"
    again.write(0, 1, 0)
    again.write(0, 1, 4)
    assert reasons == ["reset", "reset"]
