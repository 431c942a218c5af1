"""Partition tables; sfdisk(8) is the judge over generated and damaged disks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_disks import MIB, join_gpt, join_mbr, make_ext, make_fat, need, run
from table_makers import as_linux, by_sfdisk, ours, put, random_dos, random_gpt

from tt.errors import BadInput
from tt.vmm.boot.bootconfig import find_boot_entry
from tt.vmm.boot.images import DiskImage, open_image
from tt.vmm.boot.partitions import read_table

SIGNATURES = {
    "ext": (1080, b"\x53\xef"),
    "swap": (4086, b"SWAPSPACE2"),
    "lvm": (512, b"LABELONE"),
    "iso": (32769, b"CD001"),
    "xfs": (0, b"XFSB"),
}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ext(tmp_path_factory.mktemp("part") / "p", {"name": b"new"}, kind="ext2", size="1M")


@pytest.mark.parametrize("signature", SIGNATURES)
def test_partitions_win_over_what_the_disk_was_before(tmp_path: Path, part: Path, signature: str) -> None:
    disk = bytearray(join_mbr(tmp_path / "disk", [part]).read_bytes())
    at, magic = SIGNATURES[signature]
    disk[at : at + len(magic)] = magic
    image = DiskImage(io.BytesIO(disk), len(disk), "disk")
    assert [(v.name, v.type) for v in image.volumes] == [("vda1", "ext")]
    disk[446:510] = bytes(64)
    image = DiskImage(io.BytesIO(disk), len(disk), "disk")
    assert [v.name for v in image.volumes] == ["vda"]


def test_a_boot_sector_of_fat_with_a_table(tmp_path: Path, part: Path) -> None:
    fat = make_fat(tmp_path / "fat", {"name": b"old"}, bits=12, size=4 * MIB)
    disk = bytearray(fat.read_bytes())
    disk[MIB : 2 * MIB] = part.read_bytes()

    def volumes() -> list[str]:
        return [volume.name for volume in DiskImage(io.BytesIO(disk), len(disk), "disk").volumes]

    assert volumes() == ["vda"]
    put(disk, 446, 0x83, 2048, 2048)
    assert volumes() == ["vda1"]
    put(disk, 462, 0x83, 3000, 2048)  # overlaps: it is code that looks like a table
    assert volumes() == ["vda"]
    disk[0] = 0  # no boot sector of FAT: Linux takes such a table
    assert volumes() == ["vda1", "vda2"]
    disk[446] = 1  # no table either
    assert volumes() == []


def test_the_backup_counts_where_the_first_copy_is_damaged(tmp_path: Path, part: Path) -> None:
    disk = bytearray(join_gpt(tmp_path / "disk", [part]).read_bytes())
    whole = ours(disk)
    assert whole == [(1, 2048, 2048)]
    for at in (512 + 40, 1024 + 3, 1024 + 127 * 128):
        broken = bytearray(disk)
        broken[at] ^= 0x10
        assert ours(broken) == whole
        broken[len(disk) - 512 + 24] ^= 1
        table = read_table(io.BytesIO(broken), len(broken))
        assert table.parts == ()
        assert table.problem.startswith("its GUID partition table is damaged: neither copy, at sector 1 and")
        with pytest.raises(BadInput, match="GUID partition table is damaged"):
            find_boot_entry(DiskImage(io.BytesIO(broken), len(broken), "disk"))


def test_protective_records(tmp_path: Path, part: Path) -> None:
    disk = bytearray(join_gpt(tmp_path / "disk", [part]).read_bytes())
    put(disk, 446 + 16, 0x83, 64, 64)  # hybrid: the GUID table counts all the same
    assert ours(disk) == [(1, 2048, 2048)]
    put(disk, 446, 0xEE, 2, 2000)  # Linux wants it to begin at sector 1
    assert ours(disk) == []
    put(disk, 446, 0, 0, 0)  # no protective entry: the GUID table is from an older use
    assert ours(disk) == [(2, 64, 64)]


def test_first_sectors_of_isohybrids(tmp_path: Path) -> None:
    disk = bytearray(MIB)
    disk[510:512], disk[32769:32774] = b"\x55\xaa", b"CD001"
    put(disk, 446, 0x00, 0, 2048, 0x80)  # type 0, from sector 0, as xorriso writes it
    put(disk, 462, 0xEF, 600, 100)
    image = DiskImage(io.BytesIO(disk), len(disk), "disk")
    assert [(v.name, v.offset, v.type) for v in image.volumes] == [
        ("vda1", 0, "iso9660"),
        ("vda2", 600 * 512, ""),
    ]


def test_tables_of_mkfs_are_none(tmp_path: Path) -> None:
    need("mkfs.vfat", "mke2fs")
    for bits in (12, 16, 32):
        fat = make_fat(
            tmp_path / f"fat{bits}", {"a": b"x"}, bits=bits, size={12: 6, 16: 24, 32: 40}[bits] * MIB
        )
        assert [(v.name, v.type) for v in open_image(fat).volumes] == [("vda", "fat")]


Maker = Callable[[int], bytearray]


def disagreements(folder: Path, make: Maker, seeds: range) -> list[tuple[object, ...]]:
    """Compare with sfdisk; where sfdisk shows what Linux would not read, tt must see nothing."""
    path = folder / "disk"
    found: list[tuple[object, ...]] = []
    for seed in seeds:
        disk = make(seed)
        path.write_bytes(disk)
        mine, theirs = ours(disk), as_linux(by_sfdisk(path))
        boots = [disk[446 + 16 * i] for i in range(4)]
        kinds = [disk[450 + 16 * i] for i in range(4)]
        starts = [int.from_bytes(disk[454 + 16 * i : 458 + 16 * i], "little") for i in range(4)]
        if 0xEE in kinds:
            # sfdisk also takes protective entries that begin elsewhere, entries that end past the
            # disk, and shows a protective record alone as a DOS table.
            if (0xEE, 1) not in zip(kinds, starts, strict=True) or 1 in [each[1] for each in theirs]:
                theirs = []
        elif any(boot not in (0, 0x80) for boot in boots):
            theirs = []  # sfdisk takes any flag
        elif sum(kind in (0x05, 0x0F, 0x85) for kind in kinds) > 1:
            theirs = [each for each in theirs if each[0] < 5]  # sfdisk follows one chain, Linux all
            mine = [each for each in mine if each[0] < 5]
        if mine != theirs:
            found.append((seed, mine, theirs))
    return found


@pytest.mark.parametrize("make", [random_dos, random_gpt])
def test_as_sfdisk_reads_them(tmp_path: Path, make: Maker) -> None:
    need("sfdisk")
    assert disagreements(tmp_path, make, range(15)) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_dos, random_gpt])
def test_many_as_sfdisk_reads_them(tmp_path: Path, make: Maker) -> None:
    need("sfdisk")
    assert disagreements(tmp_path, make, range(1000, 1500)) == []


def test_disks_of_4096_byte_sectors_as_sfdisk_writes_them(tmp_path: Path) -> None:
    need("sfdisk")
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    run("sfdisk", "-q", path, text="label: gpt\nsector-size: 4096\nstart=256, size=512\n")
    assert ours(path.read_bytes()) == [(1, 2048, 4096)]
    disk = bytearray(path.read_bytes())
    disk[4096:8192] = bytes(4096)
    assert ours(disk) == [(1, 2048, 4096)]
