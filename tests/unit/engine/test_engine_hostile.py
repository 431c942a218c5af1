"""Guests that try to see the host, to confuse the engine, or to make it hang."""

from __future__ import annotations

import random
import struct

import pytest
from engine_rig import (
    CODE,
    IDT,
    PF,
    UD,
    A,
    D,
    Guest,
    P,
    U,
    W,
    check_count,
    check_every_stop,
    gate64,
)

from tt.vmm.engine import SHUTDOWN, STOP

_SSE = "mov rax, cr4\n or eax, 0x600\n mov cr4, rax\n"


@pytest.mark.parametrize(
    "source",
    [
        "rdrand rax", "rdseed rax", "xor ecx, ecx\n xgetbv", "xor ecx, ecx\n xor edx, edx\n monitor",
        "xor ecx, ecx\n mwait", "vmrun", "vmload", "vmsave", "vmcall", "vmmcall", "stgi", "clgi", "skinit",
        "invlpga", "rsm", "xsave [0x40000]", "xrstor [0x40000]", "vxorps ymm0, ymm0, ymm0", "rdfsbase rax",
        "rdpid rax", "xor ecx, ecx\n rdpkru", "stac", "clac", "rdpmc", "rdtscp", "movbe eax, [0x40000]",
        "andn rax, rbx, rcx", "adcx rax, rbx", "sha1msg1 xmm0, xmm1", "invpcid rax, [0x40000]",
    ],
)  # fmt: skip
def test_what_the_cpu_does_not_have_is_invalid(source: str) -> None:
    """Above all what would tell of the host: RDRAND, RDSEED, RDTSCP's AUX, XGETBV, SVM."""
    guest = Guest(f"{source}\n hlt")
    assert guest.frame().vector == UD
    check_every_stop(guest)
    check_count(guest)


def test_efer_and_control_registers_keep_to_what_there_is() -> None:
    guest = Guest("""
        mov ecx, 0xc0000080
        mov eax, -1
        mov edx, -1
        wrmsr
        rdmsr
        mov rbx, rax
        mov rax, 0x4007ff           # no SMEP, no SMAP: SMAP is not there, and the kernel is in a user page
        mov cr4, rax
        mov rsi, cr4
        mov rax, 0x8005003f
        mov cr0, rax
        mov rdi, cr0
        hlt
    """)
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert registers["rbx"] == 0xD01, "no SVME, no FFXSR"
    assert registers["rdi"] == 0x8005003F
    check_count(guest)


@pytest.mark.parametrize(
    "msr",
    [
        0x10, 0x1B, 0x8B, 0xFE, 0x174, 0x176, 0x186, 0x1D9, 0x200, 0x20F, 0x250, 0x26F, 0x277, 0x2FF, 0x3F1,
        0x400, 0x6E0, 0x802, 0xC0000081, 0xC0000102, 0xC0000103, 0xC0010114, 0xC0010117, 0x4B564D00,
    ],
)  # fmt: skip
def test_model_specific_registers_tell_nothing_of_the_host(msr: int) -> None:
    guest = Guest(
        f"mov ecx, {msr:#x}\n rdmsr\n mov rbx, rax\n mov eax, 0x12345\n mov edx, 7\n wrmsr\n rdmsr\n hlt"
    )
    check_every_stop(guest)


def test_floating_point_state_begins_clean() -> None:
    """FXSAVE of a CPU that never used SSE, and of one that did: equal bytes each time, stopped or not."""
    guest = Guest(
        _SSE
        + """
        mov rdi, 0x40000
        fxsave64 [rdi]
        fld1
        fldpi
        fyl2x
        fld1
        fsin
        fptan
        f2xm1
        movq xmm15, rdi
        sqrtpd xmm14, xmm15
        aesenc xmm13, xmm14
        pcmpestri xmm15, xmm14, 0
        fxsave64 [rdi + 512]
        hlt
        """
    )
    check_every_stop(guest)
    first = guest.engine.read(0x40000, 512)
    assert struct.unpack("<HHB", first[:5]) == (0x37F, 0, 0)
    assert not any(first[32:])
    check_count(guest)


@pytest.mark.parametrize("ist", [0, 1])
def test_faults_without_end_end_the_machine(ist: int) -> None:
    """A handler that faults at its first instruction, for ever: no tick passes, and it ends all the same."""
    guest = Guest("nop\n ud2\n .org 0x800\n ud2")
    guest.write(IDT + 16 * UD, gate64(CODE + 0x800, ist=ist))
    if not ist:
        guest.write(0x1008, struct.pack("<Q", 0x2007))  # the stack: the same tables again, 512 GB up
    states = []
    for steps in (1_000_000, 1):
        guest.reset()
        if not ist:
            guest.engine.set_register("rsp", 0x40_3FE0_0000)  # long, and outside RAM
        while (reason := guest.run(guest.engine.tick + steps)) == STOP:
            pass
        states.append((reason, guest.state()))
    assert states[0] == states[1]
    assert states[0][0] == SHUTDOWN
    assert guest.engine.tick == 1
    assert ("not one instruction" in guest.engine.last_error) == bool(ist), (
        "without IST the stack runs out first"
    )


def test_fetch_faults_without_end() -> None:
    guest = Guest("nop\n mov rax, 0x50000000\n jmp rax")
    guest.write(IDT + 16 * PF, gate64(0x60000000, ist=1))
    assert guest.run() == SHUTDOWN
    assert guest.engine.tick == 3
    end = guest.state()
    guest.reset()
    assert guest.run(2) == STOP
    assert guest.run(3) == SHUTDOWN, "no instruction begins, so nothing can stop before it"
    assert guest.state() == end


