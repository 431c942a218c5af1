"""virtio-blk: a disk for a legacy virtio device.

Source: Virtio PCI Card Specification 0.9.5, appendix D.  Only
VIRTIO_BLK_F_FLUSH is offered, so the configuration is the capacity alone.
A request is a 16 byte header and data to write, then room for data to read
and one status byte, cut into buffers in any way.
"""

from __future__ import annotations

import struct

from tt.vmm.devices.virtqueue import BrokenRing, Chain
from tt.vmm.disk import SECTOR, Disk

_HEADER = struct.Struct("<IIQ")  # type, priority, sector
_IN, _OUT, _FLUSH, _GET_ID = 0, 1, 4, 8
_ID_SIZE = 20
_OK, _IOERR, _UNSUPP = b"\0", b"\1", b"\2"
_F_FLUSH = 1 << 9
PCI_CLASS = 0x01_00_00  # mass storage, SCSI, as other virtio disks say


class VirtioBlk:
    """The backend over `disk`; `serial` (ASCII, cut to 20 bytes) answers GET_ID."""

    device_type = 2
    pci_device = 0x1001
    features = _F_FLUSH
    queue_sizes: tuple[int, ...] = (256,)

    def __init__(self, disk: Disk, serial: str) -> None:
        self._disk = disk
        self._serial = serial.encode("ascii")[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self.config = disk.sectors.to_bytes(8, "little")

    def handle(self, queue: int, chain: Chain) -> int:
        """Serve one request; see `Backend.handle`."""
        request = chain.read()
        room = chain.writable_size - 1
        if len(request) < _HEADER.size or room < 0:
            raise BrokenRing("a disk request without header or status byte")
        operation, _, lba = _HEADER.unpack_from(request)
        answer, status = self._serve(operation, lba, request[_HEADER.size :], room)
        if answer:
            chain.write(0, answer)
        chain.write(room, status)
        return len(answer) + 1

    def _serve(self, operation: int, lba: int, data: bytes, room: int) -> tuple[bytes, bytes]:
        disk = self._disk
        if operation == _IN:
            if room % SECTOR or lba + room // SECTOR > disk.sectors:
                return b"", _IOERR
            return disk.read(lba, room // SECTOR), _OK
        if operation == _OUT:
            if len(data) % SECTOR or lba + len(data) // SECTOR > disk.sectors:
                return b"", _IOERR
            if data:
                disk.write(lba, data)
            return b"", _OK
        if operation == _FLUSH:
            disk.flush()
            return b"", _OK
        if operation == _GET_ID:
            return self._serial[:room], _OK
        return b"", _UNSUPP
