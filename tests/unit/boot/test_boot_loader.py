"""From a file on the host to a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_disks import MIB, join_mbr, make_ext
from boot_kernels import PACKERS, make_bzimage, make_elf, make_multiboot2_elf, make_multiboot_elf

from tt.errors import BadInput
from tt.vmm.boot.loader import PC_CMDLINE, plan_boot, plan_boot_from_parts, with_pc_defaults
from tt.vmm.boot.modules import Module, pack

MEM = 64 * MIB
DEFAULTS = " ".join(PC_CMDLINE)
BZIMAGE = make_bzimage(PACKERS["gzip"](make_elf(64)))


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    files: dict[str, bytes | str] = {"boot/vmlinuz-1": BZIMAGE, "boot/initrd.img-1": b"initrd", "etc/": b""}
    return make_ext(tmp_path / "disk", files, size="4M", kind="ext2")


@pytest.mark.parametrize(
    ("data", "kind", "mode"),
    [
        (BZIMAGE, "linux-bzimage", "long64"),
        (make_elf(64), "linux-elf", "long64"),
        (make_elf(32), "linux-elf", "protected32"),
        (make_multiboot_elf(32), "multiboot1", "protected32"),
        (make_multiboot2_elf(32), "multiboot2", "protected32"),
        (make_multiboot2_elf(64, one=True), "multiboot1", "protected32"),  # headers of both: as QEMU
    ],
)
def test_kernels_are_told_apart_by_content(tmp_path: Path, data: bytes, kind: str, mode: str) -> None:
    plan = plan_boot(put(tmp_path / "any name", data), mem_bytes=MEM, append="x=1")
    assert (plan.kind, plan.start.mode) == (kind, mode)
    assert plan.cmdline == ("x=1" if kind.startswith("multiboot") else f"{DEFAULTS} x=1")
    assert plan == plan_boot_from_parts(plan.kind, plan.kernel, plan.initrd, plan.cmdline, MEM)


def test_disk(disk: Path) -> None:
    plan = plan_boot(disk, mem_bytes=MEM)
    assert plan.cmdline == f"root=/dev/vda rw {DEFAULTS}"
    assert plan.initrd == b"initrd"
    assert plan.description[0] == "boots /boot/vmlinuz-1 on vda"
    again = plan_boot_from_parts(plan.kind, plan.kernel, plan.initrd, plan.cmdline, MEM)
    assert (again.segments, again.start) == (plan.segments, plan.start)


def test_partitioned_disk_with_another_kernel(tmp_path: Path, disk: Path) -> None:
    parted = join_mbr(tmp_path / "parted", [disk])
    kernel = put(tmp_path / "k", make_elf(64))
    plan = plan_boot(parted, mem_bytes=MEM, kernel=kernel)
    assert plan.initrd is None
    assert plan.cmdline == f"root=/dev/vda1 rw {DEFAULTS}"
    assert plan.kernel == make_elf(64)


def test_other_initrd_keeps_the_rest(tmp_path: Path, disk: Path) -> None:
    plan = plan_boot(disk, mem_bytes=MEM, initrd=put(tmp_path / "i", b"mine"), append="root=/dev/vdb debug")
    assert plan.initrd == b"mine"
    assert plan.kernel == BZIMAGE
    assert plan.cmdline.startswith("root=/dev/vda rw ")
    assert plan.cmdline.endswith("root=/dev/vdb debug")


def test_kernel_alone_and_multiboot_module(tmp_path: Path, disk: Path) -> None:
    plan = plan_boot(None, mem_bytes=MEM, kernel=put(tmp_path / "k", BZIMAGE))
    assert plan.cmdline == DEFAULTS
    kernel, module = put(tmp_path / "m", make_multiboot_elf()), put(tmp_path / "i", b"module")
    plan = plan_boot(disk, mem_bytes=MEM, kernel=kernel, initrd=module, append="a b")
    assert (plan.kind, plan.cmdline, plan.initrd) == ("multiboot1", "a b", pack([Module("", b"module")]))


@pytest.mark.parametrize(
    ("given", "append", "expected"),
    [
        ("", "", DEFAULTS),
        ("root=x ro quiet", "", f"root=x ro quiet {DEFAULTS}"),
        ("console=tty0", "", f"console=tty0 {DEFAULTS}"),
        (
            "console=ttyS0,115200n8 q",
            "",
            f"console=ttyS0,115200n8 q {DEFAULTS.replace('console=ttyS0 ', '')}",
        ),
        ("acpi=force", "", f"acpi=force {DEFAULTS.replace('acpi=off ', '')}"),
        ("", "lpj=5", f"{DEFAULTS.replace('lpj=1000000 ', '')} lpj=5"),
        ("no-timer-check", "", f"no-timer-check {DEFAULTS.replace('no_timer_check ', '')}"),
        ("pci=nomsi", "", f"pci=nomsi {DEFAULTS}"),
        ("pci=nomsi,conf1", "", f"pci=nomsi,conf1 {DEFAULTS.replace('pci=conf1 ', '')}"),
        ('a="b c" -- single', "d -- e", f'a="b c" {DEFAULTS} d -- single e'),
        ("  a   b  ", "", f"a b {DEFAULTS}"),
    ],
)
def test_pc_defaults(given: str, append: str, expected: str) -> None:
    assert with_pc_defaults(given, append) == expected
    assert with_pc_defaults(with_pc_defaults(given, append)) == with_pc_defaults(given, append)


def test_errors(tmp_path: Path, disk: Path) -> None:
    junk = put(tmp_path / "junk", b"junk" * 300)
    for arguments, message in (
        ({"guest": None}, "nothing to boot"),
        ({"guest": tmp_path / "gone"}, "cannot read .*gone: No such file"),
        ({"guest": disk, "kernel": tmp_path / "gone"}, "cannot read .*gone"),
        ({"guest": disk, "initrd": tmp_path}, "cannot read .*: Is a directory"),
        (
            {"guest": disk, "kernel": junk},
            "junk is no kernel: tt boots bzImage, ELF, Multiboot and Multiboot2",
        ),
        ({"guest": junk}, "no kernel found"),
        ({"guest": disk, "initrd": put(tmp_path / "empty", b"")}, "empty is empty"),
        ({"guest": put(tmp_path / "zero", b"")}, "is empty"),
    ):
        with pytest.raises(BadInput, match=message):
            plan_boot(**arguments, mem_bytes=MEM)
    with pytest.raises(BadInput, match="needs at least 17 MB"):
        plan_boot(put(tmp_path / "k", make_elf(64)), mem_bytes=4 * MIB)
    with pytest.raises(BadInput, match="unknown kind of kernel 'hurd'"):
        plan_boot_from_parts("hurd", b"", None, "", MEM)


def test_an_image_whose_kernel_is_none(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"vmlinuz": b"not a kernel"}, size="4M", kind="ext2")
    with pytest.raises(BadInput, match="/vmlinuz in .* is no kernel, which tt cannot boot"):
        plan_boot(image, mem_bytes=MEM)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x27\x05\x19\x56", "a U-Boot image"),
        (bytes(0x38) + b"ARM\x64", "a kernel for ARM64"),
        (bytes(0x24) + b"\x18\x28\x6f\x01", "a kernel for ARM"),
        (bytes(0x38) + b"RSC\x05", "a kernel for RISC-V"),
        (b"MZ\0\0zimg" + bytes(16) + b"gzip", r"a compressed kernel for EFI \(gzip\)"),
        (b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0", "a program for EFI, perhaps a unified kernel image"),
    ],
)
def test_kernels_of_others_are_named(tmp_path: Path, head: bytes, message: str) -> None:
    path = put(tmp_path / "Image", head.ljust(8192, b"\0"))
    for arguments in ({"guest": path}, {"guest": None, "kernel": path}):
        with pytest.raises(BadInput, match=f"Image is {message}: tt boots"):
            plan_boot(**arguments, mem_bytes=MEM)  # type: ignore[arg-type]
    image = make_ext(tmp_path / "fs", {"vmlinuz": path.read_bytes()}, size="4M", kind="ext2")
    with pytest.raises(BadInput, match=f"/vmlinuz in .* is {message}, which tt cannot boot"):
        plan_boot(image, mem_bytes=MEM)


def patched(offset: int, value: bytes) -> bytes:
    return BZIMAGE[:offset] + value + BZIMAGE[offset + len(value) :]


@pytest.mark.parametrize(
    ("kernel", "append", "message"),
    [
        (patched(0x206, b"\x01\x02"), "", "speaks boot protocol 2.01, from before Linux 2.4"),
        (patched(0x206, b"\x00\x03"), "", "speaks boot protocol 3.00"),
        (patched(0x23C, b"\x02"), "", "hardware subarchitecture 2, not for a PC"),
        (patched(0x250, b"\x01"), "", "points to setup_data"),
        (patched(0x236, b"\0\0"), "", "denies a 64-bit entry .xloadflags bit 0."),
        (BZIMAGE, "mem=48M", "ends the kernel's memory at 48 MB .mem=., below its initrd"),
        (BZIMAGE, "mem=0x10000K mem=1G mem=40M", "at 40 MB"),
    ],
)
def test_what_a_new_guest_must_not_ask_for(tmp_path: Path, kernel: bytes, append: str, message: str) -> None:
    files = {"kernel": put(tmp_path / "k", kernel), "initrd": put(tmp_path / "i", b"initrd")}
    with pytest.raises(BadInput, match=message):
        plan_boot(None, **files, append=append, mem_bytes=MEM)
    # What was recorded before is planned as it was.
    assert plan_boot_from_parts("linux-bzimage", kernel, b"initrd", append, MEM).kernel == kernel


def test_memory_that_the_kernel_may_use(tmp_path: Path) -> None:
    kernel, initrd = put(tmp_path / "k", BZIMAGE), put(tmp_path / "i", b"initrd")
    for append in ("mem=64M", "mem=nopentium", "mem=1G", "memmap=4M", "mem=0400000000"):
        assert plan_boot(None, kernel=kernel, initrd=initrd, append=append, mem_bytes=MEM).initrd == b"initrd"
    assert plan_boot(None, kernel=kernel, append="mem=32M", mem_bytes=MEM).initrd is None


def test_files_too_large_are_refused(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.vmm.boot.bootconfig.MAX_INITRD", 3 * MIB)
    with pytest.raises(BadInput, match="over 3 MB: strip .* or is it a disk image"):
        plan_boot(disk, mem_bytes=MEM, initrd=disk)


def test_a_disk_whose_boot_code_looks_like_multiboot(tmp_path: Path, disk: Path) -> None:
    data = bytearray(join_mbr(tmp_path / "parted", [disk]).read_bytes())
    data[:12] = bytes.fromhex("02b0ad1b03000000fb4f52e4")
    plan = plan_boot(put(tmp_path / "odd", bytes(data)), mem_bytes=MEM)
    assert plan.kernel == BZIMAGE
