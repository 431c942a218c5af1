"""Kernels made in code: ELF executables, bzImages with any payload, Multiboot kernels."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block  # type: ignore[import-untyped]
import zstandard
from lzallright import LZOCompressor

MIB = 1 << 20
CODE = bytes(range(256)) * 40 + b"the kernel's code" * 100


def make_elf(
    bits: int = 64,
    *,
    addr: int = 16 * MIB,
    code: bytes = CODE,
    bss: int = 8192,
    entry: int | None = None,
    virtual: int | None = None,
    machine: int | None = None,
) -> bytes:
    """Make an executable with one segment at physical `addr`, its entry 16 bytes in unless given."""
    virtual = addr if virtual is None else virtual
    entry = virtual + 16 if entry is None else entry
    machine = machine or (62 if bits == 64 else 3)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    start = 0x100
    if bits == 64:
        header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        program = struct.pack("<IIQQQQQQ", 1, 7, start, virtual, addr, len(code), len(code) + bss, 4096)
    else:
        header = ident + struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        program = struct.pack("<IIIIIIII", 1, start, virtual, addr, len(code), len(code) + bss, 7, 4096)
    return (header + program).ljust(start, b"\0") + code


def with_size(packed: bytes, data: bytes) -> bytes:
    """Append the unpacked size, as Linux's build does to all formats but gzip."""
    return packed + struct.pack("<I", len(data))


def pack_xz(data: bytes) -> bytes:
    """Pack as scripts/xz_wrap.sh does: the x86 filter, a CRC32."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return with_size(lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters), data)


def pack_lz4(data: bytes, chunk: int = 8 * MIB) -> bytes:
    """Pack in the legacy frame of `lz4 -l`."""
    out = struct.pack("<I", 0x184C2102)
    for at in range(0, len(data), chunk):
        block = lz4.block.compress(data[at : at + chunk], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return with_size(out, data)


def pack_lzop(data: bytes, chunk: int = 256 << 10) -> bytes:
    """Pack in the file format of `lzop`, with Adler-32 sums of the unpacked blocks."""
    out = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBIIIIB", 0x1030, 0x20A0, 0x940, 3, 9, 1, 0, 0, 0, 0)
    out += bytes(4)
    compressor = LZOCompressor()
    for at in range(0, len(data), chunk):
        piece = data[at : at + chunk]
        packed = bytes(compressor.compress(piece))
        packed = packed if len(packed) < len(piece) else piece
        out += struct.pack(">III", len(piece), len(packed), 0) + packed
    return with_size(out + bytes(4), data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": pack_xz,
    "lzma": lambda data: with_size(lzma.compress(data, lzma.FORMAT_ALONE), data),
    "bzip2": lambda data: with_size(bz2.compress(data), data),
    "lz4": pack_lz4,
    "lzo": pack_lzop,
    "zstd": lambda data: with_size(zstandard.compress(data, 19), data),
}


def make_bzimage(
    payload: bytes,
    *,
    version: int = 0x020F,
    kernel_64: bool = True,
    setup_sects: int = 4,
    loadflags: int = 1,
    initrd_addr_max: int = 0x7FFFFFFF,
    cmdline_size: int = 2047,
    payload_length: int | None = None,
    init_size: int = 32 * MIB,
) -> bytes:
    """Make a bzImage around `payload` by the header layout of boot.rst."""
    decompressor = b"\xeb\xfe" + b"\x90" * 510
    image = bytearray(512 * (setup_sects + 1))
    struct.pack_into("<B", image, 0x1F1, setup_sects)
    struct.pack_into("<HBB4sH", image, 0x1FE, 0xAA55, 0xEB, 0x6A, b"HdrS", version)
    struct.pack_into("<B", image, 0x211, loadflags)
    struct.pack_into("<I", image, 0x214, 0x100000)
    struct.pack_into("<I", image, 0x22C, initrd_addr_max)
    struct.pack_into("<IB", image, 0x230, 0x200000, 1)
    struct.pack_into("<H", image, 0x236, int(kernel_64))
    struct.pack_into("<I", image, 0x238, cmdline_size)
    length = len(payload) if payload_length is None else payload_length
    struct.pack_into("<II", image, 0x248, len(decompressor), length)
    struct.pack_into("<QI", image, 0x258, 16 * MIB, init_size)
    return bytes(image) + decompressor + payload


def make_multiboot(flags: int = 3, *, position: int = 0, addresses: tuple[int, ...] = ()) -> bytes:
    """Make a raw Multiboot kernel; with `addresses`, flag 16 is set and they are stored."""
    flags |= 0x10000 if addresses else 0
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return bytes(position) + header + struct.pack(f"<{len(addresses)}I", *addresses) + CODE


def make_multiboot_elf(bits: int = 32, flags: int = 3) -> bytes:
    """Make an ELF kernel with a Multiboot header at the start of its segment."""
    return make_elf(bits, addr=MIB, code=make_multiboot(flags))


def multiboot2_tag(kind: int, *fields: int, flags: int = 0) -> bytes:
    """Make one tag of a Multiboot2 header from 32-bit fields, padded for the next one."""
    size = 8 + 4 * len(fields)
    return struct.pack(f"<HHI{len(fields)}I", kind, flags, size, *fields) + bytes(-size % 8)


def make_multiboot2(*tags: bytes, position: int = 0, architecture: int = 0, end: bool = True) -> bytes:
    """Make a raw Multiboot2 kernel with `tags` in its header."""
    body = b"".join(tags) + (multiboot2_tag(0) if end else b"")
    fields = (0xE85250D6, architecture, 16 + len(body))
    header = struct.pack("<4I", *fields, -sum(fields) & 0xFFFFFFFF)
    return bytes(position) + header + body + CODE


def make_multiboot2_elf(bits: int = 32, *tags: bytes, one: bool = False) -> bytes:
    """Make an ELF kernel with a Multiboot2 header in its segment; with `one`, one of version 1 behind it."""
    code = make_multiboot2(*tags)
    return make_elf(bits, addr=MIB, code=code[: -len(CODE)] + make_multiboot() if one else code)


def make_uki(sections: dict[str, bytes]) -> bytes:
    """Make an EFI program with `sections`, as a unified kernel image has them."""
    at, optional = 0x80, 0xF0
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", at)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, optional, 0x22)
    table, body, offset = b"", b"", 0x1000
    for i, (name, data) in enumerate(sections.items()):
        padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
        where = (len(data), 0x100000 * (i + 1), len(padded), offset + len(body))
        table += name.encode().ljust(8, b"\0") + struct.pack("<IIII", *where) + bytes(16)
        body += padded
    return (head.ljust(at, b"\0") + coff + bytes(optional) + table).ljust(offset, b"\0") + body
