"""Fast commits of ext4; e2fsck(8), on a copy, is the judge of what they do."""

from __future__ import annotations

import contextlib
import io
import random
import struct
from pathlib import Path

import pytest
from fast_commits import (
    BLOCK,
    FastImage,
    add_range,
    del_range,
    inode_record,
    name_record,
    random_commits,
    recovered,
    seen,
    tlv,
)  # fmt: skip

from tt.errors import BadInput
from tt.vmm.boot.ext import ExtFileSystem
from tt.vmm.boot.fast_commit import Tag

FILES: dict[str, bytes | str] = {f"d/f{i}": f"file {i}\n".encode() * 20 for i in range(8)}
NAMES = [f"f{i}" for i in range(8)]


@pytest.fixture
def image(tmp_path: Path) -> FastImage:
    return FastImage(tmp_path, FILES)


def same(image: FastImage) -> None:
    assert seen(image.path) == seen(recovered(image.path))


def test_names_come_and_go(image: FastImage) -> None:
    folder, one, two = image.number("/d"), image.number("/d/f1"), image.number("/d/f2")
    image.commit([
        name_record(Tag.UNLINK, folder, one, "f1"),
        name_record(Tag.LINK, folder, two, "other"),
        name_record(Tag.LINK, folder, two, "f2"),  # is there already
        name_record(Tag.UNLINK, folder, two, "gone"),  # never was
    ])  # fmt: skip
    assert set(seen(image.path)) == {"/", "/d", "/d/other"} | {f"/d/f{i}" for i in range(8) if i != 1}
    same(image)


def test_a_new_file_with_more_pieces_than_fit_into_an_inode(image: FastImage) -> None:
    folder = image.number("/d")
    records = [inode_record(300, 0o100640, 200 * BLOCK), name_record(Tag.CREAT, folder, 300, "new")]
    for i in range(100):
        image.write(9000 + 2 * i, bytes([i + 1]) * BLOCK)
        records.append(add_range(300, 2 * i, 9000 + 2 * i, 1))
    records.append(del_range(300, 50, 7))
    image.commit(records)
    contents = ExtFileSystem(io.BytesIO(image.path.read_bytes()), "x").read("/d/new")
    expected = b"".join(bytes([i + 1]) * BLOCK + bytes(BLOCK) for i in range(100))
    assert contents == expected[: 50 * BLOCK] + bytes(7 * BLOCK) + expected[57 * BLOCK :]
    same(image)


@pytest.mark.parametrize("seed", range(4))
def test_as_e2fsck_replays_them(image: FastImage, seed: int) -> None:
    random_commits(image, seed, NAMES)
    same(image)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("-O", "^metadata_csum"), ("-O", "^dir_index"), ("-I", "256", "-g", "1024")]
)
def test_many_as_e2fsck_replays_them(tmp_path: Path, options: tuple[str, ...]) -> None:
    for seed in range(100, 140):
        image = FastImage(tmp_path, FILES, *options)
        random_commits(image, seed, NAMES)
        same(image)


def test_what_is_not_whole_does_not_count(image: FastImage) -> None:
    folder = image.number("/d")
    gone = [name_record(Tag.UNLINK, folder, image.number(f"/d/f{i}"), f"f{i}") for i in range(4)]
    before = set(seen(image.path))
    image.commit(gone[:1])
    whole = before - {"/d/f0"}
    assert set(seen(image.path)) == whole
    image.commit(gone[1:2], crc=1)
    assert set(seen(image.path)) == whole
    image.commit(gone[2:3])  # behind one that is broken
    assert set(seen(image.path)) == whole
    same(image)


@pytest.mark.parametrize("step", [-1, 1, 7])
def test_fast_commits_of_other_transactions_do_not_count(image: FastImage, step: int) -> None:
    before = seen(image.path)
    gone = name_record(Tag.UNLINK, image.number("/d"), image.number("/d/f0"), "f0")
    image.commit([gone], transaction=image.transaction + step)
    assert seen(image.path) == before


