"""Kernels of the Multiboot Specification, version 0.6.96 (Multiboot 1)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot import mbimage, plan
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.mbimage import Image, Layout
from tt.vmm.boot.modules import unpack
from tt.vmm.boot.plan import BootPlan

KIND = "multiboot1"
OLD_KIND = "multiboot"
"""The kind of traces from before there were lists of modules; see `plan_old`."""

_WHAT = "Multiboot kernel"
_HEADER_MAGIC = 0x1BADB002
_LOADER_MAGIC = 0x2BADB002
_SEARCH = 8192

# Header flags (3.1.2).  Bit 0, modules on page boundaries, and bit 1, memory
# information, are always met.  Bit 2 asks for a video mode, as a wish only
# (3.1.4); the machine has no display, and the information tells of none.
_WANTS_VIDEO = 1 << 2
_KNOWN_REQUIRED = 0x0007
_ADDRESS_FIELDS = 1 << 16
_VIDEO_MODES = {0: "graphics", 1: "text"}

# Information flags (3.3).  Never set: bit 1 and 7, a BIOS's boot device and
# drives, since there is no BIOS; bit 4, symbols of a.out; bits 8 and 10, the
# BIOS's configuration and APM tables; bits 11 and 12, a display.
_INFO_MEMORY = 1 << 0
_INFO_CMDLINE = 1 << 2
_INFO_MODULES = 1 << 3
_INFO_SECTIONS = 1 << 5
_INFO_MMAP = 1 << 6
_INFO_LOADER_NAME = 1 << 9
_INFO_SIZE = 116


@dataclass(frozen=True)
class Header:
    """The Multiboot header; `position` is its offset in the file, `addresses` the five fields of flag 16.

    `video` are the four fields of flag 2: mode_type, width, height, depth.
    """

    position: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None
    video: tuple[int, int, int, int] | None = None


def find_header(data: bytes) -> Header | None:
    """Find the header: 4-byte aligned, whole in the first 8192 bytes (3.1); None when there is none."""
    end = min(len(data), _SEARCH)
    for position in range(0, end - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, position)
        if magic != _HEADER_MAGIC or (magic + flags + checksum) & 0xFFFFFFFF:
            continue
        size = 48 if flags & _WANTS_VIDEO else 32 if flags & _ADDRESS_FIELDS else 12
        if position + size > end:
            continue
        addresses = video = None
        if flags & _ADDRESS_FIELDS:
            addresses = struct.unpack_from("<IIIII", data, position + 12)
        if flags & _WANTS_VIDEO:
            video = struct.unpack_from("<IIII", data, position + 32)
        return Header(position, flags, addresses, video)
    return None


def plan_multiboot(kernel: bytes, packed: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a Multiboot kernel; `packed` are its modules, `mem_bytes` is the size of RAM.

    The machine state is that of section 3.2: EAX the loader's magic, EBX the
    information structure, flat 32-bit segments, paging and interrupts off.
    Raises `BadInput` when the kernel is damaged, does not fit or asks for
    something this loader does not give.
    """
    modules = unpack(packed)
    header, image = _image(kernel)
    entry = mbimage.checked_entry(image, _WHAT)
    layout = Layout(mem_bytes, _WHAT)
    layout.put_kernel(image)
    ranges = layout.put_modules(modules, image.end)
    sections = layout.put_sections(image.sections, image.end)
    placed = [(*where, module.words) for where, module in zip(ranges, modules, strict=True)]
    symbols = None if image.sections is None or sections is None else (
        image.sections.count, image.sections.entry_size, image.sections.names, sections,
    )  # fmt: skip
    parts = _Parts(cmdline, placed, mem_bytes, mbimage.LOADER_NAME, symbols)
    info = layout.put_info(len(_information(0, parts)))
    layout.segments.append((info, _information(info, parts)))
    description = [f"kernel: Multiboot, 32-bit entry {entry:#x}, {len(kernel)} bytes, RAM to {image.end:#x}"]
    if header.video is not None:
        mode, width, height, depth = header.video
        description.append(
            f"video: the kernel asks for {_VIDEO_MODES[mode]} {width}x{height}x{depth}, there is no display"
        )
    description += [
        f"module: {end - start} bytes at {start:#x}: {printable(words, 1000)}".rstrip(": ")
        for start, end, words in placed
    ]
    description.append(f"command line: {printable(cmdline, 4096)}")
    registers = {"rax": _LOADER_MAGIC, "rbx": info}
    return layout.boot_plan(entry, registers, (KIND, kernel, packed, cmdline), description)