def test_interrupts_without_end_end_the_machine() -> None:
    guest = Guest("sti\n nop\n nop\n hlt")
    guest.write(IDT + 16 * 0x30, gate64(CODE, ist=1, kind=0xF))  # a trap gate leaves IF set
    guest.engine.acknowledge = lambda: 0x30
    guest.engine.set_intr(True)
    assert guest.run() == SHUTDOWN
    assert guest.engine.tick == 2


def test_an_int_that_calls_itself_only_passes_time() -> None:
    guest = Guest("int 0x40")
    guest.write(IDT + 16 * 0x40, gate64(CODE, ist=1))
    assert guest.run(50_000) == STOP
    assert guest.engine.tick == 50_000


def test_a_giant_rep_with_page_faults_in_it() -> None:
    guest = Guest("""
        mov rdi, 0x40000ff0
        mov ecx, 0x1020
        mov al, 0x5a
        rep stosb
        hlt
        .org 0x800
        push rax
        mov rax, cr2
        shr rax, 12
        and eax, 3
        or byte ptr [0x63000 + rax * 8], 1
        pop rax
        add rsp, 8
        iretq
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50006, 0x51006, 0x52006)
    guest.write(IDT + 16 * PF, gate64(CODE + 0x800))
    total = 3 + 0x1021 + 3 * 8 + 1
    guest.halt()
    assert guest.engine.tick == total
    end = guest.state()
    for tick in (4, 18, 19, 20, 26, 27, 28, 29, 1000, 4130, 4140, 4150, total - 1):
        guest.reset()
        guest.run(tick)
        assert guest.engine.tick == tick
        state, ram = guest.engine.save(), guest.engine.read(0, guest.engine.size)
        guest.run(total)
        assert guest.state() == end
        guest.engine.restore_ram(ram)
        guest.engine.load(state)
        guest.engine.forget_code()
        guest.engine.tick = tick
        guest.run(total)
        assert guest.state() == end
    assert guest.u64(0x63000) == 0x50000 | P | W | U | A | D
    assert check_count(guest) == total


def test_a_write_to_the_page_tables_that_map_it() -> None:
    guest = Guest("""
        mov rbx, 0x40000000
        mov qword ptr [rbx], 0x50067        # the page table maps itself: now it does not
        invlpg [rbx]
        mov qword ptr [rbx], 0x1234
        mov rax, [0x50000]
        hlt
    """)
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x63007)
    check_every_stop(guest)
    assert guest.engine.registers()["rax"] == 0x1234


def test_paging_switched_off_and_on() -> None:
    guest = Guest(
        """
        mov eax, PML4
        mov cr3, eax
        mov ecx, 5
    1:  mov eax, 0x80000011
        mov cr0, eax
        jmp 2f
    2:  inc dword ptr [0x400000]            # with paging: 0x40000
        mov eax, 0x11
        mov cr0, eax
        jmp 3f
    3:  inc dword ptr [0x40004]
        loop 1b
        hlt
        """,
        "protected32",
    )
    guest.write(0x1000, struct.pack("<2I", 0x2007, 0x3007))
    guest.write(0x2000, b"".join(struct.pack("<I", i << 12 | 7) for i in range(256)))
    guest.write(0x3000, struct.pack("<I", 0x40007))
    check_every_stop(guest)
    assert (guest.u32(0x40000), guest.u32(0x40004)) == (5, 5)
    check_count(guest)


def test_flags_that_popf_and_iret_may_set() -> None:
    for value in (0x3F7ED5, 0x4ED5, 0x240ED5, 0x10ED5, 0x40ED5):
        guest = Guest(f"push {value}\n popfq\n pushfq\n pop rbx\n nop\n cli\n hlt")
        check_every_stop(guest)
        guest = Guest(
            f"push KDS\n push KSTACK\n push {value & ~0x24000}\n push KCS64\n"
            "lea rax, [rip + 1f]\n push rax\n iretq\n"
            "1: pushfq\n pop rbx\n nop\n jmp 2f\n2: nop\n cli\n hlt"
        )
        check_every_stop(guest)
        check_count(guest)


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes(seed: int) -> None:
    """Whatever they do, they do it the same at once, in steps, and with all code forgotten."""
    rng = random.Random(seed)
    guest = Guest(
        "hlt", registers={name: rng.getrandbits(19) for name in ("rax", "rbx", "rcx", "rsi", "rdi", "rbp")}
    )
    guest.write(CODE, _guess(rng, 400))
    stops = sorted(rng.sample(range(1, 300), 12))
    trails = []
    for how in ("steps", "once", "forget"):
        guest.reset()
        trail = []
        for stop in range(1, 301) if how == "steps" else stops:
            reason = guest.run(stop)
            if stop in stops:
                trail.append((reason == SHUTDOWN, guest.state(), len(guest.io)))
            if reason != STOP:
                trail.append((reason == SHUTDOWN, guest.state(), len(guest.io)))
                break
            if how == "forget":
                state, tick = guest.engine.save(), guest.engine.tick
                guest.engine.forget_code()
                guest.engine.load(state)
                guest.engine.tick = tick
        trails.append(trail[-1])
    assert trails[0] == trails[1] == trails[2]


def _guess(rng: random.Random, size: int) -> bytes:
    """Return bytes that are instructions more often than not."""
    common = [
        b"\x48", b"\x0f", b"\x89", b"\x8b", b"\x01", b"\xff\xc0", b"\xf3\xaa", b"\xeb\x02", b"\x74\x01",
        b"\x50", b"\x58", b"\xe4\x60", b"\xe6\x61", b"\xf7", b"\xc1", b"\x9c", b"\xcd\x40", b"\xfb", b"\xfa",
    ]  # fmt: skip
    out = b""
    while len(out) < size:
        out += rng.choice(common) if rng.random() < 0.6 else rng.randbytes(1)
    return out[:size]
