"""The guest's own data breakpoints: DR0 to DR3, DR7, and what #DB finds in DR6."""

from __future__ import annotations

import random
import struct

import pytest
from engine_rig import (
    CODE,
    DB,
    IDT,
    KERNEL_CS64,
    KERNEL_DS,
    PF,
    RF,
    TF,
    USER_CS64,
    USER_DS,
    USER_STACK,
    Guest,
    check_count,
    check_every_stop,
    gate32,
    gate64,
)

from tt.vmm.engine import HALT, WATCH

CELL, LOG, HANDLER = 0x40000, 0x60000, 0x800
WRITE, ACCESS, PORT = 1, 3, 2
LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}
ON = """
    mov ebp, 0x60000
"""
# Logs RIP, DR6 at RBP, and clears DR6's low bits.
LOGGER64 = f"""
    .org {HANDLER}
    push rax
    mov rax, [rsp + 8]
    mov [rbp], rax
    mov rax, dr6
    mov [rbp + 8], rax
    add rbp, 16
    xor eax, eax
    mov dr6, rax
    pop rax
    iretq
"""
LOGGER32 = f"""
    .org {HANDLER}
    push eax
    mov eax, [esp + 4]
    mov [ebp], eax
    mov eax, dr6
    mov [ebp + 8], eax
    add ebp, 16
    xor eax, eax
    mov dr6, eax
    pop eax
    iretd
"""


def dr7(*watches: tuple[int, int, int]) -> int:
    """Return DR7 for breakpoints (index, kind, size); even indices are enabled locally, odd ones globally."""
    value = 0x700
    for index, kind, size in watches:
        value |= 1 << (2 * index + (index & 1)) | (kind | LENGTHS[size] << 2) << 16 + 4 * index
    return value


def enable(addrs: dict[int, int], control: int, bits: int = 64) -> str:
    a = "rax" if bits == 64 else "eax"
    text = ON
    if bits == 32:  # the rig starts with a selector that IRET would load as one of 64-bit code
        text += " push 8\n push offset 9f\n retf\n9:"
    for index, addr in addrs.items():
        text += f"\n mov {a}, {addr}\n mov dr{index}, {a}"
    return text + f"\n mov {a}, {control}\n mov dr7, {a}\n"


def guest_of(source: str, mode: str = "long64") -> Guest:
    guest = Guest(source + "\n hlt\n" + (LOGGER64 if mode == "long64" else LOGGER32), mode)
    if mode == "long64":
        guest.write(IDT + 16 * DB, gate64(CODE + HANDLER))
    else:
        guest.write(IDT + 8 * DB, gate32(CODE + HANDLER))
    return guest


def logged(guest: Guest) -> list[tuple[int, int]]:
    """Return (RIP, DR6's bits) of each #DB so far."""
    found = []
    mask = (1 << guest.bits) - 1
    for at in range(LOG, guest.engine.registers()["rbp"], 16):
        rip, bits = struct.unpack("<QQ", guest.engine.read(at, 16))
        found.append(((rip & mask) - CODE, bits & 0xE00F))
    return found


@pytest.mark.parametrize("mode", ["long64", "protected32"])
def test_after_the_store_and_nothing_else(mode: str) -> None:
    bits = 64 if mode == "long64" else 32
    source = (
        enable({0: CELL}, dr7((0, WRITE, 4)), bits)
        + f"""
        mov ecx, 3
    1:  mov dword ptr [{CELL}], 5
    2:  mov edx, [{CELL}]
        mov dword ptr [{CELL + 4}], 6
        mov byte ptr [{CELL - 1}], 6
        mov word ptr [{CELL - 1}], 6
    3:  loop 1b
        mov eax, offset 2b
        mov edi, offset 3b
    """
    )
    guest = guest_of(source, mode)
    check_every_stop(guest)
    registers = guest.engine.registers()
    second, third = registers["rax"] - CODE, registers["rdi"] - CODE
    assert logged(guest) == [(second, 1), (third, 1)] * 3
    assert guest.u32(CELL) & 0xFF == 0
    check_count(guest)


