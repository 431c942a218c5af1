"""Backtraces over stacks made by hand: frame pointers, ORC in both forms, DWARF, and nonsense."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_rig import LONG, PROTECTED, TEXT32, TEXT64, Memory, orc_entry, orc_tables

from tt.symbols import Stack, Symbol, SymbolSet, SymbolTable, unwind, walk
from tt.symbols.orc import BP, BP_INDIRECT, PREV_SP, R10, SP, SP_INDIRECT

USER = {**LONG, "cs": 0x33}
CODE, STACK = 0x40_1000, 0x7FFF_0000_0000
KSTACK, IRQ_STACK = 0xFFFF_C900_0000_0000, 0xFFFF_C900_0010_0000
CALL = b"\xe8\0\0\0\0"
FUNCTION = 0x100  # bytes between functions
NAMES = ["first", "second", "third", "fourth", "entry", "thread_start"]

# The last byte of an ORC entry, before 6.4 and since.
OLD = {"call": 0, "regs": 1, "partial": 2, "end": 4}
NEW = {"call": 2, "regs": 3, "partial": 4, "end": 1, "undefined": 0}


def words(*values: int, width: int = 8) -> bytes:
    return b"".join((value % (1 << 8 * width)).to_bytes(width, "little") for value in values)


def symbols(text: int, *more: tuple[str, int]) -> SymbolTable:
    rows = [Symbol(text + FUNCTION * n, 0, name, "t") for n, name in enumerate(NAMES)]
    rows += [Symbol(addr, 0, name, "R") for name, addr in more]
    return SymbolTable([SymbolSet.sort("made", 0, rows)])


def back(text: int, number: int) -> int:
    """Return a return address into function `number`: a call is right before it."""
    return text + FUNCTION * number + 0x25


def code_of(text: int) -> Memory:
    memory = Memory()
    body = (b"\x90" * 0x20 + CALL).ljust(FUNCTION, b"\x90")
    memory.put(text, body * len(NAMES))
    return memory


def names(stack: Stack) -> list[str]:
    return [frame.name for frame in stack.frames]


# ---- frame pointers


def test_frame_pointers_of_a_program() -> None:
    memory = code_of(CODE)
    memory.put(STACK, words(0x55, STACK + 0x40, back(CODE, 1)) + bytes(0x28))
    memory.put(STACK + 0x40, words(0, back(CODE, 2), 0, 0))
    registers = {**USER, "rip": CODE + 0x10, "rsp": STACK, "rbp": STACK + 8}
    stack = walk(registers, memory.read, symbols(CODE))
    assert names(stack) == ["first+0x10", "second+0x25", "third+0x25"]
    assert [frame.how for frame in stack.frames] == ["registers", "frame pointer", "frame pointer"]
    assert [frame.sp for frame in stack.frames] == [STACK, STACK + 0x18, STACK + 0x50]
    assert stack.frames[0].fp == STACK + 8
    assert stack.frames[2].fp is None


@pytest.mark.parametrize(
    ("before", "here", "sp"),
    [
        (b"\x90", b"\x55", 0),
        (b"\x55", b"\x48\x89\xe5", -8),
        (b"\x5d", b"\xc3", 0),
        (b"\x90", b"\xf3\x0f\x1e\xfa", 0),
    ],
    ids=["push", "mov", "ret", "endbr"],
)
def test_where_the_frame_pointer_is_the_callers_the_code_shows_it(
    before: bytes, here: bytes, sp: int
) -> None:
    memory = code_of(CODE)
    memory.put(CODE + 0x0F, before + here)
    memory.put(STACK - 8, words(STACK + 0x20, back(CODE, 1)) + bytes(0x18) + words(0, back(CODE, 2)))
    registers = {**USER, "rip": CODE + 0x10, "rsp": STACK + sp, "rbp": STACK + 0x20}
    assert names(walk(registers, memory.read, symbols(CODE))) == ["first+0x10", "second+0x25", "third+0x25"]


def test_a_program_without_frame_pointers_ends_at_once_and_says_so() -> None:
    memory = code_of(CODE)
    memory.put(STACK, bytes(4096))
    stack = walk({**USER, "rip": CODE, "rsp": STACK, "rbp": 0x1234}, memory.read)
    assert len(stack.frames) == 1
    assert stack.end == "the program keeps no frame pointers"
    assert stack.frames[0].name == "0x401000"


def test_a_list_of_frames_that_bites_its_tail_ends() -> None:
    memory = code_of(CODE)
    memory.put(STACK, words(STACK + 0x10, back(CODE, 1), STACK, back(CODE, 2)))
    frames = unwind({**USER, "rip": CODE, "rsp": STACK, "rbp": STACK}, memory.read, symbols(CODE))
    assert len(frames) <= 4


def test_at_most_256_frames() -> None:
    memory = code_of(CODE)
    memory.put(STACK, b"".join(words(STACK + 16 * (n + 1), back(CODE, n % 3)) for n in range(2000)))
    stack = walk({**USER, "rip": CODE, "rsp": STACK, "rbp": STACK}, memory.read, symbols(CODE))
    assert len(stack.frames) == 256
    assert not stack.complete
    assert len(unwind({**USER, "rip": CODE, "rsp": STACK, "rbp": STACK}, memory.read, limit=7)) == 7


def test_calls_through_registers_and_memory_are_calls_too() -> None:
    for call in (b"\xff\xd0", b"\x41\xff\xd3", b"\xff\x50\x18", b"\xff\x15\1\2\3\4", b"\xff\x94\x24\1\2\3\4"):
        memory = code_of(CODE)
        memory.put(CODE + FUNCTION, (b"\x90" * (0x25 - len(call)) + call).ljust(FUNCTION, b"\x90"))
        memory.put(STACK, words(0, back(CODE, 1)))
        registers = {**USER, "rip": CODE, "rsp": STACK, "rbp": STACK}
        assert len(unwind(registers, memory.read, symbols(CODE))) == 2, call.hex()


def test_real_mode_has_no_frames_to_follow() -> None:
    stack = walk({"rip": 0x7C00, "rsp": 0x1000, "cr0": 0x10}, Memory().read)
    assert (len(stack.frames), stack.complete) == (1, True)


@pytest.mark.parametrize("width", [4, 8])
def test_a_kernel_with_frame_pointers_crosses_an_interrupt(width: int) -> None:
    """Its entry code leaves RBP pointing at the saved registers, marked."""
    text, top = (TEXT32, 0xC200_0000) if width == 4 else (TEXT64, KSTACK)
    memory = code_of(text)
    regs = top + 0x100
    marked = regs & 0x7FFF_FFFF if width == 4 else regs | 1
    memory.put(top, words(marked, back(text, 1), width=width))
    saved = {"ip": text + FUNCTION * 2 + 8, "bp": top + 0x800, "sp": top + 0x700}
    if width == 8:
        values = [0] * 4 + [saved["bp"], 0] + [0] * 10 + [saved["ip"], 0x10, 0x202, saved["sp"], 0x18]
    else:
        values = [0] * 5 + [saved["bp"]] + [0] * 6 + [saved["ip"], 0x60, 0x202, saved["sp"], 0x68]
    memory.put(regs, words(*values, width=width))
    memory.put(top + 0x800, words(0, back(text, 5), width=width))
    registers = {**(LONG if width == 8 else PROTECTED), "rip": text + 4, "rsp": top, "rbp": top}
    table = SymbolTable(
        [SymbolSet.sort("made", 0, [*symbols(text), Symbol(text + 0x500, 0, "ret_from_fork", "T")])]
    )
    stack = walk(registers, memory.read, table)
    assert names(stack) == ["first+0x4", "second+0x25", "third+0x8", "thread_start+0x25"]
    assert stack.frames[2].sp == saved["sp"]


# ---- ORC


def kernel(rules: Sequence[tuple[int, bytes]], flags: dict[str, int]) -> tuple[Memory, SymbolTable]:
    """Return the memory and symbols of a kernel with these rules by function, and many plain ones."""
    memory = code_of(TEXT64)
    ips, entries = TEXT64 + 0x10_0000, TEXT64 + 0x20_0000
    rows = [(TEXT64 - 0x1000 + n, orc_entry(8, 0, SP, 0, flags["call"])) for n in range(100)]
    rows += [(TEXT64 + FUNCTION * number, entry) for number, entry in rules]
    one, two = orc_tables(ips, rows)
    memory.put(ips, one)
    memory.put(entries, two)
    names = ("__start_orc_unwind_ip", ips), ("__stop_orc_unwind_ip", ips + len(one))
    return memory, symbols(TEXT64, *names, ("__start_orc_unwind", entries))


@pytest.mark.parametrize("flags", [OLD, NEW], ids=["6.1", "6.4"])
def test_orc_from_an_interrupt_on_its_own_stack_to_where_the_thread_began(flags: dict[str, int]) -> None:
    memory, table = kernel(
        [
            (0, orc_entry(0x20, 0, SP, 0, flags["call"])),
            (1, orc_entry(16, -16, BP, PREV_SP, flags["call"])),
            (2, orc_entry(8, 0, SP_INDIRECT, 0, flags["call"])),
            (3, orc_entry(0, 0, SP, 0, flags["regs"])),
            (4, orc_entry(0x10, 0, SP, 0, flags["call"])),
            (5, orc_entry(0, 0, 0, 0, flags["end"])),
        ],
        flags,
    )
    memory.put(IRQ_STACK, bytes(0x18) + words(back(TEXT64, 1)))  # first
    memory.put(IRQ_STACK + 0x80, words(0x77, back(TEXT64, 2)))  # second, RBP here
    memory.put(IRQ_STACK + 0x90, words(KSTACK))  # third: the other stack
    memory.put(KSTACK, words(back(TEXT64, 3)))
    regs = [0] * 4 + [0xBEEF, 0] + [0] * 10 + [TEXT64 + FUNCTION * 4, 0x10, 0x202, KSTACK + 0x800, 0x18]
    memory.put(KSTACK + 8, words(*regs))
    memory.put(KSTACK + 0x800, words(0, back(TEXT64, 5)))
    registers = {**LONG, "rip": TEXT64 + 8, "rsp": IRQ_STACK, "rbp": IRQ_STACK + 0x80}
    stack = walk(registers, memory.read, table)
    assert names(stack) == [
        *("first+0x8", "second+0x25", "third+0x25", "fourth+0x25", "entry", "thread_start+0x25"),
    ]
    assert {frame.how for frame in stack.frames[1:]} == {"orc"}
    assert [frame.sp for frame in stack.frames[3:]] == [KSTACK + 8, KSTACK + 0x800, KSTACK + 0x810]
    assert stack.frames[2].fp == 0x77
    assert stack.frames[4].fp == 0xBEEF
    assert (stack.complete, stack.end) == (True, "the stack begins here")


@pytest.mark.parametrize("flags", [OLD, NEW], ids=["6.1", "6.4"])
@pytest.mark.parametrize("kind", ["regs", "partial"])
def test_from_a_system_call_into_the_program(flags: dict[str, int], kind: str) -> None:
    memory, table = kernel([(0, orc_entry(0, 0, SP, 0, flags[kind]))], flags)
    iret = [CODE + 2, 0x33, 0x202, STACK, 0x2B]
    memory.put(KSTACK, words(*([0] * 4 + [STACK + 8] + [0] * 11 if kind == "regs" else []), *iret))
    program = code_of(CODE)
    memory.pages.update(program.pages)
    memory.put(STACK, words(0, 0, back(CODE, 3)))
    registers = {**LONG, "rip": TEXT64 + 8, "rsp": KSTACK, "rbp": STACK + 8}
    stack = walk(registers, memory.read, table)
    assert [frame.pc for frame in stack.frames] == [TEXT64 + 8, CODE + 2, back(CODE, 3)]
    assert [frame.how for frame in stack.frames] == ["registers", "orc", "frame pointer"]
    assert stack.complete


def test_stacks_in_registers_and_behind_frame_pointers() -> None:
    memory, table = kernel(
        [
            (0, orc_entry(8, 0, R10, 0, OLD["call"])),
            (1, orc_entry(-8, 0, BP_INDIRECT, 0, OLD["call"])),
            (2, orc_entry(8, 0, R10, 0, OLD["call"])),
        ],
        OLD,
    )
    memory.put(
        KSTACK + 0x80,
        words(back(TEXT64, 1)) + words(KSTACK + 0x108, 0) + bytes(0x68) + words(back(TEXT64, 2)),
    )
    registers = {**LONG, "rip": TEXT64, "rsp": KSTACK, "rbp": KSTACK + 0x90, "r10": KSTACK + 0x88}
    stack = walk(registers, memory.read, table)
    assert names(stack) == ["first", "second+0x25", "third+0x25"]
    assert "register that is not known" in stack.end
    assert not stack.complete


def test_in_a_retpoline_the_caller_is_on_top_of_the_stack() -> None:
    memory, table = kernel([(n, orc_entry(0, 0, 0, 0, OLD["end"])) for n in range(6)], OLD)
    table.add(SymbolSet.sort("more", 9, [Symbol(TEXT64, 0x20, "__x86_indirect_thunk_array", "T")]))
    for above in ([], [TEXT64 + 5], [TEXT64 + FUNCTION]):
        memory.put(KSTACK, words(*above, back(TEXT64, 2)))
        assert names(walk({**LONG, "rip": TEXT64, "rsp": KSTACK}, memory.read, table)) == [
            *("__x86_indirect_thunk_array", "third+0x25"),
        ]


def test_at_the_first_step_of_a_system_call_the_program_is_in_rcx() -> None:
    memory, table = kernel([(n, orc_entry(0, 0, 0, 0, OLD["end"])) for n in range(6)], OLD)
    table.add(SymbolSet.sort("more", 9, [Symbol(TEXT64, 0x20, "entry_SYSCALL_64", "T")]))
    stack = walk({**LONG, "rip": TEXT64, "rsp": STACK, "rcx": CODE}, memory.read, table)
    assert [frame.pc for frame in stack.frames] == [TEXT64, CODE]


def test_while_a_system_call_saves_registers_the_program_is_at_the_top_of_the_stack() -> None:
    memory, table = kernel([(n, orc_entry(0, 0, 0, 0, OLD["end"])) for n in range(6)], OLD)
    table.add(SymbolSet.sort("more", 9, [Symbol(TEXT64, 0x90, "entry_SYSCALL_64_after_hwframe", "T")]))
    memory.put(KSTACK + 0x4000 - 40, words(CODE, 0x33, 0x202, STACK, 0x2B))
    stack = walk({**LONG, "rip": TEXT64 + 0x17, "rsp": KSTACK + 0x3F60}, memory.read, table)
    assert [(frame.pc, frame.sp) for frame in stack.frames] == [
        (TEXT64 + 0x17, KSTACK + 0x3F60),
        (CODE, STACK),
    ]


def test_kernel_code_without_a_rule_is_guessed_at_and_says_so() -> None:
    memory, table = kernel([(1, orc_entry(0, 0, 0, 0, NEW["end"])), (0, orc_entry(0, 0, 0, 0, 0))][::-1], NEW)
    memory.put(KSTACK, words(3, TEXT64 + 7, back(TEXT64, 1)))
    stack = walk({**LONG, "rip": TEXT64 + 8, "rsp": KSTACK, "rbp": 0}, memory.read, table)
    assert names(stack) == ["first+0x8", "second+0x25"]
    assert stack.frames[1].how == "return address guess"


def test_a_stack_that_is_not_there_ends_the_walk() -> None:
    memory, table = kernel([(0, orc_entry(8, 0, SP, 0, OLD["call"]))], OLD)
    stack = walk({**LONG, "rip": TEXT64, "rsp": KSTACK}, memory.read, table)
    assert (len(stack.frames), stack.complete) == (1, False)
    assert "no memory" in stack.end


# ---- nonsense

ADDRESS = st.sampled_from(
    [0, 1, CODE, STACK, KSTACK, TEXT64, TEXT64 + 0x125, TEXT32, (1 << 64) - 8]
) | st.integers(0, (1 << 64) - 1)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_garbage_raises_nothing_and_ends(data: st.DataObject) -> None:
    flags = data.draw(st.sampled_from([OLD, NEW]))
    entries = st.binary(min_size=6, max_size=6)
    memory, table = kernel([(n, data.draw(entries)) for n in range(6)], flags)
    for _ in range(data.draw(st.integers(0, 4))):
        values = data.draw(st.lists(ADDRESS, max_size=40))
        memory.put(
            data.draw(st.sampled_from([STACK, KSTACK, CODE, TEXT64])),
            struct.pack(f"<{len(values)}Q", *values),
        )
    names = ["rip", "rsp", "rbp", "rcx", "r10", "r13", "cs", "cr0", "efer"]
    registers = data.draw(st.dictionaries(st.sampled_from(names), ADDRESS))
    registers = {**data.draw(st.sampled_from([LONG, USER, PROTECTED, {}])), **registers}
    memory.reads = 0
    stack = walk(registers, memory.read, table)
    assert 1 <= len(stack.frames) <= 256
    assert memory.reads < 100_000
    assert stack.end
    assert len({(frame.pc, frame.sp) for frame in stack.frames}) == len(stack.frames)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["rip", "rsp", "rbp", "cs", "cr0", "efer"]), ADDRESS),
    st.binary(min_size=1),
)
def test_memory_that_is_the_same_everywhere(registers: dict[str, int], pattern: bytes) -> None:
    def read(addr: int, size: int) -> bytes:
        return (pattern * (size // len(pattern) + 1))[:size]

    assert len(unwind(registers, read, symbols(TEXT64))) <= 256
    assert len(unwind({**LONG, **registers}, lambda addr, size: b"", symbols(TEXT64))) <= 256
