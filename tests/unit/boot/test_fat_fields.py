"""Fields of FAT's boot sector: what Linux does not take is damage, what changes the reading is refused."""

from __future__ import annotations

import io

import pytest
from boot_disks import MIB, make_fat

from tt.errors import BadInput
from tt.vmm.boot.fat import FatFileSystem, check_fields

SIZES = {12: 4 * MIB, 16: 24 * MIB, 32: 40 * MIB}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("fat")
    return {
        bits: make_fat(folder / str(bits), {"a": b"x"}, bits=bits, size=size).read_bytes()
        for bits, size in SIZES.items()
    }


@pytest.mark.parametrize("bits", SIZES)
def test_what_mkfs_makes_is_read(disks: dict[int, bytes], bits: int) -> None:
    check_fields(disks[bits][:512])
    files = FatFileSystem(io.BytesIO(disks[bits]), "disk")
    assert (files.kind, files.read("/a")) == (f"fat{bits}", b"x")


@pytest.mark.parametrize(
    ("bits", "at", "value", "message"),
    [
        (16, 11, b"\x01\x02", "sectors of 513 bytes"),
        (16, 13, b"\x03", "clusters of 3 sectors"),
        (16, 14, b"\0\0", "no room for a boot sector"),
        (16, 16, b"\0", "no file allocation table"),
        (16, 17, b"\x01\x02", "root directory of 513 entries"),
        (16, 19, b"\x10\0", "fewer sectors than its tables need"),
        (16, 21, b"\x12", "medium 0x12"),
        (32, 36, bytes(4), "table of no length"),
        (32, 40, b"\x81\0", "only copy 1 of its file allocation table"),
        (32, 42, b"\x01\x01", "version 1.1 of FAT32, which tt does not know"),
    ],
)
def test_fields(disks: dict[int, bytes], bits: int, at: int, value: bytes, message: str) -> None:
    disk = bytearray(disks[bits])
    disk[at : at + len(value)] = value
    with pytest.raises(BadInput, match=f"FAT file system on disk is damaged: .*{message}"):
        FatFileSystem(io.BytesIO(disk), "disk")
