"""Whole Denali machines on the real engine: the demo, the manual's examples, going back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from denali_rig import KIT, MANUAL

from tt.events import Event, Kind
from tt.vmm import running
from tt.vmm.denali.guest_build import build_guest
from tt.vmm.denali.image import GuestImage
from tt.vmm.denali.registers import EventBit
from tt.vmm.disk import BaseImage, OverlayDisk
from tt.vmm.nondeterminism import Quiet

pytest.importorskip("tt.vmm.engine")

from tt.vmm.denali.machine import VENDOR, DenaliMachine  # noqa: E402

MEM = 64 << 20
MS = 1_000_000


class Typist(Quiet):
    """Types `(guest ns, bytes)` into a guest that idles at that time."""

    def __init__(self, *lines: tuple[int, bytes]) -> None:
        self.machine: DenaliMachine | None = None
        self.lines = list(lines)

    def idle(self, tick: int, most_ns: int | None) -> int | None:
        assert self.machine is not None
        if not self.lines:
            return most_ns
        until_line_ns = max(0, self.lines[0][0] - self.machine.now_ns)
        return until_line_ns if most_ns is None else min(most_ns, until_line_ns)

    def take_inputs(self, tick: int) -> list[Event]:
        assert self.machine is not None
        if not self.lines or self.lines[0][0] > self.machine.now_ns:
            return []
        return [Event(tick, Kind.INPUT, 0, 0, self.lines.pop(0)[1])]


class Run:
    """A machine, what it told the door, and what it printed."""

    def __init__(
        self, guest: Path, folder: Path, *typed: tuple[int, bytes], blocks: int = 64, **options: Any
    ) -> None:
        disks = []
        if blocks:
            (folder / "disk.img").write_bytes(bytes(blocks * 4096))
            disks.append(OverlayDisk(BaseImage(folder / "disk.img")))
        source = Typist(*typed)
        options = {"epoch": 1_000_000_000, **options}
        self.machine = DenaliMachine(GuestImage.open(guest), MEM, disks, source, **options)
        source.machine = self.machine
        self.events: list[Event] = []
        self.machine.door.subscribe(self.events.append)

    def finish(self) -> Run:
        stop = running.run(self.machine)
        assert (stop.reason, stop.detail) == ("power", "terminated with status 0"), stop
        return self

    @property
    def console(self) -> str:
        return b"".join(e.data for e in self.events if e.kind == Kind.CONSOLE).decode()


def manual_blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", MANUAL.read_text(), re.MULTILINE | re.DOTALL)


def build(folder: Path, text: str) -> Path:
    source, output = folder / "guest.c", folder / "guest.elf"
    source.write_text(text)
    build_guest([source], output, kit=KIT)
    return output


# ---- the demo


def test_the_demo_prints_what_the_manual_says(demo: Path, tmp_path: Path) -> None:
    run = Run(demo, tmp_path).finish()
    assert run.console == manual_blocks("output")[-1]
    assert 15_000_000 < run.machine.tick < 30_000_000
    assert 2000 * MS <= run.machine.now_ns < 2010 * MS
    batches = [e.value for e in run.events if e.kind == Kind.BATCH]
    assert batches.count(EventBit.TIMER | EventBit.DISK) >= 3
    again = Run(demo, tmp_path).finish()
    assert again.events == run.events
    assert again.machine.digest() == run.machine.digest()


def test_the_demo_echoes_and_quits(demo: Path, tmp_path: Path) -> None:
    lines = ((0, b"early\n"), (350 * MS, b"hel"), (351 * MS, b"lo\r"), (1000 * MS, b"quit\n"))
    run = Run(demo, tmp_path, *lines, blocks=0).finish()
    assert re.findall("^echo: .*", run.console, re.MULTILINE) == ["echo: early", "echo: hello", "echo: quit"]
    assert "disk: none that can be written" in run.console
    assert 1500 * MS <= run.machine.now_ns < 2000 * MS


@pytest.mark.parametrize("options", [{"quantum_ticks": 1_000_003}, {"period_ns": 1}, {"read_only": [0]}])
def test_the_demo_is_content_on_other_machines(demo: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = Run(demo, tmp_path, **options).finish()
    assert run.console.endswith(" 0 checks failed\n")


def test_ticks_are_exact(demo: Path, tmp_path: Path) -> None:
    """An engine that looks at every instruction counts the same."""
    run = Run(demo, tmp_path, blocks=8)
    slow = Run(demo, tmp_path, blocks=8)
    slow.machine.engine.count_instructions()
    run.finish()
    slow.finish()
    assert slow.machine.tick == run.machine.tick
    assert slow.events == run.events


@pytest.mark.parametrize("quanta", [1, 7, 60])
def test_going_back_and_on_again(demo: Path, tmp_path: Path, quanta: int) -> None:
    run = Run(demo, tmp_path)
    machine = run.machine
    running.run(machine, quanta * machine.board.quantum_ticks)  # where a hand-over is due, before it
    points = [(machine.snapshot(), machine.digest(), len(run.events))]
    running.run(machine, machine.tick + 12_345)
    points.append((machine.snapshot(), machine.digest(), len(run.events)))
    run.finish()
    events, end = list(run.events), machine.digest()
    for snapshot, digest, count in points:
        machine.restore(snapshot)
        assert machine.digest() == digest
        del run.events[count:]
        run.finish()
        assert run.events == events
        assert machine.digest() == end


def test_runs_in_pieces_are_the_same(demo: Path, tmp_path: Path) -> None:
    whole, pieces = Run(demo, tmp_path, blocks=4), Run(demo, tmp_path, blocks=4)
    whole.finish()
    while running.run(pieces.machine, pieces.machine.tick + 99_991).reason == "tick":
        pass
    assert pieces.events == whole.events
    assert pieces.machine.digest() == whole.machine.digest()


def test_the_wall_clock_of_the_host(demo: Path, tmp_path: Path) -> None:
    run = Run(demo, tmp_path, host_clock=lambda: 1_234).finish()
    clocks = [e for e in run.events if e.kind == Kind.CLOCK]
    assert clocks
    assert {e.data for e in clocks} == {(1_234).to_bytes(8, "little")}


# ---- the manual's examples


def test_the_manuals_guest_in_c(tmp_path: Path) -> None:
    source = next(b for b in manual_blocks("c") if "int main" in b)
    run = Run(build(tmp_path, source), tmp_path).finish()
    assert run.console == manual_blocks("output")[0]


def test_the_manuals_guest_in_assembly(tmp_path: Path) -> None:
    (tmp_path / "echo.S").write_text(manual_blocks("asm")[0])
    (command,) = re.findall(r"`(gcc\s-nostdlib[^`]*echo\.S)`", MANUAL.read_text())
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    run = Run(tmp_path / "echo.elf", tmp_path, (1000 * MS, b"hello\n")).finish()
    assert run.console == "say something\nhello\n"
    assert run.machine.now_ns >= 1000 * MS


# ---- what the manual says about the CPU

TRY = """
#include "denali.h"
static volatile u64 target, vector, error, offset, address, start;
static bool caught(struct saved_registers *unused)
{
    (void)unused;
    vector = denali.exception.vector, error = denali.exception.error, address = denali.exception.address;
    offset = denali.exception.rip - start;
    denali.exception.rip = target;
    return true;
}
#define TRY(setup, code) do { vector = 99, error = offset = address = 0; \\
    __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, start; lea 2f(%%rip), %%rax; mov %%rax, target; " \\
                     setup "; 1: " code "; 2:" \\
                     ::: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "memory"); \\
    print("%lu %lx %ld %lx\\n", vector, error, offset, address); } while (0)
