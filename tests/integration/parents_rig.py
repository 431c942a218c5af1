"""Guests with disks and consoles, and parents between them and the world; recorded, then replayed without."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tt.log import Trace
from tt.recording import record
from tt.replay import Replay, verify
from tt.vmm.config import MachineConfig
from tt.vmm.denali.guest_build import build_guest
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine

KIT = Path(__file__).parents[2] / "guests" / "denali"

PC_GUEST = r"""
/* Writes and reads sectors by a legacy virtio disk, prints what it read and what was typed, ends. */
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned u32; typedef unsigned long u64;
static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outw(u16 p, u16 v) { __asm__ volatile("outw %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outl(u16 p, u32 v) { __asm__ volatile("outl %0, %1" :: "a"(v), "Nd"(p)); }
static inline u8 inb(u16 p) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline u32 inl(u16 p) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static void guest(void);
__attribute__((section(".start"))) void _start(void)
{
    __asm__ volatile("mov $0x300000, %rsp");
    guest();
    outb(0x64, 0xfe);
    for (;;) ;
}
static void print(const char *s) { while (*s) outb(0x3f8, *s++); }
struct desc { u64 addr; u32 len; u16 flags, next; };
#define QUEUE 0x400000ul
static struct desc *const table = (void *)QUEUE;
static volatile u16 *const avail = (void *)(QUEUE + 4096);
static volatile u16 *const used = (void *)(QUEUE + 8192);
static u8 *const data = (void *)0x500000;
static u32 *const header = (void *)0x510000;
static volatile u8 *const status = (void *)0x520000;
static u16 bar, added;
static void request(u32 type, u64 lba, u32 size)
{
    header[0] = type, header[1] = 0, *(u64 *)(header + 2) = lba;
    *status = 0xff;
    table[0] = (struct desc){(u64)header, 16, 1, 1};
    table[1] = (struct desc){(u64)data, size, type == 0 ? 3 : 1, 2};
    table[2] = (struct desc){(u64)status, 1, 2, 0};
    avail[2 + added % 256] = 0;
    avail[1] = ++added;
    outw(bar + 0x10, 0);
    while (used[1] != added) ;
    print(*status == 0 ? "ok " : "failed ");
}
static void guest(void)
{
    outb(0x3fb, 3);
    outl(0xcf8, 0x80000810);
    bar = inl(0xcfc) & 0xfffc;
    outl(bar + 4, 0), outw(bar + 0x0e, 0), outl(bar + 8, QUEUE >> 12);
    outb(bar + 0x12, 7);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 1024; i++)
            data[i] = 'a' + round;
        request(1, 2 * round, 1024);
        for (int i = 0; i < 1024; i++)
            data[i] = '?';
        request(0, 2 * round, 1024);
        outb(0x3f8, data[0]), outb(0x3f8, data[1023]);
        request(4, 0, 0);
        print("\n");
    }
    print("> ");
    for (;;) {
        u8 c = inb(0x3fd);
        if (!(c & 1))
            continue;
        c = inb(0x3f8);
        outb(0x3f8, c);
        if (c == '\r' || c == '\n')
            break;
    }
    print("end\n");
}
"""
DENALI_GUEST = r"""
#include "denali.h"

/* Writes and reads blocks, prints what it read and what was typed, ends. */
static u8 page[DENALI_PAGE] __attribute__((aligned(4096)));
static volatile u64 finished, bad;

static void done(void *context, bool good)
{
    (void)context;
    finished++;
    bad += !good;
}

static bool reached(void *goal) { return finished >= *(u64 *)goal; }

static void request(bool write, u64 block)
{
    u64 goal = finished + 1, before = bad;
    disk_start(write, 0, block, page, done, NULL);
    wait_until(reached, &goal, DENALI_FOREVER >> 2);
    print(bad == before ? "ok " : "failed ");
}

int main(void)
{
    print("%lu blocks\n", disk_info(0));
    for (u64 round = 0; round < 3; round++) {
        memset(page, 'a' + (int)round, DENALI_PAGE);
        request(true, round);
        memset(page, '?', DENALI_PAGE);
        request(false, round);
        print("%c%c\n", page[0], page[DENALI_PAGE - 1]);
    }
    u64 goal = finished + 2; /* two at once: the second must not overtake the first */
    memset(page, 'z', DENALI_PAGE);
    disk_start(true, 0, 3, page, done, NULL);
    disk_start(false, 0, 3, page, done, NULL);
    while (finished < goal) /* computing: hand-overs come at the ends of quanta */
        ;
    denali.timer_ns = denali.time_ns + 1000000;
    idle_with_timeout(DENALI_FOREVER);
    print("%c, timer at %lu us\n> ", page[0], denali.time_ns / 1000);
    char c = 0;
    while (c != '\r' && c != '\n') {
        while (!console_read(&c, 1))
            idle_with_timeout(DENALI_FOREVER);
        print("%c", c);
    }
    print("end\n");
    return 0;
}
"""
_LINK = """
SECTIONS { . = 0x100000; .text : { *(.start) *(.text*) *(.rodata*) *(.data*) *(.bss*) *(COMMON) }
 /DISCARD/ : { *(.eh_frame*) *(.comment) *(.note*) } }
"""


def pc_guest(folder: Path) -> Path:
    """Compile the pc guest; return its ELF file."""
    (folder / "guest.c").write_text(PC_GUEST)
    (folder / "guest.ld").write_text(_LINK)
    flags = "-O1 -ffreestanding -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector"
    command = ["gcc", *flags.split(), "-c", "guest.c", "-o", "guest.o"]
    subprocess.run(command, cwd=folder, check=True)
    link = ["ld", "-T", "guest.ld", "-e", "_start", "-z", "max-page-size=4096", "guest.o", "-o", "guest.elf"]
    subprocess.run(link, cwd=folder, check=True)
    return folder / "guest.elf"


def denali_guest(folder: Path) -> Path:
    """Compile the Denali guest; return its ELF file."""
    (folder / "guest.c").write_text(DENALI_GUEST)
    build_guest([folder / "guest.c"], folder / "guest.elf", kit=KIT)
    return folder / "guest.elf"


def record_with(
    config: MachineConfig,
    path: Path,
    on_start: Callable[[Machine], None],
    *,
    typed: bytes = b"",
    max_ticks: int = 60_000_000,
) -> str:
    """Record a machine with parents; return what it printed."""
    source = LiveSource()
    if typed:
        source.type(typed)
    record(config, path, source, on_start=on_start, max_ticks=max_ticks, checkpoint_ticks=1_000_000)
    with Trace.open(path) as trace:
        return "".join(text + "\n" for _tick, _unit, text in trace.console_lines())


def replays(path: Path) -> Machine:
    """Check that a recording replays, its checkpoints too; return the machine at the end."""
    with Trace.open(path) as trace:
        assert trace.verify_structure() == []
        verdict = verify(trace)
        assert verdict.good, (verdict.message, verdict.detail)
        replay = Replay(trace)
        replay.finish()
        return replay.machine
