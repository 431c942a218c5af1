"""The registers and other words of an expression, and how each is read."""

from __future__ import annotations

from collections.abc import Callable

from tt.travel.expressions.values import INTEGERS, S64, U64, Type, View
from tt.vmm.linear import linear, linear_sp


def _registers() -> dict[str, tuple[str, int, Type]]:
    """Return of each register's name: the name in `Timeline.registers()`, a shift, and the type."""
    u8, u16, u32 = INTEGERS["u8"], INTEGERS["u16"], INTEGERS["u32"]
    table: dict[str, tuple[str, int, Type]] = {}
    for a in "abcd":
        table |= {f"{a}l": (f"r{a}x", 0, u8), f"{a}h": (f"r{a}x", 8, u8)}
    for old in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip"):
        table |= {f"r{old}": (f"r{old}", 0, U64), f"e{old}": (f"r{old}", 0, u32), old: (f"r{old}", 0, u16)}
        if old in ("si", "di", "bp", "sp"):
            table[f"{old}l"] = (f"r{old}", 0, u8)
    for n in range(8, 16):
        whole = f"r{n}"
        table |= {whole: (whole, 0, U64), f"{whole}d": (whole, 0, u32), f"{whole}w": (whole, 0, u16)}
        table |= {f"{whole}b": (whole, 0, u8), f"{whole}l": (whole, 0, u8)}
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        table[name] = (name, 0, u16)
    for name in ("cr0", "cr2", "cr3", "cr4", "efer", "fs_base", "gs_base"):
        table[name] = (name, 0, U64)
    table |= {"rflags": ("rflags", 0, U64), "eflags": ("rflags", 0, u32), "fp": ("rbp", 0, U64)}
    del table["sp"]  # gdb's $sp is the stack pointer: see below
    return table


_REGISTERS = _registers()
_WORDS: dict[str, tuple[Callable[[View], int], Type]] = {
    "tick": (lambda view: view.timeline.tick, S64),
    "ns": (lambda view: view.timeline.machine.now_ns, S64),
    "halted": (lambda view: int(view.timeline.machine.halted), S64),
    "bits": (lambda view: view.timeline.machine.engine.bits, S64),
    "cpl": (lambda view: view.registers["cs"] & 3, S64),
    "pc": (lambda view: linear(view.timeline.machine.engine, "cs", view.registers["rip"]), U64),
    "sp": (lambda view: linear_sp(view.timeline.machine.engine, view.registers["rsp"]), U64),
}
BARE_WORDS = ("tick", "ns", "halted", "bits", "cpl")
"""Words that need no `$`; they hide symbols of the same name."""

REGISTER_NAMES = tuple(sorted({*_REGISTERS, *_WORDS}))
"""Every name that may follow a `$`: for completion."""


def register(name: str) -> tuple[Callable[[View], int], Type] | None:
    """Return how the register or word `name` is read, and its type; None if there is none."""
    if name in _WORDS:
        return _WORDS[name]
    if name not in _REGISTERS:
        return None
    whole, shift, kind = _REGISTERS[name]
    mask = (1 << 8 * kind.size) - 1
    return lambda view: view.registers[whole] >> shift & mask, kind
