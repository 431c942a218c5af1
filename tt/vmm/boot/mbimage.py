"""What both versions of Multiboot share: the kernel's image in RAM, its sections, and where the rest goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tt.errors import BadInput
from tt.vmm.boot import elf, plan
from tt.vmm.boot.modules import Module
from tt.vmm.boot.plan import (
    GDT_BASE,
    GDT_LIMIT,
    HIGH_RAM_START,
    LOW_RAM_END,
    PAGE,
    BootPlan,
    CpuStart,
    Segment,
)

LOADER_NAME = b"GRUB 2 (tt)\0"
"""The boot loader's name, as kernels see it.

Kernels that take the first word off their command line, since GRUB 0.97 and
QEMU put the file's name there, leave it alone under GRUB 2, which does not.
They know that by the name (Xen looks for "GRUB " and no 0 behind it), and tt
passes no file's name either.
"""

MAX_CMDLINE = 0x8000
_INFO = 0x7000
_STACK_TOP = 0x6FF0
_4GB = 1 << 32


@dataclass(frozen=True)
class Image:
    """A kernel as it lies in RAM: `taken` are the `(start, end)` of all it occupies, zeroed parts too."""

    segments: list[Segment]
    entry: int | None
    taken: list[tuple[int, int]]
    sections: elf.Sections | None = None

    @property
    def start(self) -> int:
        """The lowest address that it occupies."""
        return min(start for start, _ in self.taken)

    @property
    def end(self) -> int:
        """The address behind the highest byte that it occupies."""
        return max(end for _, end in self.taken)

    def moved(self, distance: int) -> Image:
        """Return the same image `distance` bytes higher."""
        return replace(
            self,
            segments=[(addr + distance, data) for addr, data in self.segments],
            entry=None if self.entry is None else self.entry + distance,
            taken=[(start + distance, end + distance) for start, end in self.taken],
        )


def load_elf(kernel: bytes, what: str) -> Image:
    """Load a kernel by its program headers; raises `BadInput` when they make no sense."""
    image = elf.parse_elf(kernel, what)
    return Image(list(image.segments), image.entry, list(image.taken), elf.sections(kernel, what))


def load_by_addresses(kernel: bytes, position: int, addresses: tuple[int, int, int, int], what: str) -> Image:
    """Load a kernel by its Multiboot header's own addresses, the "a.out kludge".

    `position` is the header's offset in the file, `addresses` are header_addr,
    load_addr, load_end_addr and bss_end_addr.  Raises `BadInput` when they make no sense.
    """
    header_addr, load_addr, load_end, bss_end = addresses
    start = position - (header_addr - load_addr)
    if start < 0 or load_addr > header_addr:
        raise BadInput(f"{what}'s address fields point before its beginning: damaged?")
    size = load_end - load_addr if load_end else len(kernel) - start
    if size <= 0 or start + size > len(kernel):
        raise BadInput(f"{what} is cut short: it loads {size} bytes from {start} of {len(kernel)}")
    end = load_addr + size
    if bss_end and bss_end < end:
        raise BadInput(f"{what}'s address fields contradict each other: damaged?")
    return Image([(load_addr, kernel[start : start + size])], None, [(load_addr, max(end, bss_end))])


@dataclass
class Layout:
    """RAM being filled: `segments` so far, and what of it is taken."""

    mem_bytes: int
    what: str
    segments: list[Segment] = field(default_factory=list)
    _taken: list[tuple[int, int]] = field(default_factory=list)

    def put_kernel(self, image: Image) -> None:
        """Take the kernel's place; raises `BadInput` when it does not fit, or another part is there."""
        plan.need_memory(self.mem_bytes, image.end, self.what)
        gdt = plan.gdt("protected32")
        if any(start < GDT_BASE + len(gdt) and end > GDT_BASE for start, end in image.taken):
            raise BadInput(
                f"{self.what} overlaps the boot loader's own data at {GDT_BASE:#x}: link it higher"
            )
        self.segments += [*image.segments, (GDT_BASE, gdt)]
        self._taken += image.taken

    def put(self, data: bytes, low: int, align: int = PAGE, what: str = "") -> int:
        """Put `data` at the lowest free address from `low` on; return it.  Raises `BadInput` without room."""
        at = self.find(len(data), low, align)
        plan.need_memory(self.mem_bytes, at + len(data), what or self.what)
        if data:
            self.segments.append((at, data))
            self._taken.append((at, at + len(data)))
        return at

    def put_info(self, size: int) -> int:
        """Reserve `size` bytes for the information structure, below 640 KB where there is room."""
        at = self.find(size, _INFO, 8)
        if at + size > LOW_RAM_END:
            at = self.find(size, HIGH_RAM_START, 8)
        plan.need_memory(self.mem_bytes, at + size, self.what)
        return at

    def find(self, size: int, low: int, align: int) -> int:
        """Return the lowest free address from `low` on."""
        at = -(-low // align) * align
        for start, end in sorted(self._taken):
            if start < at + size and end > at:
                at = -(-end // align) * align
        return at

    def put_modules(self, modules: Sequence[Module], kernel_end: int) -> list[tuple[int, int]]:
        """Put modules on pages behind the kernel, or before it where that does not fit; return their ranges.

        An empty one lies nowhere: from 0 to 0, as GRUB has it.
        """
        ranges = []
        for module in modules:
            low = max(kernel_end, HIGH_RAM_START)
            if self.find(len(module.data), low, PAGE) + len(module.data) > self.mem_bytes:
                low = HIGH_RAM_START
            at = self.put(module.data, low, what=f"{self.what} with modules") if module.data else 0
            ranges.append((at, at + len(module.data)))
        return ranges

    def put_sections(self, sections: elf.Sections | None, low: int) -> bytes | None:
        """Put the sections in RAM that the program headers leave out; return the headers, with addresses."""
        if sections is None:
            return None
        addresses = {
            index: self.put(data, max(low, HIGH_RAM_START), max(align, 1), f"{self.what} with its symbols")
            for index, data, align in sections.unloaded
        }
        return sections.headers_with(addresses)

    def boot_plan(
        self,
        entry: int | None,
        registers: dict[str, int],
        parts: tuple[str, bytes, bytes | None, str],
        description: list[str],
    ) -> BootPlan:
        """Return the finished plan; `parts` are kind, kernel, packed modules and command line."""
        kind, kernel, packed, cmdline = parts
        assert entry is not None
        start = CpuStart(
            mode="protected32",
            rip=entry,
            registers={**registers, "rsp": _STACK_TOP},
            gdt_base=GDT_BASE,
            gdt_limit=GDT_LIMIT,
        )
        segments = plan.checked_segments(self.segments, self.mem_bytes, self.what)
        return BootPlan(segments, start, description, kernel, packed, cmdline, kind)


def checked_entry(image: Image, what: str) -> int:
    """Return where the kernel starts; raises `BadInput` when 32-bit code cannot be there."""
    assert image.entry is not None
    if image.entry >= _4GB or image.end > _4GB:
        raise BadInput(f"{what} starts at {image.entry:#x} and ends at {image.end:#x}, above 4 GB: damaged?")
    return image.entry


def text(words: str, option: str) -> bytes:
    """Return a command line as a kernel reads it; raises `BadInput` when it cannot be one."""
    data = words.encode("utf-8", "surrogateescape") + b"\0"
    if len(data) > MAX_CMDLINE or b"\0" in data[:-1]:
        raise BadInput(f"{option} must be under {MAX_CMDLINE} bytes with no zero byte")
    return data


def basic_memory(mem_bytes: int) -> tuple[int, int]:
    """Return `mem_lower` and `mem_upper`: KB of RAM from 0, and from 1 MB up to the first hole."""
    return LOW_RAM_END >> 10, min((mem_bytes - HIGH_RAM_START) >> 10, 0xFFFFFFFF)
