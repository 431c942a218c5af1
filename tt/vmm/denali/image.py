"""Guest images of the Denali machine: static ELF64 files, loaded at their physical addresses.

An image comes from a stranger: whatever is wrong with it is one `BadInput`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tt.errors import BadInput
from tt.vmm.denali.registers import PAGE, REGISTER_PAGE
from tt.vmm.memory import Memory

FILE_LIMIT = 256 << 20
SEGMENT_LIMIT = 64


class Segment(NamedTuple):
    """`data` at guest-physical `addr`, followed by zeros up to `size` bytes."""

    addr: int
    data: memoryview  # of the file: segments may share bytes, and there is no telling how many
    size: int


class GuestImage(NamedTuple):
    """A guest ready to be loaded; `entry` is guest-physical, `name` is for messages."""

    name: str
    entry: int
    segments: tuple[Segment, ...]

    @classmethod
    def open(cls, path: Path) -> GuestImage:
        """Read a guest from a file.  Raises `BadInput` if it cannot be read or is no good guest."""
        try:
            with path.open("rb") as f:
                data = f.read(FILE_LIMIT + 1)
        except OSError as e:
            raise BadInput(f"cannot read the guest {path}: {e.strerror or e}") from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> GuestImage:
        """Take an ELF64 file apart.  Raises `BadInput` if it is no guest for this machine."""
        if len(data) > FILE_LIMIT:
            raise _bad(name, f"it is larger than {FILE_LIMIT >> 20} MiB")
        if not data.startswith(b"\x7fELF"):
            raise _bad(name, "it is no ELF file")
        try:
            entry, segments = _parse(data, name)
        except BadInput:
            raise
        except Exception as e:  # pyelftools has no common base for what damaged files do to it
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
    except Exception:  # as in `parse`: a damaged file is no guest of ours
        return False


def _parse(data: bytes, name: str) -> tuple[int, tuple[Segment, ...]]:
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(data))
    header = elf.header
    if elf.elfclass != 64 or not elf.little_endian or header["e_machine"] != "EM_X86_64":
        raise _bad(name, "it is no little-endian x86-64 ELF file")
    if header["e_type"] != "ET_EXEC":
        raise _bad(name, "it is no static executable: link it with -static -no-pie")
    # Not num_segments(): for 0xffff that believes a 32-bit count elsewhere in the file.
    if not 0 < header["e_phnum"] <= SEGMENT_LIMIT:
        raise _bad(name, f"it has {header['e_phnum']} program headers, not 1 to {SEGMENT_LIMIT}")
    segments: list[Segment] = []
    for index in range(header["e_phnum"]):
        program = elf.get_segment(index).header
        if program["p_type"] in ("PT_INTERP", "PT_DYNAMIC"):
            raise _bad(name, "it needs a dynamic linker: link it with -static -no-pie")
        if program["p_type"] == "PT_LOAD" and program["p_memsz"]:
            segments.append(_segment(data, name, program))
    if not segments:
        raise _bad(name, "it has nothing to load")
    segments.sort(key=lambda s: s.addr)
    for below, above in pairwise(segments):
        if below.addr + below.size > above.addr:
            raise _bad(name, f"its segments at {below.addr:#x} and {above.addr:#x} overlap")
    return header["e_entry"], tuple(segments)


def _segment(data: bytes, name: str, program: Mapping[str, int]) -> Segment:
    offset, file_size = program["p_offset"], program["p_filesz"]
    addr, size = program["p_paddr"], program["p_memsz"]
    if file_size > size or offset + file_size > len(data):
        raise _bad(name, f"its segment at {addr:#x} is cut short")
    if addr < REGISTER_PAGE + PAGE and addr + size > REGISTER_PAGE:
        raise _bad(name, f"its segment at {addr:#x} lies over the register page {REGISTER_PAGE:#x}")
    return Segment(addr, memoryview(data)[offset : offset + file_size], size)


def _bad(name: str, why: str) -> BadInput:
    return BadInput(f"{name} is no good Denali guest: {why}")
