"""Disks with random partition tables, damaged ones among them, and what other tools read there."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
from pathlib import Path

from boot_disks import MIB, place_gpt

from tt.vmm.boot.partitions import read_table

SIZE = 8 * MIB
LAST = SIZE // 512 - 1
EXTENDED = (0x05, 0x0F, 0x85)

Found = list[tuple[int, int, int]]
"""`(number, first sector, sectors)`."""


def ours(disk: bytes) -> Found:
    """Return what tt reads."""
    table = read_table(io.BytesIO(disk), len(disk))
    return sorted((number, offset // 512, size // 512) for number, offset, size in table.parts)


def by_sfdisk(path: Path) -> Found:
    """Return what sfdisk lists; an extended partition, which holds nothing itself, is left out."""
    command = ["/usr/sbin/sfdisk", "-J", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    start = done.stdout.find("{")  # before it are remarks
    if done.returncode or start < 0:
        return []
    table = json.loads(done.stdout[start:])["partitiontable"]
    return sorted(
        (int(each["node"].removeprefix(str(path))), each["start"], each["size"])
        for each in table.get("partitions", [])
        if table["label"] == "gpt" or int(each["type"], 16) not in EXTENDED
    )


def as_linux(found: Found) -> Found:
    """Leave out and cut what Linux does, of what a table says: the empty, and what is past the end."""
    return [(n, start, min(count, LAST + 1 - start)) for n, start, count in found if start <= LAST and count]


def put(disk: bytearray, at: int, kind: int, start: int, count: int, boot: int = 0) -> None:
    """Write an entry of a DOS table at byte `at`."""
    struct.pack_into("<B3sB3sII", disk, at, boot, b"\0\2\0", kind, b"\xff" * 3, start, count)


def random_dos(seed: int, *, wild: bool = False) -> bytearray:
    """Return a disk with a DOS table: partitions that overlap, are empty or end outside, and chains.

    With `wild`, chains go round, lack signatures, and use all four entries of a record.
    """
    rnd = random.Random(seed)
    disk = bytearray(SIZE)
    disk[510:512] = b"\x55\xaa"
    kinds = [0x83, 0x82, 7, 0xC, 0xEF, 0x8E, 5, 0xF, 0x85, 0x83, 0x83, 0xA5, 0]
    for i in range(4):
        if rnd.random() < 0.35:
            continue
        kind = rnd.choice(kinds)
        start = rnd.choice([rnd.randrange(1, LAST), 2048, 4096, LAST + 1 + rnd.randrange(100)])
        count = rnd.choice([rnd.randrange(1, 4096), 2048, 0, LAST])
        boot = rnd.randrange(256) if rnd.random() < 0.03 else rnd.choice([0, 0, 0x80])
        put(disk, 446 + 16 * i, kind, start, count, boot)
        if kind in EXTENDED and count and start < LAST - 10:
            _chain(rnd, disk, start, min(count, LAST - start), wild)
    return disk


def _chain(rnd: random.Random, disk: bytearray, base: int, room: int, wild: bool) -> None:
    at = base
    for _ in range(rnd.randrange(5)):
        record = at * 512
        if not wild or rnd.random() < 0.95:
            disk[record + 510 : record + 512] = b"\x55\xaa"
        slots = rnd.sample(range(4), 2) if wild and rnd.random() < 0.2 else [0, 1]
        if not wild or rnd.random() < 0.9:
            kind = rnd.choice([0x83, 0x82, 0x83, 0]) if wild else 0x83
            put(disk, record + 446 + 16 * slots[0], kind, rnd.randrange(1, 500), rnd.randrange(1, 900))
        left = room - (at - base)
        if rnd.random() < 0.2 or (left < 2 and not wild):
            return
        link = rnd.randrange(room) if wild else at - base + rnd.randrange(1, left)
        put(disk, record + 446 + 16 * slots[1], rnd.choice(EXTENDED), link, rnd.randrange(1, 2000))
        at = base + link
    if not wild:
        put(disk, at * 512 + 446 + 16, 0, 0, 0)
        disk[at * 512 + 510 : at * 512 + 512] = b"\x55\xaa"


def random_gpt(seed: int) -> bytearray:
    """Return a disk with a GUID table of any length, hybrid ones among them, and up to three bits damaged."""
    rnd = random.Random(seed)
    disk = bytearray(SIZE)
    disk[510:512] = b"\x55\xaa"
    slot = rnd.randrange(4) if rnd.random() < 0.2 else 0
    put(disk, 446 + 16 * slot, 0xEE, 1, rnd.choice([LAST, 0xFFFFFFFF, 5]))
    if rnd.random() < 0.2:
        put(disk, 446 + 16 * ((slot + 1) % 4), 0x83, 2048, 4096, 0x80)
    count = rnd.choice([128, 128, 128, 4, 92, 200])
    table = bytearray(128 * count)
    for _ in range(rnd.randrange(8)):
        first = rnd.randrange(64, LAST - 60)
        last = min(first + rnd.randrange(4000), LAST - 60)
        names = rnd.randbytes(16), rnd.randbytes(16)
        struct.pack_into("<16s16sQQ", table, 128 * rnd.randrange(count), *names, first, last)
    backup = LAST - -(-len(table) // 512)
    for at in (2, backup):
        disk[at * 512 : at * 512 + len(table)] = table
    place_gpt(disk, 1, 2, count=count)
    place_gpt(disk, LAST, backup, count=count)
    places = [(446, 510), (512, 604), (1024, 1536)]
    places += [(LAST * 512, LAST * 512 + 92), (backup * 512, backup * 512 + 512)]
    for _ in range(rnd.choice([0, 1, 1, 2, 3])):
        disk[rnd.randrange(*rnd.choice(places))] ^= 1 << rnd.randrange(8)
    return disk
