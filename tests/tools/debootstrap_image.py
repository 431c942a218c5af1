#!/usr/bin/env python3
"""Make a disk image of a whole Debian with debootstrap, for tests: systemd, sshd, cron, kernel, initrd.

    debootstrap_image.py DIR [--layout whole|mbr|gpt]

writes DIR/disk.img, and DIR/vmlinuz and DIR/initrd.img, which are copies of
those inside it.  Root logs in on the serial console without a password.

Needs root (debootstrap does), and the packages debootstrap, e2fsprogs and
fdisk.  Packages come from the machine's own apt sources.  The unpacked system
is kept in tt's cache directory, so that a second image takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tt.guests.apt import cache_directory

PACKAGES = (
    "systemd-sysv",
    "udev",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "e2fsprogs",
    "openssh-server",
    "cron",
    "grub-common",
    "grub2-common",
)
IMAGE_BYTES = 1 << 30
PARTITION_OFFSET = 1 << 20
UUID = "d6a1f7c2-0b5e-4c53-9a5e-5d0a3cf2b6e1"
DEVICES = {"whole": "/dev/vda", "mbr": "/dev/vda1", "gpt": "/dev/vda1"}

# update-grub asks grub-probe about the disk that it will boot from, which does not exist yet.  The
# configuration comes from Debian's own scripts all the same, with these answers.
PROBE = """\
#!/bin/sh
for argument; do
    case $argument in
        --target=*) target=${{argument#--target=}} ;;
        -t) shift; target=$1 ;;
    esac
done
case $target in
    device) echo {device} ;;
    fs_uuid) echo {uuid} ;;
    fs) echo ext2 ;;
    partmap) echo {partmap} ;;
    compatibility_hint) echo {drive} ;;
    hints_string) echo "--hint-bios={drive}" ;;
esac
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layout", choices=sorted(DEVICES), default="mbr")
    args = parser.parse_args()
    if os.geteuid():
        print("debootstrap_image: run it as root, debootstrap needs that", file=sys.stderr)
        return 3
    args.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        root = Path(scratch) / "root"
        subprocess.run(["cp", "-a", "--reflink=auto", str(base_system()), str(root)], check=True)
        configure(root, args.layout)
        image = Path(scratch) / "disk.img"
        make_image(root, image, args.layout)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(root / name, args.directory / name)
        image.replace(args.directory / "disk.img")
    print(f"{args.directory / 'disk.img'} ({args.layout})")
    return 0


def base_system() -> Path:
    """Return a directory with the installed system, made by debootstrap the first time."""
    suite, mirror = apt_source()
    key = hashlib.sha256(" ".join((suite, *PACKAGES)).encode()).hexdigest()[:12]
    root = cache_directory() / f"debootstrap-{suite}-{key}"
    if not root.exists():
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        packages = ",".join(PACKAGES)
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(partial), mirror]
        print(f"debootstrap {suite}: a minute or two")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"debootstrap_image: debootstrap failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        partial.rename(root)
    return root


def apt_source() -> tuple[str, str]:
    """Return the suite and the mirror that this machine's apt is configured with."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Component: main"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    for line in sorted(set(listed)):
        suite, _, mirror = line.partition(" ")
        # Not the suites with updates only (such as NAME-security), which hold no whole system.
        if mirror and "-" not in suite:
            return suite, mirror
    sys.exit("debootstrap_image: apt has no source of Debian's main: see /etc/apt and run apt-get update")


def configure(root: Path, layout: str) -> None:
    """Do what an installer does after unpacking: names, fstab, the root account, GRUB's configuration."""
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
    (root / "etc/fstab").write_text(f"UUID={UUID} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/default/grub").write_text(
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=Debian\n"
        'GRUB_CMDLINE_LINUX_DEFAULT=""\nGRUB_CMDLINE_LINUX="console=ttyS0"\n'
    )
    subprocess.run(["chroot", str(root), "passwd", "--quiet", "--delete", "root"], check=True)
    with grub_probe(root, layout):
        command = ["chroot", str(root), "env", "LC_ALL=C", "update-grub"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / cache)
        (root / cache / "partial").mkdir(parents=True)


@contextlib.contextmanager
def grub_probe(root: Path, layout: str) -> Iterator[None]:
    """Answer update-grub's questions about the disk while the block runs."""
    probe = root / "usr/sbin/grub-probe"
    original = probe.read_bytes()
    by_uuid = root / "dev/disk/by-uuid"
    by_uuid.mkdir(parents=True)
    (by_uuid / UUID).touch()
    partmap = {"whole": "", "mbr": "msdos", "gpt": "gpt"}[layout]
    drive = {"whole": "hd0", "mbr": "hd0,msdos1", "gpt": "hd0,gpt1"}[layout]
    (root / "boot/grub").mkdir(exist_ok=True)
    try:
        probe.write_text(PROBE.format(device=DEVICES[layout], uuid=UUID, partmap=partmap, drive=drive))
        yield
    finally:
        probe.write_bytes(original)
        shutil.rmtree(root / "dev/disk")


def make_image(root: Path, image: Path, layout: str) -> None:
    """Write the partition table and the ext4 file system of `root`."""
    with image.open("wb") as f:
        f.truncate(IMAGE_BYTES)
    offset = 0
    if layout != "whole":
        label = {"mbr": "dos", "gpt": "gpt"}[layout]
        # GPT keeps its second table in the last 33 sectors; a round size leaves room for it.
        script = f"label: {label}\nstart=1MiB, size={(IMAGE_BYTES >> 20) - 2}MiB, type=linux, bootable\n"
        subprocess.run(["sfdisk", "--quiet", str(image)], input=script, text=True, check=True)
        offset = PARTITION_OFFSET
    blocks = (IMAGE_BYTES - 2 * offset) // 4096
    options = f"offset={offset},lazy_itable_init=0"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID, "-L", "debian", "-E", options]
    subprocess.run([*command, "-d", str(root), str(image), str(blocks)], check=True)


if __name__ == "__main__":
    sys.exit(main())
