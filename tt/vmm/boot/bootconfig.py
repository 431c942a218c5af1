"""What a disk image would boot, by its own boot configuration.

Looked for in this order, on every volume: GRUB's grub.cfg, extlinux.conf or
syslinux.cfg, entries of the Boot Loader Specification, and last a kernel at
one of the usual places.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from tt.errors import BadInput
from tt.vmm.boot.filesystems import READABLE, FileSystem
from tt.vmm.boot.filetree import normalise, printable
from tt.vmm.boot.grubcfg import GrubMenu, parse_grubenv
from tt.vmm.boot.images import DiskImage, Volume
from tt.vmm.boot.syslinux import parse_syslinux
from tt.vmm.boot.target import Target

MAX_KERNEL = 256 << 20
MAX_INITRD = 512 << 20
_MAX_CONFIG = 1 << 20
_MAX_BLS_ENTRIES = 200
_MAX_EFI_VENDORS = 50
_MAX_NOTES = 12
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
_BLS_DIRECTORIES = ("/boot/loader", "/loader")
_KERNEL_NAME = re.compile(r"(?:vmlinuz|bzImage|vmlinux|kernel)(?:-(.+))?$")
_NOT_A_KERNEL = re.compile(r"\.(old|bak|sig|gz|xz|txt|map|efi|dpkg-\w+)$|\.hmac$|~$")
_INITRD_NAMES = (
    "initrd.img-{}", "initrd-{}", "initrd-{}.img",
    "initramfs-{}.img", "initramfs-{}", "initramfs-genkernel-{}",
)  # fmt: skip
_INITRD_PLAIN = ("initrd.img", "initrd", "initrd.gz", "initramfs.img", "initramfs", "initramfs.gz")


@dataclass(frozen=True)
class BootEntry:
    """What an image boots: the bytes, and for people where they came from.

    `cmdline` is what the image says, with `root=` worked out where it says
    nothing.  `initrd_path` names several files with spaces between them when
    the configuration joins them.
    """

    kernel: bytes
    initrd: bytes | None
    cmdline: str
    description: str
    kernel_path: str
    initrd_path: str | None


@dataclass(frozen=True)
class _Mounted:
    volume: Volume
    fs: FileSystem[Any]


def root_volume(image: DiskImage) -> str:
    """Name the volume of `image` that looks most like a root file system, as Linux does: `vda`, `vda2`."""
    finder = _Finder(image)
    return finder.root_volume()


def find_boot_entry(image: DiskImage) -> BootEntry:
    """Find what `image` would boot and read it.

    Raises `BadInput` when there is nothing to boot; the message says what was
    found in each place that was tried.
    """
    finder = _Finder(image)
    for source in (finder.grub, finder.syslinux, finder.bls, finder.plain):
        for mounted, target, description in islice(source(), _MAX_TRIED):
            entry = finder.load(mounted, target, printable(description))
            if entry is not None:
                return entry
    raise BadInput(f"no kernel found in {image.where} ({'; '.join(finder.notes)}): give --kernel")


Found = Iterator[tuple[_Mounted, Target, str]]


class _Finder:
    def __init__(self, image: DiskImage) -> None:
        self.notes: list[str] = []
        self._image = image
        self._mounted: list[_Mounted] = []
        for volume in image.volumes:
            if volume.type not in READABLE:
                self._note(f"{volume.name}: {volume.type or 'no file system'}")
                continue
            try:
                fs = image.filesystem(volume)
            except BadInput as e:
                self._note(str(e))
                continue
            self._mounted.append(_Mounted(volume, fs))
            self._note(f"{volume.name}: {fs.kind}")
        if not image.volumes:
            self._note("no file system and no partition table")

    # Sources of targets

    def grub(self) -> Found:
        for mounted, path in self._configs(self._grub_configs):
            text = self._text(mounted, path)
            if text is None:
                continue
            directory = posixpath.dirname(path)
            menu = GrubMenu(
                read=partial(self._text_at, mounted),
                exists=partial(self._exists, mounted),
                entries=partial(self._bls_targets, mounted),
            )
            prefix = f"({mounted.volume.name}){directory}"
            for target in self._tried(path, partial(menu.targets, text, prefix)):
                yield mounted, target, f"{path} on {mounted.volume.name}: {target.title!r}"

    def syslinux(self) -> Found:
        for mounted, path in self._configs(self._syslinux_configs):
            text = self._text(mounted, path)
            if text is None:
                continue
            directory = posixpath.dirname(path)
            read = partial(self._text_in, mounted, directory)
            for target in self._tried(path, partial(parse_syslinux, text, read)):
                target.kernel = posixpath.join(directory, target.kernel)
                target.initrds = [posixpath.join(directory, p) for p in target.initrds]
                yield mounted, target, f"{path} on {mounted.volume.name}: {target.title!r}"

    def bls(self) -> Found:
        for mounted in self._mounted:
            for target in self._bls_targets(mounted):
                yield mounted, target, f"boot loader entry {target.title!r} on {mounted.volume.name}"

    def plain(self) -> Found:
        for mounted in self._mounted:
            for directory in ("/", "/boot"):
                for name in sorted(self._list(mounted, directory), key=_kernel_rank, reverse=True):
                    match = _KERNEL_NAME.match(name)
                    if match is None or _NOT_A_KERNEL.search(name):
                        continue
                    path = posixpath.join(directory, name)
                    initrd = self._matching_initrd(mounted, path, match[1])
                    target = Target(name, path, f"root={self._root_device(mounted)} rw", initrd)
                    yield mounted, target, f"{path} on {mounted.volume.name}"

    def root_volume(self) -> str:
        """Name the volume with a root file system on it, else the last one, else the disk."""
        volumes = self._image.volumes or [Volume(0, 0, self._image.size, "")]
        return self._root_among(self._mounted, volumes[-1])

    def load(self, mounted: _Mounted, target: Target, description: str) -> BootEntry | None:
        """Read a target's files; None, and a note, when one is missing."""
        kernel_at = self._locate(mounted, target.kernel)
        if kernel_at is None:
            self._note(f"{description}: no {target.kernel}")
            return None
        initrds = []
        for path in target.initrds:
            at = self._locate(mounted, path)
            if at is None:
                self._note(f"{description}: no {path}")
                return None
            initrds.append(at)
        try:
            kernel = kernel_at[0].fs.read(kernel_at[1], MAX_KERNEL)
            initrd = b""
            for part, path in initrds:
                # Linux finds the next archive at a 4-byte boundary (initramfs buffer format).
                initrd += bytes(-len(initrd) % 4) + part.fs.read(path, MAX_INITRD - len(initrd))
        except BadInput as e:
            self._note(str(e))
            return None
        cmdline = target.cmdline
        if not initrd and not re.search(r"(?:^|\s)root=", cmdline):
            cmdline = f"{cmdline} root={self._root_device(mounted)}".strip()
        return BootEntry(
            kernel=kernel,
            initrd=initrd or None,
            cmdline=cmdline,
            description=description,
            kernel_path=kernel_at[1],
            initrd_path=" ".join(path for _, path in initrds) or None,
        )

    # Files

    def _note(self, note: str) -> None:
        note = printable(note, 500)
        if len(self.notes) < _MAX_NOTES and note not in self.notes:
            self.notes.append(note)

    def _tried(self, path: str, parse: Callable[[], list[Target]]) -> list[Target]:
        try:
            targets = parse()
        except BadInput as e:
            self._note(f"{path}: {e}")
            return []
        if not targets:
            self._note(f"{path} boots no kernel")
        return targets

    def _configs(self, candidates: Callable[[_Mounted], Iterator[str]]) -> Iterator[tuple[_Mounted, str]]:
        for mounted in self._mounted:
            for path in candidates(mounted):
                if self._is_file(mounted, path):
                    yield mounted, path

    def _grub_configs(self, mounted: _Mounted) -> Iterator[str]:
        for directory in _GRUB_DIRECTORIES:
            yield f"{directory}/grub.cfg"
        for efi in ("/EFI", "/boot/efi/EFI"):
            for name in self._list(mounted, efi)[:_MAX_EFI_VENDORS]:
                yield f"{efi}/{name}/grub.cfg"

    def _syslinux_configs(self, mounted: _Mounted) -> Iterator[str]:
        for directory in _SYSLINUX_DIRECTORIES:
            for name in _SYSLINUX_NAMES:
                yield posixpath.join(directory, name)

    def _is_file(self, mounted: _Mounted, path: str) -> bool:
        try:
            return mounted.fs.is_file(path)
        except BadInput as e:
            self._note(str(e))
            return False

    def _list(self, mounted: _Mounted, path: str) -> list[str]:
        try:
            return mounted.fs.listdir(path) if mounted.fs.is_dir(path) else []
        except BadInput as e:
            self._note(str(e))
            return []

    def _text(self, mounted: _Mounted, path: str) -> str | None:
        try:
            return mounted.fs.read(path, _MAX_CONFIG).decode("utf-8", "replace")
        except BadInput as e:
            self._note(str(e))
            return None

    def _text_in(self, mounted: _Mounted, directory: str, name: str) -> str | None:
        return self._text(mounted, posixpath.join(directory, name))

    def _exists(self, mounted: _Mounted, path: str) -> bool:
        return self._locate(mounted, path) is not None

    def _text_at(self, mounted: _Mounted, path: str) -> str | None:
        at = self._locate(mounted, path)
        return self._text(*at) if at is not None else None

    def _locate(self, mounted: _Mounted, path: str) -> tuple[_Mounted, str] | None:
        """Find a file that a configuration names: on the device it gives, its own volume, or any other."""
        match = re.match(r"\(([^)]*)\)(.*)", path, re.DOTALL)
        order = [mounted, *(m for m in self._mounted if m is not mounted)]
        if match:
            path = match[2]
            order.sort(key=lambda m: not self._is_device(m, match[1]))
        path = normalise(path)
        for candidate in order:
            if self._is_file(candidate, path):
                return candidate, path
        return None

    def _is_device(self, mounted: _Mounted, device: str) -> bool:
        """Tell whether GRUB's name for a device, or a `search` that gave it, means this volume."""
        kind, _, value = device.partition("=")
        if kind == "UUID":
            return mounted.fs.uuid.casefold() == value.casefold()
        if kind == "LABEL":
            return mounted.fs.label == value
        if kind == "FILE":
            return self._is_file(mounted, value)
        if device == mounted.volume.name:
            return True
        number = re.fullmatch(r"hd0(?:,(?:msdos|gpt)?(\d+))?", device)
        return number is not None and int(number[1] or 0) == mounted.volume.number

    def _root_device(self, mounted: _Mounted) -> str:
        """Name the root device for a kernel found on `mounted`, which may be a separate /boot."""
        return f"/dev/{self._root_among([mounted, *self._mounted], mounted.volume)}"

    def _root_among(self, candidates: list[_Mounted], otherwise: Volume) -> str:
        for candidate in candidates:
            names = self._list(candidate, "/")
            if "etc" in names or "sbin" in names or "init" in names:
                return candidate.volume.name
        return otherwise.name

    def _matching_initrd(self, mounted: _Mounted, kernel: str, version: str | None) -> list[str]:
        directory = posixpath.dirname(kernel)
        names = _INITRD_PLAIN if version is None else tuple(name.format(version) for name in _INITRD_NAMES)
        for name in names:
            path = posixpath.join(directory, name)
            if self._is_file(mounted, path):
                return [path]
        return []

    def _bls_targets(self, mounted: _Mounted) -> Iterator[Target]:
        """List Boot Loader Specification entries (UAPI.1), the one to boot first."""
        for directory in _BLS_DIRECTORIES:
            found = []
            for name in self._list(mounted, f"{directory}/entries")[:_MAX_BLS_ENTRIES]:
                if name.endswith(".conf") and not name.startswith("."):
                    text = self._text(mounted, f"{directory}/entries/{name}")
                    entry = parse_bls(text) if text is not None else None
                    if entry is not None:
                        found.append((name[: -len(".conf")], *entry))
            wanted = self._loader_default(mounted, directory)
            found.sort(key=lambda item: (version_key(item[1]), version_key(item[0])), reverse=True)
            found.sort(key=lambda item: not (wanted and fnmatch.fnmatchcase(item[0], wanted)))
            for name, _, target in found:
                target.title = target.title or name
                yield target

    def _loader_default(self, mounted: _Mounted, directory: str) -> str:
        """Return the pattern of ids that systemd-boot's loader.conf or GRUB's environment names."""
        path = f"{directory}/loader.conf"
        text = self._text(mounted, path) if self._is_file(mounted, path) else None
        match = re.search(r"^\s*default\s+(\S+)", text or "", re.MULTILINE)
        if match:
            return match[1].removesuffix(".conf")
        for grub in _GRUB_DIRECTORIES:
            path = f"{grub}/grubenv"
            text = self._text(mounted, path) if self._is_file(mounted, path) else None
            saved = parse_grubenv(text or "").get("saved_entry", "")
            if saved:
                return saved
        return ""


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


def parse_bls(text: str) -> tuple[str, Target] | None:
    """Read one Boot Loader Specification entry (UAPI.1, "Type #1"): its version and what it boots.

    None when it boots no Linux kernel.
    """
    keys: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            keys.setdefault(words[0].lower(), []).append(words[1].strip())
    if "linux" not in keys:
        return None
    initrds = [path for value in keys.get("initrd", []) for path in value.split() if not path.startswith("$")]
    title = keys.get("title", [""])[0]
    target = Target(title, keys["linux"][-1], " ".join(keys.get("options", [])), initrds)
    return keys.get("version", [""])[0], target
