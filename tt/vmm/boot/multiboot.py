"""Kernels of the Multiboot Specification, version 0.6.96 (Multiboot 1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tt.errors import BadInput
from tt.vmm.boot import elf, plan
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.plan import GDT_BASE, GDT_LIMIT, HIGH_RAM_START, LOW_RAM_END, BootPlan, CpuStart, Segment

KIND = "multiboot"

_HEADER_MAGIC = 0x1BADB002
_LOADER_MAGIC = 0x2BADB002
_SEARCH = 8192

# Header flags (3.1.2).  Bit 0, modules on page boundaries, and bit 1, memory
# information, are always met.  Bit 2 asks for a video mode; the machine has no
# display, and the information says so.
_KNOWN_REQUIRED = 0x0007
_ADDRESS_FIELDS = 1 << 16

# Information flags (3.3).
_INFO_MEMORY = 1 << 0
_INFO_CMDLINE = 1 << 2
_INFO_MODULES = 1 << 3
_INFO_MMAP = 1 << 6
_INFO_LOADER_NAME = 1 << 9

_STACK_TOP = 0x6FF0
_INFO = 0x7000
_INFO_SIZE = 116
_MAX_CMDLINE = 0x8000
_LOADER_NAME = b"tt\0"


@dataclass(frozen=True)
class Header:
    """The Multiboot header; `position` is its offset in the file, `addresses` the five fields of flag 16."""

    position: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """Find the header: 4-byte aligned, whole in the first 8192 bytes (3.1); None when there is none."""
    for position in range(0, min(len(data), _SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, position)
        if magic != _HEADER_MAGIC or (magic + flags + checksum) & 0xFFFFFFFF:
            continue
        if not flags & _ADDRESS_FIELDS:
            return Header(position, flags, None)
        if position + 32 <= min(len(data), _SEARCH):
            return Header(position, flags, struct.unpack_from("<IIIII", data, position + 12))
    return None


def plan_multiboot(kernel: bytes, module: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a Multiboot kernel, with at most one module; `mem_bytes` is the size of RAM.

    The machine state is that of section 3.2: EAX the loader's magic, EBX the
    information structure, flat 32-bit segments, paging and interrupts off.
    Raises `BadInput` when the kernel is damaged, does not fit or asks for
    something this loader does not give.
    """
    header = find_header(kernel)
    if header is None:
        raise BadInput("kernel has no Multiboot header in its first 8 KB")
    unknown = header.flags & 0xFFFF & ~_KNOWN_REQUIRED
    if unknown:
        raise BadInput(f"Multiboot kernel requires features {unknown:#x} that version 0.6.96 does not define")
    if header.addresses is not None:
        segments, entry, end = _load_by_addresses(kernel, header)
    else:
        image = elf.parse_elf(kernel, "Multiboot kernel")
        segments, entry, end = list(image.segments), image.entry, image.end
    if entry >= 1 << 32:
        raise BadInput(f"Multiboot kernel starts at {entry:#x}, above 4 GB: damaged?")
    plan.need_memory(mem_bytes, end, "Multiboot kernel")
    description = [f"kernel: Multiboot, 32-bit entry {entry:#x}, {len(kernel)} bytes, RAM to {end:#x}"]
    module_addr = 0
    if module:
        module_addr = max(plan.page_up(end), HIGH_RAM_START)
        plan.need_memory(mem_bytes, module_addr + len(module), "Multiboot kernel with module")
        segments.append((module_addr, module))
        description.append(f"module: {len(module)} bytes at {module_addr:#x}")
    description.append(f"command line: {printable(cmdline, 4096)}")
    segments.append((_INFO, _information(cmdline, module_addr, len(module or b""), mem_bytes)))
    segments.append((GDT_BASE, plan.gdt("protected32")))
    start = CpuStart(
        mode="protected32",
        rip=entry,
        registers={"rax": _LOADER_MAGIC, "rbx": _INFO, "rsp": _STACK_TOP},
        gdt_base=GDT_BASE,
        gdt_limit=GDT_LIMIT,
    )
    return BootPlan(
        segments=plan.checked_segments(segments, mem_bytes, "Multiboot kernel"),
        start=start,
        description=description,
        kernel=kernel,
        initrd=module,
        cmdline=cmdline,
        kind=KIND,
    )


def _load_by_addresses(kernel: bytes, header: Header) -> tuple[list[Segment], int, int]:
    """Load by the header's own address fields, the "a.out kludge" (3.1.3)."""
    assert header.addresses is not None
    header_addr, load_addr, load_end, bss_end, entry = header.addresses
    start = header.position - (header_addr - load_addr)
    if start < 0 or load_addr > header_addr:
        raise BadInput("Multiboot kernel's address fields point before its beginning: damaged?")
    size = load_end - load_addr if load_end else len(kernel) - start
    if size <= 0 or start + size > len(kernel):
        raise BadInput(f"Multiboot kernel is cut short: it loads {size} bytes from {start} of {len(kernel)}")
    end = load_addr + size
    if bss_end and bss_end < end:
        raise BadInput("Multiboot kernel's address fields contradict each other: damaged?")
    return [(load_addr, kernel[start : start + size])], entry, max(end, bss_end)


def _information(cmdline: str, module_addr: int, module_size: int, mem_bytes: int) -> bytes:
    """Lay out the information structure (3.3) and, behind it, what it points to."""
    text = cmdline.encode("utf-8", "surrogateescape") + b"\0"
    if len(text) > _MAX_CMDLINE or b"\0" in text[:-1]:
        raise BadInput(f"command line must be under {_MAX_CMDLINE} bytes with no zero byte: change --append")
    out = bytearray(_INFO_SIZE)

    def place(data: bytes) -> int:
        out.extend(bytes(-len(out) % 8))
        out.extend(data)
        return _INFO + len(out) - len(data)

    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MMAP | _INFO_LOADER_NAME
    cmdline_addr = place(text)
    name_addr = place(_LOADER_NAME)
    entries = b"".join(struct.pack("<IQQI", 20, addr, size, 1) for addr, size in plan.ram_map(mem_bytes))
    mmap_addr = place(entries)
    modules_addr = 0
    if module_size:
        flags |= _INFO_MODULES
        empty = place(b"\0")
        modules_addr = place(struct.pack("<IIII", module_addr, module_addr + module_size, empty, 0))
    lower, upper = LOW_RAM_END >> 10, (mem_bytes - HIGH_RAM_START) >> 10
    struct.pack_into("<III", out, 0, flags, lower, min(upper, 0xFFFFFFFF))
    struct.pack_into("<I", out, 16, cmdline_addr)
    struct.pack_into("<II", out, 20, int(bool(module_size)), modules_addr)
    struct.pack_into("<II", out, 44, len(entries), mmap_addr)
    struct.pack_into("<I", out, 64, name_addr)
    return bytes(out)
