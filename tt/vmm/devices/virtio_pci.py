"""The legacy (0.9.5) virtio transport over PCI: registers behind an I/O BAR.

Source: Virtio PCI Card Specification 0.9.5, section 2.2.2 ("Virtio header"),
without MSI-X:

    0x00 u32 host features      0x0e u16 queue select
    0x04 u32 guest features     0x10 u16 queue notify
    0x08 u32 queue page         0x12 u8  status
    0x0c u16 queue size         0x13 u8  interrupt status, cleared by reading
                                0x14 ... configuration of the device
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tt.vmm.devices.device import U8, U16, U32, misfit, pack, unpack
from tt.vmm.devices.virtqueue import BrokenRing, Chain, QueueState, Virtqueue
from tt.vmm.line import Line
from tt.vmm.memory import Memory

BAR_SIZE = 0x40
VENDOR = 0x1AF4
_HOST_FEATURES, _GUEST_FEATURES, _QUEUE_PAGE, _QUEUE_SIZE = 0x00, 0x04, 0x08, 0x0C
_QUEUE_SELECT, _NOTIFY, _STATUS, _ISR, _CONFIG = 0x0E, 0x10, 0x12, 0x13, 0x14
_WIDTH = {
    _HOST_FEATURES: 4,
    _GUEST_FEATURES: 4,
    _QUEUE_PAGE: 4,
    _QUEUE_SIZE: 2,
    _QUEUE_SELECT: 2,
    _NOTIFY: 2,
    _STATUS: 1,
    _ISR: 1,
}
_QUEUE_INTERRUPT = 1
_NEEDS_RESET = 0x40  # status: the device gave up


class Backend(Protocol):
    """What makes a virtio device a disk or a random number generator.

    `device_type` is the number of section 2.1 (subsystem id), `pci_device` the
    PCI device id (0x1000-0x103f), `features` what is offered, `queue_sizes` the
    entries of each queue, `config` the device configuration as the guest reads it.
    """

    device_type: int
    pci_device: int
    features: int
    queue_sizes: tuple[int, ...]
    config: bytes

    def handle(self, queue: int, chain: Chain) -> int:
        """Serve one request and return the bytes written to it.

        Raises `BrokenRing` or `IndexError` for a request that makes no sense.
        """
        ...


@dataclass(slots=True)
class State:
    """The registers of the header and the queues behind them."""

    guest_features: U32 = 0
    select: U16 = 0
    status: U8 = 0
    isr: U8 = 0
    broken: bool = False
    queues: list[QueueState] = field(default_factory=list)


class VirtioPci:
    """One legacy virtio device; `irq` is its INTA# line.

    A request is served at once, while the guest notifies.  A ring that makes
    no sense stops the device until the guest resets it: it never harms the
    machine.
    """

    def __init__(self, name: str, memory: Memory, irq: Line, backend: Backend) -> None:
        self.name = name
        self.backend = backend
        self.state = State()
        self._irq = irq
        self._queues = [Virtqueue(memory, num) for num in backend.queue_sizes]

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset`; what is past the device configuration reads 0."""
        if offset == _ISR and size == 1:
            return self._read_isr()
        value = done = 0
        while done < size:
            at = offset + done
            register = max((r for r in _WIDTH if r <= at), default=0) if at < _CONFIG else at
            if at >= _CONFIG:
                part, width = self.backend.config[at - _CONFIG : at - _CONFIG + 1], 1
                piece = part[0] if part else 0
            else:
                skip = at - register
                width = _WIDTH[register] - skip
                piece = self._read_register(register) >> 8 * skip
            value |= piece << 8 * done
            done += width
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Store whole registers; a write to a part of one is ignored."""
        if offset == _NOTIFY and size == 2:
            self._notify(value & 0xFFFF)
            return
        while size > 0:
            width = _WIDTH.get(offset, 0)
            if 0 < width <= size:
                self._write_register(offset, value & (1 << 8 * width) - 1)
            width = width or 1
            offset, size, value = offset + width, size - width, value >> 8 * width

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        self.state.queues = [queue.state for queue in self._queues]
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        s = unpack(State, state, self.name)
        if len(s.queues) != len(self._queues):
            raise misfit(self.name, f"{len(s.queues)} queues instead of {len(self._queues)}")
        self.state = s
        for queue, saved in zip(self._queues, s.queues, strict=True):
            queue.state = saved
        self._irq.level = bool(self.state.isr)

    def _selected(self) -> Virtqueue | None:
        select = self.state.select
        return self._queues[select] if select < len(self._queues) else None

    def _read_isr(self) -> int:
        isr, self.state.isr = self.state.isr, 0
        if isr:
            self._irq.set(False)
        return isr

    def _read_register(self, register: int) -> int:
        s = self.state
        if register == _HOST_FEATURES:
            return self.backend.features
        if register == _GUEST_FEATURES:
            return s.guest_features
        if register == _QUEUE_SELECT:
            return s.select
        if register == _STATUS:
            return s.status
        if register == _ISR:
            return self._read_isr()
        queue = self._selected()
        if queue is None or register == _NOTIFY:
            return 0
        return queue.num if register == _QUEUE_SIZE else queue.state.pfn

    def _write_register(self, register: int, value: int) -> None:
        s = self.state
        if register == _GUEST_FEATURES:
            s.guest_features = value & self.backend.features
        elif register == _QUEUE_PAGE:
            queue = self._selected()
            if queue is not None:
                queue.reset(value)
        elif register == _QUEUE_SELECT:
            s.select = value
        elif register == _NOTIFY:
            self._notify(value)
        elif register == _STATUS:
            if value:
                s.status = value | (_NEEDS_RESET if s.broken else 0)
            else:
                self._reset()

    def _reset(self) -> None:
        self.state = State()
        for queue in self._queues:
            queue.reset()
        self._irq.set(False)

    def _notify(self, index: int) -> None:
        s = self.state
        if s.broken or index >= len(self._queues):
            return
        queue = self._queues[index]
        served = False
        try:
            while (chain := queue.take()) is not None:
                queue.put(chain, self.backend.handle(index, chain))
                served = True
            if served and queue.wants_interrupt():
                s.isr |= _QUEUE_INTERRUPT
                self._irq.set(True)
        except (BrokenRing, IndexError):
            s.broken = True
            s.status |= _NEEDS_RESET
