"""Multiboot kernels, from the point of view of the specification (0.6.96)."""

from __future__ import annotations

import hashlib
import struct

import pytest
from boot_kernels import CODE, MIB, make_elf, make_multiboot, make_multiboot_elf

from tt.errors import BadInput
from tt.vmm.boot.modules import Module, pack, unpack
from tt.vmm.boot.multiboot import find_header, plan_multiboot, plan_old
from tt.vmm.boot.plan import BootPlan

MEM = 64 * MIB
GRAPHICS = struct.pack("<8I", 0, 0, 0, 0, 0, 0, 1024, 768) + struct.pack("<I", 32)


def ram(plan: BootPlan, addr: int, size: int) -> bytes:
    for start, data in plan.segments:
        if start <= addr < start + len(data):
            return data[addr - start : addr - start + size]
    raise AssertionError(f"nothing at {addr:#x}")


def string(plan: BootPlan, addr: int) -> bytes:
    return ram(plan, addr, 200).split(b"\0")[0]


def word(plan: BootPlan, addr: int) -> int:
    return int.from_bytes(ram(plan, addr, 4), "little")


def modules_of(plan: BootPlan) -> list[tuple[int, bytes, bytes]]:
    """Return the modules as the kernel finds them: address, contents, string."""
    info = plan.start.registers["rbx"]
    found = []
    for i in range(word(plan, info + 20)):
        start, end, text, reserved = struct.unpack("<4I", ram(plan, word(plan, info + 24) + 16 * i, 16))
        assert reserved == 0
        found.append((start, ram(plan, start, end - start) if end > start else b"", string(plan, text)))
    return found


