"""The Denali machine's numbers stand in Python, in the guest kit and in the engine, and are the same."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cli_rig import ROOT

from tt.vmm.denali.registers import MAGIC, PAGE, REGISTER_PAGE, Call, EventBit, Register

HEADER = ROOT / "guests" / "denali" / "denali.h"
ENGINE = ROOT / "tt" / "vmm" / "engine" / "denali.c"


def member(register: Register) -> str:
    """Return how the header names a register."""
    name = register.name.lower()
    for frame in ("event", "exception"):
        if name.startswith(f"{frame}_") and not name.endswith("_handler"):
            return f"{frame}.{name.removeprefix(f'{frame}_')}"
    return name


def test_the_guest_kit_has_the_numbers_of_the_machine() -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    expected = {
        **{f"__builtin_offsetof(struct denali_registers, {member(r)})": int(r) for r in Register},
        **{f"DENALI_{call.name}": int(call) for call in Call},
        **{f"DENALI_EVENT_{bit.name}": int(bit) for bit in EventBit if bit is not EventBit.NETWORK},
        "DENALI_PAGE": PAGE,
        "DENALI_REGISTERS": REGISTER_PAGE,
        "DENALI_MAGIC": MAGIC,
    }
    checks = [
        f'_Static_assert({name} == {value}ull, "{name} is not {value}");' for name, value in expected.items()
    ]
    source = "\n".join([f'#include "{HEADER}"', *checks])
    command = [compiler, "-x", "c", "-ffreestanding", "-fsyntax-only", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_engine_has_the_numbers_of_the_machine() -> None:
    text = ENGINE.read_text()
    found = {name: int(value, 16) for name, value in re.findall(r"\bVR_(\w+) = (0x[0-9a-f]+)", text)}
    named = {
        "EVENT": Register.EVENT_RIP,
        "EXCEPTION": Register.EXCEPTION_RIP,
        "VECTOR": Register.EXCEPTION_VECTOR,
        "ERROR": Register.EXCEPTION_ERROR,
        "ADDR": Register.EXCEPTION_ADDRESS,
        "ACTIVE": Register.EXCEPTION_ACTIVE,
    }
    assert len(found) > 8
    for name, value in found.items():
        assert value == named.get(name, Register.__members__.get(name)), name
    assert int(re.findall(r"REGISTERS = (0x[0-9a-f]+)", text)[0], 16) == REGISTER_PAGE
    (calls,) = re.findall(r"enum { V_RETURN_EVENT = 2, ([^}]*) }", text)
    assert calls == "V_RETURN_EXCEPTION, V_TLB_LOAD, V_TLB_FLUSH, V_TLB_ENABLE"
    following = [Call.RETURN_FROM_EXCEPTION, Call.TLB_LOAD, Call.TLB_FLUSH, Call.TLB_ENABLE]
    assert [Call.RETURN_FROM_EVENT, *following] == [2, 3, 4, 5, 6]
