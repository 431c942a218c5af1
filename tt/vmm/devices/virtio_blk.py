"""virtio-blk: a disk for a legacy virtio device.

Source: Virtio PCI Card Specification 0.9.5, appendix D, and for discards
Virtio 1.1, section 5.2.  VIRTIO_BLK_F_FLUSH is offered and, where asked for,
VIRTIO_BLK_F_DISCARD and VIRTIO_BLK_F_WRITE_ZEROES: both are writes of zeros.
A request is a 16 byte header and data to write, then room for data to read
and one status byte, cut into buffers in any way.
"""

from __future__ import annotations

import struct
from typing import Any

from tt.vmm.devices.virtio_pci import Queue
from tt.vmm.devices.virtqueue import Chain
from tt.vmm.messages import SECTOR, Answer, DiskDiscard, DiskFlush, DiskRead, DiskWrite, Message
from tt.vmm.router import Port
from tt.vmm.state import misfit
from tt.vmm.wiring import size_of

_HEADER = struct.Struct("<IIQ")  # type, priority, sector
_RANGE = struct.Struct("<QII")  # sector, sectors, flags
_IN, _OUT, _FLUSH, _GET_ID, _DISCARD, _WRITE_ZEROES = 0, 1, 4, 8, 11, 13
_ID_SIZE = 20
_OK, _IOERR, _UNSUPP = b"\0", b"\1", b"\2"
_F_FLUSH, _F_DISCARD, _F_WRITE_ZEROES = 1 << 9, 1 << 13, 1 << 14
_MAX_ZEROED = 4 << 20 >> 9  # sectors of one request
_CONFIG = struct.Struct("<Q28xIIIIIB3x")
PCI_CLASS = 0x01_00_00  # mass storage, SCSI, as other virtio disks say


class VirtioBlk:
    """The backend of a disk: requests are messages to `port`, and end when they are answered.

    `serial` (ASCII, cut to 20 bytes) answers GET_ID.  With `discard` the guest may
    say that sectors are no longer needed; they read as zeros then.
    """

    device_type = 2
    pci_device = 0x1001
    queue_sizes: tuple[int, ...] = (256,)

    def __init__(self, port: Port, serial: str, discard: bool = False) -> None:
        self.features = _F_FLUSH | (_F_DISCARD | _F_WRITE_ZEROES if discard else 0)
        self._port = port
        self._discard = discard
        self._serial = serial.encode("ascii")[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self._queue: Queue | None = None
        self._in_flight: dict[int, Chain] = {}  # by head, which is the message's token
        self._serving = False
        port.completed = self._answered

    @property
    def config(self) -> bytes:
        """The capacity, and with discards their limits."""
        sectors = size_of(self._port)
        if not self._discard:
            return sectors.to_bytes(8, "little")
        # Limits of a discard: sectors, ranges, alignment.  Of writing zeros: sectors, ranges, may unmap.
        return _CONFIG.pack(sectors, _MAX_ZEROED, 1, 8, _MAX_ZEROED, 1, 1)

    def activate(self, index: int, queue: Queue | None) -> None:
        """Take the queue; what was in flight is forgotten."""
        self._queue = queue
        self._in_flight.clear()
        self._port.forget()

    def notified(self, index: int) -> None:
        """Begin every request that is there."""
        queue = self._queue
        if queue is None:
            return
        self._serving = True
        try:
            while (chain := queue.take()) is not None:
                self._begin(queue, chain)
        finally:
            self._serving = False
        queue.tell()

    def save(self) -> dict[str, Any]:
        """Return the requests that are not answered yet, in the order in which they came."""
        return {"in_flight": [chain.save() for chain in self._in_flight.values()]} if self._in_flight else {}

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self._in_flight = {}
        if not state:
            return
        where, queue, held = f"{self._port.name}'s requests", self._queue, state.get("in_flight")
        if set(state) != {"in_flight"} or not isinstance(held, list) or not held or queue is None:
            raise misfit(where, "a list of them was expected, and a queue for them")
        for at, saved in enumerate(held):
            chain = queue.held(saved, f"{where}[{at}]")
            if chain.head in self._in_flight or not chain.writable_size:
                raise misfit(f"{where}[{at}]", "there is another, or no room for its status")
            self._in_flight[chain.head] = chain

    def _begin(self, queue: Queue, chain: Chain) -> None:
        request = chain.read()
        room = chain.writable_size - 1
        if len(request) < _HEADER.size or room < 0 or chain.head in self._in_flight:
            queue.give_up()  # no header, no status byte, or a chain that the device has already
            return
        operation, _, lba = _HEADER.unpack_from(request)
        if operation == _GET_ID:
            self._finish(queue, chain, self._serial[:room], _OK)
            return
        message = self._message(operation, lba, request[_HEADER.size :], room)
        if isinstance(message, bytes):
            self._finish(queue, chain, b"", message)
            return
        self._in_flight[chain.head] = chain
        self._port.send(message, chain.head)

    def _message(self, operation: int, lba: int, data: bytes, room: int) -> Message | bytes:
        """Return the message that a request stands for, or a status for one that needs no message."""
        if operation == _IN:
            return _IOERR if room % SECTOR else DiskRead(lba, room // SECTOR)
        if operation == _OUT:
            return _IOERR if len(data) % SECTOR else DiskWrite(lba, data)
        if operation == _FLUSH:
            return DiskFlush()
        if operation in (_DISCARD, _WRITE_ZEROES) and self._discard and len(data) == _RANGE.size:
            start, sectors, _flags = _RANGE.unpack(data)  # one range, as the configuration says
            return _IOERR if sectors > _MAX_ZEROED else DiskDiscard(start, sectors)
        return _UNSUPP

    def _answered(self, token: int, message: Message, answer: Answer) -> None:
        chain, queue = self._in_flight.pop(token, None), self._queue
        if chain is None or queue is None:
            return
        data = answer if answer is not None and isinstance(message, DiskRead) else b""
        self._finish(queue, chain, data, _IOERR if answer is None else _OK)
        if not self._serving:
            queue.tell()

    def _finish(self, queue: Queue, chain: Chain, data: bytes, status: bytes) -> None:
        if data:
            chain.write(0, data)
        chain.write(chain.writable_size - 1, status)
        queue.put(chain, len(data) + 1)
