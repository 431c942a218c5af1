"""The message router: default handlers, and interposers in front of them (µDenali, NSDI'04, section 3)."""

from __future__ import annotations

import pytest
from virtio_driver import RamDisk

from tt.errors import UsageError
from tt.vmm.router import Handler, Message, RoutedDisk, Router


def serve(disk: RamDisk) -> Handler:
    def handler(message: Message) -> bytes:
        if message.operation == "diskRead":
            return disk.read(message.lba, message.sectors)
        if message.operation == "diskWrite":
            disk.write(message.lba, message.data)
        else:
            disk.flush()
        return b""

    return handler


def test_default_handler() -> None:
    router, disk = Router(), RamDisk(8)
    router.register("disk0", serve(disk))
    routed = RoutedDisk(router, "disk0", disk.sectors)
    routed.write(2, b"x" * 1024)
    assert routed.read(3, 1) == b"x" * 512
    routed.flush()
    assert disk.log == [("write", 2, 2), ("read", 3, 1), ("flush", 0, 0)]
    with pytest.raises(IndexError):
        routed.read(8, 1)


def test_interposers_stack_and_come_off() -> None:
    router, disk = Router(), RamDisk(8)
    router.register("disk0", serve(disk))
    routed = RoutedDisk(router, "disk0", disk.sectors)
    seen: list[tuple[str, Message]] = []

    def shout(message: Message, below: Handler) -> bytes:
        seen.append(("shout", message))
        return below(message).upper()

    def swallow_writes(message: Message, below: Handler) -> bytes:
        seen.append(("swallow", message))
        return b"" if message.operation == "diskWrite" else below(message)

    disk.data[:512] = b"q" * 512
    router.interpose("disk0", swallow_writes)
    router.interpose("disk0", shout)
    assert routed.read(0, 1) == b"Q" * 512
    routed.write(0, b"z" * 512)
    assert disk.data[:1] == b"q"
    assert [who for who, _ in seen] == ["shout", "swallow"] * 2
    assert seen[-1][1] == Message("disk0", "diskWrite", 0, 1, b"z" * 512)
    router.restore("disk0")
    routed.write(0, b"z" * 512)
    assert disk.data[:1] == b"z"


def test_answer_of_the_wrong_length() -> None:
    """An interposer that answers nonsense is an I/O error, not a crash of the device."""
    router = Router()
    router.register("disk0", lambda message: b"short")
    with pytest.raises(IndexError, match="5 bytes"):
        RoutedDisk(router, "disk0", 8).read(0, 1)


def test_unknown_device() -> None:
    router = Router()
    router.register("disk0", lambda message: b"")
    with pytest.raises(UsageError, match=r"no device 'disk9'.*disk0"):
        router.interpose("disk9", lambda message, below: b"")
    with pytest.raises(UsageError, match="disk9"):
        router.restore("disk9")
