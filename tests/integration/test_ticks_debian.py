"""Ticks on a real kernel: the engine's count equals a slow, independent one, and stops change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt.vmm.boot.linux import plan_bzimage
from tt.vmm.disk import BaseImage, OverlayDisk
from tt.vmm.pc.machine import PcMachine

pytestmark = pytest.mark.slow

MEM_BYTES = 128 << 20
CMDLINE = (
    "root=/dev/vda console=ttyS0 nolapic noapic acpi=off pci=conf1 nokaslr "
    "tsc=reliable lpj=1000000 no_timer_check"
)
TICKS = 120_000_000


def machine(image: Path) -> PcMachine:
    """Return the Debian guest at power-on, with the kernel and initrd built beside its image."""
    kernel, initrd = ((image.parent / name).read_bytes() for name in ("vmlinuz", "initrd.img"))
    plan = plan_bzimage(kernel, initrd, CMDLINE, MEM_BYTES)
    disk = OverlayDisk(BaseImage(image))
    return PcMachine(plan, MEM_BYTES, [disk], epoch=1_700_000_000, entropy=lambda size: b"\x5a" * size)


def test_the_tick_is_the_number_of_instructions(debian_image: Path) -> None:
    """Over 120 M instructions of the boot: faults, interrupts, port I/O and REP included.

    The count comes from a code hook in front of every instruction.  A second
    machine runs without it, and must be in the same state at the end.
    """
    counted, plain = machine(debian_image), machine(debian_image)
    counted.engine.count_instructions()
    for until in range(10_000_000, TICKS + 1, 10_000_000):
        stop = counted.run(until)
        assert stop.reason == "tick", stop
        assert counted.engine.counted == counted.tick == until
    plain.run(TICKS)
    assert counted.digest_parts() == plain.digest_parts()
    assert counted.engine.statistics["io_exits"] > 1000, "this was no boot"
