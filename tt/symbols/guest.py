"""Symbols of a guest: out of its own memory, and out of what its trace holds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from elftools.elf.elffile import ELFFile

from tt.errors import BadInput, TTError
from tt.log import Trace
from tt.symbols import kallsyms, modules
from tt.symbols.table import SymbolSet, SymbolTable

Registers = dict[str, int]
Read = Callable[[int, int], bytes]
"""Reads (virtual addr, size in bytes); raises `IndexError` where something of it is not mapped."""

_PAGE = 4096
_CHUNK = 2 << 20  # a kernel's text is mapped in pages of this size
_BELOW, _ABOVE = 48 << 20, 64 << 20
_MOST_WINDOWS = 4
_LONG_MODE = 1 << 10  # EFER.LMA
_PROTECTED = 1
_KERNEL64 = 0xFFFF_8000_0000_0000
# Documentation/arch/x86/x86_64/mm.rst: the kernel's text, anywhere in 1 GB where KASLR is on.
_TEXT64, _TEXT64_SIZE = 0xFFFF_FFFF_8000_0000, 1 << 30
_SPLITS32 = (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000)  # CONFIG_VMSPLIT_*
_GATES = (14, 0, 3, 32)  # page fault, divide error, breakpoint, the first interrupt
_MOST_KNOWN = 8

_known: dict[tuple[int, int], tuple[bytes, SymbolSet]] = {}
"""The kallsyms seen last: (addr, size) to (digest of the bytes, symbols)."""


class Standing(Protocol):
    """The part of a `Timeline` that is used here."""

    @property
    def trace(self) -> Trace: ...

    @property
    def tick(self) -> int: ...

    def registers(self) -> Registers: ...

    def read(self, addr: int, size: int) -> bytes: ...


# ---- memory


def of_machine(registers: Registers, read: Read) -> SymbolTable:
    """Return the symbols of the Linux kernel whose memory this is, found in it without any help.

    Takes some 0.3 s the first time, and milliseconds where the same kernel was found before.
    Raises `BadInput` where there is none: before the kernel is unpacked, in another
    system, or in user mode under page table isolation, which hides the kernel.
    """
    for (addr, size), (digest, source) in list(_known.items()):
        data = _readable(read, addr, size)
        if data is not None and _digest(data) == digest:
            return _with_modules(source, read)
    searched: list[tuple[int, int]] = []
    patience = kallsyms.Patience()
    for anchor in _anchors(registers, read):
        near = anchor // _CHUNK * _CHUNK
        begin, end = max(_floor(anchor), near - _BELOW), min(near + _ABOVE, 1 << 64)
        if any(low <= anchor < high for low, high in searched):
            continue
        if len(searched) >= _MOST_WINDOWS:
            break
        searched.append((begin, end))
        for addr, data in mapped(read, begin, end):
            found = kallsyms.find(data, addr, patience)
            if found is not None:
                _remember(addr + found.begin, data[found.begin : found.end], found.source)
                return _with_modules(found.source, read)
    raise BadInput(
        f"no Linux kernel symbols are in memory here (rip {registers.get('rip', 0):#x}): before the kernel "
        "has unpacked itself there are none; try a later tick, or load an ELF file or a System.map"
    )


def _with_modules(kernel: SymbolSet, read: Read) -> SymbolTable:
    table = SymbolTable([kernel])
    modules.update(table, kernel, read)
    return table


def mapped(read: Read, begin: int, end: int) -> list[tuple[int, bytes]]:
    """Return (addr, contents) of each contiguous mapped piece of [begin, end), whole 4 KB pages."""
    pieces: list[tuple[int, bytearray]] = []
    for addr, data in _pages(read, begin // _PAGE * _PAGE, end):
        if pieces and pieces[-1][0] + len(pieces[-1][1]) == addr:
            pieces[-1][1].extend(data)
        else:
            pieces.append((addr, bytearray(data)))
    return [(addr, bytes(data)) for addr, data in pieces]


def _pages(read: Read, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield what can be read, in the largest pieces that can."""
    todo = [(addr, min(_CHUNK, end - addr)) for addr in range(begin, end, _CHUNK)][::-1]
    while todo:
        addr, size = todo.pop()
        data = _readable(read, addr, size)
        if data is not None:
            yield addr, data
        elif size > _PAGE and _worthwhile(read, addr, size):
            half = size // 2 // _PAGE * _PAGE or _PAGE
            todo += [(addr + half, size - half), (addr, half)]


def _worthwhile(read: Read, addr: int, size: int) -> bool:
    """Whether a piece that is not mapped as a whole is so in part: asked of every 64 KB."""
    step = 16 * _PAGE
    return size <= step or any(_readable(read, a, 1) is not None for a in range(addr, addr + size, step))


