"""Whether KVM works here: /dev/kvm can exist and open, and still not run guests (in nested machines)."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tt.chronus.runners.child import spawn

_DEVICE = Path("/dev/kvm")
_WITHIN_S = 2.0  # real KVM takes hundredths of a second, an emulated one seconds
_EXIT_PORT = 0xF4
_ANSWER = 0x10  # isa-debug-exit ends QEMU with 2 * answer + 1
_BASE = 0x100000

# A Multiboot kernel that goes to 64-bit mode, copies 1 MB backwards, and says so to isa-debug-exit.
_CODE = (
    "02b0ad1b 00000100 fe4f51e4",  # Multiboot magic, flags (addresses follow), checksum
    "00001000 00001000 00000000 00001100 20001000",  # header, load from, to (the file's end), bss end, entry
    "b800101000 0f22d8",  # mov cr3, 0x101000
    "0f20e0 83c820 0f22e0",  # or cr4, PAE
    "b9800000c0 0f32 0d00010000 0f30",  # or EFER, LME
    "0f20c0 0d00000080 0f22c0",  # or cr0, PG
    "0f0115 82001000",  # lgdt [0x100082]
    "ea 58001000 0800",  # jmp 8:0x100058
    "b810000000 8ed8 8ec0 8ed0",  # mov ds, es, ss, 0x10
    "bef8ff4f00 bff8ff6f00 b900000200",  # esi = 5 MB - 8, edi = 7 MB - 8, ecx = 128 K
    "fd f348a5 fc",  # std; rep movsq; cld
    "31c0 0fa2",  # cpuid 0
    f"b0{_ANSWER:02x} e6{_EXIT_PORT:02x} f4 ebfd",  # out; hlt; and again
    "1700 8c00100000000000",  # the GDT's limit and address
    "0000000000000000 ffff0000009baf00 ffff00000093cf00",  # GDT: none, 64-bit code, data
)
_PAGE = 4096
_TABLE = 0x3  # present, writable
_LARGE = 0x83  # and a page of 2 MB


def self_test_kernel() -> bytes:
    """Return the Multiboot kernel that shows whether KVM runs a guest."""
    tables = (
        struct.pack("<Q", _BASE + 2 * _PAGE + _TABLE),
        struct.pack("<Q", _BASE + 3 * _PAGE + _TABLE),
        struct.pack("<512Q", *(number << 21 | _LARGE for number in range(512))),
    )
    return b"".join(part.ljust(_PAGE, b"\0") for part in (bytes.fromhex("".join(_CODE)), *tables))


def kvm_works(qemu: str) -> bool:
    """Tell whether this QEMU can run a guest by KVM, by running a small one; asked once for a process."""
    return os.access(_DEVICE, os.R_OK | os.W_OK) and runs(qemu, "kvm", "host")


@cache
def runs(qemu: str, accelerator: str, cpu: str) -> bool:
    """Run the self-test; return whether it came to its end in time."""
    with tempfile.NamedTemporaryFile(prefix="chronus-kvm-") as kernel:
        kernel.write(self_test_kernel())
        kernel.flush()
        command = [
            *(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "32"),
            *("-accel", accelerator, "-cpu", cpu, "-kernel", kernel.name),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
        ]
        try:
            process = spawn(command)
        except OSError:
            return False
        try:
            return process.wait(_WITHIN_S) == 2 * _ANSWER + 1
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
            process.wait()
