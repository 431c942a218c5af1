"""Unified kernel images (UAPI.5): a Linux kernel, its initrd and its command line in one EFI program."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tt.errors import BadInput

_MOST_SECTIONS = 200


@dataclass(frozen=True)
class Uki:
    """What an image holds: that of its first profile, where it has several."""

    kernel: bytes
    initrd: bytes | None
    cmdline: str


def split_uki(data: bytes, what: str) -> Uki | None:
    """Take an image apart; None for any other file.

    Raises `BadInput` when a section is cut short; `what` names the file in it.
    """
    sections = _sections(data, what) if data[:2] == b"MZ" else {}
    kernel = sections.get(".linux")
    if not kernel:
        return None
    # systemd-stub hands the kernel microcode first, then the initrd.
    initrd = join_archives([sections.get(name, b"") for name in (".ucode", ".initrd")])
    cmdline = sections.get(".cmdline", b"").split(b"\0")[0].decode("utf-8", "surrogateescape")
    return Uki(kernel, initrd or None, " ".join(cmdline.split("\n")).strip())


def join_archives(archives: Iterable[bytes]) -> bytes:
    """Join initrds: Linux finds the next archive at a 4-byte boundary (initramfs buffer format)."""
    joined = b""
    for archive in filter(None, archives):
        joined += bytes(-len(joined) % 4) + archive
    return joined


def _sections(data: bytes, what: str) -> dict[str, bytes]:
    """Return the sections of a PE file by name (PE format, "COFF File Header" and "Section Table")."""
    if len(data) < 0x40:
        return {}
    (at,) = struct.unpack_from("<I", data, 0x3C)
    if data[at : at + 4] != b"PE\0\0" or len(data) < at + 24:
        return {}
    (count,) = struct.unpack_from("<H", data, at + 6)
    (optional,) = struct.unpack_from("<H", data, at + 20)
    found: dict[str, bytes] = {}
    for i in range(min(count, _MOST_SECTIONS)):
        header = data[at + 24 + optional + 40 * i :][:40]
        if len(header) < 40:
            break
        name = header[:8].rstrip(b"\0").decode("latin-1")
        if name == ".profile":  # what follows are other ways to boot the same kernel
            break
        size, _, raw_size, offset = struct.unpack_from("<IIII", header, 8)
        size = min(size, raw_size) if size else raw_size
        if name.startswith((".linux", ".initrd", ".cmdline", ".ucode")):
            if offset + size > len(data):
                raise BadInput(f"{what} is cut short: its section {name} ends at {offset + size} bytes")
            found.setdefault(name, data[offset : offset + size])
    return found
