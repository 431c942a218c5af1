"""Entries of the Boot Loader Specification (UAPI.1), in the order of systemd-boot."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key

from tt.vmm.boot.target import Target

_SUFFIX = ".conf"
_UKI_SUFFIX = ".efi"
_ARCHITECTURE = "x64"  # as the UEFI specification names the machine


@dataclass(frozen=True)
class BlsEntry:
    """One entry: `file` is its file's name, `id` the same without boot counters and `.conf`.

    `volume` names where it lies.  `tries_left` is None without boot counting; an entry with
    none left is bad.
    """

    file: str
    id: str
    target: Target
    volume: str = ""
    version: str = ""
    sort_key: str = ""
    machine_id: str = ""
    tries_left: int | None = None
    tries_done: int = 0

    @property
    def bad(self) -> bool:
        """Whether all attempts to boot it failed."""
        return self.tries_left == 0


def is_entry_name(name: str) -> bool:
    """Tell whether a file in `loader/entries` is one that systemd-boot reads."""
    lower = name.lower()
    return lower.endswith(_SUFFIX) and not lower.startswith((".", "auto-"))


def parse_bls(file: str, text: str, volume: str = "") -> BlsEntry | None:
    """Read one entry; None when it boots no Linux kernel, or is for another architecture.

    `file` is the name of its file, in which boot counters stand: `name+LEFT-DONE.conf`.
    """
    keys: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            keys.setdefault(words[0].lower(), []).append(words[1].strip())
    kernels = keys.get("linux") or keys.get("uki")
    if kernels is None or keys.get("architecture", [_ARCHITECTURE])[-1].lower() != _ARCHITECTURE:
        return None
    initrds = [
        _path(path) for value in keys.get("initrd", []) for path in value.split() if not path.startswith("$")
    ]
    identifier, tries_left, tries_done = _counted(file)
    title = keys.get("title", [identifier])[-1]
    options = " ".join(keys.get("options", []))
    return BlsEntry(
        file=file,
        id=identifier,
        target=Target(title, _path(kernels[-1]), options, initrds, id=identifier),
        volume=volume,
        version=keys.get("version", [""])[-1],
        sort_key=keys.get("sort-key", [""])[-1],
        machine_id=keys.get("machine-id", [""])[-1],
        tries_left=tries_left,
        tries_done=tries_done,
    )


def is_uki_name(name: str) -> bool:
    """Tell whether a file in `EFI/Linux` is an entry of its own ("Type #2")."""
    lower = name.lower()
    return lower.endswith(_UKI_SUFFIX) and not lower.startswith((".", "auto-"))


def uki_entry(file: str, path: str, volume: str) -> BlsEntry:
    """Return the entry that a unified kernel image is, by its name alone; it holds the rest."""
    identifier, tries_left, tries_done = _counted(file)
    target = Target(identifier, path, "", [], id=identifier)
    return BlsEntry(file, identifier, target, volume, tries_left=tries_left, tries_done=tries_done)


def _counted(file: str) -> tuple[str, int | None, int]:
    """Split a file's name into the entry's name and its boot counters, tries left and tries done."""
    stem = _stem(file)
    counted = re.fullmatch(r"(.*)\+([0-9]{1,9})(?:-([0-9]{1,9}))?", stem, re.DOTALL)
    if counted is None:
        return stem, None, 0
    return counted[1], int(counted[2]), int(counted[3] or 0)


def _stem(file: str) -> str:
    return file[:-5] if file.lower().endswith(_SUFFIX) else file.removesuffix(_UKI_SUFFIX)


def _path(path: str) -> str:
    """Return a path from the root of its volume; some entries write it as EFI does, with backslashes."""
    return "/" + path.replace("\\", "/").lstrip("/")


def boot_order(entries: Iterable[BlsEntry], default: str = "") -> list[BlsEntry]:
    """Sort entries as systemd-boot's menu does (UAPI.1, "Sorting"), those that match `default` first.

    `default` is a pattern of shell wildcards for a file's name, as in loader.conf.
    """
    order = sorted(entries, key=cmp_to_key(_compare))
    return sorted(order, key=lambda entry: not (default and _is_named(entry, default.lower())))


def grub_order(entries: Iterable[BlsEntry]) -> list[BlsEntry]:
    """Sort entries as GRUB's `blscfg` does: by version, then by the file's name, the newest first."""

    def compare(a: BlsEntry, b: BlsEntry) -> int:
        return compare_versions(b.version, a.version) or compare_versions(b.file, a.file)

    return sorted(entries, key=cmp_to_key(compare))


def loader_default(text: str) -> str:
    """Return the pattern that systemd-boot's loader.conf names as the default, or nothing.

    `@saved` and its like stand in variables of the firmware, which an image does not hold.
    """
    found = re.findall(r"^[ \t]*default[ \t]+(\S+)", text, re.MULTILINE)
    patterns = [pattern for pattern in found if not pattern.startswith("@")]
    return patterns[-1] if patterns else ""


def _is_named(entry: BlsEntry, pattern: str) -> bool:
    names = (entry.file, _stem(entry.file), entry.id + entry.file[-len(_SUFFIX) :], entry.id)
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for name in names)


def _compare(a: BlsEntry, b: BlsEntry) -> int:
    """Compare two entries; the one to boot earlier is the smaller (systemd's boot_entry_compare)."""
    order = a.bad - b.bad or (not a.sort_key) - (not b.sort_key)
    if not order and a.sort_key:
        order = _alphabetical(a.sort_key, b.sort_key) or _alphabetical(a.machine_id, b.machine_id)
        order = order or compare_versions(b.version, a.version)
    order = order or compare_versions(b.file.lower(), a.file.lower())
    if not order and a.tries_left is not None and b.tries_left is not None:
        order = b.tries_left - a.tries_left or a.tries_done - b.tries_done
    return order


def _alphabetical(a: str, b: str) -> int:
    left, right = a.encode(), b.encode()
    return (left > right) - (left < right)


_LETTERS = re.compile("[A-Za-z]*")
_DIGITS = re.compile("[0-9]*")


def compare_versions(a: str, b: str) -> int:
    """Compare two versions by the rules of UAPI.10: negative when `a` is older, positive when it is newer."""
    while True:
        a, b = (re.sub("^[^A-Za-z0-9~.^-]+", "", text) for text in (a, b))
        if a.startswith("~") or b.startswith("~"):
            if not (a.startswith("~") and b.startswith("~")):
                return -1 if a.startswith("~") else 1
            a, b = a[1:], b[1:]
        if not a or not b:
            return bool(a) - bool(b)
        for separator in "-^.":
            if a.startswith(separator) and b.startswith(separator):
                a, b = a[1:], b[1:]
            elif a.startswith(separator) or b.startswith(separator):
                return -1 if a.startswith(separator) else 1
        if a[:1].isdigit() or b[:1].isdigit():
            a, b = a.lstrip("0"), b.lstrip("0")
            left, right = _prefix(_DIGITS, a), _prefix(_DIGITS, b)
            order = len(left) - len(right) or (left > right) - (left < right)
        else:
            left, right = _prefix(_LETTERS, a), _prefix(_LETTERS, b)
            order = (left > right) - (left < right)
        if order:
            return order
        a, b = a[len(left) :], b[len(right) :]


def _prefix(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.match(text)
    return match[0] if match else ""
