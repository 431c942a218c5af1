"""What gdb is told about the CPU: the target description, and the registers in its order.

Two descriptions: x86-64, and i386 for a guest whose CPU is not in long mode.  gdb
fixes the architecture when it connects.  The standard features and their
registers are those of the gdb manual, appendix G, "i386 Features"; one more holds
what only a whole machine has: the control registers, and `$tick`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

LONG_MODE_ACTIVE = 1 << 10  # EFER.LMA

_GENERAL64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_GENERAL32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_X87_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")
_POINTERS = {"rsp": "data_ptr", "rbp": "data_ptr", "rip": "code_ptr"}
_POINTERS |= {"esp": "data_ptr", "ebp": "data_ptr", "eip": "code_ptr"}

_VECTORS = """<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
"""


# Bits of RFLAGS and MXCSR: Intel SDM volume 1, 3.4.3 and 10.2.3.
_EFLAGS = "CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 NT:14 RF:16 VM:17 AC:18 VIF:19 VIP:20 ID:21"
_MXCSR = "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15"


def _flags(name: str, bits: str) -> str:
    """Return the description of a 4-byte register of flags, given as `CF:0 PF:2 ...`."""
    fields = (word.partition(":") for word in bits.split())
    rows = [f'<field name="{flag}" start="{at}" end="{at}"/>' for flag, _, at in fields]
    return "\n".join([f'<flags id="{name}" size="4">', *rows, "</flags>\n"])


class CPU(Protocol):
    """The part of the engine that is shown."""

    def registers(self) -> dict[str, int]:
        """Return the registers by name."""
        ...

    def architectural_state(self) -> bytes:
        """Return what a guest can see of the CPU, in a fixed form."""
        ...

    @property
    def tick(self) -> int:
        """Return the tick."""
        ...


@dataclass(frozen=True)
class Register:
    """A register as gdb numbers it: its size in bits and its type in the description."""

    name: str
    bits: int
    type: str


Feature = tuple[str, str, tuple[Register, ...]]


class Target:
    """One of the two descriptions: `xml` for gdb, and the values of `registers` in its order."""

    def __init__(self, architecture: str, features: tuple[Feature, ...]) -> None:
        self.architecture = architecture
        self.registers = [register for _name, _types, group in features for register in group]
        self.numbers = {register.name: number for number, register in enumerate(self.registers)}
        self.xml = _xml(architecture, features)

    @property
    def is_64bit(self) -> bool:
        """Whether this is the description for long mode."""
        return self.architecture == "i386:x86-64"

    def values(self, cpu: CPU) -> list[bytes]:
        """Return each register's bytes, in gdb's order; a 32-bit register has the low half of the CPU's."""
        values = _values(cpu)
        found = []
        for register in self.registers:
            size = register.bits // 8
            value = values[register.name] & ((1 << register.bits) - 1)
            found.append(value.to_bytes(size, "little"))
        return found


def target_of(cpu: CPU) -> Target:
    """Return the description that fits the mode that the CPU is in now."""
    return X86_64 if cpu.registers()["efer"] & LONG_MODE_ACTIVE else I386


def _features(general: tuple[str, ...], bits: int, xmm: int) -> tuple[Feature, ...]:
    word = f"int{bits}"
    core = [Register(name, bits, _POINTERS.get(name, word)) for name in general]
    core.append(Register("rip" if bits == 64 else "eip", bits, "code_ptr"))
    core.append(Register("eflags", 32, "i386_eflags"))
    core += [Register(name, 32, "int32") for name in _SELECTORS]
    core += [Register(f"st{n}", 80, "i387_ext") for n in range(8)]
    core += [Register(name, 32, "int") for name in _X87_CONTROL]
    sse = [Register(f"xmm{n}", 128, "vec128") for n in range(xmm)]
    sse.append(Register("mxcsr", 32, "i386_mxcsr"))
    segments = [Register(name, bits, word) for name in ("fs_base", "gs_base")]
    system = [Register(name, bits, word) for name in _CONTROL]
    if bits == 64:
        system.append(Register("k_gs_base", 64, "int64"))
    system.append(Register("tick", 64, "uint64"))
    found: list[Feature] = [
        ("org.gnu.gdb.i386.core", _flags("i386_eflags", _EFLAGS), tuple(core)),
        ("org.gnu.gdb.i386.sse", _flags("i386_mxcsr", _MXCSR) + _VECTORS, tuple(sse)),
    ]
    if bits == 64:
        found.append(("org.gnu.gdb.i386.segments", "", tuple(segments)))
    found.append(("org.tt.i386.system", "", tuple(system)))
    return tuple(found)


