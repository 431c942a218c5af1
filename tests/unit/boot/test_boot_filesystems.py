"""Looking into ext2/3/4 and FAT, with the file systems' own tools as judges."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import pytest
from boot_disks import MIB, make_ext, make_fat, need, run

from tt.errors import BadInput
from tt.vmm.boot.ext import ExtFileSystem
from tt.vmm.boot.filesystems import FileSystem, NotFound, open_filesystem, probe

BIG = bytes(range(251)) * 12_000  # 3 MB: two levels of indirect blocks at 1 KB each
TREE: dict[str, bytes | str] = {
    "boot/vmlinuz-1": BIG,
    "boot/small": b"hello",
    "boot/empty": b"",
    "boot/link": "small",
    "boot/up": "../etc/hosts",
    "boot/absolute": "/etc/hosts",
    "boot/" + "long" * 60: b"a long name",
    "etc/hosts": b"127.0.0.1",
    "slow": "boot/" + "./" * 60 + "small",
    "folder": "boot",
    "loop": "loop2",
    "loop2": "loop",
    "dangling": "nowhere",
    **{f"many/{i:04}": b"x" * i for i in range(400)},
}

VARIANTS: dict[str, tuple[str, ...]] = {
    "ext2": ("ext2",),
    "ext2 of 1 KB blocks and small inodes": ("ext2", "-b", "1024", "-I", "128"),
    "ext2 revision 0": ("ext2", "-r", "0"),
    "ext3": ("ext3",),
    "ext4": ("ext4",),
    "ext4 of 1 KB blocks": ("ext4", "-b", "1024"),
    "ext4 of 64 KB blocks": ("ext4", "-b", "65536"),
    "ext4 as of old": ("ext4", "-O", "^64bit,^metadata_csum,^flex_bg", "-I", "128"),
    "inline_data": ("ext4", "-O", "inline_data", "-I", "256"),
    "meta_bg": ("ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"),
    "meta_bg, small groups": ("ext4", "-b", "1024", "-g", "256", "-N", "1280", "-O", "meta_bg,^resize_inode"),
    "sparse_super2": ("ext4", "-O", "sparse_super2,^resize_inode"),
    "bigalloc": ("ext4", "-O", "bigalloc"),
    "bigalloc meta_bg": ("ext4", "-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode"),
    "no sparse_super": ("ext2", "-O", "^sparse_super,^resize_inode"),
    "no file types": ("ext2", "-O", "^filetype"),
}


def open_path(path: Path) -> FileSystem[object]:
    return open_filesystem(path.open("rb"), "disk")


@pytest.mark.parametrize("variant", VARIANTS)
def test_ext_variants(tmp_path: Path, variant: str) -> None:
    kind, *options = VARIANTS[variant]
    fs = open_path(make_ext(tmp_path / "fs", TREE, *options, kind=kind, size="40M"))
    assert fs.kind == kind
    assert fs.read("/boot/vmlinuz-1") == BIG
    assert fs.read("/boot/small") == fs.read("/boot/link") == fs.read("/slow") == b"hello"
    assert (
        fs.read("/boot/up") == fs.read("/boot/absolute") == fs.read("//boot/./../etc//hosts") == b"127.0.0.1"
    )
    assert fs.read("/boot/empty") == b""
    assert fs.read("/folder/small") == b"hello"
    assert fs.read("/boot/" + "long" * 60) == b"a long name"
    assert fs.listdir("/many") == [f"{i:04}" for i in range(400)]
    assert fs.read("/many/0399") == b"x" * 399
    assert set(fs.listdir("/")) - {"lost+found"} == {name.split("/")[0] for name in TREE}
    assert fs.readlink("/slow") == TREE["slow"]
    assert fs.readlink("/boot/link") == "small"
    uuid = re.search(r"UUID:\s+(\S+)", run("dumpe2fs", "-h", tmp_path / "fs"))
    assert uuid is not None
    assert fs.uuid == uuid[1]


@pytest.fixture(scope="module")
def ext(tmp_path_factory: pytest.TempPathFactory) -> FileSystem[object]:
    return open_path(make_ext(tmp_path_factory.mktemp("fs") / "fs", TREE, "-L", "my label"))


def test_paths_that_lead_nowhere(ext: FileSystem[object]) -> None:
    for path in ("/nowhere", "/boot/small/deeper", "/dangling", "/loop", "/boot/nowhere/x"):
        assert not ext.exists(path)
        assert not ext.is_file(path)
        with pytest.raises(NotFound, match=path):
            ext.read(path)
    with pytest.raises(NotFound, match="loop of symbolic links"):
        ext.stat("/loop")
    assert ext.exists("/../../boot/small")
    assert ext.label == "my label"


def test_wrong_kinds_of_files(ext: FileSystem[object]) -> None:
    with pytest.raises(BadInput, match="not a regular file"):
        ext.read("/boot")
    with pytest.raises(BadInput, match="not a directory"):
        ext.listdir("/boot/small")
    with pytest.raises(BadInput, match="not a symbolic link"):
        ext.readlink("/boot/small")
    with pytest.raises(BadInput, match="over the bound of 4"):
        ext.read("/boot/small", 4)
    assert ext.is_dir("/folder")
    assert not ext.is_dir("/boot/small")
    assert ext.lstat("/folder").kind == "symlink"
    assert ext.stat("/folder").kind == "directory"
    stat = ext.stat("/boot/small")
    assert (stat.kind, stat.size, stat.mode >> 12) == ("file", 5, 8)
    assert stat.mtime > 1_500_000_000


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_holes_and_unwritten_extents(tmp_path: Path, kind: str) -> None:
    image = make_ext(tmp_path / "fs", {}, "-b", "1024", kind=kind)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as f:
        f.write(b"begin")
        f.seek(2_000_000)
        f.write(b"middle")
        f.truncate(5_000_000)
    run("debugfs", "-w", "-R", f"write {sparse} sparse", image)
    if kind == "ext4":
        run("debugfs", "-w", "-R", "fallocate sparse 100 200", image)
    fs = open_path(image)
    assert fs.read("/sparse") == sparse.read_bytes()


def test_files_in_many_pieces(tmp_path: Path) -> None:
    """Free every second block of a full file system, so that the next file needs a deep extent tree."""
    filler = {f"f{i:05}": b"f" * 1000 for i in range(3000)}
    image = make_ext(
        tmp_path / "fs", filler, "-b", "1024", "-N", "4000", "-m", "0", "-O", "^has_journal", size="5M"
    )
    commands = "\n".join(f"rm f{i:05}" for i in range(0, 3000, 2))
    script = tmp_path / "script"
    script.write_text(commands + "\n")
    run("debugfs", "-w", "-f", script, image)
    data = os.urandom(1_200_000)
    (tmp_path / "data").write_bytes(data)
    run("debugfs", "-w", "-R", f"write {tmp_path / 'data'} pieces", image)
    levels = run("debugfs", "-R", "ex pieces", image)
    assert re.search(r"^ 1/ ", levels, re.MULTILINE)
    assert open_path(image).read("/pieces") == data


def journal_commands(image: Path, tmp_path: Path, *commands: str) -> None:
    script = tmp_path / "journal"
    script.write_text("\n".join(["jo", *commands, "jc"]) + "\n")
    run("debugfs", "-w", "-f", script, image)


def block_of(image: Path, name: str) -> int:
    return int(run("debugfs", "-R", f"bmap {name} 0", image).split()[-1])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-O", "^64bit,^metadata_csum"),
        ("-O", "^metadata_csum"),
        ("-b", "4096", "-O", "64bit,metadata_csum"),
    ],
)
def test_the_journal_is_read(tmp_path: Path, options: tuple[str, ...]) -> None:
    """What is only in the journal is seen, as recovery would see it."""
    files = {"a": b"old a", "b": b"old b", "c": b"old c", "escaped": b"old"}
    image = make_ext(tmp_path / "fs", dict(files), *options)
    size = int(re.search(r"Block size:\s+(\d+)", run("dumpe2fs", "-h", image))[1])  # type: ignore[index]
    for name, text in {"new1": b"new a", "new2": b"newer a", "magic": b"\xc0\x3b\x39\x98 escaped"}.items():
        (tmp_path / name).write_bytes(text.ljust(size, b"\0") * 2)
    a, b, escaped = (block_of(image, name) for name in ("a", "b", "escaped"))
    journal_commands(
        image, tmp_path,
        f"jw -b {a},{b} {tmp_path / 'new1'}", f"jw -b {a} {tmp_path / 'new2'}",
        f"jw -b {escaped} {tmp_path / 'magic'}",
    )  # fmt: skip
    assert "needs_recovery" in run("dumpe2fs", "-h", image)
    seen = {name: open_path(image).read(f"/{name}") for name in files}
    run("debugfs", "-w", "-R", "jr", image)
    recovered = {name: open_path(image).read(f"/{name}") for name in files}
    assert seen == recovered
    assert seen["a"] == b"newer"
    assert seen["b"] == b"new a"
    assert seen["c"] == b"old c"
    assert seen["escaped"] == b"\xc0\x3b\x39"


def test_revoked_blocks_stay_old(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"a": b"old a", "b": b"old b"})
    (tmp_path / "new").write_bytes(b"new a".ljust(1024, b"\0"))
    a = block_of(image, "a")
    journal_commands(image, tmp_path, f"jw -b {a} {tmp_path / 'new'}", f"jw -r {a}")
    assert open_path(image).read("/a") == b"old a"
    run("debugfs", "-w", "-R", "jr", image)
    assert open_path(image).read("/a") == b"old a"


def test_uncommitted_transactions_are_left_out(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"a": b"old a"})
    (tmp_path / "new").write_bytes(b"new a".ljust(1024, b"\0"))
    journal_commands(image, tmp_path, f"jw -b {block_of(image, 'a')} -c {tmp_path / 'new'}")
    assert open_path(image).read("/a") == b"old a"


def test_a_broken_journal_is_passed_over(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"a": b"old a"})
    data = bytearray(image.read_bytes())
    data[1024 + 96] |= 4  # needs recovery, with a clean journal
    assert ExtFileSystem(io.BytesIO(bytes(data)), "x").read("/a") == b"old a"
    data[1024 + 0xE0 : 1024 + 0xE4] = b"\xff\xff\xff\x7f"  # no such inode
    assert ExtFileSystem(io.BytesIO(bytes(data)), "x").read("/a") == b"old a"
    data[1024 + 0xE0 : 1024 + 0xE4] = b"\x02\0\0\0"  # the root directory
    assert ExtFileSystem(io.BytesIO(bytes(data)), "x").read("/a") == b"old a"


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (24, b"\x07\0\0\0", "block size"),
        (24, b"\xff\xff\xff\xff", "block size"),
        (40, bytes(4), "contradicts itself"),
        (32, bytes(4), "contradicts itself"),
        (88, b"\x03\0", "contradicts itself"),
        (88, b"\0\x80", "contradicts itself"),
        (20, b"\x09\0\0\0", "contradicts itself"),
        (4, bytes(4), "contradicts itself"),
        (96, b"\x08\0\0\0", "journal device"),
        (96, b"\0\0\0\x80", r"a feature tt does not know: bit 31 of incompat \(0x80000000\)"),
        (96, b"\x01\0\0\0", "the feature compression, which tt does not read"),
        (56, b"\0\0", "holds no file system"),
    ],
)
def test_damaged_superblocks(tmp_path: Path, at: int, value: bytes, message: str) -> None:
    data = bytearray(make_ext(tmp_path / "fs", {"a": b"a"}, "-O", "^64bit,^metadata_csum").read_bytes())
    data[1024 + at : 1024 + at + len(value)] = value
    with pytest.raises(BadInput, match=message):
        open_filesystem(io.BytesIO(bytes(data)), "disk")


def find_inode(image: Path, name: str) -> int:
    """Return the byte offset of a file's inode."""
    text = run("debugfs", "-R", f"imap {name}", image)
    block, offset = re.search(r"located at block (\d+), offset (0x[0-9a-f]+)", text).groups()  # type: ignore[union-attr]
    return int(block) * 1024 + int(offset, 16)


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 1, 0) + struct.pack("<IIHH", 0, 99, 0, 0), "extent tree"),
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 9, 0) + struct.pack("<IIHH", 0, 99, 0, 0), "broken"),
        (struct.pack("<HHHHI", 0xDEAD, 1, 4, 0, 0) + bytes(12), "broken"),
        (struct.pack("<HHHHI", 0xF30A, 2, 4, 0, 0) + struct.pack("<IHHI", 0, 2, 0, 99) * 2, "out of order"),
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 0, 0) + struct.pack("<IHHI", 0, 0, 0, 99), "empty extent"),
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 0, 0) + struct.pack("<IHHI", 0, 1, 99, 99), "past the end"),
    ],
)
def test_damaged_extent_trees(tmp_path: Path, root: bytes, reason: str) -> None:
    image = make_ext(tmp_path / "fs", {"file": BIG}, "-b", "1024")
    data = bytearray(image.read_bytes())
    at = find_inode(image, "file")
    data[at + 40 : at + 40 + len(root)] = root
    with pytest.raises(BadInput, match=reason):
        open_filesystem(io.BytesIO(bytes(data)), "disk").read("/file")


