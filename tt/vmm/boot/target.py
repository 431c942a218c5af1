"""What one entry of a boot menu boots, as its configuration writes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Target:
    """Kernel, command line and initrds of one menu entry.

    Paths are as written, perhaps with a device in front: `(UUID=...)/boot/vmlinuz`.
    """

    title: str
    kernel: str
    cmdline: str
    initrds: list[str]
