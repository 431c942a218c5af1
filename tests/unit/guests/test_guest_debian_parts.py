"""The parts of the Debian guest that need no package: its initrd, its applets, its file system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tt.errors import BadInput
from tt.guests import debian, debian_files, ext4_image, tools

BUSYBOX = b"code\0[\0[[\0acpid\0ar\0sh\0xz\0zcat\0\0other strings\0"


def test_applets_are_read_from_busybox_itself() -> None:
    assert debian.applets(BUSYBOX) == ["[", "[[", "acpid", "ar", "sh", "xz", "zcat"]
    with pytest.raises(BadInput, match="no table of commands"):
        debian.applets(b"not busybox")


def test_the_initrd_lists_its_modules_in_their_order() -> None:
    initrd = debian.make_initrd(BUSYBOX, {"virtio_ring": b"1", "virtio": b"2"})
    assert b"virtio_ring\nvirtio\n" in initrd
    assert initrd == debian.make_initrd(BUSYBOX, {"virtio_ring": b"1", "virtio": b"2"})


@pytest.mark.parametrize(
    "script",
    [
        debian_files.INITRD_INIT,
        *(text for _, text in debian_files.files("6.1", "x").values() if "#!" in text),
    ],
)
def test_the_scripts_are_good_shell(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    try:
        tools.find("mke2fs", "e2fsprogs")
    except BadInput as e:
        pytest.skip(str(e))
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "shadow").write_text("root::\n")
    (root / "etc" / "shadow").chmod(0o640)
    (root / "etc" / "[ odd name").write_text("!")
    (root / "bin").symlink_to("usr/bin")
    return root


def test_an_image_is_sound_and_belongs_to_root(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    ext4_image.make(tree, image, 16 << 20, "label", 1000)
    assert image.stat().st_size == 16 << 20
    tools.run([tools.find("e2fsck", "e2fsprogs"), "-fn", str(image)])
    debugfs = tools.find("debugfs", "e2fsprogs")
    for path in ("/", "/bin", "/etc", "/etc/shadow", '"/etc/[ odd name"'):
        stat = tools.run([debugfs, "-R", f"stat {path}", str(image)]).stdout
        assert "User:     0   Group:     0" in stat
        assert stat.count("0x000003e8:00000000") == 4, stat
    assert "Mode:  0640" in tools.run([debugfs, "-R", "stat /etc/shadow", str(image)]).stdout


def test_images_of_equal_trees_are_equal(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, symlinks=True, copy_function=shutil.copy)
    images = [tmp_path / "one.img", tmp_path / "two.img"]
    for root, image in zip((tree, copy), images, strict=True):
        ext4_image.make(root, image, 16 << 20, "label", 1000)
    assert images[0].read_bytes() == images[1].read_bytes()


def test_a_tree_that_does_not_fit_is_a_clear_error(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(b"x" * (12 << 20))
    with pytest.raises(BadInput, match="mke2fs failed"):
        ext4_image.make(tree, tmp_path / "disk.img", 8 << 20, "label", 1000)


def test_an_output_that_is_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot build the guest in|is not installed"):
        debian.build(tmp_path / "file")
