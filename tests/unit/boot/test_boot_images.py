"""Finding the volumes of a disk image, and turning qcow2 into raw."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest
from boot_disks import MIB, join_gpt, join_mbr, make_ext, make_fat, need, place_gpt, run

from tt.errors import BadInput
from tt.vmm.boot.images import DiskImage, Volume, open_image, raw_image
from tt.vmm.streams import Window

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five ext2 images, each with a file that says its name."""
    directory = tmp_path_factory.mktemp("parts")
    return [make_ext(directory / n, {"name": n.encode()}, kind="ext2", size="1M") for n in NAMES]


def names_in(image: DiskImage) -> list[tuple[str, bytes]]:
    return [(volume.name, image.filesystem(volume).read("/name")) for volume in image.volumes]


def test_whole_disk(parts: list[Path]) -> None:
    image = open_image(parts[0])
    assert image.volumes == [Volume(0, 0, MIB, "ext")]
    assert names_in(image) == [("vda", b"a")]


def test_whole_disk_fat_is_no_partition_table(tmp_path: Path) -> None:
    image = open_image(make_fat(tmp_path / "fat", {"name": b"f"}, size=6 * MIB, bits=12))
    assert names_in(image) == [("vda", b"f")]


def test_mbr(tmp_path: Path, parts: list[Path]) -> None:
    image = open_image(join_mbr(tmp_path / "disk", parts[:3]))
    assert names_in(image) == [("vda1", b"a"), ("vda2", b"b"), ("vda3", b"c")]


def test_logical_partitions(tmp_path: Path, parts: list[Path]) -> None:
    image = open_image(join_mbr(tmp_path / "disk", parts, logical=3))
    assert names_in(image) == [("vda1", b"a"), ("vda2", b"b"), ("vda5", b"c"), ("vda6", b"d"), ("vda7", b"e")]


def test_logical_partitions_in_a_circle(tmp_path: Path, parts: list[Path]) -> None:
    path = join_mbr(tmp_path / "disk", parts, logical=2)
    disk = bytearray(path.read_bytes())
    base = struct.unpack_from("<I", disk, 446 + 16 * 3 + 8)[0] * 512
    second = base + struct.unpack_from("<I", disk, base + 462 + 8)[0] * 512
    struct.pack_into("<4xB3xII", disk, second + 462, 0x05, 0, 1)
    assert len(DiskImage(io.BytesIO(bytes(disk)), len(disk), "disk").volumes) == 5


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(tmp_path: Path, parts: list[Path], sector: int) -> None:
    image = open_image(join_gpt(tmp_path / "disk", parts, sector=sector))
    assert names_in(image) == [(f"vda{i + 1}", n.encode()) for i, n in enumerate(NAMES)]


def test_gpt_with_only_its_backup(tmp_path: Path, parts: list[Path]) -> None:
    image = open_image(join_gpt(tmp_path / "disk", parts[:2], backup_only=True))
    assert names_in(image) == [("vda1", b"a"), ("vda2", b"b")]


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_tables_as_sfdisk_writes_them(tmp_path: Path, parts: list[Path], label: str) -> None:
    need("sfdisk")
    path = tmp_path / "disk"
    with path.open("wb") as f:
        f.truncate(16 * MIB)
    if label == "gpt":
        script = "label: gpt\nstart=2048, size=2048\nstart=8192, size=2048\n"
        expected = [("vda1", b"a"), ("vda2", b"b")]
        starts = [2048, 8192]
    else:
        script = "label: dos\n2048,2048,83\n6144,20000,5\n8192,2048,83\n12288,2048,83\n"
        expected = [("vda1", b"a"), ("vda5", b"b"), ("vda6", b"c")]
        starts = [2048, 8192, 12288]
    run("sfdisk", "-q", path, text=script)
    with path.open("r+b") as f:
        for part, start in zip(parts, starts, strict=False):
            f.seek(start * 512)
            f.write(part.read_bytes())
    assert names_in(open_image(path)) == expected


def test_partitions_past_the_end_are_cut_or_dropped(tmp_path: Path, parts: list[Path]) -> None:
    path = join_mbr(tmp_path / "disk", parts[:2])
    disk = path.read_bytes()[: 2 * MIB + 1000]
    volumes = DiskImage(io.BytesIO(disk), len(disk), "disk").volumes
    assert [(v.name, v.size) for v in volumes] == [("vda1", MIB), ("vda2", 1000)]


def test_huge_gpt_claims_are_bounded(tmp_path: Path, parts: list[Path]) -> None:
    disk = bytearray(join_gpt(tmp_path / "disk", parts[:1]).read_bytes())
    place_gpt(disk, 1, 2, count=0x01FFFFFF)
    assert names_in(DiskImage(io.BytesIO(disk), len(disk), "disk")) == [("vda1", b"a")]  # by the backup


def test_window() -> None:
    window = Window(io.BytesIO(b"0123456789"), 2, 5)
    assert window.read() == b"23456"
    assert window.seek(-2, io.SEEK_END) == 3
    assert window.read(10) == b"56"
    assert window.tell() == 5
    assert window.seek(1) == 1
    assert window.seek(1, io.SEEK_CUR) == 2
    assert io.BufferedReader(window).read() == b"456"
    assert window.seek(99) == 99
    assert window.read() == b""
    assert window.readable()
    assert window.seekable()
    with pytest.raises(ValueError, match="before the beginning"):
        window.seek(-1)


def test_qcow2_is_converted_once(tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    need("qemu-img")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", parts[1], path)
    assert names_in(open_image(path)) == [("vda", b"b")]
    raw = raw_image(path)
    assert raw.read_bytes() == parts[1].read_bytes()
    assert raw.parent == tmp_path / "cache/tt/images"
    monkeypatch.setenv("PATH", "")
    assert raw_image(path) == raw
    os.utime(path, (1, 1))  # as if written anew
    with pytest.raises(BadInput, match="install qemu-img"):
        raw_image(path)


def test_qcow2_that_reads_other_files_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    need("qemu-img")
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", parts[0], overlay)
    with pytest.raises(BadInput, match="overlay on another image: flatten it"):
        open_image(overlay)
    external = tmp_path / "external.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", external, "1M")
    with pytest.raises(BadInput, match="keeps its data in another file"):
        open_image(external)


def test_damaged_qcow2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("qemu-img")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "disk"
    path.write_bytes(b"QFI\xfb" + struct.pack(">I", 3) + bytes(8) + bytes(100))
    with pytest.raises(BadInput, match="qemu-img cannot convert"):
        open_image(path)
    assert list((tmp_path / "cache/tt/images").iterdir()) == []
    path.write_bytes(b"QFI\xfb")
    with pytest.raises(BadInput, match="cut short"):
        open_image(path)
    path.write_bytes(b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, 1 << 50) + bytes(100))
    with pytest.raises(BadInput, match="claims a disk of 1024 TB"):
        open_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"KDMV", "VMDK image: convert it with qemu-img"),
        (b"vhdxfile", "VHDX"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "VDI"),
        (b"\x1f\x8b\x08", "gzip-compressed: unpack it first"),
        (b"\xfd7zXZ\0", "xz-compressed"),
        (b"", "is empty"),
    ],
)
def test_other_formats(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        open_image(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        open_image(tmp_path / "nothing")
    with pytest.raises(BadInput, match="not a regular file"):
        open_image(tmp_path)
