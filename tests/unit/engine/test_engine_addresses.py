"""Addresses as `tt.travel.addresses` computes them, against those that the engine touches.

The engine computes them in Unicorn, from its own decoding; `addresses` computes them from capstone's.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest
from engine_rig import STUBS, Guest, descriptor

from tt.travel.addresses import CpuBefore, accesses
from tt.travel.code import decode
from tt.vmm.engine import WATCH
from tt.vmm.linear import linear, linear_pc, linear_sp, segment_base

TABLE = 0x700  # a GDT with bases, for segments of 32 and 16 bits
AT = 0xB000  # where the instructions lie
# Instructions of AMD's XOP, which share opcode 8F with POP and which this CPU does not have.
LEFT_OUT = ("v",)
BASES = {"cs": 0x2000, "ds": 0x11000, "es": 0x22000, "ss": 0x33000, "fs": 0x44000, "gs": 0x55000}
LOW, HIGH = 0x1000, 0x30000  # where most offsets lie

# One-byte and two-byte opcodes with a ModRM byte; those that reach memory by other means are in PLAIN.
WITH_MODRM = [
    *(b"\x00", b"\x01", b"\x02", b"\x03", b"\x29", b"\x33", b"\x38", b"\x39", b"\x3b", b"\x84", b"\x85"),
    *(b"\x86", b"\x87", b"\x88", b"\x89", b"\x8a", b"\x8b", b"\xc0", b"\xd1", b"\xd3", b"\xf7", b"\xfe"),
    *(b"\x0f\xa3", b"\x0f\xab", b"\x0f\xb3", b"\x0f\xbb", b"\x0f\xb6", b"\x0f\xbf", b"\x0f\xaf", b"\x0f\x45"),
    *(b"\x0f\xb0", b"\x0f\xb1", b"\x0f\xc0", b"\x0f\xc1", b"\x0f\xba", b"\x8f", b"\xff", b"\xc6", b"\xc7"),
    *(b"\x0f\x10", b"\x0f\x28", b"\x0f\x6f", b"\x0f\x7f", b"\x0f\xc7"),
]
PLAIN = [
    *(b"\xa0", b"\xa1", b"\xa2", b"\xa3", b"\xa4", b"\xa5", b"\xa6", b"\xaa", b"\xab", b"\xac", b"\xae"),
    *(b"\xd7", b"\xc9", b"\x50", b"\x54", b"\x58", b"\x5c", b"\x9c", b"\x9d", b"\x60", b"\x61", b"\x6a"),
    *(b"\xc3", b"\xcb", b"\xe8", b"\x0f\xf7\xc1", b"\xc8\x10\x00\x00"),
]
NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{i}" for i in range(8, 16)))
PREFIXES = [b"\x26", b"\x2e", b"\x36", b"\x3e", b"\x64", b"\x65"]


@dataclass
class Rig:
    """A CPU of one mode, and the instructions that it is given."""

    guest: Guest
    chance: random.Random

    def instruction(self) -> bytes:
        """Return random bytes that begin with an instruction."""
        chance = self.chance
        prefixes = b"".join(
            prefix
            for prefix, often in ((chance.choice(PREFIXES), 0.25), (b"\x66", 0.2), (b"\x67", 0.25))
            if chance.random() < often
        )
        if self.guest.bits == 64 and chance.random() < 0.5:
            prefixes += bytes([0x40 | chance.randrange(16)])
        if chance.random() < 0.3:
            rest = chance.randbytes(8)
            if self.guest.bits != 64 or chance.random() < 0.8:  # the address of MOV from and to AX
                rest = struct.pack("<Q", chance.randrange(LOW, HIGH))
            return prefixes + chance.choice(PLAIN) + rest
        displacement = chance.choice((chance.randrange(-0x800, 0x800), self.number(32)))
        tail = bytes([chance.randrange(256), chance.randrange(256)])
        return (
            prefixes
            + chance.choice(WITH_MODRM)
            + tail[:1]
            + (tail[1:] if chance.random() < 0.5 else b"")
            + struct.pack("<i", (displacement + (1 << 31)) % (1 << 32) - (1 << 31))
            + bytes(8)
        )

    def number(self, bits: int) -> int:
        """Return a register's or a displacement's value: small, or small after the sum of two wraps."""
        value = self.chance.randrange(LOW, HIGH)
        kind = self.chance.random()
        if kind < 0.4:
            return value
        if kind < 0.5:
            return -value % (1 << bits)
        return value + (1 << min(bits, self.chance.choice((32, 64))) - 1)

    def set_up(self, code: bytes, registers: dict[str, int] | None = None) -> dict[str, int]:
        """Put the CPU before `code` with `registers`, or with new ones; return them."""
        engine, bits = self.guest.engine, self.guest.bits
        self.guest.reset()
        engine.write(AT, code)
        if registers is None:
            registers = {name: self.number(bits if bits == 64 else 32) for name in NAMES[:7]}
            registers |= {name: self.number(64) for name in NAMES[7:] if bits == 64}
            registers["rsp"] = self.chance.randrange(0x8000, 0xF000)
        for name, value in registers.items():
            engine.set_register(name, value)
        return registers

    def touched(self, watches: list[tuple[int, int]], reads: bool = True) -> tuple[int, int, bool] | None:
        """Execute the instruction; return the first access (linear addr, size, is a write) to `watches`."""
        engine = self.guest.engine
        engine.set_watchpoints([(addr, size, reads, True, False) for addr, size in watches])
        reason = engine.run(engine.tick + 1)
        is_own = reason == WATCH and engine.hit_by == "instruction"  # not of the exception that it raised
        hit = engine.hit if is_own else None
        engine.set_watchpoints([])
        return None if hit is None else (hit[0], hit[2], hit[3])


def rig(kind: str, seed: int) -> Rig:
    """Return a CPU in 64-bit code, in code of 32 or 16 bits with segments all over, or in real mode."""
    if kind == "long64":
        guest = Guest(f"jmp {AT}")
        guest.engine.set_register("fs_base", BASES["fs"])
        guest.engine.set_register("gs_base", BASES["gs"])
    else:
        others = [name for name in BASES if name != "cs"]
        if kind == "real16":
            loads = "".join(f"mov ax, {BASES[name] >> 4}\nmov {name}, ax\n" for name in others)
            guest = Guest(f"{loads} .byte 0xea\n.word {AT - BASES['cs']}, {BASES['cs'] >> 4}\n", "real16")
        else:
            code, stack = (0xC09B00, 0xC09300) if kind == "protected32" else (0x809B00, 0x809300)
            flags = {"cs": code, "ss": stack}
            table = bytes(8) + b"".join(
                descriptor(base, 0xFFFFF, flags.get(name, 0xC09300)) for name, base in BASES.items()
            )
            loads = "".join(f"mov ax, {8 * list(BASES).index(n) + 8}\nmov {n}, ax\n" for n in others)
            source = f"lgdt [0x680]\n{loads} .byte 0xea\n.long {AT - BASES['cs']}\n.word 8\n"
            guest = Guest(source, "protected32")
            guest.write(0x680, struct.pack("<HI", len(table) - 1, TABLE))
            guest.write(TABLE, table)
    while linear_pc(guest.engine) != AT:
        assert guest.engine.tick < 20, guest.engine.registers()
        guest.run(guest.engine.tick + 1)
    guest.bits = guest.engine.bits
    guest.start_state = guest.engine.save()
    guest.start_ram = guest.engine.read(0, guest.engine.size)
    return Rig(guest, random.Random(seed))


KINDS = ["long64", "protected32", "protected16", "real16"]


def compare(kind: str, seed: int, count: int) -> int:
    """Compare over `count` random instructions; return how many of them touched memory."""
    cpu = rig(kind, seed)
    engine = cpu.guest.engine
    touched = 0
    for _ in range(count):
        data = cpu.instruction()
        code = decode(data, AT, engine.bits, segment_base(engine, "cs"))
        if code is None or code.text.startswith(LEFT_OUT):
            continue
        numbers = cpu.set_up(data)
        expected = accesses(code, CpuBefore(engine))
        hit = cpu.touched([(0, 1 << 30)])
        told = f"{kind}: {data.hex()} {code.text}: {hit}, computed {expected}"
        if hit is None:
            in_ram = all(access.addr + access.size <= engine.size for access in expected)
            raised = STUBS <= linear_pc(engine) <= STUBS + BASES["cs"] + 0x800
            masked = code.text.startswith("maskmov")  # may store no byte
            assert raised or not expected or not in_ram or masked, told
            continue
        touched += 1
        assert hit[0] in {access.addr for access in expected}, told
        for access in expected:  # and all the others, each by itself
            cpu.set_up(data, numbers)
            assert cpu.touched([(access.addr, 1)]) is not None, f"{told}: {access} is not touched"
    return touched


@pytest.mark.parametrize("kind", KINDS)
def test_addresses_are_those_that_the_engine_touches(kind: str) -> None:
    assert compare(kind, 8, 200) > 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_addresses_of_many_more_instructions(kind: str) -> None:
    assert compare(kind, 9, 2000) > 600


@pytest.mark.parametrize("kind", KINDS)
def test_a_return_address_is_found_where_the_call_put_it(kind: str) -> None:
    cpu = rig(kind, 1)
    engine = cpu.guest.engine
    cpu.set_up(b"\xe8\x10\x00\x00\x00")  # a call with a displacement of 32 or 16 bits
    engine.run(engine.tick + 1)
    size = engine.bits // 8
    back = int.from_bytes(engine.read(linear_sp(engine), size), "little")
    assert linear(engine, "cs", back) == AT + (3 if engine.bits == 16 else 5)
    assert linear_pc(engine) == linear(engine, "cs", back) + 0x10
