"""Kernel modules out of a kernel package that was only unpacked: find them, and order them for insmod.

A package that was never installed has no `modules.dep`; what depmod would
write there is in the modules themselves, as `depends=` in the ELF section
`.modinfo` (strings `key=value`, each ended by a NUL).
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import zstandard

from tt.errors import BadInput

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")


class ModuleTree:
    """The modules under `root` (`lib/modules/VERSION`), found by name.

    A module's name has `_` where its file may have `-`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, Path] = {}
        for path in sorted(root.rglob("*.ko*")):
            stem, dot, suffix = path.name.partition(".")
            if dot + suffix in _SUFFIXES:
                self._files[module_name(stem)] = path
        builtin = root / "modules.builtin"
        lines = builtin.read_text().splitlines() if builtin.exists() else []
        self._builtin = {module_name(Path(line).name.partition(".")[0]) for line in lines}

    def has(self, name: str) -> bool:
        """Tell whether `name` is a loadable module here."""
        return name in self._files

    def builtin(self, name: str) -> bool:
        """Tell whether `name` is part of the kernel itself."""
        return name in self._builtin

    def image(self, name: str) -> bytes:
        """Return the module's ELF image, uncompressed.

        Raises `BadInput` if there is no such module, or it is damaged.
        """
        path = self._files.get(name)
        if path is None:
            raise BadInput(f"the kernel package has no module {name} under {self.root.name}")
        data = path.read_bytes()
        try:
            if path.suffix == ".xz":
                return lzma.decompress(data)
            if path.suffix == ".zst":
                return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        except (lzma.LZMAError, zstandard.ZstdError) as e:
            raise BadInput(f"kernel module {path.name} does not unpack: {e}") from None
        return data

    def depends(self, name: str) -> list[str]:
        """Return the names of the loadable modules that `name` needs before it."""
        return [d for d in depends(self.image(name)) if not self.builtin(d)]


def module_name(file_stem: str) -> str:
    """Return the name the kernel uses for the module of a file `file_stem`.ko."""
    return file_stem.replace("-", "_")


def depends(image: bytes) -> list[str]:
    """Return what a module's `.modinfo` says it depends on; raises `BadInput` for no ELF module."""
    for item in _section(image, b".modinfo").split(b"\0"):
        key, _, value = item.partition(b"=")
        if key == b"depends":
            return [module_name(d) for d in value.decode("ascii", "replace").split(",") if d]
    return []


def load_order(wanted: Iterable[str], depends_of: Callable[[str], Sequence[str]]) -> list[str]:
    """Return `wanted` and all they depend on, each after what it depends on.

    Modules keep the order of `wanted` where dependencies allow it.  Raises
    `BadInput` where modules depend on each other in a circle.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            raise BadInput(f"kernel modules depend on each other in a circle: {' -> '.join([*path, name])}")
        path.append(name)
        for dependency in depends_of(name):
            visit(dependency)
        path.pop()
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def _section(image: bytes, name: bytes) -> bytes:
    """Return the bytes of a section of a 64-bit little-endian ELF file."""
    try:
        if image[:6] != b"\x7fELF\x02\x01":
            raise BadInput("a kernel module is not a 64-bit little-endian ELF file")
        table = struct.unpack_from("<Q", image, 0x28)[0]
        entry_size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", image, table + i * entry_size) for i in range(count)]
        names = headers[names_index][4]
        for name_offset, _, _, _, offset, size in headers:
            start = names + name_offset
            if image[start : image.index(b"\0", start)] == name:
                return image[offset : offset + size]
    except (struct.error, IndexError, ValueError):
        raise BadInput("a kernel module is a damaged ELF file") from None
    return b""
