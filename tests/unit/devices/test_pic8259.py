"""The interrupt controllers, from the Intel 8259A data sheet's point of view."""

from __future__ import annotations

import pytest
from device_rig import Rig

from tt.vmm.devices.pic8259 import Chip, Pic8259

BASE, SLAVE_BASE = 0x20, 0x28


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def pic(rig: Rig) -> Pic8259:
    return ready(Pic8259(rig.wire("intr")))


def init(chip: Chip, base: int, icw3: int, icw4: int = 1, icw1: int = 0x11) -> None:
    chip.write(0, 1, icw1)
    chip.write(1, 1, base)
    chip.write(1, 1, icw3)
    chip.write(1, 1, icw4)


def ready(pic: Pic8259) -> Pic8259:
    """Initialise both chips as a PC does."""
    init(pic.master, BASE, 4)
    init(pic.slave, SLAVE_BASE, 2)
    return pic


def intr(rig: Rig) -> bool:
    levels = rig.levels("intr")
    return bool(levels) and levels[-1]


def test_an_edge_is_delivered_once(rig: Rig, pic: Pic8259) -> None:
    """INTA moves the request from IRR to ISR ("Interrupt sequence")."""
    pic.line(4).set(True)
    assert intr(rig)
    assert pic.master.read(0, 1) == 0x10
    assert pic.acknowledge() == BASE + 4
    assert not intr(rig)
    pic.master.write(0, 1, 0x0B)  # OCW3: read ISR
    assert pic.master.read(0, 1) == 0x10
    pic.master.write(0, 1, 0x20)
    assert pic.master.read(0, 1) == 0
    assert not intr(rig), "the line is still high, but there was no new edge"
    pic.line(4).pulse()
    pic.line(4).set(True)
    assert intr(rig)


def test_priorities_nest(rig: Rig, pic: Pic8259) -> None:
    """Fully nested mode: only a higher priority interrupts a service routine."""
    pic.line(4).set(True)
    assert pic.acknowledge() == BASE + 4
    pic.line(5).set(True)
    assert not intr(rig)
    pic.line(1).set(True)
    assert intr(rig)
    assert pic.acknowledge() == BASE + 1
    pic.master.write(0, 1, 0x20)  # non-specific EOI ends the highest, 1
    assert not intr(rig)
    pic.master.write(0, 1, 0x64)  # specific EOI of 4
    assert intr(rig)
    assert pic.acknowledge() == BASE + 5


def test_mask(rig: Rig, pic: Pic8259) -> None:
    """OCW1: a masked request is remembered, not delivered."""
    pic.master.write(1, 1, 0x10)
    assert pic.master.read(1, 1) == 0x10
    pic.line(4).set(True)
    assert not intr(rig)
    pic.master.write(1, 1, 0)
    assert intr(rig)


def test_cascade(rig: Rig, pic: Pic8259) -> None:
    """A slave's request passes through the master's input 2; both need an EOI."""
    pic.line(8).set(True)
    assert pic.acknowledge() == SLAVE_BASE
    pic.line(12).set(True)
    assert not intr(rig)
    pic.slave.write(0, 1, 0x20)
    assert not intr(rig)
    pic.master.write(0, 1, 0x62)
    assert intr(rig)
    assert pic.acknowledge() == SLAVE_BASE + 4


def test_slave_requests_one_after_the_other(rig: Rig, pic: Pic8259) -> None:
    """INT of the slave makes a new edge for each of its requests."""
    pic.line(10).set(True)
    pic.line(9).set(True)
    assert pic.acknowledge() == SLAVE_BASE + 1
    pic.slave.write(0, 1, 0x61)
    pic.master.write(0, 1, 0x62)
    assert pic.acknowledge() == SLAVE_BASE + 2


def test_spurious(rig: Rig, pic: Pic8259) -> None:
    """A request that goes away before INTA gives input 7 and no ISR bit ("Edge and level triggered")."""
    pic.line(4).set(True)
    pic.line(4).set(False)
    assert not intr(rig)
    assert pic.acknowledge() == BASE + 7
    pic.master.write(0, 1, 0x0B)
    assert pic.master.read(0, 1) == 0


def test_spurious_slave_sets_the_cascade_in_service(pic: Pic8259) -> None:
    """Spurious on the slave: the master believed it, so its ISR has bit 2."""
    pic.line(9).set(True)
    pic.master.state.edges |= 4  # the master latched the cascade
    pic.slave.state.edges = 0
    assert pic.acknowledge() == SLAVE_BASE + 7
    assert pic.master.state.isr == 4
    assert pic.slave.state.isr == 0


def test_level_triggering(rig: Rig, pic: Pic8259) -> None:
    """ELCR: an input that stays high asks again after EOI."""
    pic.elcr.write(1, 1, 0xFF)
    assert pic.elcr.read(1, 1) == 0xDE, "IRQ 8 and 13 stay edge-triggered"
    pic.elcr.write(0, 1, 0xFF)
    assert pic.elcr.read(0, 1) == 0xF8, "IRQ 0, 1 and 2 stay edge-triggered"
    pic.line(10).set(True)
    assert pic.acknowledge() == SLAVE_BASE + 2
    pic.slave.write(0, 1, 0x62)
    pic.master.write(0, 1, 0x62)
    assert intr(rig)
    assert pic.acknowledge() == SLAVE_BASE + 2
    pic.line(10).set(False)
    pic.slave.write(0, 1, 0x62)
    pic.master.write(0, 1, 0x62)
    assert not intr(rig)


