"""Disk images and the volumes in them, on partitions or the whole disk; qcow2 by way of qemu-img."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tt.errors import BadInput
from tt.vmm.boot import filesystems
from tt.vmm.boot.partitions import SECTOR, read_table
from tt.vmm.disk import refuse_special
from tt.vmm.streams import Window

_QCOW_MAGIC = b"QFI\xfb"
_QCOW_EXTERNAL_DATA = 1 << 2
_QCOW_MAX_SIZE = 2 << 40
_CONVERT_TIMEOUT = 3600  # seconds

_FOREIGN = (
    (b"KDMV", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
)
_VDI_MAGIC = b"\x7f\x10\xda\xbe"


@dataclass(frozen=True)
class Volume:
    """A part of a disk that can hold a file system; `offset` and `size` in bytes.

    `number` is the partition's number as Linux counts it, 0 for a file system
    on the whole disk.  `type` is what it holds: `ext`, `fat`, the name of
    another format, or empty.
    """

    number: int
    offset: int
    size: int
    type: str

    @property
    def name(self) -> str:
        """The device that Linux gives it on the first virtio disk: `vda`, `vda1`, ..."""
        return f"vda{self.number}" if self.number else "vda"


class DiskImage:
    """A raw disk and its volumes; `where` names it in errors.

    `stream` is any seekable binary file, `size` its bytes.  Use `open_image`
    for a file on the host.  `problem` says, of a disk without volumes, what is
    wrong with its partition table, if anything is.
    """

    def __init__(self, stream: BinaryIO, size: int, where: str) -> None:
        self.stream = stream
        self.size = size
        self.where = where
        self.volumes, self.problem = _find_volumes(stream, size)

    def open(self, volume: Volume) -> BinaryIO:
        """Return the bytes of one volume as a seekable read-only file."""
        return Window(self.stream, volume.offset, volume.size)  # type: ignore[return-value]

    def filesystem(self, volume: Volume) -> filesystems.FileSystem[object]:
        """Open the file system on a volume; raises `BadInput` as `open_filesystem` does."""
        return filesystems.open_filesystem(self.open(volume), f"{self.where} ({volume.name})")


def open_image(path: Path) -> DiskImage:
    """Open a disk image on the host, raw or qcow2, and find its volumes.

    Raises `BadInput` when it cannot be read or is in a format tt does not read.
    """
    raw = raw_image(path)
    try:
        with raw.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if not size:
                raise BadInput(f"disk image {path} is empty: give an image that holds something to boot")
            mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as e:
        raise BadInput(f"cannot read disk image {path}: {e}") from None
    return DiskImage(mapped, size, str(path))  # type: ignore[arg-type]


def raw_image(path: Path) -> Path:
    """Return the path of a raw image with the contents of `path`: itself, or a converted copy in the cache.

    qcow2 is converted by `qemu-img`, once for each state of the file.  Raises
    `BadInput` when the file cannot be read, needs `qemu-img` where there is
    none, or is of a format that tt does not take.
    """
    refuse_special(path)
    try:
        with path.open("rb") as f:
            head = f.read(112)
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}") from None
    if head[:4] == _QCOW_MAGIC:
        return _convert_qcow2(path, head)
    name = next((name for magic, name in _FOREIGN if head.startswith(magic)), None)
    if name is None and head[64:68] == _VDI_MAGIC:
        name = "VDI"
    if name and name.endswith("compressed"):
        raise BadInput(f"{path} is {name}: unpack it first")
    if name:
        raise BadInput(f"{path} is a {name} image: convert it with qemu-img convert -O raw")
    return path


def _convert_qcow2(path: Path, head: bytes) -> Path:
    """Check a qcow2 header (qcow2.txt, "Header") and convert the image into the cache."""
    if len(head) < 72:
        raise BadInput(f"{path} is cut short: its qcow2 header is not whole")
    version, backing = struct.unpack_from(">IQ", head, 4)
    (size,) = struct.unpack_from(">Q", head, 24)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    # Either of these makes qemu-img read other files of the host, named by the image.
    if backing:
        raise BadInput(f"{path} is an overlay on another image: flatten it with qemu-img convert -O qcow2")
    if features & _QCOW_EXTERNAL_DATA:
        raise BadInput(f"{path} keeps its data in another file: convert it with qemu-img convert -O raw")
    if size > _QCOW_MAX_SIZE:
        raise BadInput(f"{path} claims a disk of {size >> 40} TB: damaged?")
    tool = shutil.which("qemu-img")
    try:
        info = path.stat()
        key = f"{path.resolve()}\0{info.st_size}\0{info.st_mtime_ns}".encode("utf-8", "surrogateescape")
        cache = _cache_directory()
        cache.mkdir(parents=True, exist_ok=True)
        target = cache / f"{hashlib.sha256(key).hexdigest()[:32]}.raw"
        if target.exists():
            return target
        if tool is None:
            raise BadInput(f"{path} is a qcow2 image: install qemu-img (in qemu-utils), or convert it to raw")
        handle, name = tempfile.mkstemp(suffix=".partial", dir=cache)
        os.close(handle)
        partial = Path(name)
    except OSError as e:
        raise BadInput(f"cannot convert {path}: {e}") from None
    command = [tool, "convert", "-f", "qcow2", "-O", "raw", "--", str(path.resolve()), name]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CONVERT_TIMEOUT, check=False
        )
        if done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise BadInput(f"qemu-img cannot convert {path}: {reason[-1] if reason else 'no reason given'}")
        partial.replace(target)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise BadInput(f"cannot convert {path}: {e}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _cache_directory() -> Path:
    """Where converted images are kept (XDG Base Directory Specification)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "tt" / "images"


def _find_volumes(disk: BinaryIO, size: int) -> tuple[list[Volume], str]:
    """List what can hold a file system: the partitions of a valid table, else the whole disk if it does.

    Also returns why a table that is there cannot be used.
    """
    stream = _window(disk, 0, size)
    table = read_table(stream, size, fat=filesystems.looks_like_fat(_read_at(stream, 0, SECTOR)))
    volumes = []
    for number, offset, length in table.parts:
        kind = filesystems.probe(_window(stream, offset, length))
        volumes.append(Volume(number, offset, length, kind or ""))
    if not volumes:
        whole = filesystems.probe(stream)
        if whole is not None:
            volumes.append(Volume(0, 0, size, whole))
    return volumes, "" if volumes else table.problem


def _window(stream: BinaryIO, offset: int, size: int) -> BinaryIO:
    return Window(stream, offset, size)  # type: ignore[return-value]


def _read_at(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)
