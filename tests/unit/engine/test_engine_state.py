"""State: save and load, digests, CPUID and the time-stamp counter, many engines, and refusals."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from engine_rig import CODE, GP, IDT, MB, Guest, check_count, check_every_stop, gate64
from test_engine_exceptions import TO_USER

from tt.errors import EngineError
from tt.vmm.engine import HALT, SHUTDOWN, STOP, Engine

# Snippets of a random program: each leaves RBP (loop counter), RSP and R15 alone.
_SNIPPETS = [
    "add rax, rbx\n adc rdx, rcx\n rol rax, 7",
    "imul rbx, rax, 0x1234567\n xor rbx, rdx",
    "mov [0x40000 + rax * 8], rbx\n and eax, 0xfff\n xor rdx, [0x40000 + rax * 8]",
    "mov edi, 0x42000\n mov ecx, 5\n rep stosq\n lea rsi, [rdi - 16]\n mov ecx, 3\n std\n rep lodsb\n cld",
    "xor ecx, ecx\n div ecx",
    "ud2",
    "push rax\n popfq\n pushfq\n pop rbx",
    "rdtsc\n xor rbx, rax",
    "in al, 0x60\n out 0x61, al",
    "fild word ptr [0x40010]\n fadd st(0), st(0)\n fsqrt\n fistp qword ptr [0x40100]",
    "movq xmm1, rax\n pshufd xmm2, xmm1, 0x1b\n mulsd xmm2, xmm1\n"
    "cvtsi2sd xmm3, ebx\n divsd xmm3, xmm2\n movups [0x43000], xmm3",
    "inc byte ptr [rip + 77f + 1]\n77: mov cl, 0\n add rdx, rcx",
    "test al, 1\n jz 78f\n not rdx\n78: setc bl",
    "mov rax, cr3\n mov cr3, rax",
    "cpuid",
    "sti\n nop\n cli",
    "lock xadd [0x40008], rdx\n cmpxchg [0x40018], rbx",
    "fxsave64 [0x44000]\n fxrstor64 [0x44000]",
    "int 0x40\n bsf rcx, rax\n cmovz rcx, rbx",
]


def random_guest(seed: int) -> Guest:
    rng = random.Random(seed)
    body = "\n".join(rng.choice(_SNIPPETS) for _ in range(12))
    guest = Guest(f"""
        mov rax, cr4
        or eax, 0x600
        mov cr4, rax
        mov rax, {rng.getrandbits(63):#x}
        mov rbx, {rng.getrandbits(63):#x}
        mov ebp, 6
    50: {body.replace("push rax", "and eax, 0xcd5; push rax")}
        and eax, 0x7f
        dec ebp
        jnz 50b
        hlt
        .org 0x800
        add qword ptr [rsp], 2
        iretq
        .org 0x840
        add r15, 3
        out 0x20, al
        iretq
        .org 0x880
        pop rcx
        iretq
    """)
    guest.inputs = lambda port, size: guest.engine.tick * 37 & 0xFF

    def on_out(port: int, size: int, value: int) -> None:
        guest.set_intr(port == 0x61 and bool(value & 1))

    guest.on_out = on_out
    guest.engine.acknowledge = lambda: 0x40
    for vector, at in ((0, 0), (6, 0), (0x40, 1)):
        guest.write(IDT + 16 * vector, gate64(CODE + 0x800 + 0x40 * at))
    return guest


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    """Stop anywhere, save, run on, come back, forget all code: equal states at every stop."""
    guest = random_guest(seed)
    guest.reset()
    guest.halt()
    last = guest.engine.tick
    if guest.vector is None and last <= 700:
        check_every_stop(guest, most=700)
    check_count(guest)


@pytest.mark.parametrize("source", ["bt eax, 3", "bts qword ptr [0x40020], 3", "btr rax, rdx", "btc ax, 1"])
def test_undefined_flags_after_a_bit_test_do_not_depend_on_stops(source: str) -> None:
    guest = Guest(f"mov eax, 0x10\n cmp al, 0x88\n {source}\n pushfq\n pop rbx\n hlt")
    check_every_stop(guest)


@pytest.mark.parametrize("seed", range(3))
def test_a_state_goes_to_another_engine(seed: int) -> None:
    one, other = random_guest(seed), random_guest(seed + 100)
    one.reset()
    one.halt()
    last = one.engine.tick
    one.reset()
    one.run(last // 2)
    state, ram = one.engine.save(), one.engine.read(0, MB)
    other.halt()
    other.engine.restore_ram(ram)
    other.engine.load(state)
    other.engine.tick = last // 2
    other.set_intr(one.line)
    other.io[:] = one.io[:]
    for guest in (one, other):
        guest.run(last)
    assert one.state() == other.state()
    assert one.io == other.io


def test_states_of_other_builds_are_refused() -> None:
    engine = Engine(MB, code_buffer=1 << 20)
    state = engine.save()
    for bad in (b"", state[:-1], state + b"\0"):
        with pytest.raises(EngineError, match="cannot be restored"):
            engine.load(bad)
    with pytest.raises(EngineError, match="another size"):
        engine.restore_ram(bytes(MB - 4096))
    denali = Engine(MB, denali=True, code_buffer=1 << 20)
    with pytest.raises(EngineError, match="cannot be restored"):
        denali.load(state)


# ---- memory and digests


def test_memory_access_is_checked() -> None:
    engine = Engine(MB, code_buffer=1 << 20)
    engine.write(MB - 3, b"end")
    assert engine.read(MB - 3, 3) == b"end"
    assert engine.read(MB, 0) == b""
    for addr, size in ((MB - 3, 4), (MB, 1), (1 << 63, 1), (0, MB + 1), ((1 << 64) - 1, 2)):
        with pytest.raises(IndexError, match="outside RAM"):
            engine.read(addr, size)
    with pytest.raises(IndexError, match="outside RAM"):
        engine.write(MB - 2, b"end")
    assert engine.size == MB


@pytest.mark.parametrize("size", [0, 4096, MB - 4096, MB + 1, 1 << 41])
def test_odd_sizes_are_refused(size: int) -> None:
    with pytest.raises(EngineError, match="bytes of RAM"):
        Engine(size)


def test_equal_contents_have_equal_digests() -> None:
    one, other = Engine(MB, code_buffer=1 << 20), Engine(MB, code_buffer=1 << 20)
    empty = one.ram_digest()
    assert empty == bytes(16) == other.ram_digest()
    rng = random.Random(1)
    writes = [(rng.randrange(MB - 100), rng.randbytes(rng.randrange(1, 100))) for _ in range(50)]
    for addr, data in writes:
        one.write(addr, data)
        one.ram_digest()
    other.write(0, one.read(0, MB))
    assert one.ram_digest() == other.ram_digest() != empty
    assert one.page_hashes() == other.page_hashes()
    assert len(one.page_hashes()) == MB // 4096 * 16
    assert other.restore_ram(bytes(MB)) > 0
    assert other.ram_digest() == empty
    assert other.restore_ram(bytes(MB)) == 0


def test_any_flipped_bit_changes_the_digest() -> None:
    engine = Engine(MB, code_buffer=1 << 20)
    rng = random.Random(2)
    engine.write(0, rng.randbytes(MB // 2))
    before = engine.ram_digest()
    seen = {before}
    for _ in range(500):
        addr, bit = rng.randrange(MB), 1 << rng.randrange(8)
        old = engine.read(addr, 1)[0]
        engine.write(addr, bytes([old ^ bit]))
        seen.add(engine.ram_digest())
        engine.write(addr, bytes([old]))
    assert engine.ram_digest() == before
    assert len(seen) > 495  # the same bit may have been chosen twice


def test_pages_in_other_places_have_another_digest() -> None:
    page = random.Random(3).randbytes(4096)
    digests = set()
    for number in range(16):
        engine = Engine(MB, code_buffer=1 << 20)
        engine.write(number * 4096, page)
        digests.add(engine.ram_digest())
    assert len(digests) == 16


def test_the_digest_sees_what_the_guest_and_its_page_walks_store() -> None:
    guest = Guest("1: inc qword ptr [0x40000]\n jmp 1b")
    seen = set()
    for tick in range(1, 60, 2):
        guest.run(tick)
        seen.add(guest.engine.ram_digest())
        fresh = Engine(MB, code_buffer=1 << 20)
        fresh.write(0, guest.engine.read(0, MB))
        assert fresh.ram_digest() == guest.engine.ram_digest()
    assert len(seen) == 30


def test_virtual_addresses() -> None:
    guest = Guest("hlt")
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067, 0x40067)
    guest.write(0x50FFC, b"over")
    guest.write(0x40000, b" the edge")
    assert guest.engine.translate(0x40001234) == 0x40234
    assert guest.engine.translate(0x40002000) is None
    assert guest.engine.translate(1 << 60) is None
    assert guest.engine.read_virtual(0x40000FFC, 13) == b"over the edge"
    with pytest.raises(IndexError, match="0x40002000"):
        guest.engine.read_virtual(0x40001FFF, 2)
    assert guest.u64(0x63000) == 0x50067, "looking sets no bit"


# ---- registers


def test_registers_can_be_read_and_some_set() -> None:
    guest = Guest("hlt")
    guest.engine.set_register("r9", (1 << 64) - 1)
    assert guest.engine.registers()["r9"] == (1 << 64) - 1
    with pytest.raises(EngineError, match="cr0"):
        guest.engine.set_register("cr0", 0)
    with pytest.raises(EngineError, match="real16, protected32 or long64"):
        guest.engine.start("virtual8086", 0, {})
    assert guest.engine.segment("cs")[:3] == (0x10, 0, 0xFFFFFFFF)
    assert guest.engine.bits == 64
    with pytest.raises(ValueError, match="tuple"):
        guest.engine.segment("xs")


def test_xmm_registers() -> None:
    guest = Guest("mov rax, cr4\n or eax, 0x600\n mov cr4, rax\n movups xmm15, [0x40000]\n hlt")
    guest.write(0x40000, bytes(range(16)))
    guest.halt()
    assert guest.engine.xmm()[15] == int.from_bytes(range(16), "little")


# ---- CPUID and time


def test_cpuid_tells_the_table() -> None:
    guest = Guest("mov eax, ebp\n mov ecx, esi\n cpuid\n hlt")
    guest.engine.set_cpuid(
        [(0, None, 7, 1, 2, 3), (1, None, 1, 2, 1 << 27 | 4, 5), (7, 0, 8, 9, 10, 11), (7, 1, 12, 13, 14, 15)]
    )
    expected = {(0, 5): (7, 1, 2, 3), (1, 0): (1, 2, 4, 5), (7, 0): (8, 9, 10, 11), (7, 1): (12, 13, 14, 15),
                (7, 2): (0, 0, 0, 0), (2, 0): (0, 0, 0, 0), (0x80000000, 0): (0, 0, 0, 0)}  # fmt: skip
    for (leaf, subleaf), answer in expected.items():
        guest.reset()
        guest.engine.set_register("rbp", leaf)
        guest.engine.set_register("rsi", subleaf)
        registers = guest.halt()
        assert tuple(registers[name] for name in ("rax", "rbx", "rcx", "rdx")) == answer


def test_the_time_stamp_counter_tells_the_exact_tick() -> None:
    guest = Guest("""
        nop
        rdtsc                       # tick 1
        mov ebx, eax
        nop
        rdtsc                       # tick 4
        mov esi, eax
        mov edi, 0
        shl rdx, 32
        mov rbp, rdx
        rdtsc                       # tick 9
        hlt
    """)
    check_every_stop(guest)
    registers = guest.engine.registers()
    assert [registers[name] for name in ("rbx", "rsi", "rdi", "rax")] == [4, 16, 0, 36]
    guest.reset()
    guest.engine.period_ns, guest.engine.idle_ns = 10, (5 << 32) + 3
    registers = guest.halt()
    assert [registers[name] for name in ("rbx", "rsi", "rbp", "rax")] == [13, 43, 5 << 32, 93]


def test_the_host_time_stamp_counter_is_asked_at_the_exact_tick() -> None:
    guest = Guest("nop\n rdtsc\n nop\n mov ebx, eax\n rdtsc\n hlt")
    asked: list[int] = []

    def tsc() -> int:
        asked.append(guest.engine.tick)
        return 100 + guest.engine.tick

    guest.engine.tsc = tsc
    guest.engine.host_tsc = True
    registers = guest.halt()
    assert asked == [1, 4]
    assert (registers["rbx"], registers["rax"], guest.engine.tick) == (101, 104, 6)


def test_cr4_tsd() -> None:
    guest = Guest("mov rax, 0x24\n mov cr4, rax\n rdtsc\n" + TO_USER.format(flags=2) + "rdtsc")
    frame = guest.frame()
    assert (frame.vector, frame.error) == (GP, 0)
    check_every_stop(guest)
    check_count(guest)


# ---- many engines


def test_engines_do_not_mix() -> None:
    guests = [
        Guest("1: add rax, rbx\n out 0x10, al\n loop 1b\n hlt", registers={"rbx": i, "rcx": 50})
        for i in range(4)
    ]
    for tick in range(1, 152):
        for guest in guests:
            guest.run(tick)
    for i, guest in enumerate(guests):
        assert guest.engine.registers()["rax"] == 50 * i
        assert [entry[0] for entry in guest.io] == list(range(1, 150, 3))


def test_an_engine_runs_inside_a_callback_of_another() -> None:
    inner = Guest("1: inc rax\n out 0x10, al\n jmp 1b")
    outer = Guest("mov ecx, 5\n1: out 0x10, al\n inc rbx\n loop 1b\n rdtsc\n hlt")
    outer.on_out = lambda port, size, value: (inner.run(inner.engine.tick + 7), None)[1]
    registers = outer.halt()
    assert (registers["rbx"], registers["rax"]) == (5, 4 * 16)
    assert (inner.engine.tick, outer.engine.tick) == (35, 18)


_LEAK = """
import resource, sys
from tt.vmm.engine import Engine
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4
def one():
    e = Engine(1 << 20, code_buffer=1 << 20)
    e.write(0x1000, b"\\xb0\\x05\\xee\\xf4")
    e.port_write = lambda port, size, value: None
    e.start("long64", 0x1000, {})
    assert e.run(100) == 2
for _ in range(20): one()
before = rss()
for _ in range(200): one()
print(rss() - before)
"""


def test_closed_engines_give_their_memory_back() -> None:
    done = subprocess.run([sys.executable, "-c", _LEAK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200 * 100, "KB more after 200 engines"


# ---- refusal


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (b"tcg_tb_lookup_x86_64", "it lacks tcg_tb_lookup"),
        (b"tlb_set_page_x86_64", "it lacks tlb_set_page"),
        (b"do_interrupt_x86_hardirq_x86_64", "it lacks do_interrupt_x86_hardirq"),
    ],
)
def test_another_build_of_unicorn_is_refused(tmp_path: Path, symbol: bytes, message: str) -> None:
    """A libunicorn without one of the functions: one line that says so, and what to install."""
    package = Path(str(files("unicorn")))
    shutil.copytree(package, tmp_path / "unicorn", ignore=shutil.ignore_patterns("*.a", "__pycache__"))
    library = tmp_path / "unicorn/lib/libunicorn.so.2"
    data = library.read_bytes()
    assert b"\0" + symbol + b"\0" in data
    library.write_bytes(data.replace(b"\0" + symbol + b"\0", b"\0" + b"X" + symbol[1:] + b"\0"))
    code = "from tt.vmm.engine import Engine\nfrom tt.errors import EngineError\n"
    code += "try: Engine(1 << 20)\nexcept EngineError as error: print(error)\n"
    root = Path(__file__).parents[3]
    environment = {
        "PYTHONPATH": f"{tmp_path}:{root}",
        "LD_LIBRARY_PATH": str(library.parent),
        "PATH": "/usr/bin:/bin",
    }
    sanitizer = os.environ.get("LD_PRELOAD", "")  # .ci/sanitized: it wants to be the first
    environment["LD_PRELOAD"] = f"{sanitizer} {library}".strip()
    environment["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stdout.rstrip().endswith("install unicorn==2.1.4")


def test_reasons_are_distinct() -> None:
    assert len({STOP, HALT, SHUTDOWN}) == 3
