"""What blocks belong to, against what debugfs and dumpe2fs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from file_rig import FILES, MIB, join_mbr, make_ext, make_fat, need, run

from tt.chronus.files.difference import DiskIndex
from tt.chronus.files.touched import regions, touched
from tt.chronus.store.view import ImageView


@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "^flex_bg")])
def test_every_block_of_an_ext_file_system(tmp_path: Path, options: tuple[str, ...]) -> None:
    need("debugfs", "dumpe2fs")
    big = bytes(range(1, 251)) * 4000
    image = make_ext(tmp_path / "disk.img", {**FILES, "var/big": big}, *options, size="24M")
    size = int(options[1])
    view = ImageView(image)
    index = DiskIndex(view)
    found: dict[str, set[int]] = {}
    for region in regions(index, range(view.size // 4096)):
        found.setdefault(region.path or region.kind, set()).update(region.blocks)

    def in_4k(blocks: list[int]) -> set[int]:
        return {block * size // 4096 for block in blocks}

    for path in ("/etc/hosts", "/usr/bin/tool", "/var/big", "/etc", "/"):
        assert found[path] == in_4k([int(n) for n in run("debugfs", "-R", f"blocks {path}", image).split()])
    assert found["journal"] == in_4k([int(n) for n in run("debugfs", "-R", "blocks <8>", image).split()])
    layout = run("dumpe2fs", image)
    for kind, pattern in (
        ("block bitmap", r"Block bitmap at ([0-9]+)"),
        ("inode bitmap", r"Inode bitmap at ([0-9]+)"),
    ):
        there = [int(number) for number in re.findall(pattern, layout)]
        assert found[kind] >= in_4k(there)
        assert len(found[kind]) == len(in_4k(there))
    tables = [range(int(a), int(b) + 1) for a, b in re.findall(r"Inode table at ([0-9]+)-([0-9]+)", layout)]
    assert found["inode table"] == in_4k([number for table in tables for number in table])
    supers = [int(n) for n in re.findall(r"(?:Primary|Backup) superblock at ([0-9]+)", layout)]
    assert found["superblock"] >= in_4k(supers)
    free = re.findall(r"Free blocks: ([0-9, -]+)$", layout, re.MULTILINE)[1:]
    unused = {
        number
        for line in free
        for low, _, high in (part.partition("-") for part in line.split(", ") if part.strip())
        for number in range(int(low), int(high or low) + 1)
    }
    per_block = 4096 // size
    whole = {b for b in in_4k(sorted(unused)) if all(b * per_block + n in unused for n in range(per_block))}
    assert whole <= found["unused"]


def test_partitions(tmp_path: Path) -> None:
    ext = make_ext(tmp_path / "root.img", FILES, size="4M")
    fat = make_fat(tmp_path / "esp.img", {"keep": b"x"}, bits=12, size=2 * MIB)
    disk = join_mbr(tmp_path / "disk.img", [fat, ext])
    view = ImageView(disk)
    data = disk.read_bytes()
    hosts = data.find(b"one\ntwo\nthree\n") // 4096
    keep = {(r.volume, r.kind, r.path) for r in touched(view, {0, MIB // 4096, hosts})}
    assert {("", "disk", ""), ("vda1", "volume", ""), ("vda2", "file", "/etc/hosts")} <= keep
