"""`--guest` on tt's machine, of a whole Debian with systemd and the initrd that initramfs-tools made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_boot_debootstrap import image as debootstrapped  # noqa: F401

from tt.chronus.probes.guest import GuestProbe
from tt.chronus.runners import warm
from tt.chronus.runners.runner import Setup
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.view import ImageView

pytestmark = pytest.mark.slow

SETUP = Setup(mem_bytes=512 << 20, timeout_s=240.0)
PARTITION = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    """Give the memory of the kept machine back in the end."""
    yield
    warm.forget()


def ask(disk: Path, command: str, *, early: bool) -> ProbeVerdict:
    return GuestProbe(command, "tt", SETUP, early).run(ImageView(disk))


def change(disk: Path, *commands: str) -> None:
    """Change the file system with debugfs."""
    where = f"{disk}?offset={PARTITION}"
    script = "\n".join(commands)
    subprocess.run(
        ["debugfs", "-w", "-f", "-", where], input=script, text=True, check=True, capture_output=True
    )


def test_early_and_booted(debootstrapped: Path) -> None:  # noqa: F811
    """Before init the disk alone is there; after it systemd runs, and what it started."""
    early = ask(debootstrapped, "mkdir /run/sshd && sshd -t && systemctl is-system-running", early=True)
    assert (early.outcome, early.output.split("\n")[0]) == (Outcome.BAD, "offline")
    booted = ask(debootstrapped, "systemctl is-active ssh cron; cat /proc/1/comm; exit 9", early=False)
    assert (booted.exit_code, booted.output) == (9, "active\nactive\nsystemd\n")


def test_broken(debootstrapped: Path, tmp_path: Path) -> None:  # noqa: F811
    """A file system that is not there leads to emergency mode, a libc that is not to a panic."""
    disk = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", str(debootstrapped), str(disk)], check=True)
    fstab = tmp_path / "fstab"
    fstab.write_text("/dev/vda1 / ext4 errors=remount-ro 0 1\n/dev/nowhere /srv ext4 defaults 0 2\n")
    change(disk, "cd /etc", "rm fstab", f"write {fstab} fstab")
    assert ask(disk, "grep -q nowhere /etc/fstab", early=True).outcome is Outcome.GOOD
    verdict = ask(disk, "exit 0", early=False)
    assert verdict.outcome is Outcome.CRASH
    assert verdict.signature.startswith(
        "the system booted into emergency mode: [ TIME ] Timed out waiting for"
    )
    change(disk, "rm /usr/lib/x86_64-linux-gnu/libc.so.6")
    for early in (True, False):
        verdict = ask(disk, "exit 0", early=early)
        assert verdict.outcome is Outcome.CRASH
        assert "error while loading shared libraries: libc.so.6" in verdict.signature
