"""virtio-rng: entropy for a legacy virtio device, through the door.

Source: Virtio PCI Card Specification 0.9.5, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tt.events import Kind
from tt.vmm.devices.virtio_pci import Queue
from tt.vmm.devices.virtqueue import Chain
from tt.vmm.nondeterminism import Door
from tt.vmm.state import misfit

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
        self._queue: Queue | None = None

    def activate(self, index: int, queue: Queue | None) -> None:
        """Take the queue; see `Backend.activate`."""
        self._queue = queue

    def notified(self, index: int) -> None:
        """Fill every buffer, 4096 bytes each at most."""
        queue = self._queue
        if queue is None:
            return
        while (chain := queue.take()) is not None:
            queue.put(chain, self._fill(chain))
        queue.tell()

    def save(self) -> dict[str, Any]:
        """Return nothing: no buffer is held."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back: there is none."""
        if state:
            raise misfit("virtio-rng", "it holds buffers, which this device never does")

    def _fill(self, chain: Chain) -> int:
        size = min(chain.writable_size, _MOST)
        if not size:
            return 0
        data = self._door.ask(Kind.ENTROPY, lambda: self._entropy(size))[:size]
        if data:
            chain.write(0, data)
        return len(data)
