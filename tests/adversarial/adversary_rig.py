"""What the adversarial tests share: guests, recordings of them, machines that can be asked again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tt.errors import BadInput
from tt.events import Event, Kind
from tt.guests import debian
from tt.guests.apt import cache_directory
from tt.vmm.build import build_machine
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.configure import configure_denali, configure_pc
from tt.vmm.disk_images import open_disks
from tt.vmm.machine import Machine
from tt.vmm.nondeterminism import Quiet

ROOT = Path(__file__).parents[2]
KIT = ROOT / "guests" / "denali"
EPOCH = 1_700_000_000
CHILD = Path(__file__).with_name("recording_child.py")

BUSY = """
#include "denali.h"

/* Works, prints, writes to the disk and idles, for ever; `seed` makes what it writes incompressible. */
static u8 page[DENALI_PAGE] __attribute__((aligned(4096)));
static volatile u64 written;

static void done(void *context, bool good)
{
    (void)context;
    written += good;
}

static bool more(void *goal)
{
    return written >= *(u64 *)goal;
}

int main(void)
{
    u64 x = 88172645463325252ul, blocks = disk_info(0);
    for (u64 round = 1;; round++) {
        for (u64 i = 0; i < DENALI_PAGE; i += 8) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            *(u64 *)(page + i) = x;
        }
        u64 goal = written + 1;
        disk_start(true, 0, round % blocks, page, done, NULL);
        wait_until(more, &goal, denali.time_ns + 500000000ul);
        print("round %lu, %lu written\\n", round, written);
        idle_with_timeout(1000000);
    }
}
"""


class Repeatable(Quiet):
    """A source whose answers depend on the question and its tick alone: a machine put back gets the same."""

    def answer(self, tick: int, kind: Kind, unit: int, live: Callable[[], bytes]) -> bytes:
        """Return as many bytes as a live answer has."""
        return random.Random(f"{tick} {kind} {unit}").randbytes(len(live()))


def build(config: MachineConfig) -> Machine:
    """Return the machine at power-on, with repeatable answers."""
    return build_machine(config, open_disks(config, check=False), Repeatable(), entropy=bytes)


def watched(machine: Machine) -> list[Event]:
    """Return a list that all events of the machine are added to."""
    events: list[Event] = []
    machine.door.subscribe(events.append)
    return events


def demo_config(demo: Path, *, disk_bytes: int | None = None, clock: str = "virtual") -> MachineConfig:
    """Return the Denali demo's machine, its blank disk of another size if `disk_bytes` says so."""
    config = configure_denali(demo, epoch=EPOCH, clock=clock)
    if disk_bytes is None:
        return config
    return MachineConfig(**{**vars(config), "disks": (DiskConfig("", disk_bytes, ""),)})


def debian_config(image: Path, *, clock: str = "virtual", mem_bytes: int = 256 << 20) -> MachineConfig:
    """Return the Debian guest's machine."""
    return configure_pc(image, epoch=EPOCH, clock=clock, mem_bytes=mem_bytes)


def debian_image() -> Path:
    """Return the Debian guest's image from tt's cache, built if need be; skip where it cannot be had."""
    try:
        folder = cache_directory() / "guest-debian"
        if not (folder / "debian.img").exists():
            debian.build(folder)
    except BadInput as e:
        pytest.skip(f"no Debian guest: {e}")
    return folder / "debian.img"


def elf_kernel(code: bytes, addr: int = 0x100000) -> bytes:
    """Return an ELF kernel for the pc machine: `code` at `addr`, entered in 64-bit mode."""
    header = bytearray(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"))
    header += (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
    for value in (addr, 64, 0):
        header += value.to_bytes(8, "little")
    header += bytes(4) + b"".join(value.to_bytes(2, "little") for value in (64, 56, 1, 0, 0, 0))
    segment = (1).to_bytes(4, "little") + (7).to_bytes(4, "little")
    for value in (4096, addr, addr, len(code), len(code), 4096):
        segment += value.to_bytes(8, "little")
    return bytes(header + segment).ljust(4096, b"\0") + code


def child(*, hash_seed: str = "0", **task: object) -> subprocess.Popen[bytes]:
    """Start a process that records as `task` says; see `recording_child.py`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    command: Sequence[str] = [sys.executable, str(CHILD), json.dumps(task, default=str)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def fill_noise(count: int, seed: object) -> bytes:
    """Return `count` bytes that look random and are the same each time."""
    return random.Random(str(seed)).randbytes(count)
