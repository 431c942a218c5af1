"""Linux kernels, from the boot protocol's point of view (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import struct

import pytest
from boot_kernels import CODE, MIB, PACKERS, make_bzimage, make_elf

from tt.errors import BadInput
from tt.vmm.boot import linux
from tt.vmm.boot.decompress import sniff_compression, unpack
from tt.vmm.boot.plan import BootPlan

MEM = 128 * MIB


def ram(plan: BootPlan, addr: int, size: int) -> bytes:
    for start, data in plan.segments:
        if start <= addr < start + len(data):
            return data[addr - start : addr - start + size].ljust(size, b"\0")
    return bytes(size)


def u32(plan: BootPlan, addr: int) -> int:
    return int.from_bytes(ram(plan, addr, 4), "little")


def zero_page(plan: BootPlan) -> int:
    return plan.start.registers["rsi"]


def cmdline(plan: BootPlan) -> bytes:
    return ram(plan, u32(plan, zero_page(plan) + 0x228), 256).split(b"\0")[0]


def disjoint(plan: BootPlan, mem: int = MEM) -> bool:
    end = 0
    for addr, data in plan.segments:
        if addr < end or not data:
            return False
        end = addr + len(data)
    return end <= mem


@pytest.mark.parametrize("name", PACKERS)
def test_every_compression_unpacks_to_the_64_bit_entry(name: str) -> None:
    vmlinux = make_elf(64)
    payload = PACKERS[name](vmlinux)
    assert sniff_compression(payload) == name
    image = make_bzimage(payload)
    assert linux.extract_vmlinux(image) == vmlinux
    plan = linux.plan_bzimage(image, b"initrd" * 1000, "console=ttyS0", MEM)
    assert plan.start.mode == "long64"
    assert plan.start.rip == 16 * MIB + 16
    assert ram(plan, 16 * MIB, len(CODE)) == CODE
    assert disjoint(plan)
    assert plan.kind == linux.BZIMAGE
    assert plan.kernel == image


def test_large_payloads_span_blocks() -> None:
    vmlinux = make_elf(64, code=CODE * 900)
    for name in ("lz4", "lzo", "zstd"):
        assert linux.extract_vmlinux(make_bzimage(PACKERS[name](vmlinux))) == vmlinux


def test_uncompressed_payload() -> None:
    vmlinux = make_elf(64)
    assert linux.extract_vmlinux(make_bzimage(vmlinux)) == vmlinux


@pytest.mark.parametrize("name", PACKERS)
def test_damaged_payload_says_so(name: str) -> None:
    payload = bytearray(PACKERS[name](make_elf(64, code=CODE * 4)))
    for cut in (len(payload) // 2, 40):
        with pytest.raises(BadInput, match="does not unpack"):
            unpack(bytes(payload[:cut]), "kernel")


def test_unknown_compression() -> None:
    with pytest.raises(BadInput, match="unknown format"):
        unpack(b"????", "kernel")


def test_unpacking_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.vmm.boot.decompress.MAX_UNPACKED", 100_000)
    for name, packer in PACKERS.items():
        with pytest.raises(BadInput, match="unpacks to more than"):
            unpack(packer(bytes(3_000_000)), name)


def test_zero_page() -> None:
    image = make_bzimage(PACKERS["gzip"](make_elf(64)))
    initrd = b"x" * 10_000
    plan = linux.plan_bzimage(image, initrd, "root=/dev/vda quiet", MEM)
    page = zero_page(plan)
    assert (
        ram(plan, page + 0x1F1, 0x77)
        == image[0x1F1:0x210]
        + b"\xff"
        + image[0x211:0x218]
        + struct.pack("<II", u32(plan, page + 0x218), len(initrd))
        + image[0x220:0x228]
        + ram(plan, page + 0x228, 4)
        + image[0x22C:0x268]
    )
    assert ram(plan, page + 0x210, 1) == b"\xff"
    assert cmdline(plan) == b"root=/dev/vda quiet"
    assert ram(plan, page, 0x2) == bytes(2)  # screen_info
    assert ram(plan, page + 0x1E8, 1) == b"\x02"
    assert struct.unpack("<QQIQQI", ram(plan, page + 0x2D0, 40)) == (0, 0x9FC00, 1, MIB, MEM - MIB, 1)
    addr = u32(plan, page + 0x218)
    assert addr % 4096 == 0
    assert MEM - len(initrd) - 4096 < addr <= MEM - len(initrd)
    assert ram(plan, addr, len(initrd)) == initrd


def test_long_mode_start() -> None:
    plan = linux.plan_elf(make_elf(64), None, "", MEM)
    start = plan.start
    assert (start.mode, start.cs, start.ds) == ("long64", 0x10, 0x18)
    assert start.gdt_limit == 31
    gdt = struct.unpack("<4Q", ram(plan, start.gdt_base, 32))
    assert gdt == (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    for addr in (0, 0x7123, 16 * MIB + 5, 4095 * MIB + 77):
        assert walk(plan, addr) == addr
    assert disjoint(plan)


def walk(plan: BootPlan, addr: int) -> int:
    """Translate as the CPU would, from CR3 down to a 2 MB page."""
    table = plan.start.cr3
    for shift in (39, 30):
        entry = int.from_bytes(ram(plan, table + (addr >> shift & 511) * 8, 8), "little")
        assert entry & 3 == 3
        table = entry & ~0xFFF
    entry = int.from_bytes(ram(plan, table + (addr >> 21 & 511) * 8, 8), "little")
    assert entry & 0x83 == 0x83
    return (entry & ~0x1FFFFF) | addr & 0x1FFFFF


def test_vmlinux_with_virtual_entry() -> None:
    plan = linux.plan_elf(make_elf(64, virtual=0xFFFFFFFF81000000), None, "", MEM)
    assert plan.start.rip == 16 * MIB + 16
    assert plan.kind == linux.ELF
    page = zero_page(plan)
    assert ram(plan, page + 0x202, 4) == b"HdrS"


def test_vmlinux_32_bit() -> None:
    plan = linux.plan_elf(make_elf(32, virtual=0xC1000000), b"initrd", "quiet", MEM)
    start = plan.start
    assert (start.mode, start.rip, start.cr3, start.cs, start.ds) == (
        "protected32",
        16 * MIB + 16,
        0,
        0x10,
        0x18,
    )
    assert struct.unpack("<4Q", ram(plan, start.gdt_base, 32)) == (
        0,
        0,
        0x00CF9B000000FFFF,
        0x00CF93000000FFFF,
    )
    assert cmdline(plan) == b"quiet"


@pytest.mark.parametrize("version", [0x020F, 0x0208])
@pytest.mark.parametrize("packing", ["gzip", "xz"])
def test_bzimage_32_bit(version: int, packing: str) -> None:
    """It is unpacked here, as a 64-bit one is; its init_size of RAM is kept free for it all the same."""
    vmlinux = make_elf(32, virtual=0xC1000000)
    image = make_bzimage(PACKERS[packing](vmlinux), version=version, kernel_64=False)
    plan = linux.plan_bzimage(image, b"i" * 5000, "quiet", MEM)
    assert (plan.start.mode, plan.start.rip) == ("protected32", 16 * MIB + 16)
    assert ram(plan, 16 * MIB, 256) == vmlinux[0x100:0x200]
    assert "unpacks itself" not in plan.description[0]
    assert cmdline(plan) == b"quiet"
    if version >= 0x020A:
        with pytest.raises(BadInput, match="at least 48 MB, not 40"):
            linux.plan_bzimage(image, None, "", 40 * MIB)


@pytest.mark.parametrize(
    ("version", "payload"),
    [
        (0x0204, PACKERS["gzip"](make_elf(64))),  # no payload fields
        (0x020F, b"\x01\x02\x03\x04" * 100),  # a payload in no known format
        (0x020F, PACKERS["gzip"](b"a flat binary")),
    ],
)
def test_kernels_that_unpack_themselves(version: int, payload: bytes) -> None:
    image = make_bzimage(payload, version=version)
    plan = linux.plan_bzimage(image, b"i" * 5000, "quiet", MEM)
    assert plan.start.mode == "protected32"
    assert plan.start.rip == MIB
    assert ram(plan, MIB, len(image) - 2560) == image[2560:]
    assert "unpacks itself" in plan.description[0]
    assert cmdline(plan) == b"quiet"


def test_old_protocol_command_line_is_relative_to_0x90000() -> None:
    plan = linux.plan_bzimage(make_bzimage(b"code" * 100, version=0x0201), None, "old", MEM)
    magic, offset = struct.unpack("<HH", ram(plan, zero_page(plan) + 0x20, 4))
    assert magic == 0xA33F
    assert ram(plan, 0x90000 + offset, 4) == b"old\0"


def test_zero_setup_sects_means_four() -> None:
    image = bytearray(make_bzimage(PACKERS["gzip"](make_elf(64))))
    image[0x1F1] = 0
    assert linux.extract_vmlinux(bytes(image)) == make_elf(64)


def test_initrd_stays_below_the_kernels_limit() -> None:
    image = make_bzimage(PACKERS["gzip"](make_elf(64)), initrd_addr_max=64 * MIB - 1)
    plan = linux.plan_bzimage(image, b"i" * 5000, "", MEM)
    assert u32(plan, zero_page(plan) + 0x218) == 64 * MIB - 8192


def test_plans_are_a_pure_function() -> None:
    image = make_bzimage(PACKERS["xz"](make_elf(64)))
    assert linux.plan_bzimage(image, b"i", "a", MEM) == linux.plan_bzimage(image, b"i", "a", MEM)


@pytest.mark.parametrize(
    ("kernel", "initrd", "line", "mem", "message"),
    [
        (make_elf(64), None, "", 8 * MIB, r"kernel needs at least 17 MB, not 8: use --mem"),
        (make_elf(64), bytes(20 * MIB), "", 32 * MIB, r"kernel with initrd needs at least 37 MB"),
        (make_elf(64), None, "x" * 2048, MEM, r"command line is 2048 bytes, 2047 at most"),
        (make_elf(64), None, "a\0b", MEM, r"zero byte"),
        (make_elf(64, machine=183), None, "", MEM, r"machine type 183"),
        (make_elf(64, entry=4), None, "", MEM, r"outside everything it loads"),
        (make_elf(64)[:5000], None, "", MEM, r"cut short"),
        (make_elf(64)[:70], None, "", MEM, r"cut short"),
        (make_elf(64, addr=0x7000), None, "", MEM, r"overlap"),
        (make_elf(64, addr=1 << 33), None, "", 1 << 34, r"above 4 GB"),
        (b"\x7fELF\x05\x01" + bytes(60), None, "", MEM, r"unknown class"),
        (b"\x7fELF\x02\x01" + bytes(70), None, "", MEM, r"machine type 0"),
        (b"not ELF", None, "", MEM, r"is not an ELF file"),
    ],
)
def test_errors_of_vmlinux(kernel: bytes, initrd: bytes | None, line: str, mem: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        linux.plan_elf(kernel, initrd, line, mem)


def test_errors_of_bzimage() -> None:
    payload = PACKERS["gzip"](make_elf(64))
    with pytest.raises(BadInput, match="lacks 1000 bytes"):
        linux.plan_bzimage(make_bzimage(payload, payload_length=len(payload) + 1000), None, "", MEM)
    with pytest.raises(BadInput, match="its code begins at 2560 of 2000"):
        linux.plan_bzimage(make_bzimage(payload)[:2000], None, "", MEM)
    with pytest.raises(BadInput, match="zImage"):
        linux.plan_bzimage(make_bzimage(b"code", kernel_64=False, loadflags=0), None, "", MEM)
    with pytest.raises(BadInput, match="not a bzImage"):
        linux.plan_bzimage(b"MZ" + bytes(1000), None, "", MEM)
    with pytest.raises(BadInput, match="needs at least 48 MB"):
        linux.plan_bzimage(make_bzimage(b"code", kernel_64=False), None, "", 20 * MIB)
    small = make_bzimage(payload, initrd_addr_max=20 * MIB)
    with pytest.raises(BadInput, match="more than this kernel can take"):
        linux.plan_bzimage(small, bytes(10 * MIB), "", MEM)


def test_programs_are_no_kernels() -> None:
    program = bytearray(make_elf(64))
    program[64] = 3  # PT_INTERP
    with pytest.raises(BadInput, match="a program for an operating system"):
        linux.plan_elf(bytes(program), None, "", MEM)


def test_elf_bombs_are_refused() -> None:
    elf = bytearray(make_elf(64))
    program = bytes(elf[64:120])
    elf[64:120] = b""
    table = len(elf)
    struct.pack_into("<Q", elf, 32, table)
    struct.pack_into("<H", elf, 56, 1000)
    with pytest.raises(BadInput, match="cut short or damaged"):
        linux.plan_elf(bytes(elf) + program * 1000, None, "", MEM)
    struct.pack_into("<H", elf, 56, 60000)
    with pytest.raises(BadInput, match="60000 program headers"):
        linux.plan_elf(bytes(elf), None, "", MEM)
