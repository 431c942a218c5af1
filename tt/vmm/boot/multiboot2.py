"""Kernels of the Multiboot2 Specification, version 2.0, on a PC without EFI."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tt.errors import BadInput
from tt.vmm.boot import mbimage, plan
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.mbimage import Image, Layout
from tt.vmm.boot.modules import unpack
from tt.vmm.boot.plan import HIGH_RAM_START, BootPlan

KIND = "multiboot2"

_WHAT = "Multiboot2 kernel"
_HEADER_MAGIC = 0xE85250D6
_LOADER_MAGIC = 0x36D76289
_SEARCH = 32768
_I386, _MIPS = 0, 4
_OPTIONAL = 1

# Header tags (3.1.3 to 3.1.13).  Modules are always on pages, and the EFI tags
# concern EFI only.
_END, _REQUEST, _ADDRESS, _ENTRY, _CONSOLE, _FRAMEBUFFER, _MODULE_ALIGN = range(7)
_EFI_TAGS = (7, 8, 9)
_RELOCATABLE = 10
_SIZES = {_ADDRESS: 24, _ENTRY: 12, _CONSOLE: 12, _FRAMEBUFFER: 20, _RELOCATABLE: 24}
_PREFER_LOW, _PREFER_HIGH = 1, 2
_CONSOLE_REQUIRED = 1

# Information tags (3.6).  A kernel may ask for all up to the last that is
# defined; those that this machine has nothing to say on are left out, as 3.1.4
# has it: boot device, display, APM, EFI, SMBIOS, ACPI, network.
_INFO_END, _INFO_CMDLINE, _INFO_LOADER_NAME, _INFO_MODULE, _INFO_MEMORY = range(5)
_INFO_MMAP, _INFO_SECTIONS, _INFO_LOAD_BASE = 6, 9, 21


@dataclass(frozen=True)
class Header:
    """The Multiboot2 header: `position` is its offset in the file, `tags` are `(type, flags, contents)`."""

    position: int
    architecture: int
    tags: list[tuple[int, int, bytes]]


@dataclass(frozen=True)
class _Wishes:
    """What the header's tags ask for."""

    addresses: tuple[int, int, int, int] | None = None
    entry: int | None = None
    framebuffer: tuple[int, int, int] | None = None
    relocatable: tuple[int, int, int, int] | None = None


def find_header(data: bytes) -> Header | None:
    """Find the header: 8-byte aligned, in the first 32768 bytes (3.1); None when there is none.

    Tags that are cut short or never end make a header without an end tag, which no plan is made of.
    """
    end = min(len(data), _SEARCH)
    for position in range(0, end - 15, 8):
        magic, architecture, length, checksum = struct.unpack_from("<IIII", data, position)
        if magic == _HEADER_MAGIC and not (magic + architecture + length + checksum) & 0xFFFFFFFF:
            return Header(position, architecture, list(_tags(data, position + 16, end)))
    return None


