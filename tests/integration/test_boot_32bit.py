"""A 32-bit Debian kernel and a 32-bit userland, with two-level page tables and with PAE."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_rig import EPOCH, QUICK, Boot, replays_exactly

from tt.errors import BadInput
from tt.guests import apt, cpio, tools
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

CR4_PAE = 0x20

INIT = """\
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys
busybox mount -t proc proc /proc
busybox uname -m
busybox grep -c processor /proc/cpuinfo
busybox ls -1 /bin
i=0; while [ $i -lt 500 ]; do i=$((i + 1)); done; echo counted to $i
echo user $(busybox id -u), process $$
busybox reboot -f
"""


@pytest.fixture(scope="module")
def i386(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[apt.Apt]:
    """Return an apt for 32-bit packages with lists of its own; skip where they cannot be had."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        try:
            tools.find(tool, "?")
        except BadInput as e:
            pytest.skip(str(e))
    monkeypatch_module.setattr(apt, "ARCHITECTURE", "i386")
    cache = apt.cache_directory() / "i386"
    cache.mkdir(exist_ok=True)

    def ready(candidate: apt.Apt) -> apt.Apt:
        candidate.show("busybox-static")
        return candidate

    try:
        found = apt.with_lists(cache, ready)
    except BadInput as e:
        try:
            # Lists that did arrive serve as well, when it was another one that could not be had.
            found = ready(apt.Apt(cache, private=True))
        except BadInput:
            pytest.skip(f"no 32-bit packages: {e}")
    yield found


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def fetch(i386: apt.Apt, name: str) -> Path:
    try:
        return i386.fetch(i386.show(name))
    except BadInput as e:
        pytest.skip(f"no 32-bit package {name}: {e}")


def member(package: Path, pattern: str) -> bytes:
    """Return the one file of a package whose name is like `pattern`."""
    command = [tools.find("dpkg-deb", "dpkg"), "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
    ):
        for entry in archive:
            if re.fullmatch(pattern, entry.name) and (contents := archive.extractfile(entry)):
                data = contents.read()
                unpacking.kill()
                return data
    pytest.fail(f"{package.name} holds no {pattern}")


@pytest.fixture(scope="module")
def initrd(i386: apt.Apt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = member(fetch(i386, "busybox-static"), r"\./(usr/)?bin/busybox")
    assert busybox[:5] == b"\x7fELF\x01"
    entries = {
        "bin": cpio.directory(),
        "dev": cpio.directory(),
        "dev/console": cpio.character_device(5, 1),
        "init": cpio.file(INIT.encode(), 0o755),
        "bin/busybox": cpio.file(busybox, 0o755),
        "bin/sh": cpio.symlink("busybox"),
    }
    path = tmp_path_factory.mktemp("i386") / "initrd.img"
    path.write_bytes(cpio.archive(entries, EPOCH))
    return path


@pytest.mark.parametrize("flavour", ["686", "686-pae"])
def test_to_userland_and_back(i386: apt.Apt, initrd: Path, tmp_path: Path, flavour: str) -> None:
    meta = i386.show(f"linux-image-{flavour}")
    name = re.search(rf"linux-image-[0-9][^ ,(|]*-{flavour}\b", meta.depends)
    assert name is not None, meta.depends
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(member(fetch(i386, name.group()), r"\./boot/vmlinuz-.*"))
    config = configure_pc(kernel, initrd=initrd, append=QUICK, epoch=EPOCH)
    assert "32-bit entry" in config.description[0]
    # tt unpacks the kernel: its own code would take 2.3 G ticks for that.
    assert "unpacks itself" not in config.description[0]
    boot = Boot(config, tmp_path / "x.tt")
    said = boot.console[boot.console.index("Run /init as init process") :].split("\n", 1)[1]
    assert said.startswith("i686\n1\nbusybox\nsh\ncounted to 500\nuser 0, process 1\n"), said
    assert said.rstrip().endswith("reboot: machine restart"), said
    assert boot.recording.reason == "reset"
    replay = replays_exactly(tmp_path / "x.tt")
    assert bool(replay.machine.engine.registers()["cr4"] & CR4_PAE) == (flavour == "686-pae")
