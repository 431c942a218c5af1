"""Devices in memory: each access reaches them once, as the instruction makes it, at its exact tick."""

from __future__ import annotations

import random
import struct

import pytest
from engine_rig import CODE, IDT, PF, PML4, Guest, P, U, W, check_count, check_every_stop, gate64

from tt.errors import EngineError
from tt.vmm.engine import FOREVER, HALT, WATCH

MB = 1 << 20
RAM, DEVICE, HOLE = MB, 4 * MB, 6 * MB  # identity-mapped by the rig
SIZE = 0x3000


class Device:
    """Tells of each access in the `io` of the guest; `keeps` what is stored, or not."""

    def __init__(self, guest: Guest, fresh: bytes, keeps: bool) -> None:
        self.guest, self.fresh, self.keeps = guest, fresh, keeps
        self.bytes = bytearray(fresh)
        guest.engine.memory_read = self.read
        guest.engine.memory_write = self.write
        guest.engine.map_devices([(DEVICE, SIZE)])

    def read(self, addr: int, size: int) -> int:
        at = addr - DEVICE
        value = int.from_bytes(self.bytes[at : at + size], "little")
        self.guest.io.append((self.guest.engine.tick, "load", at, size, value))
        return value

    def write(self, addr: int, size: int, value: int) -> None:
        at = addr - DEVICE
        if self.keeps:
            self.bytes[at : at + size] = value.to_bytes(size, "little")
        self.guest.io.append((self.guest.engine.tick, "store", at, size, value))


