"""A copy of one volume of a disk, in a temporary file, for tools that change it in place.

Each use reports which blocks it changed and then undoes that, so that one copy serves many uses.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tt.chronus.store.view import DiskView
from tt.errors import BadInput
from tt.log.sectors import SECTOR
from tt.vmm.boot.images import Volume
from tt.vmm.disk import BLOCK

TOOL_TIMEOUT_S = 600
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
# Ordinary users often have no sbin in PATH, where Debian keeps debugfs and e2fsck.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_MOST_MEMORY = 4 << 20  # KB of address space: a damaged file system must not make a tool use all memory


class Scratch:
    """The volume `volume` of `disk` in the file `path`, to be changed in place.

    Close it, or use it with `with`.  Raises `BadInput` where there is no room for it.
    """

    def __init__(self, disk: DiskView, volume: Volume) -> None:
        self.volume = volume
        self.folder = Path(tempfile.mkdtemp(prefix="chronus-patch-"))
        self.path = self.folder / "volume"
        self._pristine = self.folder / "pristine"
        try:
            _export(disk, volume, self._pristine)
            _copy(self._pristine, self.path)
        except OSError as e:
            self.close()
            raise BadInput(
                f"cannot copy {volume.name} of {disk.where} to {self.folder} ({e.strerror}): "
                "set TMPDIR to a folder with room for it"
            ) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self) -> dict[int, bytes]:
        """Return what differs from the volume as it was: offset in bytes -> contents, 4 KB or less each."""
        with self.path.open("rb") as now, self._pristine.open("rb") as then:
            return dict(_differences(then, now, self.volume.size))

    def keep(self, changed: Mapping[int, bytes]) -> None:
        """Keep the changes: `restore` returns to the present state from now on."""
        _put(self._pristine, changed)

    def restore(self, changed: Mapping[int, bytes]) -> None:
        """Undo the changes."""
        with self._pristine.open("rb") as then:
            _put(self.path, {at: os.pread(then.fileno(), len(data), at) for at, data in changed.items()})


def find_tool(name: str, package: str) -> str:
    """Return the path of a tool of the host; raises `BadInput` naming the Debian `package` that has it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if found is None:
        raise BadInput(f"{name} is not installed: install the package {package} (apt install {package})")
    return found


def run_tool(
    command: Sequence[str], *, now_s: int = 0, stdin: bytes = b"", most_kb: int = _MOST_MEMORY
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool of e2fsprogs on a temporary file, with bounds on memory and time; `now_s` is its clock.

    Raises `BadInput` where it takes too long or cannot be run.
    """
    clock = {"E2FSPROGS_FAKE_TIME": str(now_s), "E2FSCK_TIME": str(now_s)} if now_s > 0 else {}
    bounded = ["/bin/sh", "-c", f'ulimit -v {most_kb} 2>/dev/null; exec "$@"', "sh", *command]
    try:
        return subprocess.run(
            bounded,
            input=stdin,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C", **clock},
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"{Path(command[0]).name} took over {TOOL_TIMEOUT_S} s: the file system may be damaged"
        ) from None
    except OSError as e:
        raise BadInput(f"cannot run {command[0]}: {e.strerror}") from None


def _export(disk: DiskView, volume: Volume, path: Path) -> None:
    first, sectors = volume.offset // SECTOR, volume.size // SECTOR
    each = _PIECE // SECTOR
    with path.open("wb") as f:
        f.truncate(volume.size)
        for at in range(0, sectors, each):
            data = disk.read(first + at, min(each, sectors - at))
            if data != _ZEROS[: len(data)]:
                os.pwrite(f.fileno(), data, at * SECTOR)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as f, target.open("wb") as out:
        size = os.fstat(f.fileno()).st_size
        out.truncate(size)
        for begin, end in _data_ranges(f, size):
            for at in range(begin, end, _PIECE):
                os.pwrite(out.fileno(), os.pread(f.fileno(), min(_PIECE, end - at), at), at)


def _put(path: Path, pieces: Mapping[int, bytes]) -> None:
    with path.open("r+b") as f:
        for at, data in pieces.items():
            os.pwrite(f.fileno(), data, at)


def _differences(one: BinaryIO, other: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, contents of the other) of each 4 KB in which two files of one size differ."""
    waiting = sorted([*_data_ranges(one, size), *_data_ranges(other, size)])
    done = 0
    for begin, end in waiting:
        for at in range(max(begin // BLOCK * BLOCK, done), end, _PIECE):
            length = min(_PIECE, size - at)
            left, right = os.pread(one.fileno(), length, at), os.pread(other.fileno(), length, at)
            if left != right:
                for inside in range(0, length, BLOCK):
                    data = right[inside : inside + BLOCK]
                    if data != left[inside : inside + BLOCK]:
                        yield at + inside, data
            done = at + length


def _data_ranges(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are no holes (lseek(2), SEEK_DATA)."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
        yield begin, at