def _anchors(registers: Registers, read: Read) -> Iterator[int]:
    """Yield addresses that may be near a kernel's code."""
    rip = registers.get("rip", 0)
    if registers.get("efer", 0) & _LONG_MODE:
        yield from (addr for addr in _handlers(registers, read, 16) if addr >= _KERNEL64)
        if rip >= _KERNEL64:
            yield rip
        for addr in range(_TEXT64, _TEXT64 + _TEXT64_SIZE, _CHUNK):
            if _readable(read, addr, 1) is not None:
                yield addr
                break
    elif registers.get("cr0", 0) & _PROTECTED:
        yield from (addr for addr in _handlers(registers, read, 8) if addr >= _SPLITS32[-1])
        if rip >= _SPLITS32[-1]:
            yield rip
        yield from (addr for addr in _SPLITS32 if _readable(read, addr, 1) is not None)
    if not registers.get("cs", 0) & 3 and _CHUNK <= rip < 1 << 32:
        yield rip  # before it has page tables of its own


def _handlers(registers: Registers, read: Read, size: int) -> Iterator[int]:
    """Yield where interrupt gates of `size` bytes lead (Intel SDM volume 3, figures 6-2 and 6-8)."""
    base = registers.get("idtr_base", 0)
    for number in _GATES:
        gate = _readable(read, base + number * size, size)
        if gate is not None and gate[5] & 0x80:
            yield int.from_bytes(gate[0:2] + gate[6 : 8 if size == 8 else 12], "little")


def _readable(read: Read, addr: int, size: int) -> bytes | None:
    """Return `size` bytes, None where they are not all there."""
    if not 0 <= addr <= (1 << 64) - size:
        return None
    try:
        data = read(addr, size)
    except IndexError:
        return None
    return data if len(data) == size else None


def _floor(addr: int) -> int:
    return _TEXT64 if addr >= _TEXT64 else _KERNEL64 if addr >= _KERNEL64 else 0


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _remember(addr: int, data: bytes, source: SymbolSet) -> None:
    _known[addr, len(data)] = _digest(data), source
    while len(_known) > _MOST_KNOWN:
        del _known[next(iter(_known))]


# ---- traces


class _Known:
    """What is known of a trace: its table, and whether the kernel's own symbols are in it."""

    def __init__(self, trace: Trace) -> None:
        self.table = SymbolTable()
        self.is_linux = False
        self.kernel: SymbolSet | None = None
        self.tried: set[int] = set()
        files = trace.files
        for name in ("guest", "kernel"):
            if name not in files:
                continue
            data = trace.file(name)
            if data[:4] == b"\x7fELF":
                _try_elf(self.table, data)
            self.is_linux |= name == "kernel" and _is_linux(trace)


_traces: WeakKeyDictionary[Trace, _Known] = WeakKeyDictionary()


def for_timeline(timeline: Standing) -> SymbolTable:
    """Return the symbols of the guest of `timeline`: always the same table for one trace.

    They come from the guest's file, if it is an ELF file with symbols, and, for a
    Linux guest, from the memory at the current tick.  What was found stays, for
    earlier ticks too; until then the kernel image in the trace stands in for memory.  Modules
    are added as they are met: ask again at other ticks, which is cheap.  The table may be
    empty.  Does not move the timeline.
    """
    known = _traces.get(timeline.trace)
    if known is None:
        known = _traces.setdefault(timeline.trace, _Known(timeline.trace))
    if known.kernel is not None:
        modules.update(known.table, known.kernel, timeline.read)
    elif known.is_linux and timeline.tick not in known.tried:
        first = not known.tried
        known.tried.add(timeline.tick)
        try:
            found = of_machine(timeline.registers(), timeline.read)
        except BadInput:
            stand_in = of_kernel_image(timeline.trace.file("kernel")) if first else None
            if stand_in is not None:
                known.table.add(stand_in)
        else:
            known.kernel = next(source for source in found.sources if source.label == kallsyms.LABEL)
            known.table.drop(kallsyms.LABEL)
            known.table.merge(found)
    return known.table


def of_kernel_image(image: bytes) -> SymbolSet | None:
    """Return the kallsyms of a bzImage or vmlinux at the addresses it was linked for, None without any."""
    from tt.vmm.boot import linux

    try:
        vmlinux = linux.extract_vmlinux(image) if linux.is_bzimage(image) else image
        if vmlinux is None or vmlinux[:4] != b"\x7fELF":
            return None
        for addr, data in _segments(vmlinux):
            found = kallsyms.find(data, addr)
            if found is not None:
                return found.source
    except TTError:
        return None
    return None


def _segments(file: bytes) -> list[tuple[int, bytes]]:
    try:
        segments: list[Any] = list(ELFFile(io.BytesIO(file)).iter_segments("PT_LOAD"))
        return [(s["p_vaddr"], file[s["p_offset"] : s["p_offset"] + s["p_filesz"]]) for s in segments]
    except Exception as e:  # pyelftools lets all sorts of exceptions out for damaged files
        raise BadInput(f"the kernel in the trace is damaged: {e}") from None


def _try_elf(table: SymbolTable, data: bytes) -> None:
    try:
        table.load_elf(data)
    except BadInput:
        return  # the machine could boot it, and it has no symbols for us


def _is_linux(trace: Trace) -> bool:
    config = trace.meta.get("config")
    return isinstance(config, dict) and str(config.get("boot_kind", "")).startswith("linux")
