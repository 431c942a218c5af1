"""Memories to look for symbols in: an encoder of kallsyms in the layouts of many kernels, and of ORC."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

TEXT64 = 0xFFFF_FFFF_8100_0000
TEXT32 = 0xC100_0000
LONG = {"efer": 0xD01, "cr0": 0x8005_0033, "cs": 0x10}
PROTECTED = {"efer": 0, "cr0": 0x8005_0033, "cs": 0x60}
PAGE = 4096

# What tokens stand for where a number is no character of any name; kernels have such ones.
WORDS = [b"sys_", b"init", b"_lock", b"__", b"read", b"_write", b"tcp_", b"ext4_", b"", b"probe", b"irq"]


@dataclass
class Memory:
    """Pages by address; `read` is what the code under test gets."""

    pages: dict[int, bytes] = field(default_factory=dict)
    reads: int = 0

    def put(self, addr: int, data: bytes) -> None:
        """Map `data`, whole pages from the one that holds `addr` on."""
        begin = addr // PAGE * PAGE
        whole = bytes(addr - begin) + data
        for at in range(0, len(whole), PAGE):
            old = self.pages.get(begin + at, bytes(PAGE))
            new = bytearray(old)
            low = max(0, addr - begin - at)
            piece = whole[at + low : at + PAGE]
            new[low : low + len(piece)] = piece
            self.pages[begin + at] = bytes(new)

    def read(self, addr: int, size: int) -> bytes:
        """Return bytes; raise `IndexError` where a page is missing."""
        self.reads += 1
        out = bytearray()
        while size > 0:
            page = self.pages.get(addr // PAGE * PAGE)
            if page is None:
                raise IndexError(hex(addr))
            piece = page[addr % PAGE : addr % PAGE + size]
            out += piece
            addr += len(piece)
            size -= len(piece)
        return bytes(out)


@dataclass(frozen=True)
class Layout:
    """How a kernel lays its kallsyms out."""

    name: str
    width: int = 8
    late: bool = False  # offsets after the token index: since 6.4
    seqs: bool = False  # since 6.2
    percpu: bool = False  # CONFIG_KALLSYMS_ABSOLUTE_PERCPU
    relative: bool = True  # since 4.6
    pc_relative: bool = False  # the newest: offsets are relative to themselves
    wide: bool = False  # markers and count of a pointer's width: before 4.20

    @property
    def text(self) -> int:
        return TEXT64 if self.width == 8 else TEXT32


LAYOUTS = [
    Layout("4.4 amd64", relative=False, wide=True),
    Layout("4.19 amd64", percpu=True, wide=True),
    Layout("6.1 amd64", percpu=True),
    Layout("6.1 arm64-like", percpu=False),
    Layout("6.3 amd64", percpu=True, seqs=True),
    Layout("6.6 amd64", percpu=True, seqs=True, late=True),
    Layout("6.16 amd64", seqs=True, late=True),
    Layout("6.6 absolute", seqs=True, late=True, relative=False),
    Layout("pc-relative", seqs=True, late=True, pc_relative=True),
    Layout("4.4 i386", width=4, relative=False),
    Layout("6.1 i386", width=4),
    Layout("6.6 i386", width=4, seqs=True, late=True),
]

Row = tuple[int, str, str]


def rows_of(layout: Layout, count: int = 700) -> list[Row]:
    """Make symbols (addr, letter, name), in order, with the names that a test wants to find."""
    rows: list[Row] = []
    if layout.percpu:
        rows += [(0, "A", "fixed_percpu_data"), (0x1000, "A", "cpu_debug_store")]
    names = ["_text", "sys_read", "__x64_sys_read", "tcp_v4_rcv", "probe_irq_on", "A_Z.cold", "x" * 90]
    names += [f"func_{number}_init_lock" for number in range(count - len(rows) - len(names))]
    rows += [(layout.text + 16 * number, "Tt"[number % 2], name) for number, name in enumerate(names)]
    return rows


def tokens_of(rows: Sequence[Row]) -> list[bytes]:
    """Return 256 tokens: each character that occurs stands for itself, the others for words or nothing."""
    used = {byte for _addr, letter, name in rows for byte in (letter + name).encode()} | set(b"0123456789")
    words = iter(WORDS)
    return [bytes([n]) if n in used else next(words, b"") for n in range(256)]


def compress(text: bytes, tokens: Sequence[bytes]) -> bytes:
    """Return token numbers for `text`, the longest token first."""
    best = sorted((n for n in range(256) if tokens[n]), key=lambda n: -len(tokens[n]))
    out = bytearray()
    while text:
        number = next(n for n in best if text.startswith(tokens[n]))
        out.append(number)
        text = text[len(tokens[number]) :]
    return bytes(out)


def kallsyms(layout: Layout, rows: Sequence[Row], slide: int = 0, addr: int = 0) -> bytes:
    """Encode `rows` as scripts/kallsyms.c does, to be at `addr`; the base moved by `slide`, as KASLR does."""
    width, pointer = layout.width, "<Q" if layout.width == 8 else "<I"

    def aligned(data: bytes) -> bytes:
        return data + bytes(-len(data) % width)

    tokens = tokens_of(rows)
    names, markers = bytearray(), []
    for number, (_addr, letter, name) in enumerate(rows):
        if number % 256 == 0:
            markers.append(len(names))
        packed = compress((letter + name).encode(), tokens)
        length = len(packed)
        names += bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
        names += packed
    base = next(addr for addr, letter, _name in rows if letter != "A")
    if not layout.relative:
        places = b"".join(struct.pack(pointer, addr + slide) for addr, _letter, _name in rows)
    elif layout.percpu:
        signed = [addr if letter == "A" else base - 1 - addr for addr, letter, _name in rows]
        places = aligned(struct.pack(f"<{len(signed)}i", *signed)) + struct.pack(pointer, base + slide)
    else:
        places = aligned(b"".join(struct.pack("<I", addr - base) for addr, _letter, _name in rows))
        places += struct.pack(pointer, base + slide)
    table = b"".join(token + b"\0" for token in tokens)
    index, at = [], 0
    for token in tokens:
        index.append(at)
        at += len(token) + 1
    seqs = b"".join(struct.pack(">I", n)[1:] for n in range(len(rows))) if layout.seqs else b""
    head = aligned(struct.pack(pointer if layout.wide else "<I", len(rows))) + aligned(bytes(names))
    head += aligned(struct.pack(f"<{len(markers)}{pointer[1] if layout.wide else 'I'}", *markers))
    tail = aligned(table) + aligned(struct.pack("<256H", *index))
    if layout.pc_relative:
        at = addr + len(head) + len(tail)
        offsets = [row[0] + slide - at - 4 * number for number, row in enumerate(rows)]
        places = aligned(struct.pack(f"<{len(offsets)}i", *offsets))
    if layout.late:
        return head + tail + places + seqs
    return places + head + aligned(seqs) + tail


def memory_with(layout: Layout, rows: Sequence[Row], begin: int, before: int = 3 * PAGE) -> bytes:
    """Return what is in memory from `begin` on, kallsyms among other things."""
    return around(kallsyms(layout, rows, addr=begin + before), before)


def around(blob: bytes, before: int = 3 * PAGE) -> bytes:
    """Put other read-only data on both sides: a table of u16 that holds the digits too, strings, zeros."""
    noise = b"".join(struct.pack("<H", number) for number in range(256)) + b"Linux version 6.1.0\0" * 20
    noise = noise.ljust(before, b"\x5a")
    return noise + blob + b"\x11\x22\x33" * 500 + bytes(1000)


def orc_tables(addr: int, rules: Sequence[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    """Return the two ORC tables of (address of code, 6 bytes), the first made for address `addr`."""
    ips = b"".join(struct.pack("<i", pc - addr - 4 * number) for number, (pc, _entry) in enumerate(rules))
    return ips, b"".join(entry for _pc, entry in rules)


def orc_entry(sp_offset: int, bp_offset: int, sp_reg: int, bp_reg: int, flags: int) -> bytes:
    """Return an ORC entry; `flags` is its last byte, whose meaning depends on the kernel's version."""
    return struct.pack("<hhBB", sp_offset, bp_offset, sp_reg | bp_reg << 4, flags)
