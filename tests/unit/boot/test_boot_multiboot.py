"""Multiboot kernels, from the point of view of the specification (0.6.96)."""

from __future__ import annotations

import struct

import pytest
from boot_kernels import CODE, MIB, make_elf, make_multiboot, make_multiboot_elf

from tt.errors import BadInput
from tt.vmm.boot.multiboot import find_header, plan_multiboot
from tt.vmm.boot.plan import BootPlan

MEM = 64 * MIB


def ram(plan: BootPlan, addr: int, size: int) -> bytes:
    for start, data in plan.segments:
        if start <= addr < start + len(data):
            return data[addr - start : addr - start + size]
    raise AssertionError(f"nothing at {addr:#x}")


def string(plan: BootPlan, addr: int) -> bytes:
    return ram(plan, addr, 200).split(b"\0")[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_kernel(bits: int) -> None:
    plan = plan_multiboot(make_multiboot_elf(bits), None, "kernel args", MEM)
    start = plan.start
    assert (start.mode, start.rip, start.cr3) == ("protected32", MIB + 16, 0)
    assert start.registers["rax"] == 0x2BADB002
    info = start.registers["rbx"]
    flags, lower, upper = struct.unpack("<III", ram(plan, info, 12))
    assert flags == 0b10_0100_0101
    assert (lower, upper) == (639, MEM // 1024 - 1024)
    assert string(plan, int.from_bytes(ram(plan, info + 16, 4), "little")) == b"kernel args"
    assert string(plan, int.from_bytes(ram(plan, info + 64, 4), "little")) == b"tt"
    length, addr = struct.unpack("<II", ram(plan, info + 44, 8))
    entries = [struct.unpack("<IQQI", ram(plan, addr + at, 24)) for at in range(0, length, 24)]
    assert entries == [(20, 0, 0x9FC00, 1), (20, MIB, MEM - MIB, 1)]
    assert plan.kind == "multiboot"


def test_module_follows_the_kernel_on_a_page() -> None:
    plan = plan_multiboot(make_multiboot_elf(), b"module bytes", "", MEM)
    info = plan.start.registers["rbx"]
    assert int.from_bytes(ram(plan, info, 4), "little") & 8
    count, table = struct.unpack("<II", ram(plan, info + 20, 8))
    begin, end, text, reserved = struct.unpack("<IIII", ram(plan, table, 16))
    assert (count, end - begin, reserved) == (1, 12, 0)
    assert begin % 4096 == 0
    assert begin >= MIB + len(CODE) + 8192
    assert ram(plan, begin, 12) == b"module bytes"
    assert string(plan, text) == b""


def test_address_fields_override_elf() -> None:
    kernel = make_multiboot(
        position=64, addresses=(2 * MIB + 64, 2 * MIB, 0, 2 * MIB + 100_000, 2 * MIB + 96)
    )
    plan = plan_multiboot(kernel, b"m", "", MEM)
    assert plan.start.rip == 2 * MIB + 96
    assert ram(plan, 2 * MIB, len(kernel)) == kernel
    assert ram(plan, (2 * MIB + 100_000 + 4095) // 4096 * 4096, 1) == b"m"


def test_address_fields_with_an_end() -> None:
    kernel = make_multiboot(addresses=(2 * MIB, 2 * MIB, 2 * MIB + 500, 0, 2 * MIB))
    plan = plan_multiboot(kernel, None, "", MEM)
    assert (2 * MIB, kernel[:500]) in plan.segments


def test_header_search() -> None:
    assert find_header(make_multiboot(position=8180)) is not None
    assert find_header(make_multiboot(position=8184)) is None  # not whole in 8 KB
    assert find_header(make_multiboot(position=6)) is None  # not aligned
    assert find_header(make_multiboot(position=8176, addresses=(0, 0, 0, 0, 0))) is None
    bad = bytearray(make_multiboot())
    bad[8] ^= 1
    assert find_header(bytes(bad)) is None
    assert find_header(b"") is None


def test_video_request_is_no_obstacle() -> None:
    assert plan_multiboot(make_multiboot_elf(flags=7), None, "", MEM).start.mode == "protected32"


@pytest.mark.parametrize(
    ("kernel", "line", "mem", "message"),
    [
        (make_multiboot_elf(flags=0x13), "", MEM, "requires features 0x10"),
        (b"nothing", "", MEM, "no Multiboot header"),
        (make_multiboot(), "", MEM, "is no ELF file"),
        (make_multiboot(addresses=(MIB, 2 * MIB, 0, 0, MIB)), "", MEM, "before its beginning"),
        (make_multiboot(addresses=(2 * MIB, MIB, 0, 0, MIB)), "", MEM, "before its beginning"),
        (make_multiboot(addresses=(MIB, MIB, 9 * MIB, 0, MIB)), "", MEM, "cut short"),
        (make_multiboot(addresses=(MIB, MIB, MIB + 100, MIB + 50, MIB)), "", MEM, "contradict"),
        (make_multiboot_elf(), "x" * 40_000, MEM, "command line must be under"),
        (make_multiboot_elf(), "", MIB, "needs at least 2 MB"),
        (make_multiboot(addresses=(0x7000, 0x7000, 0, 0, 0x7000)), "", MEM, "overlap"),
        (make_elf(64, addr=1 << 33, code=make_multiboot()), "", 1 << 34, "above 4 GB"),
    ],
)
def test_errors(kernel: bytes, line: str, mem: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_multiboot(kernel, None, line, mem)
