"""SYSLINUX, EXTLINUX and ISOLINUX configurations (the SYSLINUX wiki, page "Config")."""

from __future__ import annotations

from collections.abc import Callable

from tt.vmm.boot.target import Target

_MAX_INCLUDES = 16


def parse_syslinux(text: str, read: Callable[[str], str | None]) -> list[Target]:
    """Read a SYSLINUX configuration ; the default target comes first.

    Paths are as written, relative to the configuration's directory.  `read`
    gives the text of an included file, or None.
    """
    return _Syslinux(read).targets(text)


class _Syslinux:
    def __init__(self, read: Callable[[str], str | None]) -> None:
        self._read = read
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
        if kernel.endswith((".c32", ".com", ".bin", ".0", ".bs")):
            return None
        append = label.get("append", self._append)
        append = "" if append == "-" else append
        initrd = label.get("initrd", "")
        rest = []
        for word in append.split():
            if word.startswith("initrd="):
                initrd = initrd or word[len("initrd=") :]
            else:
                rest.append(word)
        return Target(label["label"], kernel, " ".join(rest), [p for p in initrd.split(",") if p])

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
            elif key in ("kernel", "linux", "initrd", "append"):
                key = "kernel" if key == "linux" else key
                if self._labels:
                    self._labels[-1][key] = value
                elif key == "append":
                    self._append = value
