"""One Debian system, booted from every kind of disk and kernel file that tt knows."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from boot_images import join, make_ext, make_fat, tool, unpack_image
from boot_rig import EPOCH, PROMPT, QUICK, Boot, replays_exactly

from tt.guests import tools
from tt.vmm.boot.decompress import sniff_compression
from tt.vmm.boot.linux import SetupHeader, extract_vmlinux
from tt.vmm.config import MachineConfig
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

# What the kernel prints soon after its command line: enough to know that it was loaded and runs.
ALIVE = b"Memory: "


@pytest.fixture(scope="session")
def tree(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Debian guest's files, in a folder."""
    return unpack_image(debian_image, tmp_path_factory.mktemp("debian") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """Return a copy of the Debian guest's files that a test may change."""
    return Path(shutil.copytree(tree, tmp_path / "root", symlinks=True))


@pytest.fixture(scope="session")
def kernel(debian_image: Path) -> Path:
    return debian_image.with_name("vmlinuz")


@pytest.fixture(scope="session")
def initrd(debian_image: Path) -> Path:
    return debian_image.with_name("initrd.img")


def extlinux(root: Path, device: str) -> None:
    """Let the system's own boot configuration name another root device."""
    path = root / "boot/extlinux/extlinux.conf"
    path.write_text(path.read_text().replace("root=/dev/vda ", f"root={device} "))


def reaches_the_prompt(
    config: MachineConfig, device: str, kind: str = "ext4", *, trace: Path | None = None
) -> None:
    """Boot to the shell, and look from inside at what the root file system is."""
    boot = Boot(config, trace, script=["mount | grep ' / '; sync"])
    *_, answer, end = boot.console.split(PROMPT.decode())
    assert "and the guest waits for more" in boot.recording.reason
    assert f"{device} on / type {kind} (rw" in answer, boot.console[-3000:]
    assert end.strip("\x1b[6n ") == ""
    if trace is not None:
        replays_exactly(trace)


def comes_alive(config: MachineConfig, trace: Path) -> None:
    """Boot until the kernel has printed the command line it was given."""
    boot = Boot(config, trace, until=ALIVE)
    assert f"Command line: {config.cmdline}\n" in boot.console
    replays_exactly(trace)


# ---- disks


def test_a_file_system_on_the_whole_disk(debian_image: Path, tmp_path: Path) -> None:
    """Nothing is left out here: the command line is the one that every user gets."""
    reaches_the_prompt(configure_pc(debian_image, epoch=EPOCH), "/dev/vda", trace=tmp_path / "x.tt")


def test_mbr(root: Path, tmp_path: Path) -> None:
    extlinux(root, "/dev/vda1")
    disk = join(tmp_path / "disk", "dos", [make_ext(root, tmp_path / "part", "ext4")])
    config = configure_pc(disk, append=QUICK, epoch=EPOCH)
    assert "vda1" in config.description[0]
    reaches_the_prompt(config, "/dev/vda1")


GRUB = """\
set default=0
search --no-floppy --label --set=root BOOT
menuentry 'Debian GNU/Linux' {
    linux /vmlinuz root=LABEL=system ro console=ttyS0
    initrd /initrd.img
}
"""
SYSLINUX = """\
DEFAULT debian
LABEL debian
    LINUX /vmlinuz
    INITRD /initrd.img
    APPEND root=LABEL=system ro console=ttyS0
"""
BLS = """\
title Debian
version 6
linux /vmlinuz
initrd /initrd.img
options root=LABEL=system ro console=ttyS0
"""


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("grub/grub.cfg", GRUB, "boots /grub/grub.cfg on vda1: 'Debian GNU/Linux'"),
        ("extlinux/extlinux.conf", SYSLINUX, "boots /extlinux/extlinux.conf on vda1"),
        ("loader/entries/debian.conf", BLS, "boots boot loader entry 'Debian' on vda1"),
    ],
    ids=["grub", "extlinux", "bls"],
)
def test_gpt_with_a_fat_boot_partition(
    root: Path, kernel: Path, initrd: Path, tmp_path: Path, path: str, text: str, said: str
) -> None:
    shutil.rmtree(root / "boot")
    files = {path: text.encode(), "vmlinuz": kernel.read_bytes(), "initrd.img": initrd.read_bytes()}
    boot = make_fat(tmp_path / "boot", files, tmp_path)
    system = make_ext(root, tmp_path / "part", "ext4", "-L", "system")
    config = configure_pc(join(tmp_path / "disk", "gpt", [boot, system]), append=QUICK, epoch=EPOCH)
    assert config.description[0].startswith(said)
    assert config.cmdline.startswith("root=LABEL=system ro console=ttyS0 ")
    if path.startswith("grub"):
        reaches_the_prompt(config, "/dev/vda2", trace=tmp_path / "x.tt")
    else:
        comes_alive(config, tmp_path / "x.tt")


