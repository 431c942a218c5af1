"""SYSLINUX, EXTLINUX and ISOLINUX configurations (the SYSLINUX wiki, page "Config")."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from tt.vmm.boot.target import ModuleFile, Target

_MAX_INCLUDES = 16


def parse_syslinux(text: str, read: Callable[[str], str | None], directory: str) -> list[Target]:
    """Read a SYSLINUX configuration; the default target comes first.

    Relative paths are in `directory`, the configuration's.  `read` gives the
    text of an included file, or None.
    """
    return _Syslinux(read, directory).targets(text)


class _Syslinux:
    def __init__(self, read: Callable[[str], str | None], directory: str) -> None:
        self._read = read
        self._directory = directory
        self._default = ""
        self._menu_default = ""
        self._append = ""
        self._includes = 0
        self._labels: list[dict[str, str]] = []

    def targets(self, text: str) -> list[Target]:
        self._file(text)
        first = self._menu_default or self._default
        labels = sorted(self._labels, key=lambda label: label["label"].casefold() != first.casefold())
        targets = [target for label in labels if (target := self._target(label)) is not None]
        # DEFAULT may also be a command line of its own: a kernel and its options.
        words = self._default.split()
        known = any(label["label"].casefold() == first.casefold() for label in self._labels)
        if words and not known and not words[0].endswith((".c32", ".com")):
            label = next((d for d in self._labels if d["label"].casefold() == words[0].casefold()), None)
            base = dict(label) if label else {"label": words[0], "kernel": words[0]}
            base["append"] = " ".join([base.get("append", self._append), *words[1:]]).strip()
            target = self._target(base)
            targets[:0] = [target] if target is not None else []
        return targets

    def _target(self, label: dict[str, str]) -> Target | None:
        kernel = label.get("kernel", label["label"])
        append = label.get("append", self._append)
        append = "" if append == "-" else append
        if posixpath.basename(kernel) == "mboot.c32":
            return self._multiboot(label["label"], append)
        if kernel.endswith((".c32", ".com", ".bin", ".0", ".bs")):
            return None
        initrd = label.get("initrd", "")
        rest = []
        for word in append.split():
            if word.startswith("initrd="):
                initrd = initrd or word[len("initrd=") :]
            else:
                rest.append(word)
        initrds = [self._path(p) for p in initrd.split(",") if p]
        return Target(label["label"], self._path(kernel), " ".join(rest), initrds)

    def _multiboot(self, title: str, append: str) -> Target | None:
        """Read what mboot.c32 is told: `KERNEL WORDS --- MODULE WORDS --- ...`."""
        files = [part.strip().partition(" ") for part in re.split(r"(?:^|\s)---(?:\s|$)", append)]
        (kernel, _, words), *others = files
        if not kernel or kernel.startswith("-"):
            return None
        modules = [
            ModuleFile(self._path(path), text.strip(), unpack=True) for path, _, text in others if path
        ]
        return Target(title, self._path(kernel), words.strip(), [], "multiboot", modules)

    def _path(self, path: str) -> str:
        return posixpath.join(self._directory, path)

    def _file(self, text: str) -> None:
        for line in text.splitlines():
            words = line.strip().split(None, 1)
            if not words or words[0].startswith("#"):
                continue
            key, value = words[0].lower(), words[1].strip() if len(words) > 1 else ""
            if key == "menu" and value.lower().split()[:1] == ["include"]:
                key, value = "include", value.split(None, 1)[1] if " " in value else ""
            if key == "include" and value:
                self._includes += 1
                included = self._read(value.split()[0]) if self._includes <= _MAX_INCLUDES else None
                if included is not None:
                    self._file(included)
            elif key == "label":
                self._labels.append({"label": value})
            elif key == "default":
                self._default = value
            elif key == "menu" and value.lower() == "default" and self._labels:
                self._menu_default = self._labels[-1]["label"]
            elif key in ("kernel", "linux", "com32", "initrd", "append"):
                key = "kernel" if key in ("linux", "com32") else key
                if self._labels:
                    self._labels[-1][key] = value
                elif key == "append":
                    self._append = value
