"""The vocabulary of nondeterminism: kinds of event, and the event itself.

Both the machine (which reports events) and the trace (which stores them)
speak it, so it lives below both and imports neither.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What happened.  The numbers are part of the trace format: append, never renumber."""

    TIMER = 1  # a timer of the machine expired            unit=timer index, value=guest ns
    IRQ = 2  # the CPU took a hardware interrupt           value=vector
    BATCH = 3  # Denali: pending events handed over        value=bit mask
    DISK_WRITE = 4  # sectors reached a disk               unit=disk, value=lba, data=contents
    DISK_FLUSH = 5  # a disk's write cache was flushed     unit=disk
    CONSOLE = 6  # the guest printed                       unit=console, data=bytes
    INPUT = 7  # somebody typed                            unit=console, data=bytes     (input)
    ENTROPY = 8  # the guest was given random bytes        data=bytes                   (answer)
    CLOCK = 9  # the guest read a host clock               value=ns                     (answer)
    WAKE = 10  # an idle guest woke                        value=ns of guest time idled (input if paced)
    POWER = 11  # the machine stopped by itself            data=reason, ascii
    EDIT_REGISTER = 12  # somebody set a register          value=new value, data=its name, ascii   (input)
    EDIT_MEMORY = 13  # somebody changed RAM               value=physical address, data=bytes      (input)
    EDIT_DISK = 14  # somebody changed a disk              unit=disk, value=lba, data=sectors      (input)


EDITS = (Kind.EDIT_REGISTER, Kind.EDIT_MEMORY, Kind.EDIT_DISK)
"""What somebody changed by hand at the beginning or in the course of a fork (`tt.travel.branches.fork`)."""


class Event(NamedTuple):
    """One nondeterministic event, at the tick (instructions retired) it happened.

    `unit` says which device of its kind, `value` is an integer (0 <= value <
    2**64) and `data` bytes; what they mean depends on the kind.
    """

    tick: int
    kind: Kind
    unit: int = 0
    value: int = 0
    data: bytes = b""
