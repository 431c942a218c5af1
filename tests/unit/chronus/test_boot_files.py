"""What a guest boots, and how its first program is exchanged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tt.chronus.runners.boot_files import boot_files, command_line
from tt.chronus.runners.runner import CannotBoot, Setup
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.view import ImageView
from tt.vmm.boot.modules import Module, unpack

INIT = ("/bin/sh", "/dev/vdb")


@pytest.mark.parametrize(
    ("cmdline", "append", "expected"),
    [
        ("root=/dev/vda ro", "", ("root=/dev/vda ro", "init=/bin/sh -- /dev/vdb")),
        ("root=/dev/vda quiet splash", "", ("root=/dev/vda quiet", "init=/bin/sh -- /dev/vdb splash")),
        (
            "root=/dev/vda init=/sbin/openrc single -- more",
            "noapic 3 -- words",
            (
                "root=/dev/vda",
                "noapic init=/bin/sh -- /dev/vdb chronus-init=/sbin/openrc single 3 more words",
            ),
        ),
        ("init=/a", "init=/b", ("", "init=/bin/sh -- /dev/vdb chronus-init=/b")),
        ('dyndbg="file x +p" ro', "", ('dyndbg="file x +p" ro', "init=/bin/sh -- /dev/vdb")),
    ],
)
def test_command_line(cmdline: str, append: str, expected: tuple[str, str]) -> None:
    """The words that were for the guest's own init are left for it, behind those of ours."""
    assert command_line(cmdline, Setup(append=append, init=INIT)) == expected


def test_command_line_as_it_is() -> None:
    """Without an init of ours nothing is moved."""
    own, added = command_line("ro init=/sbin/x single -- a", Setup(append="quiet"))
    assert (own, added) == ("ro init=/sbin/x single -- a", "quiet")


@pytest.fixture
def empty(tmp_path: Path) -> ImageView:
    """Return a disk with nothing on it."""
    path = tmp_path / "empty.img"
    path.write_bytes(bytes(1 << 20))
    return ImageView(path)


def test_nothing_to_boot(empty: ImageView) -> None:
    """A disk without a kernel cannot be booted, and says so without its own name: equal disks crash alike."""
    with pytest.raises(CannotBoot, match="no kernel found") as raised:
        boot_files(empty, Setup())
    assert empty.where not in str(raised.value)


def test_given_multiboot(empty: ImageView, tmp_path: Path) -> None:
    """Nothing is added to the words of a Multiboot kernel, and its initrd is a module without words."""
    kernel, module = tmp_path / "kernel", tmp_path / "module"
    kernel.write_bytes(struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF))
    module.write_bytes(b"a module")
    files = boot_files(empty, Setup(kernel=kernel, initrd=module))
    assert (files.kind, files.cmdline) == ("multiboot1", "")
    assert unpack(files.initrd) == [Module("", b"a module")]


def test_given(empty: ImageView, tmp_path: Path) -> None:
    """A kernel that is given is taken; one that is not there is the asker's mistake, not the disk's."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"a kernel")
    (tmp_path / "initrd").write_bytes(b"an initrd")
    files = boot_files(empty, Setup(kernel=kernel, initrd=tmp_path / "initrd"))
    assert (files.kernel, files.initrd, files.cmdline) == (b"a kernel", b"an initrd", "root=/dev/vda rw")
    kernel.write_bytes(b"another one")
    assert boot_files(empty, Setup(kernel=kernel)).kernel == b"another one"
    kernel.unlink()
    with pytest.raises(ProbeError, match="cannot read"):
        boot_files(empty, Setup(kernel=kernel))
    with pytest.raises(ProbeError, match="not a regular file|cannot read"):
        boot_files(empty, Setup(kernel=tmp_path))
    kernel.write_bytes(b"")
    with pytest.raises(ProbeError, match="is empty"):
        boot_files(empty, Setup(kernel=kernel))
