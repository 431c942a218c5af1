"""A value followed back through a 32-bit kernel in the upper half: absolute operands have bit 31 set."""

from __future__ import annotations

import struct
import subprocess

import pytest

from tt.log import Trace
from tt.recording import record
from tt.travel import Timeline
from tt.travel.sources import Origin
from tt.travel.writes import Write
from tt.vmm.configure import configure

KERNEL = """
        .set AT, 0x100000
        .org 0
header: .long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)
        .long AT, AT, 0, 0, AT + start - header
start:  mov $0x200000, %ecx
        movl $0x83, (%ecx)
        movl $0x83, 0xc00(%ecx)
        mov %ecx, %cr3
        mov %cr4, %eax
        or $0x10, %eax
        mov %eax, %cr4
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        mov $(0xc0000000 + AT + high - header), %eax
        jmp *%eax
high:   mov $0xc0300000, %esp
        movl $0x1234, 0xc0180000
        movl 0xc0180000, %eax
        movl %eax, 0xc0180004
        movl $0x7fffffff, %ebx
        movl 0x40180005(%ebx), %edx
        push %edx
        popl 0xc0180008
1:      cli
        hlt
        jmp 1b
"""


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    folder = tmp_path_factory.mktemp("upper")
    built = folder / "k.o"
    subprocess.run(["as", "--32", "-o", built, "-"], input=KERNEL, text=True, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, folder / "k.elf"], check=True)
    record(configure(folder / "k.elf", epoch=1_700_000_000), folder / "k.tt")
    return Timeline(Trace.open(folder / "k.tt"))


def test_a_value_is_followed_to_where_it_was_born(timeline: Timeline) -> None:
    timeline.seek(timeline.end_tick)
    written = timeline.last_write(0xC0180008, 4)
    assert written is not None
    assert struct.unpack("<I", written.new) == (0x1234,)
    found: Write | Origin | None = written
    chain = []
    while found is not None:
        source = timeline.source_of(found) if isinstance(found, Write) else found
        chain.append((source.text, source.inputs[0].addr))
        found = timeline.origin_of(source)
    assert [addr for _text, addr in chain] == [0xC02FFFFC, 0, 0xC0180004, 0, 0xC0180000, 0]
    assert chain[2][0] == "mov edx, dword ptr [ebx + 0x40180005]"
    assert chain[-1][0] == "mov dword ptr [0xc0180000], 0x1234"
