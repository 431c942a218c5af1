"""Linux kernels: bzImage and vmlinux, by the boot protocol of Documentation/arch/x86/boot.rst.

A 64-bit kernel is unpacked here and entered at its 64-bit entry point, which
saves the guest the slowest part of its boot.  A 32-bit one, and one whose
payload cannot be taken out, is loaded as it is and unpacks itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot import elf, plan
from tt.vmm.boot.decompress import sniff_compression, unpack
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.plan import GDT_BASE, GDT_LIMIT, HIGH_RAM_START, MIB, PAGE, BootPlan, CpuStart, Segment

BZIMAGE = "linux-bzimage"
ELF = "linux-elf"

# Where things lie below 640 KB; nothing there belongs to a kernel at this point.
_ZERO_PAGE = 0x7000
_STACK_TOP = 0x8FF0
_PAGE_TABLES = 0x9000  # PML4, PDPT, 4 page directories: 6 pages
_CMDLINE = 0x20000
# Kernels older than protocol 2.02 look for the command line relative to 0x90000.
_OLD_SETUP_BASE = 0x90000
_OLD_CMDLINE = _OLD_SETUP_BASE + 0x800

# Setup header fields (boot.rst, "The Real-Mode Kernel Header"); the zero page
# holds them at the same offsets.
_SETUP_SECTS = 0x1F1
_BOOT_FLAG = 0x1FE
_JUMP = 0x200
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_RAMDISK_IMAGE = 0x218
_RAMDISK_SIZE = 0x21C
_CMD_LINE_PTR = 0x228
_INITRD_ADDR_MAX = 0x22C
_KERNEL_ALIGNMENT = 0x230
_CMDLINE_SIZE = 0x238
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
_PREF_ADDRESS = 0x258
_INIT_SIZE = 0x260
_HEADER_END = 0x290

_LOADED_HIGH = 0x01
_OTHER_LOADER = 0xFF  # "Special loaders: undefined"

# Zero page fields (Documentation/arch/x86/zero-page.rst).
_EXT_MEM_K = 0x002
_OLD_CMDLINE_MAGIC = 0x020
_ALT_MEM_K = 0x1E0
_E820_ENTRIES = 0x1E8
_E820_TABLE = 0x2D0
_E820_RAM = 1

_OLD_INITRD_MAX = 0x37FFFFFF
_NEW_INITRD_MAX = 0x7FFFFFFF
_OLD_CMDLINE_SIZE = 255
_NEW_CMDLINE_SIZE = 2047


@dataclass(frozen=True)
class SetupHeader:
    """The setup header of a bzImage; sizes in bytes, addresses guest-physical.

    Fields that the kernel's protocol version lacks hold what boot.rst says to
    assume.  `code_offset` is where the protected-mode code begins in the file.
    """

    raw: bytes
    version: int
    code_offset: int
    loaded_high: bool
    initrd_addr_max: int
    cmdline_size: int
    payload_offset: int
    payload_length: int
    memory_end: int

    @classmethod
    def parse(cls, image: bytes) -> SetupHeader:
        """Parse the header in `image`; raises `BadInput` when there is none or it is cut short."""
        if not is_bzimage(image):
            raise BadInput("kernel is not a bzImage: its setup header is missing")
        end = min(_JUMP + 2 + image[_JUMP + 1], _HEADER_END)
        raw = image[_SETUP_SECTS:end]
        padded = image[:end].ljust(_HEADER_END, b"\0")
        (version,) = struct.unpack_from("<H", padded, _VERSION)

        def u32(offset: int) -> int:
            return int.from_bytes(padded[offset : offset + 4], "little")

        code_offset = 512 + 512 * (padded[_SETUP_SECTS] or 4)
        code_size = len(image) - code_offset
        if code_size <= 0:
            raise BadInput(f"kernel is cut short: its code begins at {code_offset} of {len(image)} bytes")
        memory_end = HIGH_RAM_START + code_size
        if version >= 0x020A:
            (preferred,) = struct.unpack_from("<Q", padded, _PREF_ADDRESS)
            memory_end = max(memory_end, max(preferred, HIGH_RAM_START) + u32(_INIT_SIZE))
        return cls(
            raw=raw,
            version=version,
            code_offset=code_offset,
            loaded_high=bool(padded[_LOADFLAGS] & _LOADED_HIGH),
            initrd_addr_max=u32(_INITRD_ADDR_MAX) if version >= 0x0203 else _OLD_INITRD_MAX,
            cmdline_size=u32(_CMDLINE_SIZE) if version >= 0x0206 else _OLD_CMDLINE_SIZE,
            payload_offset=u32(_PAYLOAD_OFFSET) if version >= 0x0208 else 0,
            payload_length=u32(_PAYLOAD_LENGTH) if version >= 0x0208 else 0,
            memory_end=memory_end,
        )


def is_bzimage(data: bytes) -> bool:
    """Tell whether `data` begins with a Linux setup header (boot protocol 2.00 or later)."""
    return (
        len(data) > _LOADFLAGS
        and data[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"HdrS"
        and data[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa"
    )


def extract_vmlinux(image: bytes) -> bytes | None:
    """Return the unpacked payload of a bzImage, None where it cannot be located.

    None also stands for a payload in an unknown format: the kernel's own code
    can still unpack it.  Raises `BadInput` for a payload that is damaged.
    """
    header = SetupHeader.parse(image)
    start = header.code_offset + header.payload_offset
    payload = image[start : start + header.payload_length]
    if not header.payload_length:
        return None
    if len(payload) < header.payload_length:
        raise BadInput(f"kernel is cut short: its payload lacks {header.payload_length - len(payload)} bytes")
    if payload[:4] == elf.MAGIC:  # CONFIG_KERNEL_UNCOMPRESSED
        return payload
    if sniff_compression(payload) is None:
        return None
    return unpack(payload, "kernel")


@dataclass(frozen=True)
class _Job:
    """What a plan is made of; `mem_bytes` is the size of RAM."""

    kind: str
    kernel: bytes
    header: SetupHeader
    initrd: bytes | None
    cmdline: str
    mem_bytes: int


def plan_bzimage(kernel: bytes, initrd: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a bzImage; `mem_bytes` is the size of RAM.

    Raises `BadInput` when the kernel is damaged or does not fit.
    """
    header = SetupHeader.parse(kernel)
    job = _Job(BZIMAGE, kernel, header, initrd, cmdline, mem_bytes)
    how = f"bzImage, boot protocol {header.version >> 8}.{header.version & 0xFF:02d}"
    vmlinux = extract_vmlinux(kernel)
    if vmlinux is not None and vmlinux[:4] == elf.MAGIC:
        # Unpacked here and not by its own code: for a 32-bit Debian kernel that is 2.3 G ticks less.
        image = elf.parse_elf(vmlinux, "kernel")
        if image.bits == 64:
            return _plan_long64(job, image, how)
        end = max(image.end, header.memory_end)
        return _plan_protected32(job, image.segments, image.entry, end, how)
    if not header.loaded_high:
        raise BadInput("kernel is a zImage, which loads below 640 KB: use one built as bzImage")
    code = [(HIGH_RAM_START, kernel[header.code_offset :])]
    return _plan_protected32(job, code, HIGH_RAM_START, header.memory_end, f"{how}, unpacks itself")


