"""Where in a recorded guest's memory a disk write came from: the chain of buffers of its virtio request."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tt.chronus.store.write import Write
from tt.errors import BadInput
from tt.log.sectors import SECTOR
from tt.travel import Timeline
from tt.vmm.devices.virtio_pci import VirtioPci
from tt.vmm.devices.virtqueue import BrokenRing, QueueState, Virtqueue

_HEADER = struct.Struct("<IIQ")  # type, priority, sector: see tt.vmm.devices.virtio_blk
_OUT = 1


@dataclass(frozen=True)
class Request:
    """The data of one disk write: pieces of guest-physical memory, (addr, size) in bytes, in order."""

    pieces: tuple[tuple[int, int], ...]

    def place(self, offset: int, size: int) -> tuple[int, int]:
        """Return (addr, size) of the bytes at `offset`, at most `size` of them, in one piece.

        Raises `IndexError` past the end.
        """
        for addr, length in self.pieces:
            if offset < length:
                return addr + offset, min(size, length - offset)
            offset -= length
        raise IndexError(offset)


class _Ram:
    """A timeline's memory as virtqueues read it."""

    def __init__(self, timeline: Timeline) -> None:
        self.size = timeline.machine.engine.size
        self.read = timeline.read_physical

    def write(self, addr: int, data: bytes) -> None:
        raise AssertionError("the guest's memory is only read here")


def request_of(timeline: Timeline, write: Write) -> Request:
    """Go to right after a write's notification, and return where its data came from.

    Raises `BadInput` where the guest's ring does not show it (any more): for a machine without virtio.
    """
    # The device serves a notification while the instruction at the write's tick retires.
    timeline.seek(min(write.tick + 1, timeline.end_tick))
    board = getattr(timeline.machine, "board", None)
    device = getattr(board, "devices", {}).get(f"virtio-blk{write.disk}")
    if not isinstance(device, VirtioPci):
        raise BadInput(f"the machine of {timeline.trace.path} has no virtio disk {write.disk} to look into")
    state: QueueState = _queue_state(device)
    queue = Virtqueue(_Ram(timeline), device.backend.queue_sizes[0])
    for back in range(1, queue.num + 1):
        queue.state = QueueState(state.pfn, (state.taken - back) & 0xFFFF, state.used)
        try:
            chain = queue.take()
            if chain is None:
                break
            head = b"".join(timeline.read_physical(addr, size) for addr, size in chain.readable[:1])
        except (BrokenRing, IndexError):
            continue  # a slot that the guest has used again
        if len(head) < _HEADER.size:
            continue
        kind, _, lba = _HEADER.unpack_from(head)
        data = _after_header(chain.readable)
        if kind == _OUT and lba == write.lba and sum(size for _, size in data) == write.sectors * SECTOR:
            return Request(tuple(data))
    raise BadInput(f"the memory that w{write.number} was written from is not to be found in the guest's ring")


def _after_header(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    skip = _HEADER.size
    found = []
    for addr, size in pieces:
        if size > skip:
            found.append((addr + skip, size - skip))
        skip = max(0, skip - size)
    return found


def _queue_state(device: VirtioPci) -> QueueState:
    device.save()  # which puts its queues into its state
    return device.state.queues[0]
