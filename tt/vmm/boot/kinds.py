"""What kind of kernel a file is, and which kind a boot configuration's command makes of it."""

from __future__ import annotations

from tt.errors import BadInput
from tt.vmm.boot import elf, linux, modules, multiboot, multiboot2
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.target import Protocol

MULTIBOOT = (multiboot.KIND, multiboot2.KIND)
"""Kinds whose plans take packed modules, and to whose command line tt adds no words of its own."""


def kernel_kind(data: bytes) -> str | None:
    """Return what kind of kernel `data` is, as `BootPlan.kind` names it; None for none.

    A kernel with headers of both Multiboot versions is one of version 1, as it is for QEMU.
    """
    if linux.is_bzimage(data):
        return linux.BZIMAGE
    if multiboot.find_header(data) is not None:
        return multiboot.KIND
    if multiboot2.find_header(data) is not None:
        return multiboot2.KIND
    if data[:4] == elf.MAGIC:
        return linux.ELF
    return None


def kind_for(protocol: Protocol, data: bytes, path: str) -> str | None:
    """Return the kind of the kernel `data` under a configuration's command; None when it is not a kernel.

    Raises `BadInput` for a kernel without the header that `multiboot` or `multiboot2` looks for.
    """
    if protocol == "linux":
        return kernel_kind(data)
    if protocol == "multiboot":
        header, kind = multiboot.find_header(data) is not None, multiboot.KIND
    else:
        header, kind = multiboot2.find_header(data) is not None, multiboot2.KIND
    if not header:
        raise BadInput(f"{printable(path)} has no header of the kind that {protocol} looks for")
    return kind


def companion(kind: str | None, data: bytes | None) -> bytes | None:
    """Return an initrd of the host as a plan of `kind` takes it: for Multiboot, a list of one module."""
    if data is None or kind not in MULTIBOOT:
        return data
    return modules.pack([modules.Module("", data)])