def guest_of(
    source: str, fresh: bytes | None = None, mode: str = "long64", keeps: bool = False
) -> tuple[Guest, Device]:
    guest = Guest(source + "\n hlt", mode)
    device = Device(guest, fresh or bytes(range(256)) * (SIZE // 256), keeps)
    plain_reset = guest.reset

    def reset() -> None:
        plain_reset()
        device.bytes[:] = device.fresh

    guest.reset = reset  # type: ignore[method-assign]
    return guest, device


def accesses(guest: Guest) -> list[tuple[str, int, int]]:
    return [(kind, offset, size) for _, kind, offset, size, _ in guest.io]


D = DEVICE
# What the device sees of each: loads (l) and stores (s), offset and size.
# QEMU loads CMPS's second operand first.
INSTRUCTIONS = {
    "mov eax, [{d}]": "l0:4",
    "mov al, [{d}+3]": "l3:1",
    "mov ax, [{d}+1]": "l1:2",
    "mov rax, [{d}]": "l0:8",
    "mov rax, [{d}+3]": "l3:8",
    "mov eax, [{d}+0xffe]": "lffe:2 l1000:2",
    "mov rax, [{d}+0xfff]": "lfff:1 l1000:7",
    "mov [{d}], eax": "s0:4",
    "mov [{d}+1], ax": "s1:2",
    "mov [{d}+5], rax": "s5:8",
    "mov [{d}+0xffd], rax": "sffd:3 s1000:5",
    "add [{d}], eax": "l0:4 s0:4",
    "add [{d}+2], eax": "l2:4 s2:4",
    "xchg [{d}], eax": "l0:4 s0:4",
    "xchg [{d}+7], rax": "l7:8 s7:8",
    "lock cmpxchg [{d}], ecx": "l0:4 s0:4",
    "lock xadd [{d}], al": "l0:1 s0:1",
    "inc word ptr [{d}+0xfff]": "lfff:1 l1000:1 sfff:1 s1000:1",
    "not byte ptr [{d}]": "l0:1 s0:1",
    "push [{d}]": "l0:8",
    "pop [{d}]": "s0:8",
    "lea rsp, [{d}+0x20]\n push rax\n pop rbx": "s18:8 l18:8",
    "mov edi, {d}\n mov esi, 0x40000\n movsd": "s0:4",
    "mov esi, {d}\n mov edi, 0x40000\n movsq": "l0:8",
    "mov esi, {d}\n mov edi, {d}+8\n movsb": "l0:1 s8:1",
    "mov esi, {d}\n mov edi, {d}+4\n cmpsd": "l4:4 l0:4",
    "mov edi, {d}\n mov ecx, 3\n rep stosw": "s0:2 s2:2 s4:2",
    "mov edi, {d}\n mov al, 2\n mov ecx, 9\n repne scasb": "l0:1 l1:1 l2:1",
    "mov esi, {d}\n mov edi, 0x40000\n mov ecx, 3\n rep movsb": "l0:1 l1:1 l2:1",
    "movups [{d}], xmm0": "s0:8 s8:8",
    "movups xmm0, [{d}+4]": "l4:8 lc:8",
    "movq [{d}], xmm1": "s0:8",
    "movd xmm1, [{d}]": "l0:4",
    "movnti [{d}], eax": "s0:4",
    "paddq xmm1, [{d}]": "l0:8 l8:8",
    "fld dword ptr [{d}]": "l0:4",
    "fld1\n fstp qword ptr [{d}]": "s0:8",
    "fld1\n fstp tbyte ptr [{d}+1]": "s1:8 s9:2",
    "fld tbyte ptr [{d}+1]": "l1:8 l9:2",
    "cmpxchg8b [{d}]": "l0:8 s0:8",
    "lock cmpxchg16b [{d}]": "l0:8 l8:8 s0:8 s8:8",
    "bts dword ptr [{d}], 7": "l0:4 s0:4",
    "sgdt [{d}]": "s0:2 s2:8",
    "movzx eax, byte ptr [{d}+2]": "l2:1",
    "movsx rax, word ptr [{d}+1]": "l1:2",
    "test dword ptr [{d}], 1": "l0:4",
    "imul eax, [{d}]": "l0:4",
    "mov rax, [0x40000]\n adc [{d}], rax": "l0:8 s0:8",
    "prefetchnta [{d}]": "",
    "lea rax, [{d}]": "",
    "cmove eax, [{d}]": "l0:4",
    "xlatb": "",
    "mov ebx, {d}\n xor eax, eax\n xlatb": "l0:1",
}
SSE = "mov rax, cr4\n or eax, 0x200\n mov cr4, rax\n mov eax, 0x11223344\n"


def wanted(text: str) -> list[tuple[str, int, int]]:
    found = []
    for item in text.split():
        offset, size = item[1:].split(":")
        found.append(("load" if item[0] == "l" else "store", int(offset, 16), int(size)))
    return found


def test_each_access_comes_once_as_the_instruction_makes_it() -> None:
    for source, expected in INSTRUCTIONS.items():
        guest, _ = guest_of(SSE + source.format(d=DEVICE) + "\n nop\n nop")
        guest.halt()
        assert accesses(guest) == wanted(expected), source
        once = list(guest.io)
        check_every_stop(guest)
        assert guest.io == once, source


def test_the_tick_is_that_before_the_instruction() -> None:
    guest, _ = guest_of(
        f"nop\n mov eax, [{D}]\n nop\n add [{D}], eax\n mov ecx, 2\n mov edi, {D}\n rep stosd"
    )
    guest.halt()
    assert [tick for tick, *_ in guest.io] == [1, 3, 3, 6, 7]
    assert check_count(guest) == guest.engine.tick


REGISTERS = {1: "al bl cl dl", 2: "ax bx cx dx", 4: "eax ebx ecx edx", 8: "rax rbx rcx rdx"}
POINTERS = {1: "byte", 2: "word", 4: "dword", 8: "qword"}


def random_program(chance: random.Random, base: int, length: int) -> str:
    """Return instructions over two pages at `base` and RAM at 0x40000: results depend on those before."""
    text = ""
    for _ in range(length):
        size = chance.choice([1, 2, 4, 8])
        register = chance.choice(REGISTERS[size].split())
        at = chance.choice([0, 0xFF0, 0x1000]) + chance.randrange(0, 32)
        there, ram = f"{POINTERS[size]} ptr [{base + at}]", 0x40000 + chance.randrange(0, 64)
        suffix = {1: "b", 2: "w", 4: "d", 8: "q"}[size]
        text += chance.choice(
            [
                f"mov {register}, {there}\n",
                f"mov {there}, {register}\n",
                f"add {register}, {there}\n",
                f"xor {there}, {register}\n",
                f"xchg {there}, {register}\n",
                f"lock xadd {there}, {register}\n",
                f"sub {there}, 3\n",
                f"adc {there}, {register}\n",
                f"inc {there}\n",
                f"cmp {there}, {register}\n setc dl\n",
                f"mov esi, {base + at}\n mov edi, {ram}\n movs{suffix}\n",
                f"mov edi, {base + at}\n mov esi, {ram}\n mov ecx, 3\n rep movs{suffix}\n",
                f"mov edi, {base + at}\n mov ecx, 2\n rep stos{suffix}\n",
                f"push qword ptr [{base + at}]\n pop qword ptr [{base + at + 8}]\n",
                f"movups xmm0, [{base + at}]\n movups [{base + at + 5}], xmm0\n",
                f"lock cmpxchg {there}, {register}\n",
                f"xchg [{ram}], rdx\n",
                "imul rax, rbx\n",
                "bswap rdx\n",
                f"fild dword ptr [{base + at}]\n fistp qword ptr [{base + at + 2}]\n",
            ]
        )
    return text


def test_random_instructions_against_ram() -> None:
    """The same program over the device and over RAM: the same registers, the same bytes at the end.

    With random stops, with other engines' blocks, and resumed from saved states, too.
    """
    chance = random.Random(4)
    for _ in range(8):
        seed = chance.random()
        fresh = chance.randbytes(SIZE)
        head = SSE + "mov rbx, 0x1234567890abcdef\n mov rdx, -7\n xor ecx, ecx\n"
        guest, device = guest_of(head + random_program(random.Random(seed), DEVICE, 25), fresh, keeps=True)
        model = Guest(head + random_program(random.Random(seed), 0x80000, 25) + "\n hlt")
        model.write(0x80000, fresh)
        expected = model.halt()
        got = guest.halt()
        differing = {name for name in got if got[name] != expected[name]} - {"rsi", "rdi"}
        assert not differing
        assert bytes(device.bytes) == model.engine.read(0x80000, SIZE)
        assert guest.engine.tick == model.engine.tick
        whole = guest.state(), bytes(device.bytes), list(guest.io)
        for _ in range(4):
            guest.reset()
            while True:
                tick = guest.engine.tick
                if guest.run(tick + chance.randrange(1, 30)) == HALT:
                    break
                if chance.random() < 0.3:
                    state, at = guest.engine.save(), guest.engine.tick
                    guest.engine.load(state)
                    guest.engine.tick = at
                if chance.random() < 0.2:
                    guest.engine.forget_code()
            assert (guest.state(), bytes(device.bytes), list(guest.io)) == whole


def test_an_interrupt_comes_right_after_the_access() -> None:
    guest, device = guest_of(f"""
        sti
        nop
        mov [{D}], eax
        inc ebx
        hlt
        .org 0x700
        mov r8d, ebx
        mov eax, [{D + 8}]
        iretq
    """)
    guest.write(IDT + 16 * 0x50, gate64(CODE + 0x700))

    def acknowledge() -> int:
        guest.set_intr(False)
        return 0x50

    plain = device.write

    def write(addr: int, size: int, value: int) -> None:
        plain(addr, size, value)
        guest.set_intr(True)

    guest.engine.acknowledge = acknowledge
    guest.engine.memory_write = write
    check_every_stop(guest)
    assert guest.engine.registers()["r8"] == 0
    assert guest.engine.registers()["rbx"] == 1


def test_holes_without_a_device() -> None:
    """Loads read all ones and stores do nothing, also where a device was before."""
    guest, device = guest_of(f"mov rax, [{HOLE + 1}]\n mov [{HOLE}], rcx\n mov ebx, [{DEVICE}]")
    registers = guest.halt()
    assert registers["rax"] == (1 << 64) - 1
    assert registers["rbx"] == 0x03020100
    assert accesses(guest) == [("load", 0, 4)]
    guest.reset()
    guest.engine.map_devices([])
    assert guest.halt()["rbx"] == 0xFFFFFFFF
    assert guest.io == []


def test_an_access_with_one_foot_in_ram() -> None:
    """RAM ends where the device begins; the load and the store are of both."""
    guest = Guest(f"mov rax, [{RAM - 3}]\n mov rcx, 0x8877665544332211\n mov [{RAM - 3}], rcx\n hlt")
    seen = []
    guest.engine.memory_read = lambda addr, size: seen.append((addr, size)) or 0x0807060504
    guest.engine.memory_write = lambda addr, size, value: seen.append((addr, size, value))
    guest.engine.map_devices([(RAM, 0x1000)])
    guest.write(RAM - 3, b"\x01\x02\x03")
    assert guest.halt()["rax"] == 0x0807060504030201
    assert seen == [(RAM, 5), (RAM, 5, 0x8877665544)]
    assert guest.engine.read(RAM - 3, 3) == b"\x11\x22\x33"


def paged(source: str) -> tuple[Guest, Device]:
    """Pages at 1 GB: the first is the device's, the next is not there until a handler maps it."""
    guest, device = guest_of(
        source
        + f"""
        hlt
        .org 0x700
        add rsp, 8
        mov qword ptr [0x52008], {DEVICE + 0x2000 + (P | W | U)}
        inc r15
        iretq
    """
    )
    guest.write(0x2008, struct.pack("<Q", 0x51000 | P | W | U))  # PDPT[1]
    guest.write(0x51000, struct.pack("<Q", 0x52000 | P | W | U))
    guest.write(0x52000, struct.pack("<QQ", DEVICE + 0x1000 | P | W | U, 0))
    guest.write(IDT + 16 * PF, gate64(CODE + 0x700))
    return guest, device


GB = 1 << 30


@pytest.mark.parametrize("access", ["mov rax, [{a}]", "mov [{a}], rax", "add [{a}], rax"])
def test_a_missing_second_page_faults_before_the_device_is_asked(access: str) -> None:
    guest, _ = paged("mov eax, 5\n" + access.format(a=GB + 0xFFE))
    check_every_stop(guest)
    assert guest.engine.registers()["r15"] == 1
    assert guest.engine.registers()["cr2"] == GB + 0x1000
    kinds = {"mov rax, [": "l", "mov [{a}], ": "s", "add [{a}], ": "ls"}
    expected = []
    for kind in next(v for k, v in kinds.items() if access.startswith(k)):
        name = "load" if kind == "l" else "store"
        expected += [(name, 0x1FFE, 2), (name, 0x2000, 6)]
    assert accesses(guest) == expected


def test_a_device_that_writes_ram_and_page_tables() -> None:
    """A store to it maps another page and rewrites the code that comes next, as DMA may."""
    guest, device = paged(f"mov [{D}], eax\n mov eax, [{GB + 0x1000}]\n 1: mov ebx, 1\n nop")
    plain = device.write

    def write(addr: int, size: int, value: int) -> None:
        plain(addr, size, value)
        guest.engine.write(0x52008, struct.pack("<Q", 0x40000 | P | W | U))
        at = guest.engine.read(CODE, 64).index(b"\xbb\x01\x00\x00\x00")
        guest.engine.write(CODE + at, b"\xbb\x02\x00\x00\x00")

    guest.engine.memory_write = write
    guest.write(0x40000, b"abcd")
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert (registers["r15"], registers["rax"], registers["rbx"]) == (0, 0x64636261, 2)


def test_watchpoints_see_devices() -> None:
    guest, _ = guest_of(f"mov eax, [{D + 2}]\n mov [{D + 0x11}], eax\n mov eax, [{D + 6}]")
    guest.halt()
    alone = guest.state(), list(guest.io)
    for physical in (False, True):
        guest.reset()
        guest.engine.set_watchpoints([(D + 5, 1, True, True, physical), (D + 0x14, 1, False, True, physical)])
        assert guest.run() == WATCH
        assert guest.engine.hit == (D + 2, D + 2, 4, False)
        assert guest.run() == WATCH
        assert guest.engine.hit == (D + 0x11, D + 0x11, 4, True)
        guest.halt()
        assert (guest.state(), guest.io) == alone
        guest.engine.set_watchpoints([])


def test_a_failing_device() -> None:
    """Its error comes out of the run; the instruction is complete, and the guest can go on."""
    guest, device = guest_of(f"nop\n add [{D}], eax\n inc ebx")

    def fail(addr: int, size: int) -> int:
        raise ZeroDivisionError

    guest.engine.memory_read = fail
    with pytest.raises(ZeroDivisionError):
        guest.run()
    assert guest.engine.tick == 2
    guest.engine.memory_read = device.read
    assert guest.halt()["rbx"] == 1
    assert guest.io == []


def test_a_limit_set_by_a_device_ends_the_run_there() -> None:
    guest, device = guest_of(f"nop\n mov [{D}], eax\n inc ebx")

    def write(addr: int, size: int, value: int) -> None:
        guest.engine.limit = guest.engine.tick

    guest.engine.memory_write = write
    guest.run()
    assert guest.engine.tick == 2
    guest.engine.limit = FOREVER
    assert guest.halt()["rbx"] == 1


@pytest.mark.parametrize("mode", ["protected32", "real16"])
def test_other_modes(mode: str) -> None:
    """32-bit code without paging; real mode reaches no further than RAM here, and is not disturbed."""
    source = f"mov eax, [{D + 0xFFE}]\n mov [{D + 1}], eax" if mode == "protected32" else "mov ax, [0x500]"
    guest, _ = guest_of(source, mode=mode)
    check_every_stop(guest)
    expected = [("load", 0xFFE, 2), ("load", 0x1000, 2), ("store", 1, 4)] if mode == "protected32" else []
    assert accesses(guest) == expected


def test_places_that_are_refused() -> None:
    engine = Guest("hlt").engine
    for span in [(0, 0x1000), (RAM - 1, 2), (DEVICE, 0), (1 << 44, 1), ((1 << 44) - 1, 2)]:
        with pytest.raises(EngineError, match="does not lie"):
            engine.map_devices([span])
    with pytest.raises(EngineError, match="too many"):
        engine.map_devices([(DEVICE + i * 0x1000, 1) for i in range(65)])
    assert PML4  # the rig's tables map the first gigabyte
