"""Make an ext4 image of a directory, owned by root and the same bytes each time, without being root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tt.guests import tools

_PACKAGE = "e2fsprogs"
_UUID = "74742d64-6562-4961-8e2d-726f6f746673"
_HASH_SEED = "74742d64-6562-4961-8e2d-686173686573"

# Written out in full, because /etc/mke2fs.conf differs from one release of Debian to the next.
_CONFIG = """\
[defaults]
    base_features = sparse_super,large_file,filetype,dir_index,ext_attr
    blocksize = 4096
    inode_size = 256
    enable_periodic_fsck = 0
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
"""


def make(tree: Path, image: Path, size: int, label: str, time: int) -> None:
    """Write an ext4 file system of `size` bytes holding what is under `tree` to `image`, sparsely.

    Every file belongs to root and has `time` (seconds since 1970) for all its
    times; permission bits are those under `tree`.  Raises `BadInput` where
    e2fsprogs is missing, `ToolFailed` where it fails (such as no room).
    """
    mke2fs, debugfs = tools.find("mke2fs", _PACKAGE), tools.find("debugfs", _PACKAGE)
    config = image.with_name(image.name + ".mke2fs.conf")
    image.unlink(missing_ok=True)
    try:
        config.write_text(_CONFIG)
        with image.open("wb") as f:
            f.truncate(size)
        env = {"E2FSPROGS_FAKE_TIME": str(time), "MKE2FS_CONFIG": str(config)}
        options = ["-U", _UUID, "-E", f"hash_seed={_HASH_SEED},lazy_itable_init=0,root_owner=0:0"]
        layout = ["-J", "size=4", "-N", "4096", "-m", "0", "-L", label]
        tools.run([mke2fs, "-q", "-F", "-t", "ext4", *options, *layout, "-d", str(tree), str(image)], env=env)
        # mke2fs copies the owner and the time of the last change of each inode, which only root could set.
        commands = "".join(f"sif {path} {field}\n" for path in _paths(tree) for field in _fields(time))
        done = tools.run([debugfs, "-w", "-f", "-", str(image)], env=env, stdin=commands)
        # debugfs returns 0 even after errors; its first line on stderr is its version.
        if complaints := done.stderr.splitlines()[1:]:
            raise tools.ToolFailed(f"debugfs failed: {complaints[0]}")
    finally:
        config.unlink(missing_ok=True)


def _paths(tree: Path) -> Iterator[str]:
    """Yield every path of the image, quoted for debugfs."""
    yield "/"
    for path in sorted(tree.rglob("*")):
        yield f'"/{path.relative_to(tree)}"'


def _fields(time: int) -> Iterator[str]:
    yield "uid 0"
    yield "gid 0"
    for field in ("atime", "mtime", "ctime", "crtime"):
        yield f"{field} @{time}"
        yield f"{field}_extra 0"
