"""Virtqueues: many chains at once do what one after the other does, also in rings that make no sense."""

from __future__ import annotations

import random
import struct

import pytest

from tt.vmm.devices.virtqueue import PAGE, BrokenRing, QueueState, Virtqueue
from tt.vmm.memory import PlainMemory


def ring(seed: int, num: int) -> tuple[Virtqueue, PlainMemory]:
    """Return a queue in memory that is mostly as a driver fills it, at any place of a long life."""
    chance = random.Random(seed)
    pages = -(-(16 * num + 6 + 2 * num) // PAGE) + -(-(6 + 8 * num) // PAGE)
    size = 64 * PAGE
    pfn = chance.choice([1, 2, 64 - pages, 64 - pages + 1]) if seed % 4 == 0 else chance.randrange(1, 30)
    memory = PlainMemory(size)
    queue = Virtqueue(memory, num)
    taken, waiting = chance.randrange(1 << 16), chance.randrange(num + 1)
    queue.state = QueueState(pfn, taken, chance.randrange(1 << 16))
    if chance.random() < 0.1:
        waiting = chance.randrange(1 << 16)
    heads = [chance.randrange(num) for _ in range(num)]
    if chance.random() < 0.2:
        heads[chance.randrange(num)] = chance.randrange(1 << 16)
    table = b""
    for _ in range(num):
        flags = chance.choice([2, 2, 2, 2, 3, 0, 1, 4]) if chance.random() < 0.1 else 2
        addr = chance.randrange(size) if chance.random() < 0.05 else chance.randrange(32 * PAGE, 60 * PAGE)
        table += struct.pack("<QIHH", addr, chance.choice([0, 64, 1526, 4096]), flags, chance.randrange(num))
    available = struct.pack("<HH", 0, (taken + waiting) & 0xFFFF) + struct.pack(f"<{num}H", *heads)
    whole = table + available
    memory.ram[pfn * PAGE : pfn * PAGE + len(whole)] = whole
    del memory.ram[size:]
    return queue, memory


def one_by_one(queue: Virtqueue, size: int) -> list[tuple[int, int]]:
    chains = []
    while size > 0 and (chain := queue.take()) is not None:
        chains.append(chain)
        size -= chain.writable_size
    for chain in chains:
        queue.put(chain, chain.writable_size)
    return [(chain.head, chain.writable_size) for chain in chains]


def at_once(queue: Virtqueue, size: int) -> list[tuple[int, int]]:
    chains = queue.take_room(size)
    queue.put_all([(chain, chain.writable_size) for chain in chains])
    return [(chain.head, chain.writable_size) for chain in chains]


@pytest.mark.parametrize("num", [1, 8, 256])
def test_at_once_is_one_by_one(num: int) -> None:
    good = 0
    for seed in range(200):
        outcomes = []
        for work in (one_by_one, at_once):
            queue, memory = ring(seed, num)
            found: object
            try:
                found = work(queue, random.Random(seed).choice([1, 64, 3000, 70_000]))
                good += bool(found)
            except (BrokenRing, IndexError) as e:
                found = (type(e), str(e))
            outcomes.append((found, queue.state, bytes(memory.ram)))
        (found, state, ram), other = outcomes[0], outcomes[1]
        assert found == other[0], seed
        if isinstance(found, list):  # a device stops where it is not, and nobody looks at its rings again
            assert (state, ram) == other[1:], seed
    assert good > 100
