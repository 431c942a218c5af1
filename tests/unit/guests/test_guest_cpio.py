"""The cpio writer against a reader of its own and, where it is installed, against GNU cpio."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt.guests import cpio


def read(archive: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """Parse a newc archive as the kernel's init/initramfs.c does."""
    fields = "ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check"
    found: dict[str, tuple[dict[str, int], bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        values = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        header = dict(zip(fields.split(), values, strict=True))
        name = archive[at + 110 : at + 110 + header["namesize"]]
        assert name.endswith(b"\0")
        at = -(-(at + 110 + header["namesize"]) // 4) * 4
        data = archive[at : at + header["filesize"]]
        at = -(-(at + header["filesize"]) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        found[name[:-1].decode()] = header, data


ENTRIES = {
    "bin": cpio.directory(),
    "bin/sh": cpio.symlink("busybox"),
    "bin/busybox": cpio.file(b"\x7fELF!", 0o755),
    "dev": cpio.directory(),
    "dev/console": cpio.character_device(5, 1),
    "init": cpio.file(b"#!/bin/sh\n", 0o755),
}


def test_an_archive_holds_what_was_put_in() -> None:
    found = read(cpio.archive(ENTRIES, mtime=1000))
    assert list(found) == sorted(ENTRIES)
    for path, entry in ENTRIES.items():
        header, data = found[path]
        assert (header["mode"], data, header["mtime"]) == (entry.mode, entry.data, 1000)
        assert (header["rdevmajor"], header["rdevminor"]) == entry.device
        assert header["uid"] == header["gid"] == header["check"] == 0
    assert stat.S_ISLNK(found["bin/sh"][0]["mode"])
    assert len({header["ino"] for header, _ in found.values()}) == len(ENTRIES)


def test_the_bytes_do_not_depend_on_the_order_of_the_arguments() -> None:
    assert cpio.archive(dict(reversed(ENTRIES.items()))) == cpio.archive(ENTRIES)


@given(st.dictionaries(st.text("abz-_.é", min_size=1, max_size=9), st.binary(max_size=40)))
def test_any_names_and_contents_come_back(files: dict[str, bytes]) -> None:
    found = read(cpio.archive({name: cpio.file(data) for name, data in files.items()}))
    assert {name: data for name, (_, data) in found.items()} == files


@pytest.mark.parametrize("path", ["/init", "", "TRAILER!!!", "no/such", "init/below-a-file"])
def test_a_path_that_the_kernel_would_drop_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="cpio path"):
        cpio.archive({"init": cpio.file(b""), path: cpio.file(b"")})


@pytest.mark.skipif(shutil.which("cpio") is None, reason="GNU cpio is not installed")
def test_gnu_cpio_unpacks_it(tmp_path: Path) -> None:
    entries = {path: entry for path, entry in ENTRIES.items() if path != "dev/console"}
    subprocess.run(["cpio", "-i", "--quiet"], input=cpio.archive(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").read_bytes() == b"\x7fELF!"
