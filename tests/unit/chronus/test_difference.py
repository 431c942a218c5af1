"""Differences of file systems that tools edited: every kind of change, every kind of file system."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from file_rig import FILES, MIB, edited, join_mbr, make_ext, make_fat, put

from tt.chronus.files.changes import Change
from tt.chronus.files.difference import DiskIndex, diff, pair_renames, written_blocks
from tt.chronus.files.same_file import WAYS
from tt.chronus.store.view import ImageView


def told(changes: list[Change], *, hide: tuple[str, ...] = ("time",)) -> dict[str, tuple[str, ...]]:
    """Return changes as path -> (letter, ways...), without those of times only."""
    return {
        change.path: (change.letter, *(way for way in change.what if way not in hide))
        for change in changes
        if not change.only_times
    }


@pytest.fixture(
    params=["ext4", "ext2", "ext4 -b 4096 -I 128", "ext4 -O inline_data", "ext4 -O ^metadata_csum"]
)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, *options = request.param.split()
    return make_ext(tmp_path / "old.img", FILES, *options, size="4M", kind=kind)


def test_each_kind_of_change(image: Path, tmp_path: Path) -> None:
    new = edited(
        image,
        put(tmp_path, b"new\n", "/etc/added"),
        "rm /usr/share/doc/b",
        "rm /etc/hosts",
        put(tmp_path, b"one\n2\nthree\n", "/etc/hosts"),
        "set_inode_field /usr/bin/tool mode 0104755",
        "set_inode_field /usr/bin/tool uid 7",
        "set_inode_field /usr/bin/tool gid 70000",
        "rm /etc/link",
        "symlink /etc/link added",
        "mkdir /srv",
        "set_inode_field /empty mtime 20200101000000",
        "cd /etc",
        "mknod pipe p",
    )
    changes = diff(ImageView(image), ImageView(new))
    found = told(changes, hide=("time", "mode", "owner"))
    for way, path in (("mode", "/usr/bin/tool"), ("owner", "/usr/bin/tool")):
        assert way in next(change for change in changes if change.path == path).what
    assert found == {
        "/etc/added": ("A",),
        "/etc/hosts": ("M", "contents"),
        "/etc/link": ("M", "link"),
        "/etc/pipe": ("A",),
        "/srv": ("A",),
        "/usr/bin/tool": ("M",),
        "/usr/share/doc/b": ("D",),
    }
    hosts = next(change for change in changes if change.path == "/etc/hosts")
    assert hosts.unified()[-7:] == [
        "--- a/etc/hosts", "+++ b/etc/hosts", "@@ -1,3 +1,3 @@", " one", "-two", "+2", " three",
    ]  # fmt: skip
    tool = next(change for change in changes if change.path == "/usr/bin/tool")
    assert "new owner 7:70000" in tool.unified() and tool.contents()[0] == FILES["usr/bin/tool"]
    assert [change.path for change in changes] == sorted(change.path for change in changes)
    for change in changes:
        assert list(change.what) == [way for way in WAYS if way in change.what]


def test_back_is_the_inverse(image: Path, tmp_path: Path) -> None:
    new = edited(image, put(tmp_path, b"x" * 9000, "/etc/big"), "rm /usr/bin/tool", "symlink /usr/l a")
    old_view, new_view = ImageView(image), ImageView(new)
    there, back = diff(old_view, new_view), diff(new_view, old_view)
    turned = {"A": "D", "D": "A"}
    assert {(c.path, turned.get(c.letter, c.letter), c.what) for c in there} == {
        (c.path, c.letter, c.what) for c in back
    }
    index = DiskIndex(old_view)
    blocks = written_blocks(old_view, new_view)
    assert index.move(new_view, blocks) == there
    assert index.move(old_view, blocks) == back
    assert index.move(new_view, blocks | {0, 5, 9}) == there  # blocks that were written as they were


def test_a_file_keeps_its_name_but_becomes_another_thing(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "old.img", FILES, size="4M")
    new = edited(image, "rm /etc/hosts", "symlink /etc/hosts fstab", "rm /etc/link", "mkdir /etc/link")
    changes = diff(ImageView(image), ImageView(new))
    assert told(changes) == {"/etc/hosts": ("T", "type"), "/etc/link": ("T", "type")}


def test_renames(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "old.img", FILES, size="4M")
    new = edited(
        image,
        "ln /usr/share/doc /usr/share/papers",
        "unlink /usr/share/doc",
        "ln /etc/hosts /etc/names",
        "unlink /etc/hosts",
        "set_inode_field /etc/names mode 0100600",
        "ln /usr/bin/tool /usr/bin/other",
    )
    changes = diff(ImageView(image), ImageView(new))
    assert {c.path for c in changes if c.kind == "added"} >= {"/usr/share/papers/a", "/etc/names"}
    paired = pair_renames(changes)
    assert {(c.path, c.old_path, c.what) for c in paired if c.kind == "renamed"} == {
        ("/usr/share/papers", "/usr/share/doc", ()),
        ("/etc/names", "/etc/hosts", ("mode",)),
    }
    assert told(paired)["/usr/bin/other"] == ("A",)
    names = next(change for change in paired if change.path == "/etc/names")
    assert names.unified()[:3] == [
        "diff --git a/etc/hosts b/etc/names", "rename from /etc/hosts", "rename to /etc/names",
    ]  # fmt: skip


def test_contents_in_place_without_a_touch_of_the_inode(tmp_path: Path) -> None:
    """Data reaches a disk before the inode that tells of it."""
    big = random.Random(1).randbytes(300_000)
    image = make_ext(tmp_path / "old.img", {**FILES, "big": big}, size="4M")
    data = bytearray(image.read_bytes())
    at = data.find(big[4096 * 40 : 4096 * 41])
    data[at + 5] ^= 1
    new = tmp_path / "new.img"
    new.write_bytes(data)
    (change,) = diff(ImageView(image), ImageView(new), {at // 4096})
    assert (change.path, change.what) == ("/big", ("contents",))
    old_bytes, new_bytes = change.contents()
    assert old_bytes is not None and new_bytes is not None and len(old_bytes) == len(new_bytes)
    assert sum(a != b for a, b in zip(old_bytes, new_bytes, strict=True)) == 1


def test_what_lies_behind_a_files_end_is_no_change(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "old.img", FILES, size="4M")
    data = bytearray(image.read_bytes())
    at = data.find(b"one\ntwo\nthree\n")
    data[at + 100] = 7
    new = tmp_path / "new.img"
    new.write_bytes(data)
    assert diff(ImageView(image), ImageView(new)) == []


def test_holes_and_attributes(tmp_path: Path) -> None:
    image = make_ext(tmp_path / "old.img", {**FILES, "zeros": bytes(50_000)}, size="4M")
    new = edited(
        image,
        "punch /zeros 0 9",
        "set_inode_field /etc/hosts flags 0x80010",
        "ea_set /usr/bin/tool security.capability x1",
    )
    found = told(diff(ImageView(image), ImageView(new)))
    assert found == {"/etc/hosts": ("M", "attributes"), "/usr/bin/tool": ("M", "attributes")}


def test_partitions_and_fat(tmp_path: Path) -> None:
    ext = make_ext(tmp_path / "root.img", FILES, size="4M")
    fat = make_fat(tmp_path / "esp.img", {"boot/grub.cfg": b"set a\n", "keep": b"x"}, bits=12, size=2 * MIB)
    old = join_mbr(tmp_path / "old.disk", [fat, ext])
    other = make_fat(tmp_path / "esp2.img", {"boot/grub.cfg": b"set b\n", "new": b"y"}, bits=12, size=2 * MIB)
    new = join_mbr(tmp_path / "new.disk", [other, edited(ext, "rm /etc/link")])
    changes = diff(ImageView(old), ImageView(new))
    assert told(changes) == {
        "/etc/link": ("D",),
        "vda1:/boot/grub.cfg": ("M", "contents"),
        "vda1:/keep": ("D",),
        "vda1:/new": ("A",),
    }
    grub = next(change for change in changes if change.path == "vda1:/boot/grub.cfg")
    assert grub.unified()[-5:] == [
        "--- a/vda1:/boot/grub.cfg", "+++ b/vda1:/boot/grub.cfg", "@@ -1 +1 @@", "-set a", "+set b",
    ]  # fmt: skip


def test_a_file_system_made_anew(tmp_path: Path) -> None:
    old = make_ext(tmp_path / "old.img", FILES, size="4M")
    new = make_ext(tmp_path / "new.img", {**FILES, "etc/hosts": b"other\n"}, "-b", "2048", size="4M")
    assert told(diff(ImageView(old), ImageView(new)), hide=("time",)) == {"/etc/hosts": ("M", "contents")}


def test_a_volume_that_is_lost(tmp_path: Path) -> None:
    old = make_ext(tmp_path / "old.img", FILES, size="4M")
    new = tmp_path / "new.img"
    new.write_bytes(bytes(old.stat().st_size))
    index = DiskIndex(ImageView(old))
    changes = index.move(ImageView(new))
    assert {change.kind for change in changes} == {"removed"}
    assert "/etc/fstab" in {change.path for change in changes}
    assert index.move(ImageView(new)) == [] and not index.readable
    assert {change.kind for change in index.move(ImageView(old))} == {"added"}


def test_nothing_to_read_is_a_note(tmp_path: Path) -> None:
    old, new = tmp_path / "old.img", tmp_path / "new.img"
    old.write_bytes(os.urandom(8192) + b"\0" * 8192)
    new.write_bytes(os.urandom(8192) + b"\0" * 8192)
    index = DiskIndex(ImageView(old))
    assert index.move(ImageView(new)) == [] and not index.readable
