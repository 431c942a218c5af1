"""Hostile input: whatever the bytes, the answer is a result or `BadInput`, soon, and in little memory."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from boot_disks import MIB, join_gpt, join_mbr, make_ext, make_fat
from boot_kernels import (
    PACKERS,
    make_bzimage,
    make_elf,
    make_multiboot,
    make_multiboot2,
    make_multiboot2_elf,
    make_multiboot_elf,
    make_uki,
    multiboot2_tag,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.vmm.boot import decompress, linux, multiboot, multiboot2
from tt.vmm.boot.bls import BlsEntry, boot_order, parse_bls
from tt.vmm.boot.bootconfig import find_boot_entry, version_key
from tt.vmm.boot.filesystems import FileSystem, open_filesystem
from tt.vmm.boot.grubcfg import GrubMenu
from tt.vmm.boot.images import DiskImage
from tt.vmm.boot.kinds import companion
from tt.vmm.boot.loader import plan_boot_from_parts, with_pc_defaults
from tt.vmm.boot.syslinux import parse_syslinux
from tt.vmm.boot.target import Target
from tt.vmm.boot.uki import split_uki

SECONDS = 5_000  # milliseconds that one example may take on a busy machine
hostile = settings(
    max_examples=150,
    deadline=SECONDS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


Damage = tuple[list[tuple[int, int]], int]
"""Changes as `(where, what)`, and where to cut; all scaled to the data they are applied to."""

WORDS = (0, 1, 2, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
damages: st.SearchStrategy[Damage] = st.tuples(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 8 + len(WORDS) - 1)), max_size=12),
    st.integers(0, 9999),
)


def damaged(data: bytes, damage: Damage, end: int | None = None) -> bytearray:
    """Flip bits and overwrite words before offset `end`; one time in ten, cut the data too."""
    changes, cut = damage
    out = bytearray(data)
    end = min(end or len(out), len(out))
    for where, what in changes:
        at = where % end
        if what < 8:
            out[at] ^= 1 << what
        else:
            out[at : at + 4] = WORDS[what - 8].to_bytes(4, "little")
    if cut < 1000:
        del out[len(out) * cut // 1000 :]
    return out


KERNELS = {
    linux.BZIMAGE: [make_bzimage(packer(make_elf(64))) for packer in PACKERS.values()]
    + [make_bzimage(b"x" * 99)],
    linux.ELF: [make_elf(64), make_elf(32)],
    multiboot.KIND: [make_multiboot_elf(), make_multiboot(addresses=(MIB, MIB, 0, 2 * MIB, MIB))],
    multiboot2.KIND: [
        make_multiboot2_elf(32, multiboot2_tag(1, 3, 6), multiboot2_tag(5, 0, 0, 0)),
        make_multiboot2_elf(64, multiboot2_tag(10, 0, 0xFFFFFFFF, 4096, 1)),
        make_multiboot2(multiboot2_tag(2, MIB, MIB, 0, 2 * MIB), multiboot2_tag(3, MIB)),
    ],
}


@hostile
@given(damages, st.sampled_from(list(KERNELS)), st.integers(0, 7))
def test_damaged_kernels(damage: Damage, kind: str, which: int) -> None:
    kernel = KERNELS[kind][which % len(KERNELS[kind])]
    broken = damaged(kernel, damage, 3000)
    try:
        plan = plan_boot_from_parts(kind, bytes(broken), companion(kind, b"initrd"), "quiet", 64 * MIB)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    end = 0
    for addr, contents in plan.segments:
        assert end <= addr
        end = addr + len(contents)
    assert end <= 64 * MIB


@hostile
@given(damages)
def test_damaged_unified_images(damage: Damage) -> None:
    image = make_uki({".linux": KERNELS[linux.BZIMAGE][0], ".initrd": b"i" * 99, ".cmdline": b"x"})
    try:
        split_uki(bytes(damaged(image, damage, 1200)), "image")
    except BadInput as e:
        assert "\n" not in str(e)


@hostile
@given(damages, st.sampled_from(list(PACKERS)))
def test_damaged_payloads(damage: Damage, name: str) -> None:
    try:
        decompress.unpack(bytes(damaged(PACKERS[name](make_elf(64)), damage)), "kernel")
    except BadInput as e:
        assert "\n" not in str(e)


def explore(fs: FileSystem[object]) -> None:
    """Read what can be reached, to a bound, since a damaged tree may be endless."""
    todo = ["/"]
    for _ in range(60):
        if not todo:
            break
        path = todo.pop()
        try:
            kind = fs.lstat(path).kind
            if kind == "directory":
                todo += [f"{path}/{name}" for name in fs.listdir(path)[:20]]
            elif kind == "symlink":
                fs.readlink(path)
                fs.exists(path)
            else:
                fs.read(path, 4 * MIB)
        except BadInput as e:
            assert "\n" not in str(e)


TREE: dict[str, bytes | str] = {
    "boot/vmlinuz-1": bytes(range(256)) * 200, "boot/grub/grub.cfg": b"menuentry m { linux /boot/vmlinuz-1 }",
    "link": "boot/vmlinuz-1", "long": "boot/" + "./" * 50, "etc/": b"", "big": b"x" * 400_000,
}  # fmt: skip


def made(build: Callable[[Path], Path]) -> bytes:
    with TemporaryDirectory() as directory:
        return build(Path(directory)).read_bytes()


@cache
def filesystem_image(name: str) -> bytes:
    files = {k: v for k, v in TREE.items() if isinstance(v, bytes) and not k.endswith("/")}
    builders: dict[str, Callable[[Path], Path]] = {
        "ext2": lambda d: make_ext(d / "fs", TREE, "-b", "1024", size="1M", kind="ext2"),
        "ext4": lambda d: make_ext(d / "fs", TREE, "-b", "1024", "-O", "^has_journal", size="2M"),
        "inline": lambda d: make_ext(
            d / "fs", TREE, "-O", "^has_journal,inline_data", "-I", "256", size="2M"
        ),
        "fat12": lambda d: make_fat(d / "fs", files, bits=12, size=MIB),
        "fat16": lambda d: make_fat(d / "fs", files, bits=16, size=9 * MIB),
        "fat32": lambda d: make_fat(d / "fs", files, bits=32, size=34 * MIB),
    }
    return made(builders[name])


LONG = pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])


@LONG
@pytest.mark.parametrize("name", ["ext2", "ext4", "inline", "fat12", "fat16", "fat32"])
def test_damaged_file_systems(name: str, examples: int) -> None:
    image = filesystem_image(name)
    # Where the metadata is: the superblock or boot sector, tables, and the first directories.
    used = [at for at in range(0, len(image), 64) if any(image[at : at + 64])]

    @settings(hostile, max_examples=examples // 4 if name == "fat32" else examples)  # a large one
    @given(
        st.lists(
            st.tuples(st.integers(0, len(used) - 1), st.integers(0, 63), st.integers(0, 255)), max_size=12
        )
    )
    def check(changes: list[tuple[int, int, int]]) -> None:
        broken = bytearray(image)
        for where, within, value in changes:
            broken[min(used[where] + within, len(broken) - 1)] = value
        try:
            fs = open_filesystem(io.BytesIO(broken), "disk")
        except BadInput as e:
            assert "\n" not in str(e)
            return
        explore(fs)

    check()


@LONG
@pytest.mark.parametrize("name", ["ext2", "ext4", "fat12", "fat16"])
def test_damaged_heads_of_file_systems(name: str, examples: int) -> None:
    image = filesystem_image(name)

    @settings(hostile, max_examples=examples)
    @given(damages)
    def check(damage: Damage) -> None:
        try:
            fs = open_filesystem(io.BytesIO(damaged(image, damage, 4096)), "disk")
        except BadInput as e:
            assert "\n" not in str(e)
            return
        explore(fs)

    check()


@cache
def journaled() -> bytes:
    image = bytearray(
        made(lambda d: make_ext(d / "fs", {"a": b"a"}, "-b", "1024", "-J", "size=1", size="6M"))
    )
    image[1024 + 96] |= 4
    return bytes(image)


@LONG
def test_damaged_journals(examples: int) -> None:
    image = journaled()
    start = image.find(b"\xc0\x3b\x39\x98\x00\x00\x00\x04")
    assert start > 0
    header = st.tuples(st.sampled_from([1, 2, 3, 5, 99]), st.integers(0, 3))

    @settings(hostile, max_examples=examples)
    @given(
        st.integers(0, 1100), st.integers(0, 2000), st.sampled_from([0, 2, 8, 16, 26]),
        st.dictionaries(st.integers(1, 20), st.tuples(header, st.binary(max_size=200)), max_size=12),
    )  # fmt: skip
    def check(
        first: int, length: int, features: int, blocks: dict[int, tuple[tuple[int, int], bytes]]
    ) -> None:
        broken = bytearray(image)
        for offset, value in ((0x10, length), (0x14, 1), (0x18, 1), (0x1C, first), (0x28, features)):
            broken[start + offset : start + offset + 4] = value.to_bytes(4, "big")
        for block, ((kind, sequence), contents) in blocks.items():
            record = b"\xc0\x3b\x39\x98" + kind.to_bytes(4, "big") + sequence.to_bytes(4, "big") + contents
            at = start + block * 1024
            broken[at : at + len(record)] = record
        explore(open_filesystem(io.BytesIO(broken), "disk"))

    check()


@cache
def disk_image(kind: str) -> bytes:
    with TemporaryDirectory() as name:
        directory = Path(name)
        parts = [
            make_ext(
                directory / f"p{i}", {"boot/vmlinuz-1": b"kernel"}, "-b", "1024", size="256K", kind="ext2"
            )
            for i in range(4)
        ]
        join = (
            join_gpt(directory / "d", parts) if kind == "gpt" else join_mbr(directory / "d", parts, logical=2)
        )
        return join.read_bytes()


@LONG
@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_damaged_partition_tables(kind: str, examples: int) -> None:
    image = disk_image(kind)

    # Extended boot records: the first, and the second behind its partition.
    records = (MIB + 2 * 256 * 1024, MIB + 3 * 256 * 1024 + 512)
    record_changes = st.tuples(st.sampled_from(records), st.integers(446, 490), st.integers(0, 255))

    @settings(hostile, max_examples=examples)
    @given(damages, st.lists(record_changes, max_size=4))
    def check(damage: Damage, changes: list[tuple[int, int, int]]) -> None:
        broken = damaged(image, damage, 2048 if kind == "gpt" else 512)
        for record, at, value in changes:
            if kind == "mbr" and record + at < len(broken):
                broken[record + at] = value
        disk = DiskImage(io.BytesIO(broken), len(broken), "disk")
        assert len(disk.volumes) <= 1024
        try:
            find_boot_entry(disk)
        except BadInput as e:
            assert "\n" not in str(e)

    check()


@hostile
@given(st.binary(max_size=4096))
def test_random_bytes(data: bytes) -> None:
    for kind in KERNELS:
        with pytest.raises(BadInput):
            plan_boot_from_parts(kind, data, None, "", 64 * MIB)
    with pytest.raises(BadInput):
        find_boot_entry(DiskImage(io.BytesIO(data), len(data), "disk"))


def test_random_bytes_behind_each_signature() -> None:
    noise = random.Random(7)
    for _ in range(300):
        data = bytearray(noise.randbytes(8192))
        data[1080:1082] = b"\x53\xef"
        data[1024 + 76 : 1024 + 80] = b"\1\0\0\0"
        data[1024 + 24 : 1024 + 28] = b"\0\0\0\0"
        with pytest.raises(BadInput):
            find_boot_entry(DiskImage(io.BytesIO(data), len(data), "disk"))
        data = bytearray(noise.randbytes(8192))
        data[:3], data[510:512] = b"\xeb\x3c\x90", b"\x55\xaa"
        data[11:17] = b"\0\2\1\1\0\2"
        data[21] = 0xF8
        with pytest.raises(BadInput):
            find_boot_entry(DiskImage(io.BytesIO(data), len(data), "disk"))


WORDS_OF_SCRIPTS = """
    menuentry submenu x { } if then elif else fi ; for in do done function f $f ${x} 'a b' "$x y" [ ] = -f
    set a=b a=$a$a linux /k initrd return source /s default=1>0 search --set=root while ! ' " \\ # blscfg
    load_env saved --id multiboot module test
    until break continue shift setparams configfile /c export probe -u $# $@ "$*" > multiboot2 module2 >> gzio
"""
SCRIPT_PARTS = st.sampled_from([*WORDS_OF_SCRIPTS.split(), "\n"])


@settings(hostile, max_examples=80)
@given(st.lists(SCRIPT_PARTS, max_size=120), st.text(max_size=50))
def test_nonsense_grub_scripts(parts: list[str], text: str) -> None:
    script = " ".join(parts) + text
    menu = GrubMenu(read=lambda path: script, exists=bool, entries=list)
    try:
        for target in menu.targets(script, "(vda)/boot/grub"):
            assert target.kernel
    except BadInput as e:
        assert "\n" not in str(e)


@hostile
@given(st.text(max_size=400))
def test_nonsense_text(text: str) -> None:
    parse_syslinux(text, lambda name: text, "/")
    parse_syslinux(f"include x\n{text}", lambda name: f"include x\nmenu include x\n{text}", "/")
    parse_bls(text, text)
    boot_order(
        [BlsEntry(text, text, Target("", "", "", [])), BlsEntry(text[::-1], "", Target("", "", "", []))]
    )
    version_key(text)
    assert with_pc_defaults(text).count("nokaslr") >= 1
