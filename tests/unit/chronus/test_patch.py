"""Disks with some of their files as at another instant: what the tools make of them, and what tt reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from file_rig import FILES, MIB, edited, join_mbr, make_ext, make_fat, need, put, run

from tt.chronus.files.changes import Change
from tt.chronus.files.difference import diff
from tt.chronus.files.patch import Delta, Patcher, deltas, raw_deltas, undo
from tt.chronus.files.tree import Tree
from tt.chronus.store.view import DiskView, ImageView
from tt.errors import BadInput

DEEP = {f"srv/many/file-{number:03}": b"x" * number for number in range(300)}


def facts(disk: DiskView) -> dict[str, tuple[object, ...]]:
    """Return all of a disk that a patch must bring about: no inode numbers, no times of directories."""
    tree = Tree(disk)
    found: dict[str, tuple[object, ...]] = {}
    for volume in tree.volumes:
        if volume.type not in ("ext", "fat"):
            continue
        for node in tree.walk(f"{volume.name}:/"):
            stat = node.stat
            if stat.kind == "directory":
                found[node.path] = stat.kind, stat.mode, stat.uid, stat.gid, stat.nlink
            else:
                contents = tree.read(node.path) if stat.kind == "file" else None
                how = stat.mode, stat.uid, stat.gid, stat.nlink, stat.rdev, stat.mtime
                found[node.path] = stat.kind, *how, node.link, contents
    return found


def check(disk: DiskView, folder: Path, tool: str = "e2fsck") -> None:
    """Let the file system's own checker look at a whole disk."""
    image = folder / "checked.img"
    image.write_bytes(disk.read(0, disk.sectors))
    run(tool, "-fn" if tool == "e2fsck" else "-n", image)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need("debugfs", "e2fsck")
    return make_ext(tmp_path / "disk.img", FILES | DEEP)


