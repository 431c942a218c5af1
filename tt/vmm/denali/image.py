"""Guest images of the Denali machine: static ELF64 files, loaded at their physical addresses.

An image is not trusted: anything that is wrong with it raises one `BadInput`.
"""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tt.errors import BadInput
from tt.vmm.denali.registers import PAGE, REGISTER_PAGE
from tt.vmm.memory import Memory

FILE_LIMIT = 256 << 20
SEGMENT_LIMIT = 64


_EM_X86_64, _ET_EXEC = 62, 2
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_PROGRAM = struct.Struct("<IIQQQQQ")


class _Program(NamedTuple):
    """The first fields of a program header; `addr` is physical."""

    type: int
    flags: int
    offset: int
    virtual_addr: int
    addr: int
    file_size: int
    size: int


class Segment(NamedTuple):
    """`data` at guest-physical `addr`, followed by zeros up to `size` bytes."""

    addr: int
    data: memoryview  # of the file: segments may share bytes, so copies might take any amount of memory
    size: int


class GuestImage(NamedTuple):
    """A guest ready to be loaded; `entry` is guest-physical, `name` is for messages."""

    name: str
    entry: int
    segments: tuple[Segment, ...]

    @classmethod
    def open(cls, path: Path) -> GuestImage:
        """Read a guest from a file.  Raises `BadInput` if it cannot be read or is not a valid guest."""
        try:
            with path.open("rb") as f:
                data = f.read(FILE_LIMIT + 1)
        except OSError as e:
            raise BadInput(f"cannot read the guest {path}: {e.strerror or e}") from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> GuestImage:
        """Take an ELF64 file apart.  Raises `BadInput` if it is not a guest for this machine."""
        if len(data) > FILE_LIMIT:
            raise _bad(name, f"it is larger than {FILE_LIMIT >> 20} MiB")
        if not data.startswith(b"\x7fELF"):
            raise _bad(name, "it is not an ELF file")
        try:
            entry, segments = _parse(data, name)
        except BadInput:
            raise
        except (struct.error, OverflowError) as e:  # a header beyond the end of the file
            raise _bad(name, f"its headers are damaged ({type(e).__name__})") from None
        inside = any(s.addr <= entry < s.addr + s.size for s in segments)
        if not inside:
            raise _bad(name, f"its entry point {entry:#x} is in no segment; it must be a physical address")
        return cls(name, entry, segments)

    def place(self, memory: Memory) -> None:
        """Copy the segments into zeroed RAM.  Raises `BadInput` if one does not fit there."""
        for s in self.segments:
            if s.addr + s.size > memory.size:
                raise _bad(
                    self.name,
                    f"its segment at {s.addr:#x} ends at {s.addr + s.size:#x}, beyond the machine's "
                    f"{memory.size:#x} bytes of RAM: give it more memory",
                )
        for s in self.segments:
            memory.write(s.addr, bytes(s.data))


def is_marked(data: bytes) -> bool:
    """Return whether an ELF file says of itself, by a note named `Denali`, that it is a Denali guest."""
    if not data.startswith(b"\x7fELF"):
        return False
    try:
        from elftools.elf.elffile import ELFFile

        section = ELFFile(io.BytesIO(data)).get_section_by_name(".note.denali")
        return section is not None and section.data()[12:19] == b"Denali\0"
    except Exception:  # pyelftools has no common base for what damaged files do to it
        return False


def _parse(data: bytes, name: str) -> tuple[int, tuple[Segment, ...]]:
    # The ELF header and the program headers of the System V ABI, chapters 4 and 5, in their 64-bit form.
    kind, machine, entry, headers_at = struct.unpack_from("<16xHH4xQQ", data)
    header_size, count = struct.unpack_from("<HH", data, 54)
    if data[4:6] != b"\x02\x01" or machine != _EM_X86_64:
        raise _bad(name, "it is not a little-endian x86-64 ELF file")
    if kind != _ET_EXEC:
        raise _bad(name, "it is not a static executable: link it with -static -no-pie")
    if not 0 < count <= SEGMENT_LIMIT:
        raise _bad(name, f"it has {count} program headers, not 1 to {SEGMENT_LIMIT}")
    segments: list[Segment] = []
    for index in range(count):
        program = _Program(*_PROGRAM.unpack_from(data, headers_at + index * header_size))
        if program.type in (_PT_INTERP, _PT_DYNAMIC):
            raise _bad(name, "it needs a dynamic linker: link it with -static -no-pie")
        if program.type == _PT_LOAD and program.size:
            segments.append(_segment(data, name, program))
    if not segments:
        raise _bad(name, "it has nothing to load")
    segments.sort(key=lambda s: s.addr)
    for below, above in pairwise(segments):
        if below.addr + below.size > above.addr:
            raise _bad(name, f"its segments at {below.addr:#x} and {above.addr:#x} overlap")
    return entry, tuple(segments)


def _segment(data: bytes, name: str, program: _Program) -> Segment:
    offset, file_size, addr, size = program.offset, program.file_size, program.addr, program.size
    if file_size > size or offset + file_size > len(data):
        raise _bad(name, f"its segment at {addr:#x} is cut short")
    if addr < REGISTER_PAGE + PAGE and addr + size > REGISTER_PAGE:
        raise _bad(name, f"its segment at {addr:#x} lies over the register page {REGISTER_PAGE:#x}")
    return Segment(addr, memoryview(data)[offset : offset + file_size], size)


def _bad(name: str, why: str) -> BadInput:
    return BadInput(f"{name} is not a valid Denali guest: {why}")
