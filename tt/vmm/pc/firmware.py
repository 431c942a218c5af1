"""What a PC's firmware leaves behind for kernels that rely on it, though none runs here.

The Multiboot specification (0.6.96, section 3.2) wants the machine "in normal
working order, i.e. as initialized by the BIOS"; the Linux boot protocol (boot.rst)
asks for nothing of the devices.  Line by line of the first, beyond CPU and memory
(`tt.vmm.boot.multiboot`):

- A20 is open, and ports 0x64 and 0x92 say so (`tt.vmm.devices.kbc8042`);
- the PICs have vectors 0x08 and 0x70 and the masks that BIOSes leave (timer,
  keyboard, cascade; clock, mouse, FPU, disk);
- timer 0 counts at 18.2 Hz: mode 3, count 65536; timer 1 as it once refreshed memory;
- COM1 is set to 9600 baud, 8 data bits;
- the CMOS has equipment and memory sizes, with their checksum;
- the BIOS data area at 0x400 has the same facts.

There are no BIOS services: the interrupt vector table is empty.
"""

from __future__ import annotations

import struct

from tt.vmm.boot.plan import HIGH_RAM_START, LOW_RAM_END

BDA = 0x400
_KB, _MB = 1 << 10, 1 << 20
_TICKS_A_DAY = 0x1800B0
_DAY_S = 86400
_EQUIPMENT = 0x02  # an FPU; no diskette, and a display, if any, that has its own ROM

SETUP: tuple[tuple[int, int], ...] = (
    # Timers first: ICW1 makes the PICs forget the edge.
    (0x43, 0x36), (0x40, 0x00), (0x40, 0x00),
    (0x43, 0x54), (0x41, 0x12),
    (0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xB8),
    (0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8E),
    (0x3FB, 0x03),
)  # fmt: skip
"""The ports that firmware writes to, and what: (port, byte)."""


def cmos_fields(mem_bytes: int) -> dict[int, int]:
    """Return the bytes of the CMOS RAM that are not 0, by index.

    Source: IBM PC AT Technical Reference; from 0x34 on, what QEMU and its firmware keep there.
    """
    above_1m = min(max(mem_bytes - HIGH_RAM_START, 0) // _KB, 0xFFFF)
    above_16m = min(max(min(mem_bytes, 4 << 30) - 16 * _MB, 0) >> 16, 0xFFFF)
    above_4g = max(mem_bytes - (4 << 30), 0) >> 16
    fields = {0x14: _EQUIPMENT}
    for index, value in (
        (0x15, 640),
        (0x17, above_1m),
        (0x30, above_1m),
        (0x34, above_16m),
        (0x5B, above_4g),
    ):
        fields[index], fields[index + 1] = value & 0xFF, value >> 8 & 0xFF
    fields[0x5D] = above_4g >> 16 & 0xFF
    checksum = sum(fields.get(index, 0) for index in range(0x10, 0x2E))
    fields[0x2E], fields[0x2F] = checksum >> 8 & 0xFF, checksum & 0xFF
    return fields


def data_areas(epoch: int) -> list[tuple[int, bytes]]:
    """Return the BIOS data area and its extension, as (guest-physical address, bytes).

    The time of day in it is that of `epoch`, in seconds since 1970.
    """
    bda = bytearray(0x100)
    struct.pack_into("<H", bda, 0x00, 0x3F8)  # COM1; there is no other port
    struct.pack_into("<H", bda, 0x0E, LOW_RAM_END >> 4)  # segment of the extended area
    struct.pack_into("<H", bda, 0x10, _EQUIPMENT | 1 << 9)  # one serial port
    struct.pack_into("<H", bda, 0x13, LOW_RAM_END // _KB)
    struct.pack_into("<HH", bda, 0x1A, 0x1E, 0x1E)  # the keyboard buffer: empty,
    struct.pack_into("<I", bda, 0x6C, epoch % _DAY_S * _TICKS_A_DAY // _DAY_S)  # timer ticks since midnight
    struct.pack_into("<HH", bda, 0x80, 0x1E, 0x3E)  # ... from here to there
    return [(BDA, bytes(bda)), (LOW_RAM_END, b"\x01")]  # the extension's first byte: its size in KB
