"""Modules of a Multiboot kernel, and the one piece of bytes that a trace keeps them in.

A plan has room for one companion of its kernel, the initrd.  For Multiboot
these bytes are a list: a magic number, then for each module the lengths of its
words and of its data (4 and 8 bytes, little-endian) and both.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tt.errors import BadInput

_MAGIC = b"ttmods1\0"
_MOST = 1000


@dataclass(frozen=True)
class Module:
    """A module: the words that its kernel gets with it, and the contents of its file."""

    words: str
    data: bytes


def pack(modules: Sequence[Module]) -> bytes:
    """Return modules as one piece of bytes; raises `BadInput` when there are too many."""
    if len(modules) > _MOST:
        raise BadInput(f"{len(modules)} modules are too many for a Multiboot kernel: {_MOST} at most")
    out = [_MAGIC]
    for module in modules:
        words = module.words.encode("utf-8", "surrogateescape")
        out += [struct.pack("<IQ", len(words), len(module.data)), words, module.data]
    return b"".join(out)


def unpack(packed: bytes | None) -> list[Module]:
    """Return the modules that `pack` made `packed` of, none for None; raises `BadInput` for other bytes."""
    if packed is None:
        return []
    if not packed.startswith(_MAGIC):
        raise BadInput("what should be a list of Multiboot modules is something else: the trace is damaged")
    modules: list[Module] = []
    at = len(_MAGIC)
    while at < len(packed):
        if at + 12 > len(packed):
            raise BadInput("a list of Multiboot modules is cut short: the trace is damaged")
        words, size = struct.unpack_from("<IQ", packed, at)
        at += 12
        if words + size > len(packed) - at or len(modules) == _MOST:
            raise BadInput("a list of Multiboot modules is cut short: the trace is damaged")
        text = packed[at : at + words].decode("utf-8", "surrogateescape")
        modules.append(Module(text, packed[at + words : at + words + size]))
        at += words + size
    return modules
