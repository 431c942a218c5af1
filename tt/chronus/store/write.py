"""One write of a disk's history."""

from __future__ import annotations

from dataclasses import dataclass

from tt.log.disk_rows import ChangeKind
from tt.log.sectors import BLOCK_SECTORS, SECTOR


@dataclass(frozen=True)
class Write:
    """One write to a disk, the `number`-th of its trace: `sectors` of 512 bytes from `lba`.

    `tick` is when (for a history without a machine the same as `number`), `guest_ns` the guest's time
    since power-on and `host_ns` the host's clock (ns since 1970); None where it is not known.
    """

    number: int
    disk: int
    kind: ChangeKind
    lba: int
    sectors: int
    tick: int
    guest_ns: int | None
    host_ns: int | None

    @property
    def size(self) -> int:
        """Bytes written."""
        return self.sectors * SECTOR

    @property
    def blocks(self) -> range:
        """The blocks of 4 KB that it touched."""
        return range(self.lba // BLOCK_SECTORS, -(-(self.lba + self.sectors) // BLOCK_SECTORS))
