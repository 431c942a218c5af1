"""The running process, read out of a memory made for it; and what damage makes of that."""

from __future__ import annotations

import struct
from array import array
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.chronus.why import tasks
from tt.chronus.why.tasks import current_task
from tt.errors import BadInput
from tt.log import Trace
from tt.symbols import SymbolTable
from tt.symbols.table import SymbolSet

KERNEL = 0xFFFF_8880_0000_0000
PER_CPU, OFFSETS, BTF = KERNEL + 0x1000, KERNEL + 0x100, KERNEL + 0x8000
SHELL, SED, MEMORY, CREDENTIALS, ARGUMENTS = (KERNEL + at for at in (0x2000, 0x3000, 0x4000, 0x5000, 0x6000))
STRINGS = b"\0task_struct\0tgid\0comm\0real_parent\0mm\0cred\0mm_struct\0arg_start\0arg_end\0uid\0"
FIELDS = {
    "task_struct": {"tgid": 8, "comm": 16, "real_parent": 40, "mm": 48, "cred": 56},
    "mm_struct": {"arg_start": 0, "arg_end": 8},
    "cred": {"uid": 4},
}


def btf() -> bytes:
    def at(name: str) -> int:
        return STRINGS.index(b"\0" + name.encode() + b"\0") + 1

    types = b"".join(
        struct.pack("<III", at(name), 4 << 24 | len(fields), 64)
        + b"".join(struct.pack("<III", at(field), 0, place * 8) for field, place in fields.items())
        for name, fields in FIELDS.items()
    )
    return (
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(STRINGS)) + types + STRINGS
    )


class Guest:
    """A place with 64 KB of kernel memory: a shell, and sed, its child, which runs."""

    def __init__(self) -> None:
        self.memory = bytearray(0x10000)
        self.tick = 5
        self.trace = cast(Trace, Key())
        put = self.put
        put(OFFSETS, struct.pack("<Q", PER_CPU))
        put(PER_CPU + 0x80, struct.pack("<Q", SED))
        put(BTF, btf())
        for task, pid, name, parent in ((SHELL, 10, b"sh", SHELL), (SED, 12, b"sed", SHELL)):
            put(task + 8, struct.pack("<II16s8xQQQ", pid, 0, name, parent, MEMORY, CREDENTIALS))
        put(MEMORY, struct.pack("<QQ", ARGUMENTS, ARGUMENTS + 14))
        put(ARGUMENTS, b"sed\0s/a/b/\0-i\0")
        put(CREDENTIALS + 4, struct.pack("<I", 1000))

    def put(self, addr: int, data: bytes) -> None:
        self.memory[addr - KERNEL : addr - KERNEL + len(data)] = data

    def read(self, addr: int, size: int) -> bytes:
        if addr < KERNEL or addr + size > KERNEL + len(self.memory):
            raise IndexError(f"{addr:#x} is not mapped")
        return bytes(self.memory[addr - KERNEL : addr - KERNEL + size])

    def registers(self) -> dict[str, int]:
        return {}


class Key:
    """What stands for a trace: something to know a layout by."""


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    places = {
        "current_task": 0x80, "__per_cpu_offset": OFFSETS, "__start_BTF": BTF, "__stop_BTF": BTF + len(btf()),
    }  # fmt: skip
    table = table_of(places)
    monkeypatch.setattr(tasks, "for_timeline", lambda timeline: table)
    return Guest()


def table_of(places: dict[str, int]) -> SymbolTable:
    names = sorted(places, key=places.__getitem__)
    return SymbolTable(
        [SymbolSet("test", 0, array("Q", (places[name] for name in names)), names, "D" * len(names))]
    )


def test_who_runs_with_what_command_and_whose_child(guest: Guest) -> None:
    task = current_task(cast(Any, guest))
    assert (task.pid, task.name, task.uid, task.kernel) == (12, "sed", 1000, False)
    assert task.command == ("sed", "s/a/b/", "-i")
    assert task.parents == ((10, "sh"),)


def test_a_kernel_thread_has_no_memory_of_its_own(guest: Guest) -> None:
    guest.put(SED + 48, bytes(8))
    task = current_task(cast(Any, guest))
    assert task.kernel and task.command == ()


def test_a_command_line_that_is_not_in_memory_is_left_out(guest: Guest) -> None:
    guest.put(MEMORY, struct.pack("<QQ", 0x1000, 0x1100))
    assert current_task(cast(Any, guest)).command == ()


def test_where_nothing_says_it_the_error_does(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "for_timeline", lambda timeline: table_of({"__per_cpu_offset": OFFSETS}))
    with pytest.raises(BadInput, match="which process runs at tick 5 is not known"):
        current_task(cast(Any, guest))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_memory_gives_a_task_or_one_clear_error(guest: Guest, data: st.DataObject) -> None:
    damaged = Guest()
    places = [OFFSETS, PER_CPU + 0x80, SED + 8, SED + 40, SED + 48, SED + 56, MEMORY, MEMORY + 8, SHELL + 40]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([*places, BTF + data.draw(st.integers(0, 200))]))
        value = data.draw(st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([SED, SHELL, KERNEL, 0])))
        damaged.put(at, struct.pack("<Q", value))
    try:
        task = current_task(cast(Any, damaged))
    except BadInput:
        return
    assert len(task.parents) <= 24 and sum(map(len, task.command)) <= 4096 * 4