def changed(image: Path, folder: Path) -> Path:
    """Do to a copy of an image all that can be done to files."""
    lines = [
        "rm /etc/hosts",
        "cd /etc",
        put(folder, b"one\nTWO\nthree\n", "hosts"),
        put(folder, b"#!/bin/sh\n" * 900, "new file"),
        "rm /etc/link",
        'symlink link "a place with ""quotes"" and a very long name ' + "x" * 60 + '"',
        "sif /etc/fstab mode 0100600",
        "sif /etc/fstab uid 70000",
        "sif /etc/fstab gid 12",
        "ea_set /etc/fstab user.note hello",
        "ea_set /usr/bin/tool security.capability 0123456789",
        "cd /",
        "mkdir opt",
        "mkdir opt/deep",
        "sif /opt/deep mode 040750",
        "cd /opt/deep",
        put(folder, b"deep\n", "down"),
        "cd /",
        "ln /opt/deep/down opt/other",
        "sif /opt/deep/down links_count 2",
        "mknod pipe p",
        "mknod disk b 8 17",
        "rm /usr/share/doc/a",
        "rm /usr/share/doc/b",
        "rmdir /usr/share/doc",
        "sif /usr/bin/tool mtime @1000000000",
        "cd /srv/many",
        *(put(folder, b"y" * number, f"another-{number}") for number in range(20)),
        "rm /srv/many/file-007",
    ]
    return edited(image, *lines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_all_changes_there_and_back(tmp_path: Path, kind: str) -> None:
    need("debugfs", "e2fsck")
    image = make_ext(tmp_path / "disk.img", FILES | DEEP, kind=kind)
    old, new = ImageView(image), ImageView(changed(image, tmp_path))
    parts = deltas(diff(old, new))
    with Patcher(old) as patcher:
        there = patcher.apply(parts)
        assert facts(there) == facts(new)
        check(there, tmp_path)
        assert facts(patcher.apply([])) == facts(old)
        assert facts(patcher.apply(parts)) == facts(new), "the second time is as the first"
    assert diff(there, new) == [
        change for change in diff(there, new) if change.only_times or "links" in change.what
    ], "tt's own comparison finds something else"
    with Patcher(new) as patcher:
        back = patcher.apply([undo(delta, old) for delta in parts])
    assert facts(back) == facts(old)
    check(back, tmp_path)


@pytest.mark.slow
def test_one_file_of_many_and_nothing_else(image: Path, tmp_path: Path) -> None:
    old, new = ImageView(image), ImageView(changed(image, tmp_path))
    parts = deltas(diff(old, new))
    hosts = next(delta for delta in parts if delta.name == "/etc/hosts")
    before = image.read_bytes()
    with Patcher(old) as patcher:
        there = patcher.apply([hosts], parts)
    tree = Tree(there)
    assert tree.read("/etc/hosts") == b"one\nTWO\nthree\n"
    assert [change.path for change in diff(old, there)] == ["/etc", "/etc/hosts"] or [
        change.path for change in diff(old, there)
    ] == ["/etc/hosts"]
    assert "with /etc/hosts changed" in there.where
    check(there, tmp_path)
    assert image.read_bytes() == before


@pytest.mark.slow
def test_what_a_change_cannot_be_without_is_done_too(image: Path, tmp_path: Path) -> None:
    old, new = ImageView(image), ImageView(changed(image, tmp_path))
    parts = deltas(diff(old, new))
    deep = next(delta for delta in parts if "/opt/deep/down" in delta.name)
    assert deep.name == "/opt/deep/down, /opt/other", "the two names of a file go together"
    gone = next(delta for delta in parts if delta.name == "/usr/share/doc")
    with Patcher(old) as patcher:
        there = patcher.apply([deep, gone], parts)
    tree = Tree(there)
    assert tree.lstat("/opt/deep").mode == 0o040750
    assert tree.lstat("/opt/other").nlink == 2
    assert not tree.exists("/usr/share/doc")
    assert tree.read("/etc/hosts") == FILES["etc/hosts"]
    check(there, tmp_path)


def test_metadata_alone_leaves_the_contents_where_they_are(image: Path) -> None:
    old = ImageView(image)
    new = ImageView(edited(image, "sif /etc/fstab mode 0100000", "ea_set /etc/fstab user.a b"))
    parts = deltas(diff(old, new))
    assert [delta.name for delta in parts] == ["/etc/fstab"]
    with Patcher(old) as patcher:
        there = patcher.apply(parts)
    assert Tree(there).lstat("/etc/fstab").mode == 0o100000
    assert Tree(there).lstat("/etc/fstab").inode == Tree(old).lstat("/etc/fstab").inode


def test_directories_that_only_hold_what_changed_are_no_causes(image: Path, tmp_path: Path) -> None:
    old = ImageView(image)
    new = ImageView(edited(image, "cd /etc", put(tmp_path, b"x", "added"), "sif /etc mtime @1000000000"))
    assert [delta.name for delta in deltas(diff(old, new))] == ["/etc/added"]


@pytest.mark.slow
def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    need("debugfs", "e2fsck")
    old = make_ext(tmp_path / "small.img", {"a": b"a"}, size="2M")
    new = make_ext(tmp_path / "large.img", {"a": b"a", "big": b"z" * (4 * MIB)}, size="24M")
    parts = deltas(diff(ImageView(old), ImageView(new)))
    with Patcher(ImageView(old)) as patcher, pytest.raises(BadInput, match="cannot be changed: debugfs"):
        patcher.apply(parts)


@pytest.mark.slow
def test_names_that_would_be_commands_are_none(image: Path, tmp_path: Path) -> None:
    names = ['a "b" c', "<12>", "-x", "#no comment", "tab\there", "back\\slash", "ü", ";ls", "~", "a  b"]
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    for name in names:
        (tree / "etc" / name).write_text(name)
    other = tmp_path / "other.img"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, other, "24M")
    blank = make_ext(tmp_path / "blank.img", {"etc/": b""})
    parts = deltas(diff(ImageView(blank), ImageView(other)))
    with Patcher(ImageView(blank)) as patcher:
        there = patcher.apply(parts)
        assert Tree(there).listdir("/etc") == sorted(names)
        assert all(Tree(there).read(f"/etc/{name}").decode() == name for name in names)
        check(there, tmp_path)
    with Patcher(there) as patcher:
        back = patcher.apply([undo(delta, ImageView(blank)) for delta in parts])
    assert Tree(back).listdir("/etc") == []


