"""Making a history from existing files: a series of disk images, or the snapshots in a qcow2 file."""

from __future__ import annotations

import heapq
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tt.chronus.store import spool
from tt.chronus.store.host_file import data_ranges
from tt.chronus.store.images import DESCRIPTION, META_KEY, ImageSpan
from tt.errors import BadInput, UsageError
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DISK_ONLY, DiskWriter
from tt.log.sectors import SECTOR
from tt.vmm.boot.images import raw_image
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.disk import BLOCK

Progress = Callable[[str, float], None]

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")  # what `qemu-img -p` prints
_TIMEOUT_S = 3600
_QCOW_MAGIC = b"QFI\xfb"


@dataclass(frozen=True)
class Picture:
    """One state of a disk to import: a file, or a snapshot (by its id) inside it."""

    path: Path
    name: str
    host_ns: int
    snapshot: str = ""

    @property
    def label(self) -> str:
        """What to call it: the file, and the snapshot in it."""
        return f"{self.path.name}, snapshot {self.name}" if self.snapshot else self.path.name


@dataclass(frozen=True)
class Imported:
    """A picture that became instant `instant`, marked `bookmark`, with `size` bytes of changes."""

    picture: Picture
    bookmark: str
    instant: int
    size: int


def pictures(paths: Sequence[Path]) -> list[Picture]:
    """List what is in the files: the snapshots of a qcow2 file by their dates, then the file itself."""
    found = []
    for path in paths:
        try:
            is_qcow = _is_qcow(path)
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
    progress: Progress = lambda what, done: None,
) -> list[Imported]:
    """Make the history `out` of a disk that was each of `images` in turn; each becomes a bookmark.

    The history holds everything: no base image is needed afterwards.  Images may be raw or qcow2 (by
    qemu-img); an overlay is read if what it lies on is one of the images too.  Holes are passed over.
    `out` appears when it is whole; until then, and where this fails, no such file is left.
    `progress` is told what is being done and how much of it is, from 0 to 1.  Raises `UsageError`
    where there are no images, `BadInput` for what cannot be read.
    """
    if not images:
        raise UsageError("give at least one image to import")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already: --force overwrites it, -o takes another name")
    left = spool.folder_of(out)
    if left.is_dir():
        raise BadInput(f"{left} belongs to another history of that name: remove it, or take another name")
    allowed = {image.path.resolve() for image in images}
    size = max(_size(image.path) for image in images)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".importing-") as folder:
        made = Path(folder) / out.name
        imported = _make(made, images, size, allowed, say, progress)
        for ending in ("-wal", "-shm", "-journal"):  # of the history that is overwritten
            out.with_name(out.name + ending).unlink(missing_ok=True)
        made.replace(out)
        spool.sync_folder(out.absolute().parent)
    return imported