def plan_elf(kernel: bytes, initrd: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a vmlinux, 64-bit or 32-bit; `mem_bytes` is the size of RAM.

    Raises `BadInput` when the kernel is damaged or does not fit.
    """
    image = elf.parse_elf(kernel, "kernel")
    job = _Job(ELF, kernel, _header_of_vmlinux(image.bits), initrd, cmdline, mem_bytes)
    if image.bits == 64:
        return _plan_long64(job, image, "vmlinux")
    return _plan_protected32(job, image.segments, image.entry, image.end, "32-bit vmlinux")


def _header_of_vmlinux(bits: int) -> SetupHeader:
    """Make the header a bzImage of this kernel would have had: a vmlinux brings none."""
    image = bytearray(1024)
    initrd_max = _NEW_INITRD_MAX if bits == 64 else _OLD_INITRD_MAX
    struct.pack_into("<B", image, _SETUP_SECTS, 1)
    struct.pack_into("<H", image, _BOOT_FLAG, 0xAA55)
    struct.pack_into("<BB4sH", image, _JUMP, 0xEB, _HEADER_END - _JUMP - 2, b"HdrS", 0x020F)
    struct.pack_into("<B", image, _LOADFLAGS, _LOADED_HIGH)
    struct.pack_into("<I", image, _INITRD_ADDR_MAX, initrd_max)
    struct.pack_into("<I", image, _KERNEL_ALIGNMENT, 16 * MIB)
    struct.pack_into("<I", image, _CMDLINE_SIZE, _NEW_CMDLINE_SIZE)
    return SetupHeader.parse(bytes(image) + b"\0")


def _plan_long64(job: _Job, image: elf.ElfImage, how: str) -> BootPlan:
    # boot.rst, "64-bit boot protocol": long mode, identity mapping of the
    # kernel, the zero page and the command line, RSI the zero page.
    if image.entry >= 4 << 30:
        raise BadInput(f"kernel starts at {image.entry:#x}, above 4 GB: damaged?")
    segments = [*image.segments, (_PAGE_TABLES, _identity_tables()), (GDT_BASE, plan.gdt("long64"))]
    start = CpuStart(
        mode="long64",
        rip=image.entry,
        registers={"rsi": _ZERO_PAGE, "rsp": _STACK_TOP},
        cr3=_PAGE_TABLES,
        gdt_base=GDT_BASE,
        gdt_limit=GDT_LIMIT,
    )
    return _finish(job, segments, image.end, start, f"{how}, 64-bit entry {image.entry:#x}")


def _plan_protected32(job: _Job, code: list[Segment], entry: int, end: int, how: str) -> BootPlan:
    # boot.rst, "32-bit boot protocol": flat segments, paging off, ESI the zero
    # page, EBP, EDI and EBX zero.
    segments = [*code, (GDT_BASE, plan.gdt("protected32"))]
    start = CpuStart(
        mode="protected32",
        rip=entry,
        registers={"rsi": _ZERO_PAGE, "rsp": _STACK_TOP},
        gdt_base=GDT_BASE,
        gdt_limit=GDT_LIMIT,
    )
    return _finish(job, segments, end, start, f"{how}, 32-bit entry {entry:#x}")


def _finish(job: _Job, segments: list[Segment], kernel_end: int, start: CpuStart, how: str) -> BootPlan:
    """Add what every Linux guest gets: command line, initrd and zero page."""
    plan.need_memory(job.mem_bytes, kernel_end, "kernel")
    text = job.cmdline.encode("utf-8", "surrogateescape")
    if b"\0" in text:
        raise BadInput("command line holds a zero byte, which would end it: remove it")
    if len(text) > job.header.cmdline_size:
        at_most = job.header.cmdline_size
        raise BadInput(f"command line is {len(text)} bytes, {at_most} at most: shorten --append")
    cmdline_addr = _CMDLINE if job.header.version >= 0x0202 else _OLD_CMDLINE
    segments.append((cmdline_addr, text + b"\0"))
    description = [f"kernel: {how}, {len(job.kernel)} bytes, RAM to {kernel_end:#x}"]
    initrd_addr = 0
    if job.initrd:
        initrd_addr = _initrd_address(len(job.initrd), kernel_end, job.header.initrd_addr_max, job.mem_bytes)
        segments.append((initrd_addr, job.initrd))
        description.append(f"initrd: {len(job.initrd)} bytes at {initrd_addr:#x}")
    description.append(f"command line: {printable(job.cmdline, 4096)}")
    segments.append((_ZERO_PAGE, _zero_page(job, cmdline_addr, initrd_addr)))
    return BootPlan(
        segments=plan.checked_segments(segments, job.mem_bytes, "kernel"),
        start=start,
        description=description,
        kernel=job.kernel,
        initrd=job.initrd,
        cmdline=job.cmdline,
        kind=job.kind,
    )


def _initrd_address(size: int, kernel_end: int, addr_max: int, mem_bytes: int) -> int:
    """Choose the highest page where the initrd fits (boot.rst: "as high as possible")."""
    needed = plan.page_up(kernel_end) + plan.page_up(size)
    if needed > addr_max + 1:
        raise BadInput(f"initrd is {size >> 20} MB, more than this kernel can take: use a smaller one")
    plan.need_memory(mem_bytes, needed, "kernel with initrd")
    return (min(mem_bytes, addr_max + 1) - size) // PAGE * PAGE


def _identity_tables() -> bytes:
    """Map the first 4 GB to themselves with 2 MB pages (Intel SDM volume 3, 4.5): 6 pages of tables."""
    present_writable, large = 0x03, 0x80
    pml4 = struct.pack("<Q", _PAGE_TABLES + PAGE | present_writable).ljust(PAGE, b"\0")
    directories = [_PAGE_TABLES + (2 + i) * PAGE | present_writable for i in range(4)]
    pdpt = struct.pack("<4Q", *directories).ljust(PAGE, b"\0")
    entries = [i * 2 * MIB | present_writable | large for i in range(4 * 512)]
    return pml4 + pdpt + struct.pack(f"<{len(entries)}Q", *entries)


def _zero_page(job: _Job, cmdline_addr: int, initrd_addr: int) -> bytes:
    """Fill in `struct boot_params`: the kernel's own header, then what boot.rst has a loader write.

    `screen_info` stays zero: there is no display, only the serial console.
    """
    page = bytearray(PAGE)
    page[_SETUP_SECTS : _SETUP_SECTS + len(job.header.raw)] = job.header.raw
    page[_TYPE_OF_LOADER] = _OTHER_LOADER
    struct.pack_into("<II", page, _RAMDISK_IMAGE, initrd_addr, len(job.initrd or b""))
    if cmdline_addr == _CMDLINE:
        struct.pack_into("<I", page, _CMD_LINE_PTR, cmdline_addr)
    else:
        struct.pack_into("<HH", page, _OLD_CMDLINE_MAGIC, 0xA33F, cmdline_addr - _OLD_SETUP_BASE)
    regions = plan.ram_map(job.mem_bytes)
    page[_E820_ENTRIES] = len(regions)
    for i, (addr, size) in enumerate(regions):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * i, addr, size, _E820_RAM)
    # RAM above 1 MB in KB, for kernels that know no e820 table.
    above = (job.mem_bytes - HIGH_RAM_START) >> 10
    struct.pack_into("<H", page, _EXT_MEM_K, min(above, 0xFFFF))
    struct.pack_into("<I", page, _ALT_MEM_K, min(above, 0xFFFFFFFF))
    return bytes(page)
