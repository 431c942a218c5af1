"""The target description, and the registers in its order."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree

import pytest

from tt.gdb.target import I386, X86_64, Target, target_of
from tt.vmm.engine import Engine


def engine(mode: str = "long64", **registers: int) -> Engine:
    made = Engine(1 << 20)
    made.start(mode, 0x1234, registers, cr3=0x1000 if mode == "long64" else 0)
    return made


@pytest.mark.parametrize("target", [X86_64, I386], ids=["x86-64", "i386"])
def test_description_and_values_fit(target: Target) -> None:
    tree = ElementTree.fromstring(target.xml)
    sizes = [int(reg.attrib["bitsize"]) for reg in tree.iter("reg")]
    values = target.values(engine())
    assert [8 * len(value) for value in values] == sizes
    features = [feature.attrib["name"] for feature in tree.iter("feature")]
    assert features[0] == "org.gnu.gdb.i386.core"
    defined = {node.attrib["id"] for tag in ("vector", "union", "flags") for node in tree.iter(tag)}
    known = {"int", "int32", "int64", "uint64", "code_ptr", "data_ptr", "i387_ext"}
    assert {reg.attrib["type"] for reg in tree.iter("reg")} <= defined | known


def test_the_mode_decides() -> None:
    assert target_of(engine("long64")) is X86_64
    assert target_of(engine("protected32")) is I386
    assert target_of(engine("real16")) is I386


def test_registers_are_in_gdbs_order() -> None:
    cpu = engine(rax=1, rbx=2, rcx=3, rdx=4, rsi=5, rdi=6, rbp=7, rsp=8, r8=9, r15=0xFFFF_FFFF_0000_0010)
    values = [int.from_bytes(value, "little") for value in X86_64.values(cpu)]
    assert values[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert values[15:18] == [0xFFFF_FFFF_0000_0010, 0x1234, 2]
    narrow = [int.from_bytes(value, "little") for value in I386.values(cpu)]
    assert narrow[:9] == [1, 3, 4, 2, 8, 7, 5, 6, 0x1234]
    assert values[X86_64.numbers["fctrl"]] == 0x37F
    assert values[X86_64.numbers["ftag"]] == 0xFFFF
    assert values[X86_64.numbers["mxcsr"]] == 0x1F80
    assert values[X86_64.numbers["tick"]] == 0


def test_float_registers_after_float_instructions() -> None:
    cpu = Engine(1 << 20)
    code = bytes.fromhex(
        "d9e8"  # fld1
        "d9ee"  # fldz
        "0f20e0 0d00020000 0f22e0"  # cr4 |= OSFXSR
        "660f6ec3"  # movd xmm0, ebx
    )
    cpu.write(0x1000, code)
    cpu.start("protected32", 0x1000, {"rbx": 0x12345678})
    cpu.run(6)
    values = I386.values(cpu)
    assert values[I386.numbers["st0"]] == bytes(10)
    assert values[I386.numbers["st1"]] == struct.pack("<QH", 1 << 63, 0x3FFF)
    assert values[I386.numbers["fstat"]][1] >> 3 & 7 == 6
    assert int.from_bytes(values[I386.numbers["ftag"]], "little") == 0x1FFF
    assert cpu.xmm()[0] == 0x12345678
    for number in range(8):
        at = I386.numbers[f"xmm{number}"]
        assert int.from_bytes(values[at], "little") == cpu.xmm()[number]
