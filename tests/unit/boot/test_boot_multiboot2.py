"""Multiboot2 kernels, from the point of view of the specification (2.0)."""

from __future__ import annotations

import struct

import pytest
from boot_kernels import CODE, MIB, make_elf, make_multiboot2, make_multiboot2_elf
from boot_kernels import multiboot2_tag as tag

from tt.errors import BadInput
from tt.vmm.boot.modules import Module, pack
from tt.vmm.boot.multiboot2 import find_header, plan_multiboot2
from tt.vmm.boot.plan import BootPlan

MEM = 64 * MIB
OPTIONAL = 1


def information(plan: BootPlan) -> list[tuple[int, bytes]]:
    """Return the tags of the information, as the kernel walks them."""
    info = plan.start.registers["rbx"]
    (data,) = [data for start, data in plan.segments if start == info]
    total, reserved = struct.unpack_from("<II", data)
    assert (total, reserved, info % 8) == (len(data), 0, 0)
    at, tags = 8, []
    while at < total:
        kind, size = struct.unpack_from("<II", data, at)
        tags.append((kind, data[at + 8 : at + size]))
        at += -(-size // 8) * 8
    assert tags[-1] == (0, b"")
    return tags


@pytest.mark.parametrize("bits", [32, 64])
def test_machine_state_and_information(bits: int) -> None:
    given = [Module("a b", b"data"), Module("", b"")]
    plan = plan_multiboot2(make_multiboot2_elf(bits), pack(given), "kernel args", MEM)
    start = plan.start
    assert (start.mode, start.rip, start.cr3, start.registers["rax"]) == (
        "protected32", MIB + 16, 0, 0x36D76289,
    )  # fmt: skip
    tags = information(plan)
    assert [kind for kind, _ in tags] == [21, 1, 2, 3, 3, 6, 4, 0]
    found = dict(tags)
    assert found[21] == struct.pack("<I", MIB)
    assert found[1] == b"kernel args\0"
    assert found[2].startswith(b"GRUB 2") and found[2].endswith(b"\0")
    assert found[4] == struct.pack("<II", 639, MEM // 1024 - 1024)
    assert found[6] == struct.pack("<II", 24, 0) + struct.pack(
        "<QQIIQQII", 0, 0x9FC00, 1, 0, MIB, MEM - MIB, 1, 0
    )
    (first, last), text = struct.unpack_from("<II", tags[3][1]), tags[3][1][8:]
    assert (text, last - first, first % 4096) == (b"a b\0", 4, 0)
    assert (first, b"data") in plan.segments
    assert tags[4][1] == bytes(9)
    assert plan.kind == "multiboot2"


def test_header_search() -> None:
    assert find_header(make_multiboot2(position=32744)) is not None
    assert find_header(make_multiboot2(position=32768)) is None
    assert find_header(make_multiboot2(position=12)) is None  # not aligned
    bad = bytearray(make_multiboot2())
    bad[12] ^= 1
    assert find_header(bytes(bad)) is None
    assert find_header(b"") is None


def test_address_and_entry_tags() -> None:
    kernel = make_multiboot2(
        tag(2, 2 * MIB + 64, 2 * MIB, 0, 2 * MIB + 100_000), tag(3, 2 * MIB + 200), position=64
    )
    plan = plan_multiboot2(kernel, None, "", MEM)
    assert plan.start.rip == 2 * MIB + 200
    assert (2 * MIB, kernel) in plan.segments
    whole = make_multiboot2(tag(2, 3 * MIB + 64, 0xFFFFFFFF, 0, 0), tag(3, 3 * MIB), position=64)
    assert (3 * MIB, whole) in plan_multiboot2(whole, None, "", MEM).segments
    assert plan_multiboot2(make_multiboot2_elf(32, tag(3, MIB + 99)), None, "", MEM).start.rip == MIB + 99


@pytest.mark.parametrize(
    ("low", "high", "align", "preference", "base"),
    [
        (0, 0xFFFFFFFF, 0, 0, 8 * MIB),  # where it is linked
        (0, 0xFFFFFFFF, 0x1000, 1, MIB),
        (5 * MIB + 1, 0xFFFFFFFF, MIB, 1, 6 * MIB),
        (9 * MIB, 0xFFFFFFFF, 4, 0, 9 * MIB),
        (0, 0xFFFFFFFF, 16 * MIB, 0, 16 * MIB),
        (0, 32 * MIB - 1, MIB, 2, 31 * MIB),
        (0, 0xFFFFFFFF, MIB, 2, MEM - MIB),
    ],
)
def test_relocatable_images(low: int, high: int, align: int, preference: int, base: int) -> None:
    code = make_multiboot2(tag(10, low, high, align, preference))
    kernel = make_elf(32, addr=8 * MIB, code=code, bss=MIB - len(code))
    plan = plan_multiboot2(kernel, pack([Module("", b"m")]), "", MEM)
    assert plan.start.rip == base + 16
    assert (base, code) in plan.segments
    assert dict(information(plan))[21] == struct.pack("<I", base)


def test_wishes_that_need_no_answer() -> None:
    tags = [
        tag(1, 1, 3, 8, 14, 21), tag(1, 99, flags=OPTIONAL), tag(4, 2), tag(4, 1, flags=OPTIONAL),
        tag(5, 800, 600, 32), tag(6), tag(7), tag(8, 5), tag(9, 5), tag(4711, 1, 2, 3, flags=OPTIONAL),
    ]  # fmt: skip
    plan = plan_multiboot2(make_multiboot2_elf(32, *tags), None, "", MEM)
    assert "video: the kernel would like graphics 800x600x32, there is no display" in plan.description


@pytest.mark.parametrize(
    ("kernel", "mem", "message"),
    [
        (make_multiboot2_elf(32, tag(11)), MEM, "requires header tag 11, which tt does not know"),
        (make_multiboot2_elf(32, tag(1, 3, 22, 99)), MEM, "requires information of type 22, 99"),
        (make_multiboot2_elf(32, tag(4, 3)), MEM, "requires a console .header tag 4, bit 0."),
        (make_multiboot2_elf(32, tag(3)), MEM, "header tag 3 is too short"),
        (make_multiboot2(architecture=4), MEM, "is for MIPS"),
        (make_multiboot2(architecture=9), MEM, "is for architecture 9"),
        (make_multiboot2(tag(2, MIB, MIB, 0, 0)), MEM, "an address tag and no entry address tag"),
        (make_multiboot2(tag(2, MIB, 2 * MIB, 0, 0), tag(3, MIB)), MEM, "before its beginning"),
        (make_multiboot2(tag(2, MIB, MIB, MIB + 9 * MIB, 0), tag(3, MIB)), MEM, "cut short"),
        (make_multiboot2(), MEM, "is not an ELF file"),
        (make_elf(32, addr=MIB, code=make_multiboot2(end=False)[:-len(CODE)]), MEM, "has no end tag"),
        (make_multiboot2_elf(32, tag(10, 0, MIB, 4, 1)), MEM, "between 0x0 and 0x100000 in 64 MB"),
        (make_multiboot2_elf(), MIB, "needs at least 2 MB"),
        (make_elf(64, addr=1 << 33, code=make_multiboot2()), 1 << 34, "above 4 GB"),
        (b"nothing", MEM, "no Multiboot2 header"),
    ],
)  # fmt: skip
def test_errors(kernel: bytes, mem: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_multiboot2(kernel, None, "", mem)
