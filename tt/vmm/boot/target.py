"""What one entry of a boot menu boots, as its configuration writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["linux", "multiboot", "multiboot2"]
"""The command that the configuration boots a kernel with; `linux` leaves it to the kernel's file."""


@dataclass(frozen=True)
class ModuleFile:
    """A module of a Multiboot kernel: its path, the words behind it, and whether GRUB unpacks the file."""

    path: str
    words: str = ""
    unpack: bool = False


@dataclass
class Target:
    """Kernel, command line, and initrds or modules of one menu entry.

    Paths are as written, perhaps with a device in front: `(UUID=...)/boot/vmlinuz`.
    A Linux kernel has initrds, a Multiboot kernel modules.  `id` is a name that a
    default may use in place of the title.
    """

    title: str
    kernel: str
    cmdline: str
    initrds: list[str]
    protocol: Protocol = "linux"
    modules: list[ModuleFile] = field(default_factory=list)
    id: str = ""
