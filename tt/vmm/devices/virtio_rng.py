"""virtio-rng: entropy for a legacy virtio device, through the door.

Source: Virtio PCI Card Specification 0.9.5, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable

from tt.events import Kind
from tt.vmm.devices.virtqueue import Chain
from tt.vmm.nondeterminism import Door

PCI_CLASS = 0x00_FF_00  # no class of its own
_MOST = 4096  # bytes a request: every byte is recorded


class VirtioRng:
    """The backend: `entropy(size)` returns `size` random bytes on a live machine."""

    device_type = 4
    pci_device = 0x1005
    features = 0
    queue_sizes: tuple[int, ...] = (8,)
    config = b""

    def __init__(self, door: Door, entropy: Callable[[int], bytes]) -> None:
        self._door = door
        self._entropy = entropy

    def handle(self, queue: int, chain: Chain) -> int:
        """Fill one buffer, 4096 bytes at most; see `Backend.handle`."""
        size = min(chain.writable_size, _MOST)
        if not size:
            return 0
        data = self._door.ask(Kind.ENTROPY, lambda: self._entropy(size))[:size]
        if data:
            chain.write(0, data)
        return len(data)
