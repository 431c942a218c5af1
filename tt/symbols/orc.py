"""ORC, the kernel's own tables for unwinding its stacks (arch/x86/include/asm/orc_types.h).

__start_orc_unwind_ip   s32 each, in order: the code's address, relative to this field itself
__start_orc_unwind      6 bytes for each of them:
    s16 sp_offset   s16 bp_offset   u8 sp_reg:4 bp_reg:4   u8 flags

flags before 6.4   type:2 (0 call, 1 regs, 2 partial regs), then `end` (6.3: `signal`, `end`)
flags since 6.4    type:3 (0 undefined, 1 end of stack, 2 call, 3 regs, 4 partial regs), `signal`
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Read = Callable[[int, int], bytes]
Kind = Literal["call", "regs", "partial", "end", "undefined"]

UNDEFINED, PREV_SP, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(10)

_ENTRY = struct.Struct("<hhBB")
_MOST_ENTRIES = 1 << 24
_SAMPLES = 64
_OLD: dict[int, Kind] = {0: "call", 1: "regs", 2: "partial"}
_NEW: dict[int, Kind] = {0: "undefined", 1: "end", 2: "call", 3: "regs", 4: "partial"}


@dataclass(frozen=True)
class Rule:
    """How to get from one frame to its caller: see `tt.symbols.unwind`."""

    sp_offset: int
    bp_offset: int
    sp_reg: int
    bp_reg: int
    kind: Kind


class Orc:
    """The ORC table of some code: `count` entries at virtual addresses `ips` and `entries`."""

    def __init__(self, read: Read, ips: int, entries: int, count: int) -> None:
        self._read = read
        self._ips = ips
        self._entries = entries
        self._count = min(count, _MOST_ENTRIES)
        self._is_new: bool | None = None

    def lookup(self, pc: int) -> Rule | None:
        """Return the rule for the code at `pc`, None without one; raises `IndexError` as `read` does."""
        low, high = 0, self._count  # of all entries at or below pc the last one counts
        while low < high:
            middle = (low + high) // 2
            if self._ip(middle) <= pc:
                low = middle + 1
            else:
                high = middle
        return self._rule(low - 1) if low else None

    def _ip(self, number: int) -> int:
        at = self._ips + 4 * number
        return (at + int.from_bytes(self._read(at, 4), "little", signed=True)) % (1 << 64)

    def _rule(self, number: int) -> Rule:
        sp_offset, bp_offset, regs, flags = _ENTRY.unpack(self._read(self._entries + 6 * number, 6))
        sp_reg, bp_reg = regs & 15, regs >> 4
        if self._is_new is None:
            self._is_new = self._looks_new()
        kind = _NEW.get(flags & 7, "undefined") if self._is_new else _OLD.get(flags & 3, "undefined")
        if not self._is_new and sp_reg == UNDEFINED:
            kind = "end" if flags & 0x0C else "undefined"
        return Rule(sp_offset, bp_offset, sp_reg, bp_reg, kind)

    def _looks_new(self) -> bool:
        """Tell the two forms apart by the type of most entries with a known stack: a call, 0 or 2."""
        votes = 0
        for number in range(0, self._count, max(1, self._count // _SAMPLES)):
            regs, flags = self._read(self._entries + 6 * number + 4, 2)
            if regs & 15 == SP:
                votes += 1 if flags & 7 == 2 else -1
        return votes > 0