CASES = {
    "mov [{a}], eax": "w",
    "mov eax, [{a}]": "r",
    "add [{a}], eax": "rw",
    "xchg [{a}], eax": "rw",
    "push [{a}]": "r",
    "pop [{a}]": "w",
    "cmp eax, [{a}]": "r",
    "mov qword ptr [{a}], 1": "w",
    "lock xadd [{a}], eax": "rw",
    "movups [{a}], xmm0": "w",
    "movups xmm0, [{a}]": "r",
    "mov edi, {a}\n stosb": "w",
    "mov esi, {a}\n lodsd": "r",
    "prefetchnta [{a}]": "",
    "lea eax, [{a}]": "",
    "mov edi, {a}\n mov esi, 0x50000\n movsd": "w",
    "mov esi, {a}\n mov edi, 0x50000\n movsd": "r",
    "mov edi, {a}\n mov ecx, 2\n rep stosd": "w",
    "fldpi\n fstp tbyte ptr [{a}]": "w",
    "bts dword ptr [{a}], 3": "rw",
}


def test_kinds_of_instructions() -> None:
    for source, does in CASES.items():
        text = "mov rax, cr4\n or eax, 0x200\n mov cr4, rax\n"
        text += enable({1: CELL, 2: CELL}, dr7((1, WRITE, 4), (2, ACCESS, 4))) + source.format(a=CELL)
        guest = guest_of(text)
        guest.halt()
        expected = ("w" in does) * 2 | (does != "") * 4
        assert [bits for _, bits in logged(guest)][:1] == [expected] * bool(expected), source
        check_every_stop(guest)


SIZES = {1: "byte", 2: "word", 4: "dword", 8: "qword"}
REGISTERS = {1: "al", 2: "ax", 4: "eax", 8: "rax"}


def test_random_accesses_against_a_model() -> None:
    """Loads and stores of all sizes around four breakpoints, on two pages and across them."""
    chance = random.Random(12)
    for _ in range(12):
        watches = []
        for index in range(4):
            size = chance.choice([1, 2, 4, 8])
            addr = chance.choice([CELL + 0xFF0, CELL + 0x1000, CELL + 0xFF8]) + chance.randrange(0, 16)
            watches.append((index, chance.choice([WRITE, ACCESS]), size, addr))
        text = enable({i: addr for i, _, _, addr in watches}, dr7(*(w[:3] for w in watches)))
        expected = []
        for _ in range(30):
            size, write = chance.choice([1, 2, 4, 8]), chance.random() < 0.5
            addr = CELL + 0xFE8 + chance.randrange(0, 48)
            operand = f"{SIZES[size]} ptr [{addr}]"
            text += f"mov {operand}, {REGISTERS[size]}\n" if write else f"mov {REGISTERS[size]}, {operand}\n"
            bits = 0
            for index, kind, length, at in watches:
                at &= -length
                if (write or kind == ACCESS) and addr < at + length and at < addr + size:
                    bits |= 1 << index
            expected += [bits] if bits else []
        guest = guest_of(text)
        guest.halt()
        assert [bits for _, bits in logged(guest)] == expected
        tick = guest.engine.tick
        guest.reset()
        for stop in sorted(chance.sample(range(1, tick), 12)):
            guest.run(stop)
            assert guest.engine.tick == stop
        guest.halt()
        assert [bits for _, bits in logged(guest)] == expected


def test_a_debugger_watches_at_the_same_time() -> None:
    text = (
        enable({0: CELL}, dr7((0, WRITE, 4)))
        + f"""
        mov dword ptr [{CELL}], 1
        mov dword ptr [{CELL + 8}], 2
        mov dword ptr [{CELL}], 3
    """
    )
    guest = guest_of(text)
    guest.halt()
    alone = guest.state(), logged(guest)
    for watched, hits in ((CELL, 2), (CELL + 8, 1), (CELL + 0x100, 0)):
        guest.reset()
        guest.engine.set_watchpoints([(watched, 4, False, True, False)])
        ticks = []
        while guest.engine.run(1000) == WATCH:
            assert guest.engine.hit is not None
            ticks.append(guest.engine.tick)
        assert len(ticks) == hits
        assert (guest.state(), logged(guest)) == alone
        guest.engine.set_watchpoints([])


