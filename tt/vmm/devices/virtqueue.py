"""Virtqueues in guest memory, as of virtio 0.9.5, read without trusting them.

Source: Virtio PCI Card Specification 0.9.5, section 2.3 ("Virtqueue
configuration") and 2.4.

    pfn * 4096: descriptors   num x { u64 addr, u32 len, u16 flags, u16 next }
                available     u16 flags, u16 idx, u16 ring[num], u16 used_event
    next page:  used          u16 flags, u16 idx, num x { u32 id, u32 len }
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from tt.vmm.memory import Memory
from tt.vmm.state import U16, U32, U64, misfit, pack, unpack

PAGE = 4096
_DESCRIPTOR = struct.Struct("<QIHH")  # 16 bytes
_unpack = _DESCRIPTOR.unpack
_U16 = struct.Struct("<H")
_USED = struct.Struct("<II")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1


class BrokenRing(Exception):
    """The guest's ring makes no sense; the device that meets it stops until it is reset."""


@dataclass(slots=True)
class QueueState:
    """Where one queue lies and how far the device has come in it."""

    pfn: U32 = 0  # page of guest memory, 0 while the queue is not set up
    taken: U16 = 0  # chains taken from the available ring, modulo 2**16
    used: U16 = 0  # chains put into the used ring, modulo 2**16


@dataclass(slots=True)
class Buffer:
    """One buffer in guest-physical memory."""

    addr: U64 = 0
    size: U32 = 0


@dataclass(slots=True)
class HeldChain:
    """What a saved state has of a chain that its device still holds."""

    head: U16 = 0
    writable: list[Buffer] = field(default_factory=list)


class Chain:
    """One descriptor chain: buffers the device reads, then buffers it writes.

    Buffers are (addr, size) in guest-physical memory; `writable_size` bytes fit the writable ones.
    """

    __slots__ = ("head", "readable", "writable", "writable_size", "_memory")

    def __init__(
        self, memory: Memory, head: int, readable: list[tuple[int, int]], writable: list[tuple[int, int]]
    ) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable
        self.writable_size = sum([size for _, size in writable])
        self._memory = memory

    def save(self) -> dict[str, Any]:
        """Return the head and the writable buffers as plain data."""
        return pack(HeldChain(self.head, [Buffer(addr, size) for addr, size in self.writable]))

    def read(self) -> bytes:
        """Return what the readable buffers hold; raises `IndexError` outside RAM."""
        return b"".join([self._memory.read(addr, size) for addr, size in self.readable])

    def write(self, at: int, data: bytes) -> None:
        """Store `data` from byte `at` of the writable buffers on; raises `IndexError` outside RAM."""
        for addr, size in self.writable:
            if at >= size:
                at -= size
                continue
            piece, data = data[: size - at], data[size - at :]
            self._memory.write(addr + at, piece)
            if not data:
                return
            at = 0