@pytest.mark.parametrize(
    "rubbish",
    [
        tlv(99, b"?"),
        tlv(Tag.LINK, b"12345678"),  # no name
        tlv(Tag.INODE, bytes(20)),
        tlv(Tag.ADD_RANGE, bytes(15)),
        struct.pack("<HH", Tag.PAD, 0xFFFF),
        struct.pack("<HH", Tag.TAIL, 4),
        tlv(Tag.HEAD, struct.pack("<II", 0, 0)),
    ],
)
def test_rubbish_behind_them(image: FastImage, rubbish: bytes) -> None:
    image.commit([name_record(Tag.UNLINK, image.number("/d"), image.number("/d/f0"), "f0")])
    expected = seen(image.path)
    assert "/d/f0" not in expected
    image.raw_tail(rubbish)
    assert seen(image.path) == expected


def test_records_that_lead_nowhere_end_the_replay(image: FastImage) -> None:
    folder, one = image.number("/d"), image.number("/d/f1")
    image.commit([
        name_record(Tag.UNLINK, folder, 0xFFFFFFF0, "f0"),  # passed over, as the kernel does
        name_record(Tag.UNLINK, 0xFFFFFFF0, one, "f1"),
        add_range(0xFFFFFFF0, 0, 1, 1),
        name_record(Tag.UNLINK, folder, one, "f1"),
        name_record(Tag.CREAT, folder, 400, "nothing"),
        name_record(Tag.UNLINK, folder, image.number("/d/f2"), "f2"),
    ])  # fmt: skip
    assert "/d/f1" not in seen(image.path)
    assert "/d/nothing" not in seen(image.path)
    assert "/d/f2" in seen(image.path)


def test_directories_grow_and_are_made(image: FastImage) -> None:
    """The kernel does this; e2fsck has no code for it."""
    folder = image.number("/d")
    records = [inode_record(300, 0o40755, BLOCK, 2), name_record(Tag.CREAT, folder, 300, "sub")]
    for i in range(60):
        records.append(inode_record(400 + i, 0o100644, 0))
        records.append(name_record(Tag.CREAT, 300, 400 + i, f"{i:02}" + "n" * 80))
    image.commit(records)
    found = seen(image.path)
    assert found["/d/sub"] == ("directory", 0o40755)
    assert sum(path.startswith("/d/sub/") for path in found) == 60


def test_unknown_features_of_fast_commits_are_refused(image: FastImage) -> None:
    image.raw_tail(tlv(Tag.HEAD, struct.pack("<II", 4, image.transaction)))
    with pytest.raises(BadInput, match="a fast commit on image has a feature tt does not know: bit 2"):
        seen(image.path)


def test_nonsense_with_a_right_checksum(image: FastImage) -> None:
    noise = random.Random(11)
    numbers = [0, 1, 2, 8, 11, 12, 13, 14, 300, 1 << 31, 0xFFFFFFFF]
    for _ in range(25):
        records: list[tuple[int, bytes]] = []
        for _ in range(noise.randrange(1, 20)):
            tag = noise.choice([Tag.ADD_RANGE, Tag.DEL_RANGE, Tag.CREAT, Tag.LINK, Tag.UNLINK, Tag.INODE])
            value = struct.pack("<III", *(noise.choice(numbers) for _ in range(3)))
            if tag == Tag.ADD_RANGE:
                value += noise.randbytes(4)
            elif tag == Tag.INODE:
                mode, size = noise.choice([0, 0o40755, 0o100644, 0o120777]), noise.choice(numbers)
                value = inode_record(
                    noise.choice(numbers), mode, size, flags=noise.choice([0, 0x80000, 1 << 28])
                )[1]
            records.append((tag, value))
        image.forget()
        image.commit(records)
        files = ExtFileSystem(io.BytesIO(image.path.read_bytes()), "x")
        for path in ("/", "/d", "/d/d", "/d/f0"):  # a directory may be inside of itself
            with contextlib.suppress(BadInput):
                files.listdir(path)
            with contextlib.suppress(BadInput):
                files.read(path, 1 << 20)