def test_ring_3() -> None:
    """A kernel watches for its program; #DB comes in ring 0, and the program goes on."""
    user = CODE + 0x400
    text = (
        enable({3: CELL}, dr7((3, ACCESS, 8)))
        + f"""
        push {USER_DS}
        push {USER_STACK}
        push 2
        push {USER_CS64}
        push {user}
        iretq
        .org 0x400
        mov rax, [{CELL}]
        inc rax
        mov [{CELL}], rax
        mov [{CELL + 8}], rax
        ud2
    """
    )
    guest = guest_of(text)
    check_every_stop(guest)
    assert guest.vector == 6
    assert [bits for _, bits in logged(guest)] == [8, 8]
    assert guest.u64(CELL) == 1


def test_an_instruction_that_faults_has_hit_nothing() -> None:
    """It reads watched bytes, and then its store faults; made anew, it hits."""
    text = (
        enable({0: CELL}, dr7((0, ACCESS, 4)))
        + f"""
        mov esi, {CELL}
        mov rdi, 0x4000000000
        movsd
        hlt
        .org 0x700
        add rsp, 8
        mov edi, 0x50000
        iretq
    """
    )
    guest = guest_of(text)
    guest.write(IDT + 16 * PF, gate64(CODE + 0x700))
    check_every_stop(guest)
    assert [bits for _, bits in logged(guest)] == [1]
    assert guest.engine.registers()["rdi"] == 0x50004


def test_a_load_of_ss_puts_it_off() -> None:
    text = (
        enable({0: CELL}, dr7((0, ACCESS, 2)))
        + f"""
        mov word ptr [{CELL + 2}], {KERNEL_DS}
        mov eax, {KERNEL_DS}
        mov dr7, rax
    """
    )
    text = (
        ON
        + f"""
        mov word ptr [{CELL}], {KERNEL_DS}
        mov eax, {CELL}
        mov dr0, rax
        mov eax, {dr7((0, ACCESS, 2))}
        mov dr7, rax
        mov ss, [{CELL}]
        inc ebx
    1:  inc ebx
        lea rcx, [rip + 1b]
    """
    )
    guest = guest_of(text)
    check_every_stop(guest)
    assert logged(guest) == [(guest.engine.registers()["rcx"] - CODE, 1)]
    assert guest.engine.registers()["rbx"] == 2


def test_before_the_fault_of_the_next_fetch() -> None:
    """The store is the last instruction before a page that is not there."""
    text = (
        enable({0: CELL}, dr7((0, WRITE, 1)))
        + f"""
        mov rax, 0x1ffffd
        mov dword ptr [rax], 0xfb88
        mov rdi, {CELL}
        mov qword ptr [0x3008], 0
        invlpg [0x200000]
        jmp rax
    """
    )
    # At 0x1ffffd: mov byte [rdi], al in three bytes, up to the page's end.
    text = text.replace(
        "mov dword ptr [rax], 0xfb88", "mov word ptr [rax], 0x0788\n mov byte ptr [rax], 0x40"
    )
    text = text.replace("0x0788", "0x8840").replace("mov byte ptr [rax], 0x40", "mov byte ptr [rax + 2], 7")
    source = text + "\n hlt\n" + LOGGER64
    guest = Guest(source, ram=2 << 20)
    guest.write(IDT + 16 * DB, gate64(CODE + HANDLER))
    frame = guest.frame()
    assert (frame.vector, frame.rip) == (PF, 0x200000)
    assert logged(guest) == [(0x200000 - CODE, 1)]
    check_every_stop(guest)


