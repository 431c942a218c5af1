"""A whole Debian as debootstrap makes it (systemd, sshd, cron, its own initrd), recorded untouched."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot, replays_exactly

from tt.guests.apt import cache_directory
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[1] / "tools" / "debootstrap_image.py"
DIRECTORY = "TT_DEBOOTSTRAP_DIR"
"""The environment variable that names a folder to keep the image in; else it is in tt's cache."""


@pytest.fixture(scope="module")
def image() -> Path:
    """Return the image, made once; skip where it cannot be made."""
    recipe = hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]
    given = os.environ.get(DIRECTORY)
    folder = Path(given) if given else cache_directory() / f"test-debootstrap-{recipe}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "disk.img").exists():
            _make(folder)
    return folder / "disk.img"


def _make(folder: Path) -> None:
    if os.geteuid():
        pytest.skip(f"debootstrap needs root; {DIRECTORY} may name a folder with an image made before")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for tool in ("debootstrap", "sfdisk", "mke2fs"):
        if shutil.which(tool, path=path) is None:
            pytest.skip(f"{tool} is not installed")
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(RECIPE.parents[2])}
    command = [sys.executable, RECIPE, folder, "--layout", "mbr"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode and "debootstrap failed" in done.stderr:
        pytest.skip(f"no packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def test_from_power_on_to_power_off(image: Path, tmp_path: Path) -> None:
    config = configure_pc(image, epoch=EPOCH)
    assert config.description[0].startswith("boots /boot/grub/grub.cfg on vda1: 'Debian GNU/Linux'")
    trace = tmp_path / "x.tt"
    question = "systemctl is-system-running --wait || true; cat /etc/debian_version; echo DONE"
    boot = Boot(config, trace, script=["root", question, "poweroff"], max_ticks=20_000_000_000)
    _, prompt, rest = boot.console.partition("debian login: ")
    assert prompt, boot.console[-3000:]
    answer = re.search(r"(running|degraded)\n\d+\.\d+\nDONE\n", rest)
    assert answer is not None, rest[:3000]
    # There is no ACPI to switch the power off with: Linux stops with interrupts off.
    assert "reboot: System halted" in rest
    assert boot.recording.reason == "halted with interrupts off", boot.console[-3000:]
    assert boot.recording.digests > 10
    replays_exactly(trace)