def video_kernel(mode: int) -> bytes:
    header = struct.pack("<III", 0x1BADB002, 7, -(0x1BADB002 + 7) & 0xFFFFFFFF)
    code = header + bytes(20) + struct.pack("<4I", mode, 1024, 768, 32) + CODE
    return make_elf(32, addr=MIB, code=code)


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_kernel(bits: int) -> None:
    plan = plan_multiboot(make_multiboot_elf(bits), None, "kernel args", MEM)
    start = plan.start
    assert (start.mode, start.rip, start.cr3) == ("protected32", MIB + 16, 0)
    assert start.registers["rax"] == 0x2BADB002
    info = start.registers["rbx"]
    flags, lower, upper = struct.unpack("<III", ram(plan, info, 12))
    assert flags == 0b10_0100_0101  # no sections: this file has no section headers
    assert (lower, upper) == (639, MEM // 1024 - 1024)
    assert string(plan, word(plan, info + 16)) == b"kernel args"
    assert string(plan, word(plan, info + 64)).startswith(b"GRUB 2")
    length, addr = struct.unpack("<II", ram(plan, info + 44, 8))
    entries = [struct.unpack("<IQQI", ram(plan, addr + at, 24)) for at in range(0, length, 24)]
    assert entries == [(20, 0, 0x9FC00, 1), (20, MIB, MEM - MIB, 1)]
    assert plan.kind == "multiboot1"


def test_modules_follow_the_kernel_on_pages_with_their_words() -> None:
    given = [
        Module("one 'two", b"module bytes"),
        Module("", b""),
        Module("three", b"x" * 5000),
        Module("", b"y"),
    ]
    plan = plan_multiboot(make_multiboot_elf(), pack(given), "", MEM)
    assert word(plan, plan.start.registers["rbx"]) & 8
    found = modules_of(plan)
    assert [(data, text.decode()) for _, data, text in found] == [(m.data, m.words) for m in given]
    assert [addr % 4096 for addr, _, _ in found] == [0, 0, 0, 0]
    assert [addr for addr, _, _ in found][1] == 0  # GRUB: an empty file has no place
    assert found[0][0] >= MIB + len(CODE) + 8192
    assert "module: 5000 bytes at" in plan.description[3] and plan.description[3].endswith(": three")


def test_modules_survive_being_packed() -> None:
    given = [Module("a b", b"1"), Module("", b""), Module("\udcff", bytes(100))]
    packed = pack(given)
    assert unpack(packed) == given
    assert unpack(None) == []
    for damaged in (b"", b"raw initrd", packed[:-1], packed[:15], packed + b"x"):
        with pytest.raises(BadInput, match="the trace is damaged"):
            unpack(damaged)
    with pytest.raises(BadInput, match="too many"):
        pack([Module("", b"")] * 1001)


def test_address_fields_override_elf() -> None:
    addresses = (2 * MIB + 64, 2 * MIB, 0, 2 * MIB + 100_000, 2 * MIB + 96)
    kernel = make_multiboot(position=64, addresses=addresses)
    plan = plan_multiboot(kernel, pack([Module("", b"m")]), "", MEM)
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
    assert find_header(make_multiboot(flags=7, position=8176)) is None
    bad = bytearray(make_multiboot())
    bad[8] ^= 1
    assert find_header(bytes(bad)) is None
    assert find_header(b"") is None


@pytest.mark.parametrize(("mode", "name"), [(0, "graphics"), (1, "text")])
def test_a_wish_for_video_is_no_obstacle(mode: int, name: str) -> None:
    plan = plan_multiboot(video_kernel(mode), None, "", MEM)
    assert f"video: the kernel asks for {name} 1024x768x32, there is no display" in plan.description


def test_optional_features_may_be_unknown() -> None:
    assert (
        plan_multiboot(make_multiboot_elf(flags=0x8003_0000 & ~0x10000), None, "", MEM).kind == "multiboot1"
    )


def test_the_information_keeps_clear_of_a_low_kernel() -> None:
    kernel = make_multiboot(addresses=(0x7000, 0x7000, 0, 0x20000, 0x7000))
    plan = plan_multiboot(kernel, None, "x", MEM)
    assert plan.start.registers["rbx"] == 0x20000
    everything = make_multiboot(addresses=(0x1000, 0x1000, 0, 0x9F000, 0x1000))
    assert plan_multiboot(everything, None, "x" * 4000, MEM).start.registers["rbx"] == MIB


def test_a_module_goes_below_a_kernel_at_the_end_of_memory() -> None:
    kernel = make_elf(32, addr=MEM - MIB, code=make_multiboot(), bss=MIB - len(make_multiboot()))
    plan = plan_multiboot(kernel, pack([Module("", b"m")]), "", MEM)
    assert modules_of(plan) == [(MIB, b"m", b"")]


@pytest.mark.parametrize(
    ("kernel", "line", "mem", "message"),
    [
        (make_multiboot_elf(flags=0x13), "", MEM, r"requires features 0x10 \(flag bits 4\)"),
        (make_multiboot_elf(flags=0x8803), "", MEM, r"\(flag bits 11, 15\)"),
        (video_kernel(2), "", MEM, "video mode type 2"),
        (b"nothing", "", MEM, "no Multiboot header"),
        (make_multiboot(), "", MEM, "is not an ELF file"),
        (make_multiboot(addresses=(MIB, 2 * MIB, 0, 0, MIB)), "", MEM, "before its beginning"),
        (make_multiboot(addresses=(2 * MIB, MIB, 0, 0, MIB)), "", MEM, "before its beginning"),
        (make_multiboot(addresses=(MIB, MIB, 9 * MIB, 0, MIB)), "", MEM, "cut short"),
        (make_multiboot(addresses=(MIB, MIB, MIB + 100, MIB + 50, MIB)), "", MEM, "contradict"),
        (make_multiboot_elf(), "x" * 40_000, MEM, "command line .--append. must be under"),
        (make_multiboot_elf(), "", MIB, "needs at least 2 MB"),
        (
            make_multiboot(addresses=(0x400, 0x400, 0, 0, 0x400)),
            "",
            MEM,
            "overlaps the boot loader's own data",
        ),
        (make_elf(64, addr=1 << 33, code=make_multiboot()), "", 1 << 34, "above 4 GB"),
    ],
)
def test_errors(kernel: bytes, line: str, mem: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_multiboot(kernel, None, line, mem)


def test_modules_that_do_not_fit() -> None:
    with pytest.raises(BadInput, match="Multiboot kernel with modules needs at least 6 MB"):
        plan_multiboot(make_multiboot_elf(), pack([Module("", bytes(4 * MIB))]), "", 3 * MIB)
    with pytest.raises(BadInput, match="a module's words must be under"):
        plan_multiboot(make_multiboot_elf(), pack([Module("x" * 40_000, b"")]), "", MEM)


@pytest.mark.parametrize(
    ("kernel", "module", "line", "digest"),
    [
        (make_multiboot_elf(32), None, "kernel args", "0d811ecaf5a8a58d"),
        (make_multiboot_elf(64), b"module bytes", "a b", "a7b1c62901740b3a"),
        (
            make_multiboot(
                position=64, addresses=(2 * MIB + 64, 2 * MIB, 0, 2 * MIB + 100_000, 2 * MIB + 96)
            ),
            b"m", "", "8a3d539087a5298b",
        ),
    ],
)  # fmt: skip
def test_older_traces_start_as_they_did(kernel: bytes, module: bytes | None, line: str, digest: str) -> None:
    plan = plan_old(kernel, module, line, MEM)
    told = hashlib.sha256()
    for addr, data in plan.segments:
        told.update(repr((addr, len(data))).encode() + data)
    told.update(repr((plan.start, plan.description)).encode())
    assert (plan.kind, told.hexdigest()[:16]) == ("multiboot", digest)