def plan_old(kernel: bytes, module: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan as tt did before it knew lists of modules, byte for byte: for the replay of older traces.

    At most one module, as its file is; no sections; the boot loader is called "tt".
    """
    _, image = _image(kernel)
    entry = mbimage.checked_entry(image, _WHAT)
    plan.need_memory(mem_bytes, image.end, _WHAT)
    description = [f"kernel: Multiboot, 32-bit entry {entry:#x}, {len(kernel)} bytes, RAM to {image.end:#x}"]
    layout = Layout(mem_bytes, _WHAT)
    layout.segments += [*image.segments, (plan.GDT_BASE, plan.gdt("protected32"))]
    placed = []
    if module:
        start = max(plan.page_up(image.end), plan.HIGH_RAM_START)
        plan.need_memory(mem_bytes, start + len(module), f"{_WHAT} with module")
        layout.segments.append((start, module))
        description.append(f"module: {len(module)} bytes at {start:#x}")
        placed = [(start, start + len(module), "")]
    description.append(f"command line: {printable(cmdline, 4096)}")
    info = 0x7000
    layout.segments.append((info, _information(info, _Parts(cmdline, placed, mem_bytes, b"tt\0", None))))
    registers = {"rax": _LOADER_MAGIC, "rbx": info}
    return layout.boot_plan(entry, registers, (OLD_KIND, kernel, module, cmdline), description)


def _image(kernel: bytes) -> tuple[Header, Image]:
    """Read the header and load the kernel by its address fields, or as an ELF file."""
    header = find_header(kernel)
    if header is None:
        raise BadInput("kernel has no Multiboot header in its first 8 KB")
    unknown = header.flags & 0xFFFF & ~_KNOWN_REQUIRED
    if unknown:
        bits = ", ".join(str(bit) for bit in range(16) if unknown >> bit & 1)
        raise BadInput(
            f"Multiboot kernel requires features {unknown:#x} (flag bits {bits}) that version 0.6.96 "
            "does not define"
        )
    if header.video is not None and header.video[0] not in _VIDEO_MODES:
        raise BadInput(f"Multiboot kernel asks for video mode type {header.video[0]}: 0 and 1 are defined")
    if header.addresses is None:
        return header, mbimage.load_elf(kernel, _WHAT)
    image = mbimage.load_by_addresses(kernel, header.position, header.addresses[:4], _WHAT)
    return header, Image(image.segments, header.addresses[4], image.taken)


@dataclass(frozen=True)
class _Parts:
    """What the information structure tells: `symbols` are count, size, number of names, and headers."""

    cmdline: str
    modules: Sequence[tuple[int, int, str]]
    mem_bytes: int
    loader: bytes
    symbols: tuple[int, int, int, bytes] | None


def _information(base: int, parts: _Parts) -> bytes:
    """Lay out the information structure (3.3) at `base` and, behind it, what it points to."""
    out = bytearray(_INFO_SIZE)

    def place(data: bytes) -> int:
        out.extend(bytes(-len(out) % 8))
        out.extend(data)
        return base + len(out) - len(data)

    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MMAP | _INFO_LOADER_NAME
    cmdline_addr = place(mbimage.text(parts.cmdline, "the command line (--append)"))
    name_addr = place(parts.loader)
    entries = b"".join(struct.pack("<IQQI", 20, *area, 1) for area in plan.ram_map(parts.mem_bytes))
    mmap_addr = place(entries)
    modules_addr = 0
    if parts.modules:
        flags |= _INFO_MODULES
        strings = [place(mbimage.text(words, "a module's words")) for _, _, words in parts.modules]
        entry = [
            struct.pack("<IIII", start, end, string, 0)
            for (start, end, _), string in zip(parts.modules, strings, strict=True)
        ]
        modules_addr = place(b"".join(entry))
    if parts.symbols is not None:
        flags |= _INFO_SECTIONS
        count, size, names, headers = parts.symbols
        struct.pack_into("<IIII", out, 28, count, size, place(headers), names)
    struct.pack_into("<III", out, 0, flags, *mbimage.basic_memory(parts.mem_bytes))
    struct.pack_into("<I", out, 16, cmdline_addr)
    struct.pack_into("<II", out, 20, len(parts.modules), modules_addr)
    struct.pack_into("<II", out, 44, len(entries), mmap_addr)
    struct.pack_into("<I", out, 64, name_addr)
    return bytes(out)
