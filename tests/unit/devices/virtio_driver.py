"""A guest's legacy virtio driver, as small as it gets, for tests of devices."""

from __future__ import annotations

import struct
from typing import Protocol

from tt.vmm.memory import PlainMemory

NEXT, WRITE, INDIRECT = 1, 2, 4


class Registers(Protocol):
    """The device's I/O BAR."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class Driver:
    """One queue, laid out at page `pfn`; buffers are taken from memory above `heap`.

    Only the first driver of a device is to `reset` it.
    """

    def __init__(
        self,
        device: Registers,
        memory: PlainMemory,
        pfn: int = 1,
        heap: int = 0x8000,
        queue: int = 0,
        reset: bool = True,
    ) -> None:
        self.device = device
        self.memory = memory
        self.pfn = pfn
        self.heap = heap
        self.queue = queue
        self.start(reset)

    def start(self, reset: bool = True) -> None:
        """Reset the device and set it up with an empty queue."""
        device, pfn = self.device, self.pfn
        self.added = 0
        self.seen = 0
        if reset:
            device.write(0x12, 1, 0)
            device.write(0x12, 1, 3)
            device.write(0x04, 4, device.read(0x00, 4))
        device.write(0x0E, 2, self.queue)
        self.num = device.read(0x0C, 2)
        device.write(0x08, 4, pfn)
        device.write(0x12, 1, 7)
        self.table = pfn * 4096
        self.available = self.table + 16 * self.num
        self.used = (self.available + 6 + 2 * self.num + 4095) // 4096 * 4096
        self.memory.write(self.available, bytes(4))
        self.memory.write(self.used, bytes(4))

    def descriptor(self, index: int, addr: int, size: int, flags: int = 0, following: int = 0) -> None:
        """Store one descriptor."""
        self.memory.write(self.table + 16 * index, struct.pack("<QIHH", addr, size, flags, following))

    def offer(self, head: int) -> None:
        """Put a chain into the available ring."""
        self.memory.write(self.available + 4 + self.added % self.num * 2, struct.pack("<H", head))
        self.added = (self.added + 1) & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.added))

    def kick(self) -> None:
        """Notify the device of the queue."""
        self.device.write(0x10, 2, self.queue)

    def chain(self, out: list[bytes], into: list[int], head: int = 0) -> list[int]:
        """Build a chain of buffers, offer it, and return the addresses of the writable ones."""
        addr, index, writable = self.heap, head, []
        total = len(out) + len(into)
        for data in out:
            self.memory.write(addr, data)
            self.descriptor(index, addr, len(data), NEXT if index - head + 1 < total else 0, index + 1)
            addr, index = addr + len(data), index + 1
        for size in into:
            writable.append(addr)
            more = NEXT if index - head + 1 < total else 0
            self.descriptor(index, addr, size, WRITE | more, index + 1)
            addr, index = addr + size, index + 1
        self.offer(head)
        return writable

    def finished(self) -> list[tuple[int, int]]:
        """Return (head, bytes written) of what the device has given back since the last call."""
        (idx,) = struct.unpack("<H", self.memory.read(self.used + 2, 2))
        done = []
        while self.seen != idx:
            at = self.used + 4 + self.seen % self.num * 8
            head, size = struct.unpack("<II", self.memory.read(at, 8))
            done.append((head, size))
            self.seen = (self.seen + 1) & 0xFFFF
        return done

    def request(self, out: list[bytes], into: list[int]) -> tuple[int, bytes]:
        """Do one request; return the bytes written, and what the writable buffers hold."""
        at = self.chain(out, into)
        self.kick()
        ((head, written),) = self.finished()
        assert head == 0
        return written, b"".join(self.memory.read(a, size) for a, size in zip(at, into, strict=True))


class RamDisk:
    """A disk in RAM that keeps a list of what was done to it."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self.data = bytearray(sectors * 512)
        self.log: list[tuple[str, int, int]] = []

    def read(self, lba: int, count: int) -> bytes:
        self._check(lba, count)
        self.log.append(("read", lba, count))
        return bytes(self.data[lba * 512 : (lba + count) * 512])

    def write(self, lba: int, data: bytes) -> None:
        self._check(lba, len(data) // 512)
        self.log.append(("write", lba, len(data) // 512))
        self.data[lba * 512 : lba * 512 + len(data)] = data

    def flush(self) -> None:
        self.log.append(("flush", 0, 0))

    def _check(self, lba: int, count: int) -> None:
        if lba + count > self.sectors:
            raise IndexError(f"sectors {lba}+{count} are past the end of the disk ({self.sectors})")