def _tags(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    while at + 8 <= end:
        kind, flags, size = struct.unpack_from("<HHI", data, at)
        if size < 8 or at + size > end:
            return
        yield kind, flags, data[at + 8 : at + size]
        if kind == _END:
            return
        at += -(-size // 8) * 8


def plan_multiboot2(kernel: bytes, packed: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a Multiboot2 kernel; `packed` are its modules, `mem_bytes` is the size of RAM.

    The machine state is that of section 3.3: EAX the loader's magic, EBX the
    information, flat 32-bit segments, paging and interrupts off.  Raises
    `BadInput` when the kernel is damaged, does not fit or requires something
    this loader does not give.
    """
    modules = unpack(packed)
    header = find_header(kernel)
    if header is None:
        raise BadInput("kernel has no Multiboot2 header in its first 32 KB")
    wishes = _wishes(header)
    image = _image(kernel, header, wishes)
    description = []
    if wishes.relocatable is not None:
        image = _relocated(image, wishes.relocatable, mem_bytes)
    entry = mbimage.checked_entry(image, _WHAT)
    layout = Layout(mem_bytes, _WHAT)
    layout.put_kernel(image)
    ranges = layout.put_modules(modules, image.end)
    headers = layout.put_sections(image.sections, image.end)
    tags = [
        _tag(_INFO_LOAD_BASE, struct.pack("<I", image.start)),
        _tag(_INFO_CMDLINE, mbimage.text(cmdline, "the command line (--append)")),
        _tag(_INFO_LOADER_NAME, mbimage.LOADER_NAME),
        *(
            _tag(_INFO_MODULE, struct.pack("<II", *where) + mbimage.text(module.words, "a module's words"))
            for where, module in zip(ranges, modules, strict=True)
        ),
        _memory_map(mem_bytes),
    ]
    if image.sections is not None and headers is not None:
        # The specification's table has 16-bit fields here; its own header file, and GRUB, have 32-bit ones.
        sections = image.sections
        tags.append(
            _tag(
                _INFO_SECTIONS,
                struct.pack("<III", sections.count, sections.entry_size, sections.names) + headers,
            )
        )
    tags.append(_tag(_INFO_MEMORY, struct.pack("<II", *mbimage.basic_memory(mem_bytes))))
    information = _information(tags)
    info = layout.put_info(len(information))
    layout.segments.append((info, information))
    description = [f"kernel: Multiboot2, 32-bit entry {entry:#x}, {len(kernel)} bytes, RAM to {image.end:#x}"]
    if wishes.framebuffer is not None:
        width, height, depth = wishes.framebuffer
        description.append(
            f"video: the kernel would like graphics {width}x{height}x{depth}, there is no display"
        )
    description += [
        f"module: {end - start} bytes at {start:#x}: {printable(module.words, 1000)}".rstrip(": ")
        for (start, end), module in zip(ranges, modules, strict=True)
    ]
    description.append(f"command line: {printable(cmdline, 4096)}")
    registers = {"rax": _LOADER_MAGIC, "rbx": info}
    return layout.boot_plan(entry, registers, (KIND, kernel, packed, cmdline), description)


def _wishes(header: Header) -> _Wishes:
    """Go through the header's tags; raises `BadInput` for one that is required and not known, or not met."""
    if header.architecture != _I386:
        name = "MIPS" if header.architecture == _MIPS else f"architecture {header.architecture}"
        raise BadInput(f"{_WHAT} is for {name}: tt runs x86 guests")
    wishes = _Wishes()
    for kind, flags, contents in header.tags:
        if len(contents) + 8 < _SIZES.get(kind, 8):
            raise BadInput(f"{_WHAT}'s header tag {kind} is too short: damaged?")
        if kind == _END:
            return wishes
        if kind == _REQUEST:
            if not flags & _OPTIONAL:
                _check_request(contents)
        elif kind == _ADDRESS:
            wishes = replace(wishes, addresses=struct.unpack_from("<IIII", contents))
        elif kind == _ENTRY:
            wishes = replace(wishes, entry=struct.unpack_from("<I", contents)[0])
        elif kind == _CONSOLE:
            if contents[0] & _CONSOLE_REQUIRED and not flags & _OPTIONAL:
                raise BadInput(
                    f"{_WHAT} requires a console (header tag 4, bit 0), EGA text or a frame buffer: "
                    "this machine has serial ports only"
                )
        elif kind == _FRAMEBUFFER:
            wishes = replace(wishes, framebuffer=struct.unpack_from("<III", contents))
        elif kind == _RELOCATABLE:
            wishes = replace(wishes, relocatable=struct.unpack_from("<IIII", contents))
        elif kind != _MODULE_ALIGN and kind not in _EFI_TAGS and not flags & _OPTIONAL:
            raise BadInput(f"{_WHAT} requires header tag {kind}, which tt does not know")
    raise BadInput(f"{_WHAT}'s header has no end tag: damaged?")


def _check_request(contents: bytes) -> None:
    asked = [number for (number,) in struct.iter_unpack("<I", contents[: len(contents) // 4 * 4])]
    unknown = [str(number) for number in asked if number > _INFO_LOAD_BASE]
    if unknown:
        raise BadInput(f"{_WHAT} requires information of type {', '.join(unknown)}, which tt does not know")


def _image(kernel: bytes, header: Header, wishes: _Wishes) -> Image:
    """Load the kernel by its address tag, or as an ELF file."""
    if wishes.addresses is None:
        image = mbimage.load_elf(kernel, _WHAT)
        return image if wishes.entry is None else replace(image, entry=wishes.entry)
    if wishes.entry is None:
        raise BadInput(f"{_WHAT} has an address tag and no entry address tag: damaged?")
    header_addr, load_addr, load_end, bss_end = wishes.addresses
    if load_addr == 0xFFFFFFFF:  # "the file must be loaded from its beginning"
        load_addr = header_addr - header.position
    addresses = header_addr, load_addr, load_end, bss_end
    image = mbimage.load_by_addresses(kernel, header.position, addresses, _WHAT)
    return replace(image, entry=wishes.entry)


def _relocated(image: Image, wish: tuple[int, int, int, int], mem_bytes: int) -> Image:
    """Move a relocatable image to where its tag wants it; it stays where it is linked if that may be."""
    low, high, align, preference = wish
    align = align or 1
    size = image.end - image.start
    lowest = -(-max(low, HIGH_RAM_START) // align) * align  # below is the boot loader's own data
    highest = (min(high + 1, mem_bytes) - size) // align * align
    if preference == _PREFER_LOW:
        base = lowest
    elif preference == _PREFER_HIGH:
        base = highest
    else:
        fits = lowest <= image.start <= highest and image.start % align == 0
        base = image.start if fits else lowest
    if not lowest <= base <= highest:
        raise BadInput(
            f"{_WHAT} of {size} bytes cannot be put between {wish[0]:#x} and {wish[1]:#x} in "
            f"{mem_bytes >> 20} MB of memory: use --mem"
        )
    return image.moved(base - image.start)


def _memory_map(mem_bytes: int) -> bytes:
    entries = [struct.pack("<QQII", *area, 1, 0) for area in plan.ram_map(mem_bytes)]
    return _tag(_INFO_MMAP, struct.pack("<II", 24, 0) + b"".join(entries))


def _tag(kind: int, contents: bytes) -> bytes:
    """Return one tag of the information, padded so that the next begins at a multiple of 8."""
    size = 8 + len(contents)
    return struct.pack("<II", kind, size) + contents + bytes(-size % 8)


def _information(tags: Sequence[bytes]) -> bytes:
    body = b"".join([*tags, _tag(_INFO_END, b"")])
    return struct.pack("<II", 8 + len(body), 0) + body
