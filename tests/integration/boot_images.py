"""The Debian guest's system in other clothes: file systems, partition tables, boot configurations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from tt.errors import BadInput
from tt.guests import tools

MIB = 1 << 20
_FIRST_PARTITION = MIB


def tool(name: str) -> str:
    """Return the path of a tool of the host; skip the test where it is missing."""
    try:
        return tools.find(name, "?")
    except BadInput:
        pytest.skip(f"{name} is not installed")


def unpack_image(image: Path, tree: Path) -> Path:
    """Copy all that is in an ext image to `tree`."""
    tree.mkdir()
    # It complains where an ordinary user cannot give files to root, and returns 0.
    tools.run([tool("debugfs"), "-R", f"rdump / {tree}", str(image)])
    shutil.rmtree(tree / "lost+found", ignore_errors=True)
    return tree


def make_ext(tree: Path, image: Path, kind: str, *options: str, size_mib: int = 64) -> Path:
    """Make an ext2, ext3 or ext4 file system of `tree`."""
    image.unlink(missing_ok=True)
    command = [tool("mke2fs"), "-q", "-F", "-t", kind, "-E", "root_owner=0:0", *options, "-d", str(tree)]
    tools.run([*command, str(image), f"{size_mib}M"])
    return image


def make_fat(image: Path, files: dict[str, bytes], scratch: Path, size_mib: int = 40) -> Path:
    """Make a FAT file system with `files`; names may have folders in them."""
    mmd, mcopy = tool("mmd"), tool("mcopy")
    with image.open("wb") as f:
        f.truncate(size_mib * MIB)
    tools.run([tool("mkfs.vfat"), "-n", "BOOT", str(image)])
    for folder in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
        tools.run([mmd, "-i", str(image), f"::{folder}"])
    for name, contents in files.items():
        source = scratch / "copied"
        source.write_bytes(contents)
        tools.run([mcopy, "-i", str(image), str(source), f"::{name}"])
    return image


def join(image: Path, label: str, parts: Sequence[Path]) -> Path:
    """Make a disk with a partition table (`dos` or `gpt`) and these partitions."""
    script = [f"label: {label}"]
    at = _FIRST_PARTITION
    with image.open("wb") as disk:
        for part in parts:
            size = part.stat().st_size
            script.append(f"start={at // MIB}MiB, size={size // MIB}MiB, type=linux")
            disk.seek(at)
            with part.open("rb") as f:
                _copy_sparsely(f, disk)
            at += size
        disk.truncate(at + MIB)  # a GPT keeps its second table at the end
    tools.run([tool("sfdisk"), "--quiet", str(image)], stdin="\n".join(script))
    return image


def _copy_sparsely(source: BinaryIO, target: BinaryIO) -> None:
    while piece := source.read(MIB):
        if piece.count(0) == len(piece):
            target.seek(len(piece), 1)
        else:
            target.write(piece)
