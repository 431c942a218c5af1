"""Guest images from strangers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.vmm.denali.image import GuestImage
from tt.vmm.memory import PlainMemory

BASE = 0x100000
CODE = b"\x90" * 16
LOAD = (1, 5, 0xB0, BASE, BASE, 16, 32, 4096)


def elf(*programs: tuple[int, ...], entry: int = BASE, **fields: int) -> bytes:
    """Make an ELF64 file: header, program headers, 16 bytes of code at 0xb0."""
    f = {
        "klass": 2,
        "order": 1,
        "kind": 2,
        "machine": 62,
        "phoff": 64,
        "phnum": len(programs),
        "shoff": 0,
        "shnum": 0,
    }
    f.update(fields)
    ident = b"\x7fELF" + bytes([f["klass"], f["order"], 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        *(
            f["kind"],
            f["machine"],
            1,
            entry,
            f["phoff"],
            f["shoff"],
            0,
            64,
            56,
            f["phnum"],
            64,
            f["shnum"],
            0,
        ),
    )
    table = b"".join(struct.pack("<IIQQQQQQ", *p) for p in programs)
    return (header + table).ljust(0xB0, b"\0") + CODE


def test_good() -> None:
    image = GuestImage.parse(elf(LOAD), "g")
    assert image.entry == BASE
    memory = PlainMemory(2 << 20)
    image.place(memory)
    assert memory.read(BASE, 32) == CODE + bytes(16)
    assert sum(memory.ram) == sum(CODE)


def test_physical_addresses_count() -> None:
    image = GuestImage.parse(elf((1, 5, 0xB0, 0xFFFFFFFF80000000, BASE, 16, 16, 1)), "g")
    assert image.segments[0].addr == BASE


def test_page_zero_may_be_loaded() -> None:
    assert GuestImage.parse(elf((1, 5, 0xB0, 0, 0, 16, 0x1000, 1), entry=0), "g").entry == 0


def test_sections_do_not_matter() -> None:
    assert GuestImage.parse(elf(LOAD, shoff=1 << 63, shnum=9), "g").entry == BASE


BAD = {
    "empty": b"",
    "text": b"#!/bin/sh\n",
    "magic only": b"\x7fELF",
    "cut header": elf(LOAD)[:40],
    "cut program header": elf(LOAD)[:100],
    "cut segment": elf(LOAD)[:-1],
    "32 bit": elf(LOAD, klass=1),
    "no class": elf(LOAD, klass=7),
    "big-endian": elf(LOAD, order=2),
    "other machine": elf(LOAD, machine=183),
    "relocatable": elf(LOAD, kind=1),
    "shared": elf(LOAD, kind=3),
    "no segments": elf(),
    "nothing to load": elf((4, 5, 0xB0, BASE, BASE, 16, 16, 1)),
    "empty segment": elf((1, 5, 0xB0, BASE, BASE, 0, 0, 1)),
    "dynamic linker": elf(LOAD, (3, 4, 0xB0, BASE, BASE, 16, 16, 1)),
    "too many": elf(LOAD, phnum=65),
    "extended count": elf(LOAD, phnum=0xFFFF, shoff=0xB0, shnum=1),
    "table beyond": elf(LOAD, phoff=1 << 63),
    "file larger than memory": elf((1, 5, 0xB0, BASE, BASE, 16, 8, 1)),
    "offset wraps": elf((1, 5, 2**64 - 1, BASE, BASE, 16, 16, 1)),
    "register page": elf((1, 5, 0xB0, 0x1FF0, 0x1FF0, 16, 16, 1), entry=0x1FF0),
    "over the register page": elf((1, 5, 0xB0, 0, 0, 16, 0x1001, 1), entry=0),
    "overlap": elf(LOAD, (1, 5, 0xB0, BASE, BASE + 31, 16, 16, 1)),
    "entry outside": elf(LOAD, entry=BASE + 32),
    "entry virtual": elf((1, 5, 0xB0, 0xFFFFFFFF80000000, BASE, 16, 16, 1), entry=0xFFFFFFFF80000000),
}


@pytest.mark.parametrize("what", BAD)
def test_bad(what: str) -> None:
    with pytest.raises(BadInput) as error:
        GuestImage.parse(BAD[what], "guest.elf")
    message = str(error.value)
    assert message.startswith("guest.elf is not a valid Denali guest: ")
    assert "\n" not in message


@pytest.mark.parametrize("addr", [(1 << 20) - 31, 1 << 62, 2**64 - 32])
def test_too_large_for_the_machine(addr: int) -> None:
    image = GuestImage.parse(elf((1, 5, 0xB0, addr, addr, 16, 32, 1), entry=addr), "guest.elf")
    memory = PlainMemory(1 << 20)
    with pytest.raises(BadInput, match="give it more memory"):
        image.place(memory)
    assert not any(memory.ram)


def test_segments_that_share_bytes_cost_no_memory() -> None:
    """64 segments of the same megabytes must not become 64 copies of them."""
    size = 1 << 20
    programs = [(1, 5, 0, BASE + n * size, BASE + n * size, size, size, 1) for n in range(64)]
    image = GuestImage.parse(elf(*programs).ljust(size * 2, b"\0"), "g")
    assert all(s.data.obj is image.segments[0].data.obj for s in image.segments)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="cannot read the guest"):
            GuestImage.open(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xAF), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_are_bad_input_or_load(changes: list[tuple[int, int]]) -> None:
    data = bytearray(elf(LOAD, LOAD[:3] + (BASE + 4096,) * 2 + LOAD[5:]))
    for offset, byte in changes:
        data[offset] = byte
    try:
        GuestImage.parse(bytes(data), "g").place(PlainMemory(4 << 20))
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_bad_input(noise: bytes) -> None:
    with pytest.raises(BadInput):
        GuestImage.parse(b"\x7fELF" + noise, "g")