def test_circular_extent_tree(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"file": BIG}, "-b", "1024")
    data = bytearray(image.read_bytes())
    at = find_inode(image, "file")
    block = block_of(image, "file")
    # Four times the same leaf: each must begin where the last one ended.
    leaf = struct.pack("<HHHHI", 0xF30A, 1, 4, 0, 0) + struct.pack("<IHHI", 0, 1, 0, block)
    data[block * 1024 : block * 1024 + len(leaf)] = leaf
    root = struct.pack("<HHHHI", 0xF30A, 4, 4, 1, 0) + struct.pack("<IIHH", 0, block, 0, 0) * 4
    data[at + 40 : at + 40 + len(root)] = root
    with pytest.raises(BadInput, match="out of order"):
        open_filesystem(io.BytesIO(bytes(data)), "disk").read("/file")


def test_damaged_directories(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"a": b"a"})
    data = bytearray(image.read_bytes())
    block = int(run("debugfs", "-R", "bmap / 0", image).split()[-1])
    data[block * 1024 + 4 : block * 1024 + 6] = b"\x03\0"
    fs = open_filesystem(io.BytesIO(bytes(data)), "disk")
    with pytest.raises(BadInput, match="directory inode 2 is broken"):
        fs.listdir("/")


def test_encrypted_files_say_so(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "fs", {"a": b"a"})
    data = bytearray(image.read_bytes())
    data[find_inode(image, "a") + 33] |= 0x8
    with pytest.raises(BadInput, match="encrypted"):
        open_filesystem(io.BytesIO(bytes(data)), "disk").read("/a")


