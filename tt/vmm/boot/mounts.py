"""The volumes of an image that can be looked into, and files on them that configurations name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tt.errors import BadInput
from tt.vmm.boot.filesystems import READABLE, FileSystem
from tt.vmm.boot.filetree import normalise, printable
from tt.vmm.boot.images import DiskImage, Volume

_MAX_CONFIG = 1 << 20
_MAX_NOTES = 12


@dataclass(frozen=True)
class Mounted:
    """A volume and the file system on it."""

    volume: Volume
    fs: FileSystem[Any]


class Mounts:
    """All readable volumes of `image`, in the disk's order; `notes` say what was found, for people.

    Damage met on the way becomes a note: a file that cannot be read counts as missing.
    """

    def __init__(self, image: DiskImage) -> None:
        self.notes: list[str] = []
        self._image = image
        self._mounted: list[Mounted] = []
        for volume in image.volumes:
            if volume.type not in READABLE:
                self.note(f"{volume.name}: {volume.type or 'no file system'}")
                continue
            try:
                fs = image.filesystem(volume)
            except BadInput as e:
                self.note(str(e))
                continue
            self._mounted.append(Mounted(volume, fs))
            self.note(f"{volume.name}: {fs.kind}")
        if not image.volumes:
            self.note(image.problem or "no file system and no partition table")

    def __iter__(self) -> Iterator[Mounted]:
        return iter(self._mounted)

    def note(self, note: str) -> None:
        """Keep a note, unless it is there already or there are too many."""
        note = printable(note, 500)
        if len(self.notes) < _MAX_NOTES and note not in self.notes:
            self.notes.append(note)

    def is_file(self, mounted: Mounted, path: str) -> bool:
        """Tell whether there is a file at `path`."""
        try:
            return mounted.fs.is_file(path)
        except BadInput as e:
            self.note(str(e))
            return False

    def list(self, mounted: Mounted, path: str) -> list[str]:
        """Return the names in a directory; none when there is no such directory."""
        try:
            return mounted.fs.listdir(path) if mounted.fs.is_dir(path) else []
        except BadInput as e:
            self.note(str(e))
            return []

    def text(self, mounted: Mounted, path: str) -> str | None:
        """Return the text of a configuration file, None when it cannot be read."""
        try:
            return mounted.fs.read(path, _MAX_CONFIG).decode("utf-8", "replace")
        except BadInput as e:
            self.note(str(e))
            return None

    def text_if_there(self, mounted: Mounted, path: str) -> str:
        """Return the text of a file, empty when there is none."""
        return (self.text(mounted, path) or "") if self.is_file(mounted, path) else ""

    def text_at(self, mounted: Mounted, path: str) -> str | None:
        """Return the text of a file that a configuration on `mounted` names; see `locate`."""
        at = self.locate(mounted, path)
        return self.text(*at) if at is not None else None

    def locate(self, mounted: Mounted, path: str) -> tuple[Mounted, str] | None:
        """Find a file that a configuration names: on the device it gives, its own volume, or any other."""
        match = re.match(r"\(([^)]*)\)(.*)", path, re.DOTALL)
        order = [mounted, *(m for m in self._mounted if m is not mounted)]
        if match:
            path = match[2]
            order.sort(key=lambda m: not self.is_device(m, match[1]))
        path = normalise(path)
        for candidate in order:
            if self.is_file(candidate, path):
                return candidate, path
        return None

    def is_device(self, mounted: Mounted, device: str) -> bool:
        """Tell whether GRUB's name for a device, or a `search` that gave it, means this volume."""
        kind, _, value = device.partition("=")
        if kind == "UUID":
            return mounted.fs.uuid.casefold() == value.casefold()
        if kind == "LABEL":
            return mounted.fs.label == value
        if kind == "FILE":
            return self.is_file(mounted, normalise(value))
        if device == mounted.volume.name:
            return True
        number = re.fullmatch(r"hd0(?:,(?:msdos|gpt)?(\d+))?", device)
        return number is not None and int(number[1] or 0) == mounted.volume.number

    def there_is(self, device: str) -> bool:
        """Tell whether any volume is what a `search` looks for."""
        return any(self.is_device(mounted, device) for mounted in self._mounted)

    def probe(self, mounted: Mounted, device: str, what: str) -> str | None:
        """Return the `uuid`, `label` or `fs` of a device that a configuration on `mounted` names."""
        found = next((m for m in self._mounted if device and self.is_device(m, device)), None)
        fs = (found or mounted).fs if found or not device else None
        if fs is None:
            return None
        return {
            "uuid": fs.uuid,
            "label": fs.label,
            "fs": "ext2" if fs.kind.startswith("ext") else fs.kind,
        }.get(what)

    def root_device(self, mounted: Mounted) -> str:
        """Name the root device for a kernel found on `mounted`, which may be a separate /boot."""
        return f"/dev/{self._root_among([mounted, *self._mounted], mounted.volume)}"

    def root_volume(self) -> str:
        """Name the volume with a root file system on it, else the last one, else the disk."""
        volumes = self._image.volumes or [Volume(0, 0, self._image.size, "")]
        return self._root_among(self._mounted, volumes[-1])

    def _root_among(self, candidates: Iterable[Mounted], otherwise: Volume) -> str:
        for candidate in candidates:
            names = self.list(candidate, "/")
            if "etc" in names or "sbin" in names or "init" in names:
                return candidate.volume.name
        return otherwise.name
