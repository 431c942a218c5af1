"""Making a history of what there is: a series of disk images, or the snapshots in a qcow2 file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt.errors import BadInput, UsageError
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DISK_ONLY, DiskWriter
from tt.log.sectors import SECTOR
from tt.vmm.boot.images import raw_image
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.disk import BLOCK, BaseImage

_CHUNK = 1 << 20
_TIMEOUT_S = 3600
_QCOW_MAGIC = b"QFI\xfb"


@dataclass(frozen=True)
class Picture:
    """One state of a disk to import: a file, or a snapshot (by its id) inside it."""

    path: Path
    name: str
    host_ns: int
    snapshot: str = ""


@dataclass(frozen=True)
class Imported:
    """A picture that became the instants up to `instant`, marked `bookmark`, with `size` bytes of changes."""

    picture: Picture
    bookmark: str
    instant: int
    size: int


def pictures(paths: Sequence[Path]) -> list[Picture]:
    """List what is in the files: the snapshots of a qcow2 file by their dates, then the file itself."""
    found = []
    for path in paths:
        try:
            with path.open("rb") as f:
                is_qcow = f.read(4) == _QCOW_MAGIC
            modified = path.stat().st_mtime_ns
        except OSError as e:
            raise BadInput(f"cannot read {path}: {e.strerror or e}") from None
        snapshots = _info(path).get("snapshots", []) if is_qcow else []
        for snapshot in sorted(snapshots, key=lambda s: (s.get("date-sec", 0), s.get("date-nsec", 0))):
            taken = int(snapshot.get("date-sec", 0)) * 10**9 + int(snapshot.get("date-nsec", 0))
            found.append(Picture(path, str(snapshot.get("name", "")), taken, str(snapshot.get("id", ""))))
        found.append(Picture(path, path.stem, max(modified, found[-1].host_ns if snapshots else 0)))
    return found


def import_images(
    out: Path,
    images: Sequence[Picture],
    *,
    overwrite: bool = False,
    say: Callable[[Imported], None] = lambda imported: None,
) -> list[Imported]:
    """Make the history `out` of a disk that was each of `images` in turn; each becomes a bookmark.

    The history holds everything: no base image is needed afterwards.  Images may be raw or qcow2 (by
    qemu-img); an overlay is read if what it lies on is one of the images too.  Raises `UsageError`
    where there are none, `BadInput` for what cannot be read.
    """
    if not images:
        raise UsageError("give at least one image to import")
    allowed = {image.path.resolve() for image in images}
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".importing-") as scratch:
        size = max(_size(image.path) for image in images)
        disk = DiskConfig("", -(-size // SECTOR) * SECTOR, "")
        config = MachineConfig(
            DISK_ONLY, 0, 1, int(time.time()), "host", "", "", (disk,), ("imported images",)
        )
        meta = {"id": os.urandom(16).hex(), "config": config.plain(), "period_ns": 1}
        imported: list[Imported] = []
        with DiskWriter.create(out, meta, overwrite=overwrite) as writer:
            before: BaseImage | None = None
            kept: Path | None = None
            for number, image in enumerate(images):
                with _raw(image, Path(scratch) / f"{number}.raw", allowed) as raw:
                    now = BaseImage(raw)
                    changed = _add(writer, before, now, disk.size // SECTOR, image.host_ns)
                    name = _bookmark(image.name, imported)
                    writer.bookmark(name)
                    writer.commit()
                    imported.append(Imported(image, name, writer.count, changed))
                    say(imported[-1])
                    if kept is not None:
                        kept.unlink(missing_ok=True)
                    before, kept = now, raw if raw.parent == Path(scratch) else None
            writer.seal("imported")
    return imported


def _add(writer: DiskWriter, before: BaseImage | None, now: BaseImage, sectors: int, host_ns: int) -> int:
    """Write what differs between two images; return the bytes of that."""
    changed = 0
    zeros = bytes(_CHUNK)
    for lba in range(0, sectors, _CHUNK // SECTOR):
        count = min(_CHUNK // SECTOR, sectors - lba)
        new = _read(now, lba, count)
        old = zeros[: len(new)] if before is None else _read(before, lba, count)
        if new == old:
            continue
        at = 0
        while at < len(new):
            if new[at : at + BLOCK] == old[at : at + BLOCK]:
                at += BLOCK
                continue
            end = at + BLOCK
            while end < len(new) and new[end : end + BLOCK] != old[end : end + BLOCK]:
                end += BLOCK
            data = new[at:end]
            zero = data == zeros[: len(data)]
            kind = ChangeKind.ZEROES if zero else ChangeKind.DATA
            writer.add(0, kind, lba + at // SECTOR, len(data) // SECTOR, b"" if zero else data, host_ns)
            changed += len(data)
            at = end
    return changed


def _read(image: BaseImage, lba: int, count: int) -> bytes:
    there = max(0, min(count, image.sectors - lba))
    return (image.read(lba, there) if there else b"").ljust(count * SECTOR, b"\0")


def _bookmark(name: str, imported: list[Imported]) -> str:
    """Return a name for an image that no other has."""
    base = re.sub(r"[^\w.-]+", "-", name).strip("-") or "image"
    taken = {one.bookmark for one in imported}
    number, found = 1, base[:100]
    while found in taken:
        number += 1
        found = f"{base[:100]}-{number}"
    return found


@contextmanager
def _raw(image: Picture, target: Path, allowed: set[Path]) -> Iterator[Path]:
    """Give a raw file of a picture, which may be thrown away after the next picture."""
    with image.path.open("rb") as f:
        is_qcow = f.read(4) == _QCOW_MAGIC
    if not is_qcow:
        yield raw_image(image.path)
        return
    _check_backing(image.path, allowed)
    command = [_tool(), "convert", "-f", "qcow2", "-O", "raw"]
    if image.snapshot:
        command += ["-l", f"snapshot.id={image.snapshot}"]
    _run([*command, "--", str(image.path.resolve()), str(target)], f"convert {image.path}")
    yield target


def _check_backing(path: Path, allowed: set[Path]) -> None:
    """Refuse an image that would make qemu-img read a file that nobody named."""
    seen: set[Path] = set()
    while True:
        info = _info(path)
        if info.get("format-specific", {}).get("data", {}).get("data-file"):
            raise BadInput(f"{path} keeps its data in another file: convert it with qemu-img convert -O raw")
        backing = info.get("full-backing-filename") or info.get("backing-filename")
        if backing is None:
            return
        below = Path(str(backing)).resolve()
        if below not in allowed or below in seen:
            raise BadInput(f"{path} is an overlay on {backing}: give that image too, before it")
        if info.get("backing-filename-format") == "raw":
            return
        seen.add(below)
        path = below


def _size(path: Path) -> int:
    """Return the bytes of the disk in an image."""
    with path.open("rb") as f:
        is_qcow = f.read(4) == _QCOW_MAGIC
    if is_qcow:
        return int(_info(path)["virtual-size"])
    return raw_image(path).stat().st_size


def _info(path: Path) -> dict[str, Any]:
    text = _run([_tool(), "info", "-f", "qcow2", "--output=json", "--", str(path.resolve())], f"read {path}")
    try:
        found: dict[str, Any] = json.loads(text)
        found["virtual-size"] = int(found["virtual-size"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"qemu-img says nothing of {path} that tt understands") from None
    return found


def _tool() -> str:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise BadInput(
            "qcow2 images are read with qemu-img: install it (in qemu-utils), or convert them to raw"
        )
    return tool


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise BadInput(f"qemu-img cannot {what}: {e}") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise BadInput(f"qemu-img cannot {what}: {reason[-1] if reason else 'no reason given'}")
    return done.stdout
