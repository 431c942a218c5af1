"""Build the Debian guest: Debian's own kernel, and a busybox root file system, in one ext4 image.

The kernel is the unmodified one of Debian's cloud images.  The rest is small
on purpose, so that building takes seconds and booting little more: busybox as
init, shell, syslogd, crond and httpd.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tt.errors import BadInput
from tt.guests import cpio, debian_files, ext4_image, tools
from tt.guests.apt import Apt, Package, cache_directory, unpack, with_lists
from tt.guests.modules import ModuleTree, load_order

KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
IMAGE_BYTES = 64 << 20
# Every file's time, so that two builds of the same packages give the same image: 2025-01-01.
_TIME = 1_735_689_600


@dataclass(frozen=True)
class DebianGuest:
    """What was built: `image` boots by itself; `kernel` and `initrd` are copies of those inside it."""

    image: Path
    kernel: Path
    initrd: Path
    kernel_version: str
    packages: dict[str, str]


def recipe() -> str:
    """Return a name of how guests are made: what another version of tt has built has another one."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def build(out: Path, say: Callable[[str], None] = lambda line: None) -> DebianGuest:
    """Build `out`/debian.img, and `vmlinuz` and `initrd.img` beside it, telling `say` of each step.

    Needs apt with Debian's main section, dpkg-deb and mke2fs, but not root.
    Downloads are kept in `apt.cache_directory()`.  The same package versions
    give the same bytes.  Raises `BadInput` with what is missing.
    """
    for tool, package in (("dpkg-deb", "dpkg"), ("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs")):
        tools.find(tool, package)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as scratch:
            return _build(out, Path(scratch), say)
    except OSError as e:
        raise BadInput(f"cannot build the guest in {out}: {e}") from None


def _build(out: Path, scratch: Path, say: Callable[[str], None]) -> DebianGuest:
    say_once = _once(say)
    packages = with_lists(cache_directory(), lambda apt: _fetch(apt, say_once))
    unpacked, tree = scratch / "packages", scratch / "root"
    unpack(list(packages.values()), unpacked)
    release = _one(unpacked, ("lib/modules/*", "usr/lib/modules/*"), "kernel modules")
    kernel = _one(unpacked, (f"boot/vmlinuz-{release.name}",), "kernel").read_bytes()
    busybox = _one(unpacked, ("bin/busybox", "usr/bin/busybox"), "busybox").read_bytes()
    modules = ModuleTree(release)
    order = load_order(_wanted(modules), modules.depends)
    say(f"initrd with {', '.join(order)}")
    initrd = make_initrd(busybox, {name: modules.image(name) for name in order})
    _lay_out(tree, release.name, busybox, kernel, initrd, {p.name: p.version for p in packages})
    image = scratch / "debian.img"
    ext4_image.make(tree, image, IMAGE_BYTES, "debian", _TIME)
    guest = DebianGuest(
        out / "debian.img",
        out / "vmlinuz",
        out / "initrd.img",
        release.name,
        {p.name: p.version for p in packages},
    )
    guest.kernel.write_bytes(kernel)
    guest.initrd.write_bytes(initrd)
    image.replace(guest.image)
    return guest


def _fetch(apt: Apt, say: Callable[[str], None]) -> dict[Package, Path]:
    meta = apt.show(KERNEL_METAPACKAGE)
    kernel = re.search(r"\blinux-image-\d[^ ,(|]*", meta.depends)
    if kernel is None:
        raise BadInput(f"{KERNEL_METAPACKAGE} {meta.version} depends on no kernel package: {meta.depends!r}")
    packages = {}
    for name in (kernel.group(), "busybox-static"):
        package = apt.show(name)
        say(f"{package.name} {package.version}{', cached' if apt.cached(package) else ': fetching it'}")
        packages[package] = apt.fetch(package)
    return packages


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a `say` that prints each line once only, for work that may be tried again."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


def make_initrd(busybox: bytes, modules: dict[str, bytes]) -> bytes:
    """Return an initrd that loads `modules` in their order and goes on to the disk's own init.

    It is not compressed: it lies on a sparse local disk, and inflating it would
    only cost the guest time.
    """
    entries = {
        **{name: cpio.directory() for name in ("bin", "dev", "lib", "lib/modules", "proc", "root", "sys")},
        "init": cpio.file(debian_files.INITRD_INIT.encode(), 0o755),
        "bin/busybox": cpio.file(busybox, 0o755),
        "dev/console": cpio.character_device(5, 1),
        "dev/null": cpio.character_device(1, 3, 0o666),
        "lib/modules/order": cpio.file("".join(f"{name}\n" for name in modules).encode()),
    }
    entries |= {f"bin/{applet}": cpio.symlink("busybox") for applet in debian_files.INITRD_APPLETS}
    entries |= {f"lib/modules/{name}.ko": cpio.file(image) for name, image in modules.items()}
    return cpio.archive(entries, _TIME)


def applets(busybox: bytes) -> list[str]:
    """Return the names of the commands in a busybox binary, from its own table of NUL-ended names.

    Read rather than asked for, because the guest's program need not run on the host.
    """
    table = re.search(rb"\0(\[\0\[\[\0(?:[a-z0-9_.-]+\0)+)", busybox)
    if table is None:
        raise BadInput("busybox-static holds no table of commands: tt does not know this version")
    return table.group(1).decode("ascii").rstrip("\0").split("\0")


def _wanted(modules: ModuleTree) -> list[str]:
    return [name for name in debian_files.MODULES if not modules.builtin(name)]


def _one(unpacked: Path, patterns: tuple[str, ...], what: str) -> Path:
    found = [path for pattern in patterns for path in sorted(unpacked.glob(pattern))]
    if not found:
        raise BadInput(f"the packages hold no {what} at {' or '.join(patterns)}")
    return found[0]


def _lay_out(
    tree: Path, release: str, busybox: bytes, kernel: bytes, initrd: bytes, versions: dict[str, str]
) -> None:
    """Fill `tree` with the guest's root file system."""
    for path, mode in debian_files.DIRECTORIES.items():
        (tree / path).mkdir(parents=True, exist_ok=True)
        (tree / path).chmod(mode)
    tree.chmod(0o755)
    for path, target in debian_files.SYMLINKS.items():
        (tree / path).symlink_to(target)
    summary = ", ".join(f"{name} {version}" for name, version in versions.items())
    for path, (mode, text) in debian_files.files(release, summary).items():
        _put(tree / path, text.encode(), mode)
    _put(tree / "usr/bin/busybox", busybox, 0o755)
    _put(tree / f"boot/vmlinuz-{release}", kernel, 0o644)
    _put(tree / f"boot/initrd.img-{release}", initrd, 0o644)
    for applet in sorted({*applets(busybox)} - {"busybox"}):
        (tree / "usr/bin" / applet).symlink_to("busybox")


def _put(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)