int main(void)
{
    on_exception(caught);
"""

EXCEPTIONS = {
    'TRY("", "int3")': "3 0 1 0",
    'TRY("", "int $0x80")': "128 0 2 0",
    'TRY("", "ud2")': "6 0 0 0",
    'TRY("", ".byte 0x0f, 0x01, 0xd9")': "6 0 0 0",
    'TRY("", "movaps %%xmm0, %%xmm1")': "6 0 0 0",
    'TRY("", "in %%dx, %%al")': "13 0 0 0",
    'TRY("", "out %%al, $0x80")': "13 0 0 0",
    'TRY("xor %%ecx, %%ecx", "div %%ecx")': "0 0 0 0",
    'TRY("mov $0x7fffff0000, %%rax", "mov (%%rax), %%rbx")': "99 0 0 0",
    'tlb_start(); TRY("mov $0x40000ffc, %%eax", "mov (%%rax), %%rbx")': "14 0 0 40000ffc",
    'TRY("mov $0x1ffc, %%eax", "mov (%%rax), %%rbx")': "14 0 0 2000",
    'TRY("mov $0x40000123, %%eax", "movb $1, (%%rax)")': "14 2 0 40000123",
    'TRY("mov $0x100000, %%eax", "movb $1, (%%rax)")': "14 3 0 100000",
    'TRY("mov $0xffffffff80000000, %%rax", "mov (%%rax), %%rbx")': "14 0 0 ffffffff80000000",
}


def test_exceptions(tmp_path: Path) -> None:
    body = "".join(f"    {line};\n" for line in EXCEPTIONS)
    run = Run(build(tmp_path, f"{TRY}{body}    return 0;\n}}\n"), tmp_path).finish()
    assert dict(zip(EXCEPTIONS, run.console.splitlines(), strict=True)) == EXCEPTIONS


def test_tlb(tmp_path: Path) -> None:
    source = """
#include "denali.h"
static volatile u64 misses;
static bool miss(struct saved_registers *unused)
{
    (void)unused;
    misses++;
    return tlb_load(denali.exception.address & ~4095ul, 0x300000, DENALI_READ) == 0;
}
static u64 touch(u64 page)
{
    u64 before = misses;
    (void)*(volatile u64 *)(0x40080000 + page * 0x100000);
    return misses - before;
}
int main(void)
{
    on_exception(miss);
    tlb_start();
    for (u64 page = 0; page < 4; page++) /* a whole set */
        print("%lu", touch(page));
    for (u64 page = 0; page < 4; page++)
        print("%lu", touch(page));
    print(" ");
    for (u64 i = 0; i < 3; i++)
        print("%lu", touch((u64[]){4, 1, 0}[i])); /* 4 goes over 0, then 0 over 1 */
    print(" %lx ", tlb_load(0x40080000 + 3 * 0x100000, 0x300000, DENALI_READ | DENALI_WIRED));
    tlb_flush(DENALI_ALL);
    print("%lu", touch(3)); /* wired: it stays */
    print("%lu ", touch(4));
    tlb_flush(0x40080000 + 3 * 0x100000);
    print("%lu ", touch(3));
    for (u64 page = 0; page < 5; page++)
        print("%d", tlb_load(0x40080000 + page * 0x100000, 0x300000, 1 | 8) == DENALI_REFUSED);
    print(" %d%d%d%d ", tlb_load(1, 0, 1) == ~0ul, tlb_load(0, 1, 1) == ~0ul, tlb_load(0, 0, 16) == ~0ul,
          tlb_load(0, denali.mem_bytes, 1) == ~0ul);
    tlb_enable(0);
    print("%lx\\n", *(volatile u64 *)DENALI_REGISTERS);
    return 0;
}
"""
    run = Run(build(tmp_path, source), tmp_path).finish()
    assert run.console == "11110000 101 0 01 1 00001 1111 31494c414e4544\n"


def test_power_on_registers_cpuid_and_rdtsc(tmp_path: Path) -> None:
    source = """
#include "denali.h"
int main(void)
{
    u32 a = 0, b, c, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    u32 vendor[4] = {b, d, c, 0};
    print("%s\\n", (char *)vendor);
    u64 low, high;
    u64 before = now_ns();
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    u64 tsc = high << 32 | low, after = now_ns();
    print("%d %lu\\n", before <= tsc && tsc <= after && before, denali.wall_ns - denali.time_ns);
    return 0;
}
"""
    run = Run(build(tmp_path, source), tmp_path)
    registers = run.machine.engine.registers()
    assert {name: registers[name] for name in ("rip", "rsp", "rax", "rdi", "r15", "rflags")} == {
        "rip": 0x100000,
        "rsp": MEM,
        "rax": 0,
        "rdi": 0,
        "r15": 0,
        "rflags": 2,
    }
    run.finish()
    assert run.console == f"{VENDOR.decode()}\n1 1000000000000000000\n"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("denali.exception_handler = 0; __asm__ volatile(\"ud2\");", "exception 6"),
        ("__asm__ volatile(\"int3\");", "terminated with status 1"),  # the kit panics
        ("denali.exception.active = 1; __asm__ volatile(\"ud2\");", "exception 6"),
        ("__asm__ volatile(\"hlt\");", "hlt"),
        ("terminate(77);", "terminated with status 77"),
    ],
)  # fmt: skip
def test_ends(tmp_path: Path, body: str, detail: str) -> None:
    guest = build(tmp_path, f'#include "denali.h"\nint main(void) {{ {body} return 0; }}\n')
    stop = running.run(Run(guest, tmp_path).machine)
    assert stop.reason == "power"
    assert detail in stop.detail


def test_an_idle_without_an_end(tmp_path: Path) -> None:
    guest = build(tmp_path, '#include "denali.h"\nint main(void) { idle_with_timeout(~0ul); return 0; }\n')
    assert running.run(Run(guest, tmp_path).machine).reason == "idle"


def test_a_handler_may_switch_threads(tmp_path: Path) -> None:
    """`return_from_event` works at any time, and goes where the frame says."""
    source = """
#include "denali.h"
static void there(void) { print("there %lu\\n", denali.enabled); terminate(0); }
static u64 stack[512];
int main(void)
{
    events_off();
    denali.event.rip = (u64)there;
    denali.event.rsp = (u64)(stack + 511);
    denali.event.rflags = 2;
    denali_call(DENALI_RETURN_FROM_EVENT, 0, 0, 0);
    return 1;
}
"""
    assert Run(build(tmp_path, source), tmp_path).finish().console == "there 1\n"