def test_ltim_makes_all_inputs_level_triggered(rig: Rig, pic: Pic8259) -> None:
    """ICW1 bit 3."""
    pic.line(3).set(True)
    init(pic.master, BASE, 4, icw1=0x19)
    assert intr(rig)


def test_icw1_forgets_edges(rig: Rig, pic: Pic8259) -> None:
    """ICW1 resets the edge sense circuit, the mask, the ISR and the priorities."""
    pic.line(3).set(True)
    pic.line(5).set(True)
    pic.acknowledge()
    pic.master.write(1, 1, 0xFF)
    pic.master.write(0, 1, 0xC2)
    init(pic.master, BASE, 4)
    assert not intr(rig)
    assert pic.master.read(1, 1) == 0
    state = pic.master.state
    assert (state.isr, state.edges, state.lowest, state.lines) == (0, 0, 7, 0x28)


@pytest.mark.parametrize(
    ("icw1", "words"),
    [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)],
    ids=["cascade, ICW4", "cascade", "single, ICW4", "single"],
)
def test_number_of_initialisation_words(pic: Pic8259, icw1: int, words: int) -> None:
    """ICW3 is skipped when single, ICW4 unless asked for (figure 6); then comes OCW1."""
    pic.master.write(0, 1, icw1)
    for _ in range(words):
        pic.master.write(1, 1, 0x40)
    pic.master.write(1, 1, 0xA5)
    assert pic.master.read(1, 1) == 0xA5
    assert pic.master.state.base == 0x40


def test_automatic_eoi(rig: Rig, pic: Pic8259) -> None:
    """ICW4 bit 1: no ISR bit stays; with rotation the served input becomes the lowest."""
    init(pic.master, BASE, 4, icw4=3)
    pic.master.write(0, 1, 0x80)
    pic.line(3).set(True)
    assert pic.acknowledge() == BASE + 3
    assert pic.master.state.isr == 0
    pic.line(3).pulse()
    pic.line(3).set(True)
    pic.line(5).set(True)
    assert pic.acknowledge() == BASE + 5, "3 rotated to the lowest priority"
    pic.master.write(0, 1, 0x00)
    assert not pic.master.state.rotate_aeoi


def test_rotation(pic: Pic8259) -> None:
    """OCW2: rotate on non-specific EOI, on specific EOI, and set priority."""
    pic.line(4).set(True)
    pic.acknowledge()
    pic.master.write(0, 1, 0xA0)
    assert pic.master.state.lowest == 4
    pic.line(6).set(True)
    pic.acknowledge()
    pic.master.write(0, 1, 0xE6)
    assert (pic.master.state.lowest, pic.master.state.isr) == (6, 0)
    pic.master.write(0, 1, 0xC1)
    assert pic.master.state.lowest == 1
    pic.line(0).set(True)
    pic.line(3).set(True)
    assert pic.acknowledge() == BASE + 3, "input 2 is the highest now, 1 the lowest"


def test_eoi_with_nothing_in_service(pic: Pic8259) -> None:
    """A non-specific EOI too many changes nothing, rotation included."""
    before = pic.save()
    pic.master.write(0, 1, 0x20)
    pic.master.write(0, 1, 0xA0)
    assert pic.save() == before


def test_special_mask_mode(rig: Rig, pic: Pic8259) -> None:
    """OCW3: in special mask mode a masked routine in service lets lower priorities in."""
    pic.line(3).set(True)
    pic.acknowledge()
    pic.line(6).set(True)
    pic.master.write(1, 1, 0x08)
    assert not intr(rig)
    pic.master.write(0, 1, 0x68)
    assert intr(rig)
    pic.acknowledge()
    pic.master.write(0, 1, 0x20)
    assert pic.master.state.isr == 0x08, "a non-specific EOI leaves masked ISR bits alone"
    pic.master.write(0, 1, 0x48)
    assert not pic.master.state.special_mask


def test_poll(rig: Rig, pic: Pic8259) -> None:
    """OCW3 poll: the next read is the INTA; bit 7 says whether there was a request."""
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0
    pic.line(4).set(True)
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0x84
    assert pic.master.state.isr == 0x10
    assert not intr(rig)
    assert pic.master.read(0, 1) == 0, "polling lasts one read"


def test_nothing_interrupts_during_initialisation(rig: Rig, pic: Pic8259) -> None:
    pic.elcr.write(0, 1, 0x20)
    pic.line(5).set(True)
    pic.master.write(0, 1, 0x11)
    assert not intr(rig)
    for word in (BASE, 4, 1):
        pic.master.write(1, 1, word)
    assert intr(rig)


def test_the_cascade_is_no_input(pic: Pic8259) -> None:
    with pytest.raises(ValueError, match="cascade"):
        pic.line(2)


def test_restore_puts_levels_back() -> None:
    """After a restore the lines stand as they stood, and only changes are seen."""
    one, two = Rig(), Rig()
    saved = ready(Pic8259(one.wire("intr")))
    saved.line(4).set(True)
    saved.line(9).set(True)
    fresh = Pic8259(two.wire("intr"))
    fresh.load(saved.save())
    assert not two.edges, "restoring tells nobody"
    assert fresh.line(4).level
    assert fresh.line(9).level
    assert not fresh.line(5).level
    for pic in (saved, fresh):
        pic.line(4).set(True)  # no change, no edge
        assert pic.acknowledge() == SLAVE_BASE + 1
        pic.slave.write(0, 1, 0x20)
        pic.master.write(0, 1, 0x20)
        assert pic.acknowledge() == BASE + 4
    assert fresh.save() == saved.save()
