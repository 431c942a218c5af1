"""Writing a disk as it was to an image on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tt.chronus.store.view import DiskView
from tt.errors import BadInput, UsageError

_PIECE = 256  # blocks of 4 KB
_ZEROS = bytes(_PIECE * 4096)


def export(
    disk: DiskView,
    out: Path,
    *,
    image_format: str = "raw",
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write `disk` to `out`, sparsely, as "raw" or (by qemu-img) "qcow2"; return the bytes of the disk.

    `out` appears when it is whole.  `progress` is told the bytes done.  Raises `UsageError` where it
    exists or cannot be written, `BadInput` for damage or where qemu-img is missing.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already: --force overwrites it, -o takes another name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.absolute().parent)
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror}") from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as f:
            write_raw(disk, f.fileno(), progress)
            os.fchmod(f.fileno(), 0o644)
        if image_format == "qcow2":
            _to_qcow2(partial, out)
        else:
            partial.replace(out)
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return disk.size


def write_raw(disk: DiskView, descriptor: int, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write a disk into an empty file, leaving holes for zeros."""
    os.ftruncate(descriptor, disk.size)
    blocks = -(-disk.size // 4096)
    for first in range(0, blocks, _PIECE):
        data = b"".join(disk.blocks(first, min(_PIECE, blocks - first)))
        if data != _ZEROS[: len(data)]:
            os.pwrite(descriptor, data, first * 4096)
        progress(first * 4096 + len(data))


def _to_qcow2(raw: Path, out: Path) -> None:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise BadInput("qcow2 is written by qemu-img: install it (in qemu-utils), or export a raw image")
    command = [tool, "convert", "-f", "raw", "-O", "qcow2", "--", str(raw), str(out)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"qemu-img cannot write {out}: {done.stderr.strip()[-300:]}")
