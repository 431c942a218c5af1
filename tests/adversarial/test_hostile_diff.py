"""File systems damaged by chance or by design: `diff` and `touched` answer or refuse, in bounded time."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit" / "chronus"))

from file_rig import FILES, edited, make_ext, put

from tt.chronus.files.changes import pair_renames
from tt.chronus.files.difference import DiskIndex, diff, written_blocks
from tt.chronus.files.touched import regions
from tt.chronus.store.view import DiskView
from tt.errors import BadInput


class BytesView(DiskView):
    """A disk in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.sectors = len(data) // 512
        self.where = "a damaged disk"

    def blocks(self, first: int, count: int) -> list[bytes]:
        return [self.data[n * 4096 : n * 4096 + 4096] for n in range(first, first + count)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return a file system before and after some edits."""
    folder = tmp_path_factory.mktemp("hostile")
    old = make_ext(folder / "old.img", {**FILES, "var/big": bytes(range(256)) * 900}, size="2M")
    new = edited(old, put(folder, b"x" * 5000, "/etc/new"), "rm /etc/hosts", "mkdir /d", "rm /usr/bin/tool")
    return old.read_bytes(), new.read_bytes()


def look(one: DiskView, two: DiskView) -> None:
    """Ask everything there is to ask; only `BadInput` may come of it."""
    try:
        blocks = written_blocks(one, two)
        index = DiskIndex(one)
        changes = pair_renames(index.move(two, blocks))
        regions(index, blocks)
        for change in changes[:50]:
            change.unified()
            change.describe()
            change.counts()
        back = index.move(one, blocks)
        assert len(back) < 10_000
    except BadInput as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes(images: tuple[bytes, bytes], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(4):
        damaged = []
        for image in images:
            data = bytearray(image)
            used = [at for at in range(1024, len(data), 512) if any(data[at : at + 512])]
            for _ in range(chance.choice([1, 5, 60])):
                data[chance.choice(used) + chance.randrange(512)] = chance.choice(
                    [0, 255, chance.randrange(256)]
                )
            damaged.append(bytes(data))
        look(BytesView(damaged[0]), BytesView(damaged[1]))
        look(BytesView(images[0]), BytesView(damaged[1]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 108))
def test_many_flipped_bytes(images: tuple[bytes, bytes], seed: int) -> None:
    for number in range(10):
        test_flipped_bytes(images, seed * 1000 + number)


def inode_at(data: bytes, number: int) -> int:
    """Return where an inode of the first group is, in an image of 1 KB blocks."""
    (table,) = struct.unpack_from("<I", data, 2048 + 8)
    (size,) = struct.unpack_from("<H", data, 1024 + 88)
    return int(table * 1024 + (number - 1) * size)


def entry_at(data: bytes, name: bytes, kind: int = 2) -> int:
    """Return where a directory's entry of a name is."""
    at = data.find(bytes([len(name), kind]) + name)
    assert at > 0
    return at - 6


def test_a_directory_inside_itself(images: tuple[bytes, bytes]) -> None:
    data = bytearray(images[0])
    entry = entry_at(data, b"share")  # /usr/share leads to /usr, whose inode its own entry `..`'s is
    usr = entry_at(data, b"usr")
    data[entry : entry + 4] = data[usr : usr + 4]
    look(BytesView(images[0]), BytesView(bytes(data)))
    look(BytesView(bytes(data)), BytesView(images[1]))


def test_files_that_claim_the_whole_disk(images: tuple[bytes, bytes]) -> None:
    data = bytearray(images[0])
    (count,) = struct.unpack_from("<I", data, 1024)
    for number in range(12, count + 1):
        at = inode_at(data, number)
        extents = struct.pack("<HHHHI", 0xF30A, 4, 4, 0, 0)
        for n in range(4):
            extents += struct.pack("<IHHI", n * 32000, 32000, 0, n)
        data[at : at + 100] = (
            struct.pack("<HHIIIIIHHIII", 0o100644, 0, 1 << 30, 0, 0, 0, 0, 0, 1, 8, 0x80000, 0) + extents
        )
    look(BytesView(images[0]), BytesView(bytes(data)))
    look(BytesView(bytes(data)), BytesView(images[0]))


def test_names_that_are_paths_or_escapes(images: tuple[bytes, bytes]) -> None:
    data = bytearray(images[1])
    at = entry_at(data, b"fstab", 1)
    data[at + 8 : at + 13] = b"../x\n"
    changes = diff(BytesView(images[0]), BytesView(bytes(data)))
    assert not any(".." in change.path for change in changes)
    assert "/etc/fstab" in {change.path for change in changes if change.kind == "removed"}
    data[at + 8 : at + 13] = b"\x1b[2J\n"
    changes = diff(BytesView(images[0]), BytesView(bytes(data)))
    assert "/etc/\x1b[2J\n" in {change.path for change in changes}


def test_a_superblock_that_lies(images: tuple[bytes, bytes]) -> None:
    for offset, value in (
        (0, 0xFFFFFFFF),
        (4, 0xFFFFFFFF),
        (24, 6),
        (32, 1),
        (40, 1),
        (0x60, 0x80),
        (0xE0, 12),
    ):
        data = bytearray(images[1])
        struct.pack_into("<I", data, 1024 + offset, value)
        look(BytesView(images[0]), BytesView(bytes(data)))
        look(BytesView(bytes(data)), BytesView(images[0]))