def test_images_that_end_early(tmp_path: Path) -> None:
    data = make_ext(tmp_path / "fs", {"file": BIG}).read_bytes()
    with pytest.raises(BadInput, match="ends before block"):
        open_filesystem(io.BytesIO(data[:40_000]), "disk").read("/file")


FAT_FILES = {
    "EFI/Some Vendor/vmlinuz-6.1.0-cloud-amd64": BIG,
    "EFI/Some Vendor/ünïcode long name.txt": b"u",
    "loader/loader.conf": b"default x\n",
    "KERNEL.BIN": b"short",
    "lower.txt": b"lower",
    "empty": b"",
}


@pytest.mark.parametrize(("bits", "size"), [(12, 6), (16, 24), (32, 70)])
def test_fat(tmp_path: Path, bits: int, size: int) -> None:
    fs = open_path(make_fat(tmp_path / "fs", FAT_FILES, bits=bits, size=size * MIB))
    assert fs.kind == f"fat{bits}"
    assert re.fullmatch(r"[0-9A-F]{4}-[0-9A-F]{4}", fs.uuid)
    assert fs.read("/efi/SOME vendor/VMLINUZ-6.1.0-cloud-amd64") == BIG
    assert fs.read("/EFI/Some Vendor/ünïcode long name.txt") == b"u"
    assert fs.read("/kernel.bin") == b"short"
    assert fs.read("/empty") == b""
    assert {"EFI", "loader", "KERNEL.BIN", "lower.txt"} <= set(fs.listdir("/"))
    assert fs.listdir("/EFI") == ["Some Vendor"]
    assert fs.is_dir("/loader")
    assert not fs.exists("/loader/nothing")
    assert fs.stat("/KERNEL.BIN").mtime > 1_500_000_000
    with pytest.raises(BadInput, match="not a symbolic link"):
        fs.readlink("/KERNEL.BIN")