@pytest.mark.parametrize("kind", ["ext2", "ext3"])
def test_older_file_systems(root: Path, tmp_path: Path, kind: str) -> None:
    """Linux serves all of them with its ext4 driver."""
    disk = make_ext(root, tmp_path / "disk", kind)
    reaches_the_prompt(configure_pc(disk, append=QUICK, epoch=EPOCH), "/dev/vda")


def test_qcow2(debian_image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "debian.qcow2"
    tools.run([tool("qemu-img"), "convert", "-c", "-O", "qcow2", str(debian_image), str(disk)])
    reaches_the_prompt(configure_pc(disk, append=QUICK, epoch=EPOCH), "/dev/vda")


# ---- kernels


def test_bzimage_with_initrd(kernel: Path, initrd: Path, debian_image: Path) -> None:
    append = f"root=/dev/vda {QUICK}"
    config = configure_pc(kernel, initrd=initrd, disks=[debian_image], append=append, epoch=EPOCH)
    reaches_the_prompt(config, "/dev/vda")


def test_bzimage_without_a_disk(kernel: Path, initrd: Path, tmp_path: Path) -> None:
    """The initrd's own shell: a system that lives in RAM alone."""
    config = configure_pc(kernel, initrd=initrd, append=f"{QUICK} init=/none", epoch=EPOCH)
    boot = Boot(config, tmp_path / "x.tt", until=b"here is a shell")
    assert "init: no disk /dev/vda" in boot.console
    replays_exactly(tmp_path / "x.tt")


def test_vmlinux(kernel: Path, initrd: Path, tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(extract_vmlinux(kernel.read_bytes()) or b"")
    comes_alive(configure_pc(vmlinux, initrd=initrd, append=QUICK, epoch=EPOCH), tmp_path / "x.tt")


def above_1_mb(config: MachineConfig) -> list[tuple[int, bytes]]:
    """Return what is loaded there: kernel and initrd, not the header with its packed size."""
    assert config.plan is not None
    return [(addr, data) for addr, data in config.plan.segments if addr >= 1 << 20]


def lz4_legacy(data: bytes) -> bytes:
    """Pack as `lz4 -l` does, in blocks of 8 MB."""
    out = struct.pack("<I", 0x184C2102)
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], mode="fast", store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", lambda data: gzip.compress(data, 1, mtime=0)),
        ("zstd", lambda data: zstandard.compress(data, 1)),
        ("lz4", lz4_legacy),
    ],
    ids=["gzip", "zstd", "lz4"],
)
def test_kernels_packed_in_another_way(
    kernel: Path, initrd: Path, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    original = kernel.read_bytes()
    header = SetupHeader.parse(original)
    vmlinux = extract_vmlinux(original)
    assert vmlinux is not None
    packed = pack(vmlinux) + struct.pack("<I", len(vmlinux))
    assert sniff_compression(packed) == name
    image = bytearray(original[: header.code_offset + header.payload_offset])
    struct.pack_into("<I", image, 0x24C, len(packed))  # payload_length
    path = tmp_path / "vmlinuz"
    path.write_bytes(bytes(image) + packed)
    config = configure_pc(path, initrd=initrd, append=QUICK, epoch=EPOCH)
    assert above_1_mb(config) == above_1_mb(configure_pc(kernel, initrd=initrd, append=QUICK, epoch=EPOCH))
    comes_alive(config, tmp_path / "x.tt")
