#!/usr/bin/env python3
"""Make a Debian server with real packages, for the configuration bugs of tests/integration/chronus_bugs.py.

    server_image.py DIR

writes DIR/server.img: one ext4 file system with openssh-server, lighttpd, dnsmasq, cron, sudo, nftables and
Debian's kernel, which boots by tt's small initrd.  Needs root and debootstrap.  The unpacked system is
kept in tt's cache directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from debootstrap_image import apt_source

from tt.guests import debian
from tt.guests.apt import cache_directory
from tt.guests.modules import ModuleTree, load_order

PACKAGES = (
    "linux-image-cloud-amd64", "kmod", "openssh-server", "lighttpd", "dnsmasq-base", "cron", "sudo",
    "nftables",
    "iproute2", "procps", "perl-base", "busybox-static", "login", "e2fsprogs", "sysvinit-core",
)  # fmt: skip
# Room for one real package, installed again in the middle of the machine's life.
KEPT_PACKAGE = "nftables"
# What the bugs have nothing to do with, and what would take most of the room.
DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt")
IMAGE_BYTES = 640 << 20
UUID = "6a0c3d52-7f0e-4c4c-8a45-b1f2b7c10ad1"


def main() -> int:
    if len(sys.argv) != 2 or os.geteuid():
        print("server_image: give one folder, as root (debootstrap needs that)", file=sys.stderr)
        return 2
    build(Path(sys.argv[1]))
    return 0


def build(folder: Path) -> Path:
    """Make `folder`/server.img, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    base = base_system()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch) / "root"
        subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
        configure(root)
        image = Path(scratch) / "server.img"
        with image.open("wb") as f:
            f.truncate(IMAGE_BYTES)
        options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", UUID, "-L", "server"]
        layout = ["-E", "lazy_itable_init=0", "-J", "size=4", "-N", "20000"]
        subprocess.run(["mke2fs", *options, *layout, "-d", str(root), str(image)], check=True)
        image.replace(folder / "server.img")
    return folder / "server.img"


def base_system() -> Path:
    """Return a directory with the installed system, made by debootstrap the first time."""
    suite, mirror = apt_source()
    key = hashlib.sha256(" ".join((suite, *PACKAGES)).encode()).hexdigest()[:12]
    root = cache_directory() / f"server-{suite}-{key}"
    if root.exists():
        return root
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        suite,
        str(partial),
        mirror,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"server_image: debootstrap failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    kept = next((partial / "var/cache/apt/archives").glob(f"{KEPT_PACKAGE}_*.deb"))
    shutil.copy(kept, partial / "root" / f"{KEPT_PACKAGE}.deb")
    _slim(partial)
    partial.rename(root)
    return root


def configure(root: Path) -> None:
    """Do what an administrator did before anything broke."""
    (root / "etc/hostname").write_text("server\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 server\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\ntmpfs /tmp tmpfs mode=1777 0 0\n")
    (root / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n")
    (root / "etc/dnsmasq.conf").write_text("listen-address=127.0.0.1\ndomain=example.org\ncache-size=150\n")
    (root / "etc/cron.d/backup").write_text("15 3 * * * root /usr/local/sbin/backup\n")
    (root / "usr/local/sbin/backup").write_text("#!/bin/sh\nset -e\ntar -cf /var/backups/etc.tar /etc\n")
    (root / "usr/local/sbin/backup").chmod(0o755)
    (root / "etc/sudoers.d/ops").write_text("%ops ALL=(ALL:ALL) NOPASSWD: /usr/sbin/service\n")
    (root / "etc/sudoers.d/ops").chmod(0o440)
    subprocess.run(["chroot", str(root), "groupadd", "-f", "ops"], check=True)
    subprocess.run(["chroot", str(root), "useradd", "-m", "-g", "ops", "-s", "/bin/bash", "ada"], check=True)
    subprocess.run(["chroot", str(root), "chpasswd"], input=b"ada:Tr0ub4dor\n", check=True)
    release = next((root / "lib/modules").iterdir())
    modules = ModuleTree(release)
    wanted = [name for name in ("virtio_pci", "virtio_blk", "virtio_rng") if not modules.builtin(name)]
    order = load_order(wanted, modules.depends)
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    initrd = debian.make_initrd(busybox.read_bytes(), {name: modules.image(name) for name in order})
    (root / f"boot/initrd.img-{release.name}").write_bytes(initrd)
    (root / "boot/extlinux").mkdir()
    (root / "boot/extlinux/extlinux.conf").write_text(
        f"DEFAULT server\nLABEL server\n    LINUX /boot/vmlinuz-{release.name}\n"
        f"    INITRD /boot/initrd.img-{release.name}\n    APPEND root=/dev/vda ro console=ttyS0\n"
    )


def _slim(root: Path) -> None:
    for name in DROPPED:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)


if __name__ == "__main__":
    sys.exit(main())