def test_fat_directories_longer_than_a_cluster(tmp_path: Path) -> None:
    files = {f"many/a file with a long name {i:03}": bytes([i]) for i in range(90)}
    fs = open_path(make_fat(tmp_path / "fs", files, size=24 * MIB))
    assert len(fs.listdir("/many")) == 90
    assert fs.read("/many/a file with a long name 089") == bytes([89])


def fat_with_table(tmp_path: Path, first: int, value: int) -> FileSystem[object]:
    """Make a FAT16 whose entry for cluster `first` and those after hold `value`."""
    data = bytearray(make_fat(tmp_path / "fs", {"file": BIG}, bits=16).read_bytes())
    sector = int.from_bytes(data[11:13], "little")
    table = int.from_bytes(data[14:16], "little") * sector
    struct.pack_into("<4H", data, table + 2 * first, *[value] * 4)
    return open_filesystem(io.BytesIO(bytes(data)), "disk")


def test_damaged_fat(tmp_path: Path) -> None:
    for value, reason in (
        (5, "round in circles|ends after"),
        (0, "does not exist"),
        (0xFFF7, "does not exist"),
    ):
        with pytest.raises(BadInput, match=reason):
            fat_with_table(tmp_path, 5, value).read("/file")
    data = make_fat(tmp_path / "fs", {"file": b"x"}, bits=16).read_bytes()
    with pytest.raises(BadInput, match="file allocation table"):
        open_filesystem(io.BytesIO(data[:4096]), "disk")
    broken = bytearray(data)
    broken[19:21] = bytes(2)
    broken[32:36] = bytes(4)
    with pytest.raises(BadInput, match="damaged"):
        open_filesystem(io.BytesIO(bytes(broken)), "disk")


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [
        (0, b"XFSB", "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0x8001, b"CD001", "iso9660"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
    ],
)
def test_file_systems_it_does_not_read(at: int, magic: bytes, name: str) -> None:
    data = bytearray(0x12000)
    data[at : at + len(magic)] = magic
    with pytest.raises(BadInput, match=f"{name}.* which tt does not read.*give --kernel"):
        open_filesystem(io.BytesIO(bytes(data)), "disk")


def test_nothing_at_all() -> None:
    for data in (b"", bytes(100), bytes(100_000), os.urandom(64)):
        assert probe(io.BytesIO(data)) is None
        with pytest.raises(BadInput, match="no file system tt knows"):
            open_filesystem(io.BytesIO(data), "disk")


def test_agrees_with_debugfs(tmp_path: Path) -> None:
    need("debugfs")
    image = make_ext(tmp_path / "fs", TREE, "-b", "1024")
    fs = open_path(image)
    for directory in ("/", "/boot", "/many"):
        listed = re.findall(
            r"/(\d+)/[0-7]+/\d+/\d+/([^/]+)/", run("debugfs", "-R", f"ls -p {directory}", image)
        )
        assert fs.listdir(directory) == sorted(name for _, name in listed if name not in (".", ".."))