def test_a_newline_in_a_name_is_refused(tmp_path: Path) -> None:
    need("debugfs", "e2fsck")
    other = make_ext(tmp_path / "other.img", {"a\nrm -f x": b"a"})
    blank = make_ext(tmp_path / "blank.img", {"lost/": b""})
    parts = deltas(diff(ImageView(blank), ImageView(other)))
    with Patcher(ImageView(blank)) as patcher, pytest.raises(BadInput, match="newline"):
        patcher.apply(parts)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fat_there_and_back(tmp_path: Path, bits: int) -> None:
    size = {12: 4, 16: 24, 32: 40}[bits] * MIB
    files = {"boot.cfg": b"old", "EFI/BOOT/BOOTX64.EFI": b"e" * 70000, "a long name indeed.txt": b"long"}
    old = make_fat(tmp_path / "old.img", files, bits=bits, size=size)
    new = tmp_path / "new.img"
    shutil.copyfile(old, new)
    source = tmp_path / "contents"
    source.write_bytes(b"new and much longer" * 500)
    run("mcopy", "-o", "-i", new, source, "::/boot.cfg")
    run("mdel", "-i", new, "::/a long name indeed.txt")
    run("mmd", "-i", new, "::/sub folder")
    run("mcopy", "-i", new, source, "::/sub folder/lower.case")
    one, two = ImageView(old), ImageView(new)
    parts = deltas(diff(one, two))
    with Patcher(one) as patcher:
        there = patcher.apply(parts)
    assert facts(there) == facts(two)
    check(there, tmp_path, tool="fsck.vfat")
    with Patcher(two) as patcher:
        back = patcher.apply([undo(delta, one) for delta in parts])
    assert facts(back) == facts(one)
    check(back, tmp_path, tool="fsck.vfat")


@pytest.mark.slow
def test_several_volumes_and_what_is_outside_of_them(tmp_path: Path) -> None:
    need("debugfs", "e2fsck")
    root = make_ext(tmp_path / "root.img", FILES, size="8M")
    boot = make_fat(tmp_path / "boot.img", {"x.cfg": b"x"}, bits=12, size=4 * MIB)
    old = join_mbr(tmp_path / "old.img", [boot, root])
    run("mdel", "-i", boot, "::/x.cfg")
    new = join_mbr(tmp_path / "new.img", [boot, edited(root, "rm /etc/hosts")])
    data = bytearray(new.read_bytes())
    data[:4] = b"code"
    new.write_bytes(data)
    one, two = ImageView(old), ImageView(new)
    parts = deltas(diff(one, two)) + raw_deltas(one, two, range(one.size // 4096))
    assert [delta.name for delta in parts] == ["/etc/hosts", "vda1:/x.cfg", "outside of the volumes"]
    with Patcher(one) as patcher:
        there = patcher.apply(parts)
    assert facts(there) == facts(two)
    assert there.read(0, 1)[:4] == b"code"
    with Patcher(two) as patcher:
        back = patcher.apply([undo(delta, one) for delta in parts])
    assert facts(back) == facts(one)
    assert back.read(0, 1) == one.read(0, 1)


def test_a_damaged_file_system_is_refused(image: Path) -> None:
    data = bytearray(image.read_bytes())
    # The directory entries of the root: their first block, as debugfs finds it.
    block = int(run("debugfs", "-R", "blocks /", image).split()[0])
    data[block * 1024 : block * 1024 + 8] = b"\xff" * 8
    old = ImageView(image)
    damaged = image.with_name("damaged.img")
    damaged.write_bytes(data)
    change = Change("/x", "removed", before=None)
    with Patcher(ImageView(damaged)) as patcher, pytest.raises(BadInput):
        patcher.apply([Delta("/x", (change,))])
        patcher.apply(deltas(diff(old, ImageView(edited(image, "rm /etc/hosts")))))