def _xml(architecture: str, features: tuple[Feature, ...]) -> bytes:
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', '<target version="1.0">']
    lines.append(f"<architecture>{architecture}</architecture>")
    for name, types, registers in features:
        lines.append(f'<feature name="{name}">')
        lines += [types.rstrip()] if types else []
        keep = ' save-restore="no"' if name.endswith("system") else ""
        lines += [f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.type}"{keep}/>' for r in registers]
        lines.append("</feature>")
    lines.append("</target>")
    return "\n".join(lines).encode() + b"\n"


# Where things lie in `Engine.architectural_state`: tt/vmm/engine/digest.c draws it.
_STATE_SIZE = 1000
_KERNEL_GS_BASE_AT = 536
_X87_AT = 624
_X87_REGISTERS_AT = 656
_MXCSR_AT = 736
_XMM_AT = 744


def _values(cpu: CPU) -> dict[str, int]:
    """Return all registers under gdb's names, those of both descriptions."""
    values = dict(cpu.registers())
    values["eflags"] = values["rflags"]
    values |= {name: values[f"r{name[1:]}"] for name in (*_GENERAL32, "eip")}
    values["tick"] = cpu.tick
    state = cpu.architectural_state()
    if len(state) != _STATE_SIZE:
        raise ValueError(f"the CPU's state has {len(state)} bytes, not {_STATE_SIZE}")
    read: Callable[[int, int], int] = lambda at, size: int.from_bytes(state[at : at + size], "little")  # noqa: E731
    values["k_gs_base"] = read(_KERNEL_GS_BASE_AT, 8)
    top, status, control = struct.unpack_from("<3Q", state, _X87_AT)
    empty = state[_X87_AT + 24 : _X87_AT + 32]
    physical = [state[_X87_REGISTERS_AT + 10 * n :][:10] for n in range(8)]
    for n in range(8):
        values[f"st{n}"] = int.from_bytes(physical[(top + n) & 7], "little")
    values["fctrl"] = control
    values["fstat"] = status & ~0x3800 | (top & 7) << 11
    values["ftag"] = sum(_tag(physical[n], bool(empty[n])) << 2 * n for n in range(8))
    # The engine keeps no pointers to the last x87 instruction and operand, as the CPU's save area has them.
    values |= dict.fromkeys(("fiseg", "fioff", "foseg", "fooff", "fop"), 0)
    values["mxcsr"] = read(_MXCSR_AT, 8)
    for n in range(16):
        values[f"xmm{n}"] = read(_XMM_AT + 16 * n, 16)
    return values


def _tag(register: bytes, empty: bool) -> int:
    """Return the 2-bit x87 tag: 0 valid, 1 zero, 2 special, 3 empty (Intel SDM volume 1, 8.1.7)."""
    if empty:
        return 3
    mantissa = int.from_bytes(register[:8], "little")
    exponent = int.from_bytes(register[8:], "little") & 0x7FFF
    if not exponent and not mantissa:
        return 1
    return 0 if 0 < exponent < 0x7FFF and mantissa >> 63 else 2


X86_64 = Target("i386:x86-64", _features(_GENERAL64, 64, 16))
I386 = Target("i386", _features(_GENERAL32, 32, 8))
