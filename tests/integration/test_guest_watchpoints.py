"""Data breakpoints that a guest sets for itself: a small kernel under a timeline, and ptrace in Linux."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from travel_rig import backward, forward

from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.stops import Catchpoint, Watchpoint
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource, seeded_entropy

# Watches `cell` for itself with DR2; #DB prints a mark.  Another cell is stored to as well.
KERNEL = """
    .intel_syntax noprefix
    .code32
    .text
    .long 0x1BADB002, 0, -0x1BADB002
    .globl _start
_start:
    mov eax, offset debug
    mov word ptr [idt + 8], ax
    mov word ptr [idt + 10], 0x10
    mov word ptr [idt + 12], 0x8e00
    shr eax, 16
    mov word ptr [idt + 14], ax
    lidt [idtr]
    mov eax, offset cell
    mov dr2, eax
    mov eax, 0x0d000020
    mov dr7, eax
    mov ecx, 6
1:  inc dword ptr [cell]
    mov [other], ecx
    mov eax, [cell]
    loop 1b
    cli
    hlt
debug:
    push eax
    push edx
    mov eax, dr6
    and al, 15
    add al, 48
    mov dx, 0x3f8
    out dx, al
    xor eax, eax
    mov dr6, eax
    pop edx
    pop eax
    iretd
    .data
idtr: .word 15
      .long idt
    .bss
    .balign 8
    .globl cell, other
idt:  .space 16
cell: .space 4
other: .space 4
"""

PROGRAM = r"""
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
volatile long cell, other;
#define DR(n) offsetof(struct user, u_debugreg[n])
int main(void)
{
    int status, pid = fork();
    if (!pid) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (int i = 1; i <= 3; i++) {
            other = i;
            cell = 10 * i;
            for (volatile long j = 0; j < 30000; j++);
        }
        _exit(7);
    }
    waitpid(pid, &status, 0);
    ptrace(PTRACE_POKEUSER, pid, DR(1), &cell);
    ptrace(PTRACE_POKEUSER, pid, DR(7), 1 << 2 | 0xdL << 20);
    ptrace(PTRACE_CONT, pid, 0, 0);
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
        long dr6 = ptrace(PTRACE_PEEKUSER, pid, DR(6), 0), now = ptrace(PTRACE_PEEKDATA, pid, &cell, 0);
        printf("signal %d, dr6 %lx, cell %ld\n", WSTOPSIG(status), dr6 & 15, now);
        ptrace(PTRACE_CONT, pid, 0, 0);
    }
    printf("child ended with %d\n", WEXITSTATUS(status));
}
"""


def test_under_a_timeline(tmp_path: Path) -> None:
    """Stops on the same bytes and on others, both ways; seeks; the guest's own #DB caught."""
    for command, text in (
        (["as", "--32", "-o", "k.o", "-"], KERNEL),
        (["ld", "-m", "elf_i386", "-Ttext=0x100000", "-z", "noseparate-code", "-o", "k.elf", "k.o"], ""),
    ):
        subprocess.run(command, input=text, text=True, check=True, cwd=tmp_path)
    symbols = subprocess.run(["nm", "k.elf"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    at = {line.split()[2]: int(line.split()[0], 16) for line in symbols.splitlines()}
    printed = bytearray()
    record(
        configure(tmp_path / "k.elf", mem_bytes=4 << 20, epoch=1),
        tmp_path / "k.tt",
        on_event=lambda event: printed.extend(event.data if event.kind.name == "CONSOLE" else b""),
    )
    assert printed == b"4" * 6
    with Trace.open(tmp_path / "k.tt") as trace:
        assert verify(trace).good
        timeline = Timeline(trace)
        digests = {}
        for tick in range(trace.end_tick):
            timeline.seek(tick)
            digests[tick] = timeline.digest()
        for point, hits in (
            (Watchpoint(at["cell"], 4), 6),
            (Watchpoint(at["other"], 4), 6),
            (Catchpoint("exception", number_wanted=1), 6),
        ):
            timeline.stops.clear()
            timeline.stops.add(point)
            there = forward(timeline, 0, trace.end_tick - 1)
            assert len(there) == hits
            assert backward(timeline, 0, trace.end_tick - 1) == there
        timeline.stops.clear()
        for tick in (trace.end_tick - 1, 30, 80, 31, 20):
            timeline.seek(tick)
            assert timeline.digest() == digests[tick]


@pytest.mark.slow
def test_by_a_program_under_linux(debian_image: Path, tmp_path: Path) -> None:
    """ptrace sets DR1 for another process, which is what gdb and perf do; only its stores stop it."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "p.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-O1", "-o", "p", "p.c"], check=True, cwd=tmp_path)
    program = (tmp_path / "p").read_bytes()
    (tmp_path / "p.img").write_bytes(program + bytes(-len(program) % 4096))
    printed = bytearray()
    record(
        configure(debian_image, disks=[tmp_path / "p.img"], epoch=1_700_000_000),
        tmp_path / "p.tt",
        LiveSource(script=[b"dd if=/dev/vdb of=/tmp/p bs=4096; chmod +x /tmp/p; /tmp/p\n", b"poweroff -f\n"]),
        entropy=seeded_entropy(1),
        on_event=lambda event: printed.extend(event.data if event.kind.name == "CONSOLE" else b""),
        max_ticks=6_000_000_000,
    )
    said = [
        line
        for line in printed.decode().replace("\r", "").splitlines()
        if line.startswith("signal") or "child" in line
    ]
    assert said == [*(f"signal 5, dr6 2, cell {10 * i}" for i in (1, 2, 3)), "child ended with 7"]
    with Trace.open(tmp_path / "p.tt") as trace:
        assert verify(trace).good
