"""Images with file systems in them, and copies of them that debugfs edited."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "boot"))  # where images are made for the boot loaders' tests

from boot_disks import MIB, join_mbr, make_ext, make_fat, need, run

__all__ = ["FILES", "MIB", "edited", "join_mbr", "make_ext", "make_fat", "need", "put", "run"]

FILES: dict[str, bytes | str] = {
    "etc/fstab": b"/dev/vda / ext4\n",
    "etc/hosts": b"one\ntwo\nthree\n",
    "etc/link": "hosts",
    "usr/bin/tool": bytes(range(256)) * 64,
    "usr/share/doc/a": b"a",
    "usr/share/doc/b": b"b",
    "empty/": b"",
}


def edited(image: Path, *commands: str) -> Path:
    """Return a copy of an image after debugfs did `commands` to it."""
    need("debugfs")
    copy = image.with_name(f"{len(list(image.parent.iterdir()))}.img")
    shutil.copyfile(image, copy)
    script = copy.with_suffix(".commands")
    script.write_text("".join(f"{command}\n" for command in commands))
    run("debugfs", "-w", "-f", script, copy)
    return copy


def put(folder: Path, contents: bytes, path: str) -> str:
    """Return the command of debugfs that writes a file."""
    source = folder / f"put{len(list(folder.iterdir()))}"
    source.write_bytes(contents)
    return f"write {source} {path}"
