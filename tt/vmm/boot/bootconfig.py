"""What a disk image would boot, by its own boot configuration.

Looked for in this order, on every volume: GRUB's grub.cfg, extlinux.conf or
syslinux.cfg, entries of the Boot Loader Specification, and last a kernel at
one of the usual places.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from tt.errors import BadInput
from tt.vmm.boot import kinds, modules
from tt.vmm.boot.bls import (
    BlsEntry,
    boot_order,
    grub_order,
    is_entry_name,
    is_uki_name,
    loader_default,
    parse_bls,
    uki_entry,
)
from tt.vmm.boot.decompress import sniff_compression, unpack
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.grubcfg import GrubMenu, parse_grubenv
from tt.vmm.boot.images import DiskImage
from tt.vmm.boot.mounts import Mounted, Mounts
from tt.vmm.boot.syslinux import parse_syslinux
from tt.vmm.boot.target import Target
from tt.vmm.boot.uki import join_archives, split_uki

MAX_KERNEL = 256 << 20
MAX_INITRD = 512 << 20
_GRUB_UNPACKS = ("gzip", "xz", "lzo")
_MAX_BLS_ENTRIES = 200
_MAX_EFI_VENDORS = 50
_MAX_TRIED = 100  # entries whose files are looked for

_GRUB_DIRECTORIES = ("/boot/grub", "/grub", "/boot/grub2", "/grub2")
_SYSLINUX_DIRECTORIES = (
    "/boot/extlinux",
    "/extlinux",
    "/boot/syslinux",
    "/syslinux",
    "/boot",
    "/",
    "/isolinux",
)
_SYSLINUX_NAMES = ("extlinux.conf", "syslinux.cfg", "isolinux.cfg")
# On a volume of its own, and on a root file system that has no separate /boot.
_BLS_DIRECTORIES = ("/loader", "/boot/loader")
_KERNEL_NAME = re.compile(r"(?:vmlinuz|bzImage|vmlinux|kernel)(?:-(.+))?$")
_NOT_A_KERNEL = re.compile(r"\.(old|bak|sig|gz|xz|txt|map|efi|dpkg-\w+)$|\.hmac$|~$")
_INITRD_NAMES = (
    "initrd.img-{}", "initrd-{}", "initrd-{}.img",
    "initramfs-{}.img", "initramfs-{}", "initramfs-genkernel-{}",
)  # fmt: skip
_INITRD_PLAIN = ("initrd.img", "initrd", "initrd.gz", "initramfs.img", "initramfs", "initramfs.gz")


@dataclass(frozen=True)
class BootEntry:
    """What an image boots: the bytes and, for messages, where they came from.

    `kind` names the kernel as `BootPlan.kind` does, None for one that tt cannot
    boot.  `initrd` is what a plan of that kind takes: an initrd, or packed
    modules.  `cmdline` is what the image says, for Linux with `root=` worked
    out where it says nothing.  `initrd_path` names several files with spaces
    between them when the configuration joins them.
    """

    kernel: bytes
    initrd: bytes | None
    cmdline: str
    description: str
    kernel_path: str
    initrd_path: str | None
    kind: str | None = None


def root_volume(image: DiskImage) -> str:
    """Name the volume of `image` that looks most like a root file system, as Linux does: `vda`, `vda2`."""
    return Mounts(image).root_volume()


def find_boot_entry(image: DiskImage) -> BootEntry:
    """Find what `image` would boot and read it.

    Raises `BadInput` when there is nothing to boot; the message says what was
    found in each place that was tried.
    """
    finder = _Finder(Mounts(image))
    for source in (finder.grub, finder.syslinux, finder.bls, finder.plain):
        for mounted, target, description in islice(source(), _MAX_TRIED):
            entry = finder.load(mounted, target, printable(description))
            if entry is not None:
                return entry
    notes = "; ".join(finder.mounts.notes)
    raise BadInput(f"no kernel found in {image.where} ({notes}): give --kernel")


Found = Iterator[tuple[Mounted, Target, str]]


class _Finder:
    def __init__(self, mounts: Mounts) -> None:
        self.mounts = mounts

    # Sources of targets

    def grub(self) -> Found:
        for mounted, path in self._configs(self._grub_configs):
            text = self.mounts.text(mounted, path)
            if text is None:
                continue
            directory = posixpath.dirname(path)
            menu = GrubMenu(
                read=partial(self.mounts.text_at, mounted),
                exists=partial(self._exists, mounted),
                entries=partial(self._blscfg, mounted),
                device=self.mounts.there_is,
                probe=partial(self.mounts.probe, mounted),
            )
            prefix = f"({mounted.volume.name}){directory}"
            for target in self._tried(path, partial(menu.targets, text, prefix)):
                yield mounted, target, f"{path} on {mounted.volume.name}: {target.title!r}"

    def syslinux(self) -> Found:
        for mounted, path in self._configs(self._syslinux_configs):
            text = self.mounts.text(mounted, path)
            if text is None:
                continue
            directory = posixpath.dirname(path)
            read = partial(self._text_in, mounted, directory)
            for target in self._tried(path, partial(parse_syslinux, text, read, directory)):
                yield mounted, target, f"{path} on {mounted.volume.name}: {target.title!r}"

    def bls(self) -> Found:
        """List Boot Loader Specification entries: those of the ESP and of XBOOTLDR are one menu."""
        places = {mounted.volume.name: mounted for mounted in self.mounts}
        for directory in _BLS_DIRECTORIES:
            entries = [entry for mounted in self.mounts for entry in self._entries(mounted, directory)]
            if directory == _BLS_DIRECTORIES[0]:
                entries += [entry for mounted in self.mounts for entry in self._images(mounted)]
            for entry in boot_order(entries, self._loader_default(directory)):
                title = entry.target.title
                yield places[entry.volume], entry.target, f"boot loader entry {title!r} on {entry.volume}"

    def plain(self) -> Found:
        for mounted in self.mounts:
            for directory in ("/", "/boot"):
                for name in sorted(self.mounts.list(mounted, directory), key=_kernel_rank, reverse=True):
                    match = _KERNEL_NAME.match(name)
                    if match is None or _NOT_A_KERNEL.search(name):
                        continue
                    path = posixpath.join(directory, name)
                    initrd = self._matching_initrd(mounted, path, match[1])
                    target = Target(name, path, f"root={self.mounts.root_device(mounted)} rw", initrd)
                    yield mounted, target, f"{path} on {mounted.volume.name}"

    def load(self, mounted: Mounted, target: Target, description: str) -> BootEntry | None:
        """Read a target's files; None, and a note, when one is missing or not a kernel for its command."""
        paths = [target.kernel, *target.initrds, *(module.path for module in target.modules)]
        found = []
        for path in paths:
            at = self.mounts.locate(mounted, path)
            if at is None:
                self.mounts.note(f"{description}: no {path}")
                return None
            found.append(at)
        try:
            kernel = found[0][0].fs.read(found[0][1], MAX_KERNEL)
            if target.protocol != "linux":
                kernel = _unpacked(kernel, target.kernel)
            unified = split_uki(kernel, printable(target.kernel)) if target.protocol == "linux" else None
            kernel = kernel if unified is None else unified.kernel
            kind = kinds.kind_for(target.protocol, kernel, target.kernel)
            read = self._modules if kind in kinds.MULTIBOOT else self._initrd
            initrd = read(target, found[1:])
        except BadInput as e:
            self.mounts.note(f"{description}: {e}")
            return None
        cmdline = target.cmdline
        if unified is not None:
            # systemd-stub: a given command line replaces the one inside, given initrds are added.
            cmdline = cmdline or unified.cmdline
            initrd = join_archives([unified.initrd or b"", initrd or b""])
        if kind not in kinds.MULTIBOOT and not initrd and not re.search(r"(?:^|\s)root=", cmdline):
            cmdline = f"{cmdline} root={self.mounts.root_device(mounted)}".strip()
        return BootEntry(
            kernel=kernel,
            initrd=initrd or None,
            cmdline=cmdline,
            description=description,
            kernel_path=found[0][1],
            initrd_path=" ".join(path for _, path in found[1:]) or None,
            kind=kind,
        )

    def _initrd(self, target: Target, parts: list[tuple[Mounted, str]]) -> bytes:
        archives: list[bytes] = []
        for part, path in parts[: len(target.initrds)]:
            archives.append(part.fs.read(path, MAX_INITRD - sum(map(len, archives))))
        return join_archives(archives)

    def _modules(self, target: Target, parts: list[tuple[Mounted, str]]) -> bytes | None:
        left = MAX_INITRD
        loaded = []
        for module, (part, path) in zip(target.modules, parts[len(target.initrds) :], strict=True):
            data = part.fs.read(path, left)
            if module.unpack:
                data = _unpacked(data, path)
            left -= len(data)
            loaded.append(modules.Module(module.words, data))
        return modules.pack(loaded) if loaded else None

    # Files

    def _tried(self, path: str, parse: Callable[[], list[Target]]) -> list[Target]:
        try:
            targets = parse()
        except BadInput as e:
            self.mounts.note(f"{path}: {e}")
            return []
        if not targets:
            self.mounts.note(f"{path} boots no kernel")
        return targets

    def _configs(self, candidates: Callable[[Mounted], Iterator[str]]) -> Iterator[tuple[Mounted, str]]:
        for mounted in self.mounts:
            for path in candidates(mounted):
                if self.mounts.is_file(mounted, path):
                    yield mounted, path

    def _grub_configs(self, mounted: Mounted) -> Iterator[str]:
        for directory in _GRUB_DIRECTORIES:
            yield f"{directory}/grub.cfg"
        for efi in ("/EFI", "/boot/efi/EFI"):
            for name in self.mounts.list(mounted, efi)[:_MAX_EFI_VENDORS]:
                yield f"{efi}/{name}/grub.cfg"

    def _syslinux_configs(self, mounted: Mounted) -> Iterator[str]:
        for directory in _SYSLINUX_DIRECTORIES:
            for name in _SYSLINUX_NAMES:
                yield posixpath.join(directory, name)

    def _text_in(self, mounted: Mounted, directory: str, name: str) -> str | None:
        return self.mounts.text(mounted, posixpath.join(directory, name))

    def _exists(self, mounted: Mounted, path: str) -> bool:
        return self.mounts.locate(mounted, path) is not None

    def _matching_initrd(self, mounted: Mounted, kernel: str, version: str | None) -> list[str]:
        directory = posixpath.dirname(kernel)
        names = _INITRD_PLAIN if version is None else tuple(name.format(version) for name in _INITRD_NAMES)
        for name in names:
            path = posixpath.join(directory, name)
            if self.mounts.is_file(mounted, path):
                return [path]
        return []

    def _entries(self, mounted: Mounted, directory: str) -> list[BlsEntry]:
        names = [n for n in self.mounts.list(mounted, f"{directory}/entries") if is_entry_name(n)]
        found = []
        for name in names[:_MAX_BLS_ENTRIES]:
            text = self.mounts.text(mounted, f"{directory}/entries/{name}")
            entry = None if text is None else parse_bls(name, text, mounted.volume.name)
            if entry is not None:
                found.append(entry)
        return found

    def _images(self, mounted: Mounted) -> list[BlsEntry]:
        """List unified kernel images, entries by themselves."""
        names = [n for n in self.mounts.list(mounted, "/EFI/Linux") if is_uki_name(n)][:_MAX_BLS_ENTRIES]
        return [uki_entry(name, f"/EFI/Linux/{name}", mounted.volume.name) for name in names]

    def _blscfg(self, mounted: Mounted) -> Iterator[Target]:
        """List what GRUB's `blscfg` shows: entries beside the configuration, else those of other volumes."""
        for candidate in (mounted, *(m for m in self.mounts if m is not mounted)):
            for directory in _BLS_DIRECTORIES:
                entries = self._entries(candidate, directory)
                for entry in grub_order(entries):
                    target = entry.target
                    target.kernel, *target.initrds = (
                        f"({candidate.volume.name}){path}" for path in (target.kernel, *target.initrds)
                    )
                    yield target
                if entries:
                    return

    def _loader_default(self, directory: str) -> str:
        """Return the pattern that systemd-boot's loader.conf names, or the name in GRUB's environment."""
        # systemd-boot reads the ESP's loader.conf alone, and an ESP is always FAT.
        by_kind = sorted(self.mounts, key=lambda mounted: mounted.fs.kind.startswith("ext"))
        texts = [self.mounts.text_if_there(mounted, f"{directory}/loader.conf") for mounted in by_kind]
        wanted = loader_default(next(filter(None, texts), ""))
        if wanted:
            return wanted
        for mounted in by_kind:
            for grub in _GRUB_DIRECTORIES:
                text = self.mounts.text_if_there(mounted, f"{grub}/grubenv")
                saved = parse_grubenv(text).get("saved_entry", "")
                if saved:
                    return saved
        return ""


def _unpacked(data: bytes, path: str) -> bytes:
    """Unpack a file as GRUB does while it reads one."""
    return unpack(data, printable(path)) if sniff_compression(data) in _GRUB_UNPACKS else data


def _kernel_rank(name: str) -> tuple[bool, Any]:
    """Order kernel names: one with no version (a link to the newest) first, then by version."""
    match = _KERNEL_NAME.match(name)
    return bool(match and match[1] is None), version_key(match[1] or "" if match else "")


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts versions as people mean them: 6.1.0-9 before 6.1.0-13, 6.1-rc1 before 6.1."""
    version = re.sub(r"[-_.]?(rc\d)", r"~\1", version)
    key: list[tuple[int, int | str]] = []
    for number, word, _ in re.findall(r"(\d{1,30})|([A-Za-z]+)|(~)", version):
        key.append((3, int(number)) if number else (2, word) if word else (0, ""))
    return (*key, (1, ""))
