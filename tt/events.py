"""The vocabulary of nondeterminism: kinds of event, and the event itself.

Both the machine (which reports events) and the trace (which stores them)
speak it, so it lives below both and imports neither.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple


class Role(Enum):
    """What an event is to the machine, and so what a replay does with it."""

    NOTE = "note"  # the machine did it by itself: a replay compares it
    ANSWER = "answer"  # what the guest asked for: a replay gives it again when the guest asks
    INPUT = "input"  # what reached the guest unasked: a replay gives it again at its tick
    EDIT = "edit"  # what somebody changed by hand: a replay makes the same change at its tick


class Kind(IntEnum):
    """What happened, and its role.  The numbers are part of the trace format: append, never renumber."""

    role: Role
    __hash__ = int.__hash__  # an Enum's own is slow, and kinds are looked up with every event

    def __new__(cls, number: int, role: Role) -> Kind:
        """Make a member whose value is `number`."""
        kind = int.__new__(cls, number)
        kind._value_ = number
        kind.role = role
        return kind

    TIMER = 1, Role.NOTE  # a timer of the machine expired            unit=timer index, value=guest ns
    IRQ = 2, Role.NOTE  # the CPU took a hardware interrupt           value=vector
    BATCH = 3, Role.NOTE  # Denali: pending events handed over        value=bit mask
    DISK_WRITE = 4, Role.NOTE  # sectors reached a disk               unit=disk, value=lba, data=contents
    DISK_FLUSH = 5, Role.NOTE  # a disk's write cache was flushed     unit=disk
    CONSOLE = 6, Role.NOTE  # the guest printed                       unit=console, data=bytes
    INPUT = 7, Role.INPUT  # somebody typed                           unit=console, data=bytes
    ENTROPY = 8, Role.ANSWER  # the guest was given random bytes      data=bytes
    CLOCK = 9, Role.ANSWER  # the guest read a host clock             data=ns, 8 bytes, little-endian
    WAKE = 10, Role.INPUT  # time of an idle guest passed             value=ns of guest time
    POWER = 11, Role.NOTE  # the machine stopped by itself            data=reason, ascii
    EDIT_REGISTER = 12, Role.EDIT  # a register was set               value=new value, data=its name, ascii
    EDIT_MEMORY = 13, Role.EDIT  # RAM was changed                    value=physical address, data=bytes
    EDIT_DISK = 14, Role.EDIT  # a disk was changed                   unit=disk, value=lba, data=sectors
    # Since format version 4; units and steps as in tt/vmm/messages.py.
    PARENT = 15, Role.ANSWER  # what a parent did with a message just sent     unit=device, data=step
    PARENT_LATER = 16, Role.INPUT  # the same, at a later tick        unit=device, value=message, data=step
    ROUTE = 17, Role.INPUT  # messages go to a parent from now on (1), or no more (0)   unit=device, value
    # Since format version 5.
    FRAME_IN = 18, Role.INPUT  # a frame reached a network card       unit=card, data=the frame
    FRAME_OUT = 19, Role.NOTE  # the guest sent a frame               unit=card, data=the frame
    LINK = 20, Role.INPUT  # a network card's link went up (1), or down (0)             unit=card, value


def kinds_of(*roles: Role) -> frozenset[Kind]:
    """Return the kinds of event that have one of `roles`."""
    return frozenset(kind for kind in Kind if kind.role in roles)


ANSWERS = kinds_of(Role.ANSWER)
INPUTS = kinds_of(Role.INPUT, Role.EDIT)
"""What reaches a machine at a tick of its own: inputs, and changes by hand (`tt.travel.branches.fork`)."""
FRAMES = frozenset({Kind.FRAME_IN, Kind.FRAME_OUT})
"""What carries an Ethernet frame, without its checksum."""
FROM_OUTSIDE = ANSWERS | INPUTS
"""What a machine could not have computed by itself."""


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
