"""Every feature bit of ext and of its journal is read, harmless or refused by name."""

from __future__ import annotations

import io
import re
import struct
import subprocess
from pathlib import Path

import pytest
from boot_disks import make_ext, need
from fast_commits import FastImage

from tt.errors import BadInput
from tt.vmm.boot import ext_features
from tt.vmm.boot.ext import ExtFileSystem
from tt.vmm.boot.ext_features import COMPAT, INCOMPAT, JOURNAL_COMPAT, JOURNAL_INCOMPAT, RO_COMPAT

WORDS = {"compat": (92, COMPAT), "incompat": (96, INCOMPAT), "ro_compat": (100, RO_COMPAT)}
CHANGE_THE_LAYOUT = {"64bit", "meta_bg", "sparse_super2"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an image with as few features as can be."""
    path = tmp_path_factory.mktemp("features") / "fs"
    features = "none,filetype,extent,sparse_super"
    return make_ext(path, {"a": b"contents"}, "-O", features, size="1M").read_bytes()


def with_bit(image: bytes, at: int, bit: int) -> io.BytesIO:
    data = bytearray(image)
    (before,) = struct.unpack_from("<I", data, 1024 + at)
    struct.pack_into("<I", data, 1024 + at, before | 1 << bit)
    return io.BytesIO(data)


def test_the_tables_are_whole() -> None:
    for table in (COMPAT, INCOMPAT, RO_COMPAT, JOURNAL_COMPAT, JOURNAL_INCOMPAT):
        for mask, feature in table.items():
            assert mask == feature.mask
            assert mask & (mask - 1) == 0
            assert feature.name and feature.why


def test_names_are_those_of_e2fsprogs(tmp_path: Path) -> None:
    need("dumpe2fs")
    data = bytearray(make_ext(tmp_path / "fs", {}, size="4M").read_bytes())
    struct.pack_into("<III", data, 1024 + 92, *3 * [0xFFFFFFFF])
    path = tmp_path / "all"
    path.write_bytes(data)
    # It also complains: nothing else fits these features.
    done = subprocess.run(
        ["/usr/sbin/dumpe2fs", "-f", "-h", str(path)], capture_output=True, text=True, check=False
    )
    listed = re.search(r"^Filesystem features: +(.*)$", done.stdout, re.M)
    assert listed is not None
    words = listed[1].split()
    assert len(words) == 96
    for (_, table), letter, names in zip(
        WORDS.values(), "CIR", (words[:32], words[32:64], words[64:]), strict=True
    ):
        for bit, name in enumerate(names):
            known = table.get(1 << bit)
            if name != f"FEATURE_{letter}{bit}":  # which an older e2fsprogs says of what is newer
                assert known is not None and known.name == name


@pytest.mark.parametrize("word", WORDS)
def test_every_bit(plain: bytes, word: str) -> None:
    at, table = WORDS[word]
    for bit in range(32):
        feature = table.get(1 << bit)
        stream = with_bit(plain, at, bit)
        if feature is None:
            message = f"the ext file system on disk has a feature tt does not know: bit {bit} of {word} "
            with pytest.raises(BadInput, match=message):
                ExtFileSystem(stream, "disk")
        elif feature.how == "refused":
            with pytest.raises(BadInput, match=f"{feature.name}|journal device"):
                ExtFileSystem(stream, "disk")
        elif feature.name not in CHANGE_THE_LAYOUT:
            assert ExtFileSystem(stream, "disk").read("/a") == b"contents", feature.name


def test_every_bit_of_the_journal(tmp_path: Path) -> None:
    image = FastImage(tmp_path, {"a": b"a"}, "-O", "^metadata_csum")
    image.commit([])
    disk = io.BytesIO(image.path.read_bytes())

    def put(at: int, value: bytes) -> bytes:
        disk.seek(at)
        before = disk.read(len(value))
        disk.seek(at)
        disk.write(value)
        return before

    for word, at, table in (
        ("compat", 0x24, JOURNAL_COMPAT),
        ("incompat", 0x28, JOURNAL_INCOMPAT),
        ("ro_compat", 0x2C, ext_features.JOURNAL_RO_COMPAT),
    ):
        at += image.journal_at
        for bit in range(32):
            disk.seek(at)
            features = int.from_bytes(disk.read(4), "big") | 1 << bit
            before = put(at, features.to_bytes(4, "big"))
            if 1 << bit in table:
                assert ExtFileSystem(disk, "disk").read("/a") == b"a"
            else:
                with pytest.raises(BadInput, match=f"the ext journal on disk, .*: bit {bit} of {word} "):
                    ExtFileSystem(disk, "disk")
            put(at, before)
    put(image.journal_at + 0x2C, b"\0\0\0\1")
    disk.seek(1024 + 96)
    put(1024 + 96, bytes([disk.read(1)[0] & ~4]))  # no recovery is needed: nobody asks the journal
    assert ExtFileSystem(disk, "disk").read("/a") == b"a"


def test_a_journal_on_a_device_of_its_own(plain: bytes) -> None:
    data = bytearray(plain)
    data[1024 + 92] |= 4
    data[1024 + 0xD0 : 1024 + 0xE0] = bytes(range(16))
    assert ExtFileSystem(io.BytesIO(data), "disk").read("/a") == b"contents"
    data[1024 + 96] |= 4
    with pytest.raises(BadInput, match="on a journal device of its own .UUID 00010203-0405"):
        ExtFileSystem(io.BytesIO(data), "disk")