def test_with_a_single_step_there_is_one_trap() -> None:
    text = (
        enable({0: CELL}, dr7((0, WRITE, 1)))
        + f"""
        pushfq
        or qword ptr [rsp], {TF}
        popfq
        mov byte ptr [{CELL}], 1
        nop
        pushfq
        and qword ptr [rsp], {~TF}
        popfq
    """
    )
    guest = guest_of(text)
    check_every_stop(guest)
    assert [bits for _, bits in logged(guest)][:2] == [0x4001, 0x4000]


def test_the_stack_of_a_handler() -> None:
    """What the CPU stores on its way into a handler hits too: #DB is before its first instruction."""
    stack = 0x20000 - 48
    text = (
        enable({0: stack + 8}, dr7((0, WRITE, 8)))
        + """
        int 0x80
        hlt
        .org 0x700
        inc rbx
        iretq
    """
    )
    guest = guest_of(text)
    guest.write(IDT + 16 * 0x80, gate64(CODE + 0x700))
    check_every_stop(guest)
    assert logged(guest)[0] == (0x700, 1)
    assert guest.engine.registers()["rbx"] == 1


def test_off_again_and_moved() -> None:
    text = (
        enable({0: CELL}, dr7((0, WRITE, 4)))
        + f"""
        mov dword ptr [{CELL}], 1
        mov eax, {CELL + 0x2000}
        mov dr0, rax
        mov dword ptr [{CELL}], 1
        mov dword ptr [{CELL + 0x2000}], 1
        xor eax, eax
        mov dr7, rax
        mov dword ptr [{CELL + 0x2000}], 1
        mov dword ptr [{CELL}], 1
    """
    )
    guest = guest_of(text)
    check_every_stop(guest)
    assert [bits for _, bits in logged(guest)] == [1, 1]


@pytest.mark.parametrize("access", ["out 0x71, al", "in al, 0x71", "mov dx, 0x70\n out dx, ax"])
def test_breakpoints_on_ports(access: str) -> None:
    """With CR4.DE, breakpoints of the fourth kind are on ports; QEMU does these."""
    text = "mov rax, cr4\n or eax, 8\n mov cr4, rax\n"
    text += f"{enable({2: 0x71}, dr7((2, PORT, 1)))}\n {access}\n inc ebx"
    guest = guest_of(text)
    check_every_stop(guest)
    assert [bits for _, bits in logged(guest)] == [4]
    assert guest.engine.registers()["rbx"] == 1


def test_rf_does_not_hold_data_breakpoints_back() -> None:
    text = (
        enable({0: CELL}, dr7((0, WRITE, 1)))
        + f"""
        push {KERNEL_DS}
        push 0x20000
        push {RF | 2}
        push {KERNEL_CS64}
        lea rax, [rip + 1f]
        push rax
        iretq
    1:  mov byte ptr [{CELL}], 1
    """
    )
    guest = guest_of(text)
    check_every_stop(guest)
    assert [bits for _, bits in logged(guest)] == [1]


def test_writes_from_outside_do_not_hit() -> None:
    guest = guest_of(enable({0: CELL}, dr7((0, WRITE, 4))) + "nop\n nop")
    guest.run(6)
    guest.engine.write(CELL, b"1234")
    assert guest.run(1000) == HALT
    assert logged(guest) == []


@pytest.mark.parametrize("half", [0, 8])
def test_an_exchange_of_two_words_happens_once(half: int) -> None:
    """CMPXCHG16B stores two words; a breakpoint on the second must not make it compare anew."""
    guest = guest_of(
        enable({0: CELL + half}, dr7((0, WRITE, 8)))
        + f"""
        mov rdi, {CELL}
        xor eax, eax
        xor edx, edx
        mov ebx, 7
        mov ecx, 9
        cmpxchg16b [rdi]
        sete r8b
        """
    )
    check_every_stop(guest)
    assert (guest.u64(CELL), guest.u64(CELL + 8)) == (7, 9)
    assert guest.engine.registers()["r8"] == 1 and len(logged(guest)) == 1
