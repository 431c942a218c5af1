"""Disk images made with the usual tools; a test that needs a missing tool is skipped with a reason."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

MIB = 1 << 20


def need(*tools: str) -> None:
    """Skip the running test when one of `tools` is not installed."""
    for tool in tools:
        if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists():
            pytest.skip(f"{tool} is not installed")


def run(*command: str | Path, text: str | None = None) -> str:
    """Run a tool and return what it printed."""
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(part) for part in command],
        input=text,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def write_tree(directory: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write `files`: bytes are contents, a string is a link's target, a name ending in / a folder."""
    for name, contents in files.items():
        path = directory / name.strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif isinstance(contents, str):
            path.symlink_to(contents)
        else:
            path.write_bytes(contents)
    return directory


def make_ext(
    path: Path, files: Mapping[str, bytes | str], *options: str, size: str = "24M", kind: str = "ext4"
) -> Path:
    """Make an ext2/3/4 image that holds `files`; `options` are mke2fs's."""
    need("mke2fs")
    tree = write_tree(path.with_name(path.name + ".tree"), files)
    tree.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-F", "-t", kind, "-d", tree, *options, path, size)
    return path


def make_fat(path: Path, files: dict[str, bytes], *, bits: int = 16, size: int = 24 * MIB) -> Path:
    """Make a FAT image that holds `files`."""
    need("mkfs.vfat", "mcopy", "mmd")
    path.unlink(missing_ok=True)
    with path.open("wb") as f:
        f.truncate(size)
    run("mkfs.vfat", "-F", str(bits), path)
    made = set()
    for name, contents in files.items():
        for parent in [*reversed(Path("/" + name.strip("/")).parents)][1:]:
            if parent not in made:
                made.add(parent)
                run("mmd", "-i", path, f"::{parent}")
        source = path.with_name("copied")
        source.write_bytes(contents)
        run("mcopy", "-i", path, source, f"::/{name.strip('/')}")
    return path


def join_mbr(path: Path, parts: list[Path], *, logical: int = 0) -> Path:
    """Make a disk with a DOS partition table around images, the last `logical` of them logical partitions."""
    primaries, rest = parts[: len(parts) - logical], parts[len(parts) - logical :]
    disk = bytearray(MIB)
    disk[510:512] = b"\x55\xaa"
    for i, part in enumerate(primaries):
        entry = (0x83, len(disk) // 512, part.stat().st_size // 512)
        struct.pack_into("<4xB3xII", disk, 446 + 16 * i, *entry)
        disk += part.read_bytes()
    base = len(disk) // 512
    if rest:
        total = sum(p.stat().st_size // 512 + 1 for p in rest)
        struct.pack_into("<4xB3xII", disk, 446 + 16 * len(primaries), 0x05, base, total)
    for i, part in enumerate(rest):
        record = bytearray(512)
        record[510:512] = b"\x55\xaa"
        sectors = part.stat().st_size // 512
        struct.pack_into("<4xB3xII", record, 446, 0x83, 1, sectors)
        if i + 1 < len(rest):
            following = len(disk) // 512 - base + 1 + sectors
            struct.pack_into("<4xB3xII", record, 462, 0x05, following, 1)
        disk += record + part.read_bytes()
    path.write_bytes(disk)
    return path


def join_gpt(path: Path, parts: list[Path], *, sector: int = 512, backup_only: bool = False) -> Path:
    """Make a disk with a GUID partition table around images."""
    disk = bytearray(MIB)
    disk[510:512] = b"\x55\xaa"
    struct.pack_into("<4xB3xII", disk, 446, 0xEE, 1, 0xFFFFFFFF)
    table = bytearray(128 * 128)
    for i, part in enumerate(parts):
        first = len(disk) // sector
        disk += part.read_bytes()
        kind = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
        struct.pack_into("<16s16sQQ", table, 128 * i, kind, kind, first, len(disk) // sector - 1)
    disk += bytes(MIB)
    disk[len(disk) - sector - len(table) : len(disk) - sector] = table
    disk[2 * sector : 2 * sector + len(table)] = table
    last = len(disk) // sector - 1
    place_gpt(disk, last, last - len(table) // sector, sector)
    if not backup_only:
        place_gpt(disk, 1, 2, sector)
    path.write_bytes(disk)
    return path


def place_gpt(disk: bytearray, own: int, entries: int, sector: int = 512, count: int = 128) -> None:
    """Write a GUID table's header at sector `own`, with right checksums, for `count` entries at `entries`."""
    last = len(disk) // sector - 1
    other = 1 if own == last else last
    usable = 34, last - 34
    crc = zlib.crc32(disk[entries * sector : entries * sector + 128 * count])
    header = bytearray(
        struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, own, other, *usable, bytes(16), entries, count, 128, crc),
        )
    )
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    disk[own * sector : own * sector + 92] = header
