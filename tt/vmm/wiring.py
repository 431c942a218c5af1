"""What both boards share: disks, consoles and network cards with their default handlers, behind the router.

The way of a disk write, whichever machine and device it comes from:

    guest ──> device ── DiskWrite ──> router ──> default handler ──> `store` ──> disk, DISK_WRITE event
"""

from __future__ import annotations

from collections.abc import Callable

from tt.events import Kind
from tt.vmm.disk import SECTOR, Disk
from tt.vmm.messages import (
    Answer,
    ConsoleInput,
    ConsoleWrite,
    DiskDiscard,
    DiskFlush,
    DiskRead,
    DiskSize,
    DiskWrite,
    EthernetLink,
    EthernetReceive,
    EthernetSend,
    Message,
    TimerExpired,
)
from tt.vmm.nondeterminism import Door
from tt.vmm.router import Port, Router


def store(door: Door, disk: Disk, unit: int, lba: int, data: bytes) -> None:
    """Write to a disk and tell the door: the one place where a machine's disk is written.

    Raises `IndexError` past the end.
    """
    disk.write(lba, data)
    door.note(Kind.DISK_WRITE, unit, lba, data)


def wire_disk(router: Router, door: Door, disk: Disk, unit: int) -> Port:
    """Return the port of disk `unit`; by default `disk` answers."""

    def serve(message: Message) -> Answer:
        match message:
            case DiskRead(lba, sectors):
                return disk.read(lba, sectors) if lba + sectors <= disk.sectors else None
            case DiskWrite(lba, data):
                if lba + len(data) // SECTOR > disk.sectors:
                    return None
                if data:
                    store(door, disk, unit, lba, data)
            case DiskDiscard(lba, sectors):
                if lba + sectors > disk.sectors:
                    return None
                if sectors:
                    store(door, disk, unit, lba, bytes(sectors * SECTOR))
            case DiskFlush():
                disk.flush()
                door.note(Kind.DISK_FLUSH, unit)
            case DiskSize():
                return disk.sectors.to_bytes(8, "little")
            case _:
                return None
        return b""

    return router.port(f"disk{unit}", serve)


def wire_console(router: Router, door: Door, unit: int, typed: Callable[[bytes], object]) -> Port:
    """Return the port of console `unit`.

    By default what the guest prints is told to the door, and `typed` gives the guest what somebody typed.
    """
    note, printed = door.note, Kind.CONSOLE

    def serve(message: Message) -> Answer:
        if isinstance(message, ConsoleWrite):
            note(printed, unit, 0, message.data)
        elif isinstance(message, ConsoleInput):
            typed(message.data)
        else:
            return None
        return b""

    return router.port(f"console{unit}", serve)


def wire_ethernet(
    router: Router,
    door: Door,
    unit: int,
    received: Callable[[bytes], object],
    linked: Callable[[bool], object],
) -> Port:
    """Return the port of network card `unit`.

    By default what the guest sends is told to the door; `received` gives the guest a
    frame, and `linked` tells it that the link is up or down.
    """

    def serve(message: Message) -> Answer:
        match message:
            case EthernetSend(frame):
                door.note(Kind.FRAME_OUT, unit, 0, frame)
            case EthernetReceive(frame):
                received(frame)
            case EthernetLink(up):
                linked(up)
            case _:
                return None
        return b""

    return router.port(f"ethernet{unit}", serve)


def wire_timer(router: Router, unit: int) -> Port:
    """Return the port of timer `unit`: by default its expiry reaches the guest at once."""
    return router.port(f"timer{unit}", lambda m: b"" if isinstance(m, TimerExpired) else None)


def size_of(port: Port) -> int:
    """Return how many sectors a disk has, as whoever answers for it says; 0 where that makes no sense."""
    answer = port.query(DiskSize())
    return 0 if answer is None else int.from_bytes(answer, "little")
