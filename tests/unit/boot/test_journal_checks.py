"""Checksums of the journal, of all versions; e2fsck(8), on a copy, is the judge of what they let through."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from boot_disks import make_ext, need, run
from fast_commits import BLOCK, FastImage, name_record, recovered, seen

from tt.vmm.boot._crc32c import crc32c
from tt.vmm.boot.fast_commit import Tag

FILES: dict[str, bytes | str] = {"a": b"old a", "b": b"old b", "c": b"old c"}
MAGIC = b"\xc0\x3b\x39\x98"


class Journaled:
    """An image with three transactions: a; a and b; c (which begins as the journal's blocks do)."""

    def __init__(self, folder: Path, version: int) -> None:
        need("mke2fs", "debugfs", "e2fsck")
        without = "^64bit" if version > 1 else "^metadata_csum,^64bit"
        options = ("-b", str(BLOCK), "-O", without, "-J", "size=1")
        self.path = make_ext(folder / "fs", dict(FILES), *options, size="8M")
        for name, text in {"1": b"1", "2": b"2", "3": MAGIC + b"3"}.items():
            (folder / name).write_bytes(text.ljust(BLOCK, b"\0") * 2)
        a, b, c = (run("debugfs", "-R", f"bmap /{n} 0", self.path).split()[-1] for n in "abc")
        lines = [
            f"jo -c -v {version}" if version else "jo",
            f"jw -b {a} {folder / '1'}", f"jw -b {a},{b} {folder / '2'}", f"jw -b {c} {folder / '3'}", "jc",
        ]  # fmt: skip
        (folder / "commands").write_text("\n".join(lines) + "\n")
        run("debugfs", "-w", "-f", folder / "commands", self.path)
        self.data = bytearray(self.path.read_bytes())
        first = run("debugfs", "-R", "bmap <8> 0", self.path).split()[-1]
        self.head = int(first) * BLOCK

    def blocks(self, kind: int) -> list[int]:
        """Return where blocks of a kind are: 1 descriptors, 2 commits."""
        found = range(self.head + BLOCK, self.head + 12 * BLOCK, BLOCK)
        return [at for at in found if self.data[at : at + 8] == MAGIC + kind.to_bytes(4, "big")]

    def same(self) -> None:
        self.path.write_bytes(self.data)
        assert seen(self.path) == seen(recovered(self.path))


@pytest.mark.parametrize(
    ("version", "wait"), [(0, True), (1, True), (1, False), (2, True), (3, True), (3, False)]
)
def test_damaged_transactions(tmp_path: Path, version: int, wait: bool) -> None:
    image = Journaled(tmp_path, version)
    compat, incompat = struct.unpack_from(">II", image.data, image.head + 0x24)
    assert (compat & 1, incompat >> 3 & 3) == {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (0, 2)}[version]
    if not wait:  # commit blocks that do not wait for what they commit
        struct.pack_into(">I", image.data, image.head + 0x28, incompat | 4)
        if version == 3:
            struct.pack_into(">I", image.data, image.head + 0xFC, 0)
            checksum = crc32c(image.data[image.head : image.head + 1024], 0xFFFFFFFF)
            struct.pack_into(">I", image.data, image.head + 0xFC, checksum)
    whole = bytes(image.data)
    image.same()
    before = seen(image.path)
    places = [image.blocks(1)[1] + BLOCK + 1]  # contents of the second transaction
    if version:
        places += [image.blocks(1)[1] + 40, image.blocks(2)[1] + 17]
    for place in places:
        image.data[:] = whole
        image.data[place] ^= 0x40
        image.same()
        assert seen(image.path) != before


def test_the_log_ends_before_the_fast_commits(tmp_path: Path) -> None:
    """The log goes round where the kernel's writer lets it; e2fsck up to 1.47 looks for it elsewhere."""
    image = FastImage(tmp_path, {"d/f0": b"x"})
    image.commit([name_record(Tag.UNLINK, image.number("/d"), image.number("/d/f0"), "f0")])
    assert "/d/f0" not in seen(image.path)
    data = bytearray(image.path.read_bytes())
    head = image.journal_at
    first, _, start = struct.unpack_from(">III", data, head + 20)
    log = data[head + start * BLOCK : head + (start + 3) * BLOCK]
    assert log[-BLOCK:][:8] == MAGIC + b"\0\0\0\2"
    data[head + start * BLOCK : head + (start + 3) * BLOCK] = bytes(3 * BLOCK)
    last = image.log_end - 1
    data[head + last * BLOCK : head + (last + 1) * BLOCK] = log[:BLOCK]
    data[head + first * BLOCK : head + (first + 2) * BLOCK] = log[BLOCK:]
    image.set_start(data, last)
    image.path.write_bytes(data)
    assert "/d/f0" not in seen(image.path)
