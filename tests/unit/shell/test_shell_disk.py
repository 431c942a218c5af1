"""`disk`: the file systems on the guest's disks at a tick."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tt.errors import TTError
from tt.shell import Session
from tt.shell.completion import complete
from tt.vmm.disk import BaseImage, OverlayDisk

MKE2FS = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")


@pytest.fixture
def with_files(session: Session, tmp_path: Path) -> Session:
    """Return a session whose machine has an ext4 disk."""
    if MKE2FS is None:
        pytest.skip("mke2fs is not installed")
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("denali\n")
    (tree / "etc" / "bad\x1bname").write_text("x\x1b[2J\n")
    (tree / "link").symlink_to("etc/hostname")
    image = tmp_path / "ext4.img"
    subprocess.run(
        [MKE2FS, "-q", "-t", "ext4", "-d", tree, "-L", "test", image, "8M"], check=True, capture_output=True
    )
    session.machine.disks[0] = OverlayDisk(BaseImage(image))
    return session


def test_a_disk_without_files(session: Session) -> None:
    assert session.run("disk").data["disks"][0]["size"] > 0
    for line in ("disk ls", "disk cat /x"):
        with pytest.raises(TTError):
            session.run(line)
    assert len(session.run("disk hex 0").data["bytes"]) == 1024
    for line in (
        "disk hex 99999999999",
        "disk hex x",
        "disk hex vdz:0",
        "disk fly",
        "disk cat",
        "disk cat a b",
    ):
        with pytest.raises(TTError):
            session.run(line)


def test_files(with_files: Session) -> None:
    session = with_files
    summary = session.run("disk")
    assert summary.data["disks"][0]["volumes"][0]["type"] == "ext4"
    assert "ext4 'test'" in summary.lines[1]
    names = {each["name"]: each for each in session.run("disk ls").data["names"]}
    assert names["etc"]["kind"] == "directory"
    assert names["link"]["kind"] == "symlink"
    assert any("link -> etc/hostname" in line for line in session.run("disk ls /").lines)
    assert session.run("disk cat /etc/hostname").data["text"] == "denali\n"
    assert session.run("disk cat link").lines == ["denali"]
    assert session.run("disk cat vda:/etc/hostname").lines == ["denali"]
    assert session.run("disk stat etc/hostname").data["size"] == 7
    assert session.run("disk ls etc/hostname").data["size"] == 7
    with pytest.raises(TTError, match="there is no 'vdb1'"):
        session.run("disk ls vdb1:/")
    with pytest.raises(TTError):
        session.run("disk cat /etc")
    with pytest.raises(TTError):
        session.run("disk cat /nowhere")


def test_what_a_guest_wrote_does_nothing_to_the_terminal(with_files: Session) -> None:
    assert not any("\x1b" in line for line in with_files.run("disk ls /etc").lines)
    assert not any("\x1b" in line for line in with_files.run("disk cat '/etc/bad\x1bname'").lines)


def test_paths_are_completed(with_files: Session) -> None:
    assert complete(with_files, "disk cat /et") == (9, ["/etc/"])
    assert complete(with_files, "disk cat /etc/h") == (9, ["/etc/hostname"])
    assert complete(with_files, "disk l") == (5, ["ls"])
    assert complete(with_files, "disk cat /no/where") == (9, [])