class Virtqueue:
    """One queue of `num` entries (a power of two)."""

    def __init__(self, memory: Memory, num: int) -> None:
        self.num = num
        self.state = QueueState()
        self._memory = memory
        # Where the rings lie behind the table, which begins at a page.
        self._available_at = num * _DESCRIPTOR.size
        self._used_at = -(-(self._available_at + 6 + 2 * num) // PAGE) * PAGE

    def reset(self, pfn: int = 0) -> None:
        """Set the queue up at page `pfn`, empty; 0 takes it down."""
        self.state = QueueState(pfn)

    def held(self, saved: object, where: str) -> Chain:
        """Return a chain that `Chain.save` described: what can still be written of it; raises `BadState`."""
        s = unpack(HeldChain, saved, where)
        if s.head >= self.num:
            raise misfit(f"{where}.head", f"{s.head} in a table of {self.num}")
        if any(part.addr + part.size > self._memory.size for part in s.writable):
            raise misfit(f"{where}.writable", "a buffer is outside memory")
        return Chain(self._memory, s.head, [], [(part.addr, part.size) for part in s.writable])

    def waiting(self) -> int:
        """Return how many chains are available; raises as `take` does."""
        s = self.state
        return self._not_taken(self._memory.read(s.pfn * PAGE + self._available_at + 2, 2))

    def _not_taken(self, index: bytes) -> int:
        waiting = (int.from_bytes(index, "little") - self.state.taken) & 0xFFFF
        if waiting > self.num:
            raise BrokenRing(f"{waiting} chains in a ring of {self.num}")
        return waiting

    def take(self) -> Chain | None:
        """Return the next available chain, or None when there is no more.

        Raises `BrokenRing` for a ring that makes no sense and `IndexError` for
        one outside RAM.
        """
        s = self.state
        if not s.pfn or not self.waiting():
            return None
        slot = s.pfn * PAGE + self._available_at + 4 + s.taken % self.num * 2
        head = int.from_bytes(self._memory.read(slot, 2), "little")
        s.taken = (s.taken + 1) & 0xFFFF
        return self._walk(head)

    def take_room(self, size: int) -> list[Chain]:
        """Return the next available chains, enough to write `size` bytes; fewer if there are no more.

        Raises as `take` does.
        """
        s = self.state
        if not s.pfn:
            return []
        chains: list[Chain] = []
        heads = self._heads()
        while size > 0:
            if heads is None:  # a ring at the end of RAM: as far as it goes
                chain = self.take()
                if chain is None:
                    break
            elif len(chains) == len(heads):
                break
            else:
                s.taken = (s.taken + 1) & 0xFFFF
                chain = self._walk(heads[len(chains)])
            chains.append(chain)
            size -= chain.writable_size
        return chains

    def _heads(self) -> tuple[int, ...] | None:
        """Return the heads of all chains that wait, by one look at the ring; None if it is not all in RAM."""
        at, size = self.state.pfn * PAGE + self._available_at, 4 + 2 * self.num
        if at + size > self._memory.size:
            return None
        ring = self._memory.read(at, size)
        first = 4 + self.state.taken % self.num * 2
        return struct.unpack_from(f"<{self._not_taken(ring[2:4])}H", ring[first:] + ring[4:first])

    def put_back(self, chains: int) -> None:
        """Undo the last `chains` of `take`."""
        self.state.taken = (self.state.taken - chains) & 0xFFFF

    def put(self, chain: Chain, written: int) -> None:
        """Give `chain` back with `written` bytes in its writable buffers; raises `IndexError`."""
        s = self.state
        ring, write = s.pfn * PAGE + self._used_at, self._memory.write
        write(ring + 4 + s.used % self.num * 8, _USED.pack(chain.head, written))
        s.used = (s.used + 1) & 0xFFFF
        write(ring + 2, _U16.pack(s.used))

    def put_all(self, chains: list[tuple[Chain, int]]) -> None:
        """Give chains back, each with the bytes written into it; raises `IndexError`."""
        s, num = self.state, self.num
        ring, first, count = s.pfn * PAGE + self._used_at, s.used % num, len(chains)
        if not count or ring + 4 + 8 * num > self._memory.size or first + count > num:
            for chain, written in chains:
                self.put(chain, written)
            return
        told = [number for chain, written in chains for number in (chain.head, written)]
        self._memory.write(ring + 4 + first * 8, struct.pack(f"<{2 * count}I", *told))
        s.used = (s.used + count) & 0xFFFF
        self._memory.write(ring + 2, _U16.pack(s.used))

    def wants_interrupt(self) -> bool:
        """Return whether the guest wants to hear of used chains; raises `IndexError`."""
        flags = self._memory.read(self.state.pfn * PAGE + self._available_at, 2)
        return not flags[0] & _NO_INTERRUPT

    def _walk(self, head: int) -> Chain:
        memory, table = self._memory, self.state.pfn * PAGE
        read, most = memory.read, memory.size
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        index, total = head, 0
        for _ in range(self.num):
            if index >= self.num:
                raise BrokenRing(f"descriptor {index} in a table of {self.num}")
            addr, size, flags, following = _unpack(read(table + index * 16, 16))
            if flags & _INDIRECT:
                raise BrokenRing("an indirect descriptor, which was not offered")
            if flags & _WRITE:
                writable.append((addr, size))
            elif writable:
                raise BrokenRing("a readable buffer after a writable one")
            else:
                readable.append((addr, size))
            total += size
            if total > most or addr + size > most:
                raise BrokenRing("buffers larger than memory, or outside it")
            if not flags & _NEXT:
                return Chain(memory, head, readable, writable)
            index = following
        raise BrokenRing("a chain with a loop in it")
