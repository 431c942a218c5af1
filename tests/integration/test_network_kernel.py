"""A small kernel that finds network cards by PCI and drives them, on tt and, for what they hold, on QEMU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from boot_rig import EPOCH
from denali_net_rig import Wires, record_net
from multiboot_rig import build

from tt.log import Trace
from tt.replay import verify
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_pc

QEMU = "qemu-system-x86_64"
OTHERWISE = {
    "0000": "FD, full duplex: the manual's default (13.4.1)",
    "0010": "EE_GNT: only to who has asked for it (13.4.3); QEMU always",
    "0e00": "LEDCTL: the manual's default (13.4.7)",
    "2828": "RXDCTL: the manual's default, a descriptor at a time (13.4.37)",
    "5820": "MANC: QEMU's card has management firmware",
}
"""Registers of an e1000 after a reset that are not what QEMU has there."""
PHY_OTHERWISE = {
    "01": "the link is negotiated at once; QEMU takes half a second",
    "05": "what the other side can: as after a negotiation",
    "06": "likewise",
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("network"), source="network_kernel.c")


def run(kernel: Path, path: Path, *models: str, append: str = "") -> tuple[list[str], Wires]:
    """Run the kernel on tt with a card of each of `models`; return its lines, and the network."""
    nets = [NetConfig(model, default_mac(card)) for card, model in enumerate(models)]
    wires = Wires(lambda card, frame: [frame[6:12] + b"\2\0\0\0\0\1" + frame[12:] + b"back"])
    told = record_net(
        configure_pc(kernel, mem_bytes=16 << 20, append=append, epoch=EPOCH, nets=nets), path, wires
    )
    with Trace.open(path) as trace:
        assert verify(trace).good
    assert told.endswith("@end\n")
    return told.splitlines(), wires


def test_it_finds_and_drives_both_cards(kernel: Path, tmp_path: Path) -> None:
    lines, wires = run(kernel, tmp_path / "x.tt", "virtio", "e1000", "virtio")
    cards = [i for i, line in enumerate(lines) if line.startswith("card ")]
    assert [lines[i] for i in cards] == [
        "card 1af4:1000 class 020000 interrupt pin 01 line set",
        "card 8086:100e class 020000 interrupt pin 01 line set",
        "card 1af4:1000 class 020000 interrupt pin 01 line set",
    ]
    assert [line for line in lines if line.startswith("mac ")] == [f"mac 5254007400{i:02x}" for i in range(3)]
    assert "by ports 74005452" in lines  # the first half of the second card's address
    macs = [bytes.fromhex(f"5254007400{i:02x}") for i in range(3)]
    frames = [b"\xff" * 6 + mac + b"\x88\xb5" + bytes(range(14, 60)) for mac in macs]
    assert wires.sent == list(enumerate(frames))
    back = [mac + b"\2\0\0\0\0\1" + frame[12:] + b"back" for mac, frame in zip(macs, frames, strict=True)]
    assert [line for line in lines if line.startswith("got ")] == [f"got {each.hex()}" for each in back]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
def test_the_cards_hold_what_qemus_hold(kernel: Path, tmp_path: Path) -> None:
    """Registers at power-on and after a reset, the EEPROM and the PHY, but for what `OTHERWISE` says."""
    ours, _wires = run(kernel, tmp_path / "x.tt", "virtio", "e1000", append="quiet")
    done = subprocess.run(
        [
            *(QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-m", "16"),
            *("-machine", "pc", "-kernel", str(kernel), "-append", "quiet"),
            *("-device", f"virtio-net-pci,disable-modern=on,romfile=,mac={default_mac(0)}"),
            *("-device", f"e1000,romfile=,mac={default_mac(1)}"),
        ],
        capture_output=True,
        timeout=60,
    )
    theirs = done.stdout.decode().replace("\r", "").splitlines()
    theirs = theirs[theirs.index("@begin") :]
    assert len(ours) == len(theirs) > 300
    for what in ("at power-on", "after a reset"):
        registers = [table(lines, what) for lines in (ours, theirs)]
        assert differing(*registers) - {"0014"} == OTHERWISE.keys()  # EERD holds what was read last
    roms = [table(lines, "eeprom") for lines in (ours, theirs)]
    for rom in roms:
        assert sum(int(word, 16) for word in rom.values()) & 0xFFFF == 0xBABA
    assert not differing(*roms) & {"00", "01", "02", "0d", "0e"}  # the address, the card
    phys = [table(lines, "phy") for lines in (ours, theirs)]
    unread = {number for number, value in phys[1].items() if value.endswith("!")}  # QEMU has none such
    assert differing(*phys) - unread == PHY_OTHERWISE.keys()
    virtio = [lines[: next(i for i, line in enumerate(lines) if "8086" in line)] for lines in (ours, theirs)]
    assert virtio[0] == virtio[1]


def table(lines: list[str], what: str) -> dict[str, str]:
    """Return the lines that begin with `what` by their number."""
    cut = [line.removeprefix(what).split(maxsplit=1) for line in lines if line.startswith(what)]
    return {number: value.strip() for number, value in cut}


def differing(ours: dict[str, str], theirs: dict[str, str]) -> set[str]:
    assert ours.keys() == theirs.keys()
    return {number for number in ours if ours[number] != theirs[number]}
