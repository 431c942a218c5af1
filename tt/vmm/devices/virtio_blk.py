"""virtio-blk: a disk for a legacy virtio device.

Source: Virtio PCI Card Specification 0.9.5, appendix D, and for discards
Virtio 1.1, section 5.2.  VIRTIO_BLK_F_FLUSH is offered and, where asked for,
VIRTIO_BLK_F_DISCARD and VIRTIO_BLK_F_WRITE_ZEROES: both are writes of zeros.
A request is a 16 byte header and data to write, then room for data to read
and one status byte, cut into buffers in any way.
"""

from __future__ import annotations

import struct

from tt.vmm.devices.virtqueue import BrokenRing, Chain
from tt.vmm.disk import SECTOR, Disk

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
    """The backend over `disk`; `serial` (ASCII, cut to 20 bytes) answers GET_ID.

    With `discard` the guest may say that sectors are no longer needed; they read as zeros then.
    """

    device_type = 2
    pci_device = 0x1001
    queue_sizes: tuple[int, ...] = (256,)

    def __init__(self, disk: Disk, serial: str, discard: bool = False) -> None:
        self.features = _F_FLUSH | (_F_DISCARD | _F_WRITE_ZEROES if discard else 0)
        self._disk = disk
        self._serial = serial.encode("ascii")[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self.config = disk.sectors.to_bytes(8, "little")
        if discard:
            # Of a discard most sectors, most ranges, alignment; of zeros most sectors and ranges, may unmap.
            self.config = _CONFIG.pack(disk.sectors, _MAX_ZEROED, 1, 8, _MAX_ZEROED, 1, 1)

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
        if operation in (_DISCARD, _WRITE_ZEROES) and self.features & _F_DISCARD:
            return b"", self._zero(data)
        return b"", _UNSUPP

    def _zero(self, ranges: bytes) -> bytes:
        """Make the one range of a request zeros; return the request's status."""
        if len(ranges) != _RANGE.size:
            return _UNSUPP
        lba, sectors, _flags = _RANGE.unpack(ranges)
        if sectors > _MAX_ZEROED or lba + sectors > self._disk.sectors:
            return _IOERR
        if sectors:
            self._disk.write(lba, bytes(sectors * SECTOR))
        return _OK
