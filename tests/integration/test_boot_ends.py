"""How a Debian guest ends a recording: the reason is said, its tick is exact, and a replay ends there too."""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_rig import EPOCH, QUICK, Boot, replays_exactly

from tt.log import Trace
from tt.vmm.boot.loader import PC_CMDLINE
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "append", "last_words", "reason"),
    [
        # With no ACPI there is nothing that could switch the power off: Linux halts instead.
        ("poweroff", "", "reboot: System halted", "halted with interrupts off"),
        ("reboot", "", "reboot: Restarting system", "reset"),
        ("reboot", "reboot=k", "reboot: Restarting system", "reset"),
        ("reboot", "reboot=t", "reboot: Restarting system", "triple fault"),
        ("echo c > /proc/sysrq-trigger", "panic=-1", "Kernel panic - not syncing", "reset"),
    ],
    ids=["poweroff", "reboot", "reboot by the keyboard controller", "reboot by a triple fault", "panic"],
)
def test_ends(
    debian_image: Path, tmp_path: Path, command: str, append: str, last_words: str, reason: str
) -> None:
    config = configure_pc(debian_image, append=f"{QUICK} {append}", epoch=EPOCH)
    boot = Boot(config, tmp_path / "x.tt", script=["dmesg -n 8", command])
    assert last_words in boot.console.partition(command)[2], boot.console[-3000:]
    assert boot.recording.reason == reason
    with Trace.open(tmp_path / "x.tt") as trace:
        assert (trace.sealed, trace.end_tick) == (True, boot.recording.end_tick)
        assert trace.summary["ended"] == reason
    replays_exactly(tmp_path / "x.tt")


def test_the_machine_names_the_quick_way_to_reboot() -> None:
    """The keyboard controller that is not there would be waited for."""
    assert "reboot=pci" in PC_CMDLINE