def _make(
    path: Path,
    images: Sequence[Picture],
    size: int,
    allowed: set[Path],
    say: Callable[[Imported], None],
    progress: Progress,
) -> list[Imported]:
    disk = DiskConfig("", -(-size // SECTOR) * SECTOR, "")
    config = MachineConfig(DISK_ONLY, 0, 1, int(time.time()), "host", "", "", (disk,), (DESCRIPTION,))
    meta = {"id": os.urandom(16).hex(), "config": config.plain(), "period_ns": 1}
    imported: list[Imported] = []
    spans: list[ImageSpan] = []
    before: _RawImage | None = None
    with DiskWriter.create(path, meta) as writer:
        for number, image in enumerate(images):
            scratch = path.with_name(f"{number}.raw")
            now = _RawImage(_raw(image, scratch, allowed, progress))
            if before is not None and before.path.parent == path.parent:
                before.path.unlink()  # it stays open, and is read below
            first = writer.count + 1
            changed = _add(
                writer, before, now, disk.size, image.host_ns, partial(progress, f"importing {image.label}")
            )
            name = _bookmark(image.name, imported)
            writer.bookmark(name)
            if writer.count >= first:
                spans.append(ImageSpan(name, first, writer.count))
                writer.note(META_KEY, spans)
            writer.commit()
            imported.append(Imported(image, name, writer.count, changed))
            say(imported[-1])
            if before is not None:
                before.close()
            before = now
        writer.seal("imported")
    if before is not None:
        before.close()
    return imported


class _RawImage:
    """A raw image, which reads as zeros behind its end; raises `BadInput`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as e:
            raise BadInput(f"cannot read {path}: {e.strerror or e}") from None

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes."""
        try:
            return os.pread(self._file.fileno(), size, offset).ljust(size, b"\0")
        except OSError as e:
            raise BadInput(f"cannot read {self.path}: {e.strerror or e}") from None

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of the data, without holes, in whole blocks."""
        for begin, end in data_ranges(self._file.fileno(), self.size):
            yield begin // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _add(
    writer: DiskWriter,
    before: _RawImage | None,
    now: _RawImage,
    size: int,
    host_ns: int,
    progress: Callable[[float], None],
) -> int:
    """Write what differs between two images of a disk of `size` bytes; return the bytes of that."""
    places = list(_joined(heapq.merge(now.data(), before.data() if before else ())))
    total = sum(end - begin for begin, end in places)
    changed = done = 0
    for low, high in places:
        for begin in range(low, min(high, size), _CHUNK):
            end = min(begin + _CHUNK, high, size)
            new = now.read(begin, end - begin)
            old = _ZEROS[: len(new)] if before is None else before.read(begin, end - begin)
            if new != old:
                changed += _add_chunk(writer, begin, old, new, host_ns)
            done += end - begin
            progress(done / total)
    return changed


def _add_chunk(writer: DiskWriter, offset: int, old: bytes, new: bytes, host_ns: int) -> int:
    changed = at = 0
    while at < len(new):
        if new[at : at + BLOCK] == old[at : at + BLOCK]:
            at += BLOCK
            continue
        end = at + BLOCK
        while end < len(new) and new[end : end + BLOCK] != old[end : end + BLOCK]:
            end += BLOCK
        data = new[at:end]
        zero = data == _ZEROS[: len(data)]
        kind = ChangeKind.ZEROES if zero else ChangeKind.DATA
        lba, sectors = (offset + at) // SECTOR, len(data) // SECTOR
        writer.add(0, kind, lba, sectors, b"" if zero else data, host_ns)
        changed += len(data)
        at = end
    return changed


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join ranges that touch, which come in the order of their beginnings."""
    begin = end = -1
    for low, high in ranges:
        if low > end:
            if end > begin:
                yield begin, end
            begin, end = low, high
        end = max(end, high)
    if end > begin:
        yield begin, end


def _bookmark(name: str, imported: list[Imported]) -> str:
    """Return a name for an image that no other has."""
    base = re.sub(r"[^\w.-]+", "-", name).strip("-") or "image"
    taken = {one.bookmark for one in imported}
    number, found = 1, base[:100]
    while found in taken:
        number += 1
        found = f"{base[:100]}-{number}"
    return found


def _raw(image: Picture, target: Path, allowed: set[Path], progress: Progress) -> Path:
    """Return a raw file of a picture: itself, or `target`, into which it was converted."""
    if not _is_qcow(image.path):
        return raw_image(image.path)
    _check_backing(image.path, allowed)
    command = [_tool(), "convert", "-p", "-f", "qcow2", "-O", "raw"]
    if image.snapshot:
        command += ["-l", f"snapshot.id={image.snapshot}"]
    command += ["--", str(image.path.resolve()), str(target)]
    what = f"convert {image.path}"
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None and process.stderr is not None
                while text := os.read(process.stdout.fileno(), 4096):
                    for percent in _PERCENT.findall(text)[-1:]:
                        progress(f"reading {image.label}", float(percent) / 100)
                errors = process.stderr.read().decode("utf-8", "replace")
            except BaseException:
                process.kill()
                raise
    except OSError as e:
        raise BadInput(f"qemu-img cannot {what}: {e}") from None
    _check_done(process.returncode, errors, what)
    return target


def _is_qcow(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(4) == _QCOW_MAGIC


def _check_backing(path: Path, allowed: set[Path]) -> None:
    """Refuse an image that would make qemu-img read a file that the user did not name."""
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
    if _is_qcow(path):
        return int(_info(path)["virtual-size"])
    return raw_image(path).stat().st_size


def _info(path: Path) -> dict[str, Any]:
    text = _run([_tool(), "info", "-f", "qcow2", "--output=json", "--", str(path.resolve())], f"read {path}")
    try:
        found: dict[str, Any] = json.loads(text)
        found["virtual-size"] = int(found["virtual-size"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"qemu-img describes {path} in a way that tt does not understand") from None
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
    _check_done(done.returncode, done.stderr, what)
    return done.stdout


def _check_done(code: int, errors: str, what: str) -> None:
    if code:
        reason = errors.strip().splitlines()
        raise BadInput(f"qemu-img cannot {what}: {reason[-1] if reason else 'no reason given'}")
