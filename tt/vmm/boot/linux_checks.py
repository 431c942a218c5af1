"""Checks of a Linux kernel and its command line, made when a guest is new.

A replay does not check: a guest that was recorded once is planned as it was then.
"""

from __future__ import annotations

import re
import struct

from tt.errors import BadInput
from tt.vmm.boot import linux
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.plan import MIB

_OLDEST, _MAJOR = 0x0202, 2
_XLOADFLAGS, _SUBARCH, _SETUP_DATA = 0x236, 0x23C, 0x250
_KERNEL_64 = 1 << 0
_EM_X86_64 = 62


def check_bzimage(kernel: bytes, initrd: bytes | None, cmdline: str, mem_bytes: int) -> None:
    """Raise `BadInput`, naming the reason, for a bzImage that the boot protocol would not start right.

    Facts: boot.rst, "Details of Header Fields" and "Special Command Line Options".
    """
    header = linux.SetupHeader.parse(kernel)
    version = header.version
    name = f"kernel speaks boot protocol {version >> 8}.{version & 0xFF:02d}"
    if version < _OLDEST:
        # Such kernels take their parameters from 0x90000, wherever they were put.
        raise BadInput(f"{name}, from before Linux 2.4: tt boots 2.02 and later")
    if version >> 8 != _MAJOR:
        raise BadInput(f"{name}: tt knows those of version {_MAJOR}")
    if version >= 0x0207 and _field(kernel, _SUBARCH, 4):
        raise BadInput(f"kernel is for hardware subarchitecture {_field(kernel, _SUBARCH, 4)}, not for a PC")
    if version >= 0x0209 and _field(kernel, _SETUP_DATA, 8):
        raise BadInput("kernel's header points to setup_data, which only a boot loader can bring: damaged?")
    if version >= 0x020C and not _field(kernel, _XLOADFLAGS, 2) & _KERNEL_64:
        vmlinux = linux.extract_vmlinux(kernel)
        if vmlinux is not None and vmlinux[:5] == b"\x7fELF\x02":
            raise BadInput(
                "kernel is 64-bit, and its header denies a 64-bit entry (xloadflags bit 0): damaged?"
            )
    limit = memory_limit(cmdline)
    if initrd and limit is not None and limit < min(mem_bytes, header.initrd_addr_max + 1):
        raise BadInput(
            f"the command line ends the kernel's memory at {limit / MIB:g} MB (mem=), below its initrd: "
            "give the machine that much with --mem instead"
        )


def memory_limit(cmdline: str) -> int | None:
    """Return the lowest `mem=SIZE` of a command line, in bytes; None without one."""
    limits = []
    for number, unit in re.findall(
        r"(?:^|\s)mem=(0[xX][0-9a-fA-F]+|[0-9]{1,20})([KMGTPE]?)(?=\s|$)", cmdline, re.IGNORECASE
    ):
        octal = number.startswith("0") and number.isdigit()
        try:
            value = int(number, 8) if octal else int(number, 0)
        except ValueError:
            continue
        limits.append(value << (10 * ("KMGTPE".index(unit.upper()) + 1) if unit else 0))
    return min(limits, default=None)


def _field(kernel: bytes, offset: int, size: int) -> int:
    return int.from_bytes(kernel[offset : offset + size], "little")


def foreign_kernel(data: bytes) -> str | None:
    """Name a kernel that is for another machine or firmware, for an error; None for anything else."""
    if data[:4] == b"\x27\x05\x19\x56":
        return "a U-Boot image"
    if data[0x38:0x3C] == b"ARM\x64":
        return "a kernel for ARM64"
    if data[0x24:0x28] == b"\x18\x28\x6f\x01":
        return "a kernel for ARM"
    if data[0x38:0x3C] == b"RSC\x05":
        return "a kernel for RISC-V"
    if data[:4] == b"MZ\0\0" and data[4:8] == b"zimg":
        return f"a compressed kernel for EFI ({printable(data[24:56].split(bytes(1))[0].decode('latin-1'))})"
    if data[:2] == b"MZ" and len(data) >= 0x40:
        (at,) = struct.unpack_from("<I", data, 0x3C)
        if data[at : at + 4] == b"PE\0\0":
            return "a program for EFI, perhaps a unified kernel image"
    return None
