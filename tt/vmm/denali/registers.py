"""The virtual registers: one page of guest RAM shared by the machine and the guest.

After Denali (Whitaker et al., OSDI'02, section 2.2): reading a virtual
register costs the guest no trap.  All registers are 64-bit little-endian.

    0x1000  +---------------------------------------------+
            | magic  cpu_hz  mem_bytes  time_ns           |  0x00
            | pending  enabled  event_handler  exc.handler |  0x20
            | timer_ns  quantum_ticks  wall_ns            |  0x40
    0x1100  | event frame: rip rflags rsp rax mask        |  written by the engine
    0x1140  | exception frame: rip rflags rsp rax vector  |  written by the engine
            |                  error address active       |
    0x1180  | reserved, zero                              |
    0x2000  +---------------------------------------------+
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from tt.vmm.memory import Memory

PAGE = 4096
REGISTER_PAGE = 0x1000
MAGIC = int.from_bytes(b"DENALI1", "little")
REFUSED = 2**64 - 1
"""What a virtual instruction returns for arguments that make no sense."""


class Register(IntEnum):
    """Offsets in the register page."""

    MAGIC = 0x00
    CPU_HZ = 0x08
    MEM_BYTES = 0x10
    TIME_NS = 0x18
    PENDING = 0x20
    ENABLED = 0x28
    EVENT_HANDLER = 0x30
    EXCEPTION_HANDLER = 0x38
    TIMER_NS = 0x40
    QUANTUM_TICKS = 0x48
    WALL_NS = 0x50
    EVENT_RIP = 0x100
    EVENT_RFLAGS = 0x108
    EVENT_RSP = 0x110
    EVENT_RAX = 0x118
    EVENT_MASK = 0x120
    EXCEPTION_RIP = 0x140
    EXCEPTION_RFLAGS = 0x148
    EXCEPTION_RSP = 0x150
    EXCEPTION_RAX = 0x158
    EXCEPTION_VECTOR = 0x160
    EXCEPTION_ERROR = 0x168
    EXCEPTION_ADDRESS = 0x170
    EXCEPTION_ACTIVE = 0x178


class EventBit(IntFlag):
    """Bits of the `pending` register and of every event mask.  The rest are reserved."""

    TIMER = 1
    INPUT = 2
    DISK = 4
    NETWORK = 8


class Call(IntEnum):
    """Numbers of the virtual instructions."""

    TERMINATE = 0
    IDLE_WITH_TIMEOUT = 1
    RETURN_FROM_EVENT = 2  # 2 to 6 are the engine's
    RETURN_FROM_EXCEPTION = 3
    TLB_LOAD = 4
    TLB_FLUSH = 5
    TLB_ENABLE = 6
    CONSOLE_WRITE = 7
    CONSOLE_READ = 8
    DISK_INFO = 9
    DISK_READ = 10
    DISK_WRITE = 11
    DISK_DONE = 12
    NET_INFO = 13
    NET_GIVE = 14
    NET_SEND = 15
    NET_RECEIVE = 16
    NET_PORT_READ = 17
    NET_PORT_WRITE = 18


class CardItem(IntEnum):
    """What `net_info` tells of a network card."""

    MODEL = 0
    ADDRESS = 1
    LINK = 2
    LONGEST = 3
    RECEIVED = 4
    SENT = 5
    DROPPED = 6


class RegisterPage:
    """The virtual registers of one machine, in its RAM."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __getitem__(self, register: Register) -> int:
        return int.from_bytes(self._memory.read(REGISTER_PAGE + register, 8), "little")

    def __setitem__(self, register: Register, value: int) -> None:
        self._memory.write(REGISTER_PAGE + register, value.to_bytes(8, "little"))


def is_buffer(addr: int, size: int, ram_bytes: int) -> bool:
    """Tell whether a device may write `size` bytes at guest-physical `addr`: RAM, and no register page."""
    outside = addr + size > ram_bytes
    registers = addr < REGISTER_PAGE + PAGE and addr + size > REGISTER_PAGE
    return not outside and not registers
