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
from typing import Annotated, Any, Protocol

from tt.vmm.devices.virtqueue import BrokenRing, Chain, QueueState, Virtqueue
from tt.vmm.line import Line
from tt.vmm.memory import Memory
from tt.vmm.state import U8, U16, U32, misfit, pack, unpack

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
_QUEUE_INTERRUPT, _CONFIG_INTERRUPT = 1, 2
_NEEDS_RESET = 0x40  # status: the device gave up


class Backend(Protocol):
    """What makes a virtio device a disk or a random number generator.

    `device_type` is the number of section 2.1 (subsystem id), `pci_device` the
    PCI device id (0x1000-0x103f), `features` what is offered, `queue_sizes` the
    entries of each queue, `config` the device configuration as the guest reads it.

    A backend takes chains from its queues when it is notified, or later; it may
    hold them as long as it likes (buffers for what is still to arrive) and give
    each back at any time.
    """

    device_type: int
    pci_device: int
    features: int
    queue_sizes: tuple[int, ...]

    @property
    def config(self) -> bytes:
        """The device configuration."""
        ...

    def activate(self, index: int, queue: Queue | None) -> None:
        """Take queue `index`, which the driver has just set up; None: it has taken it down, or reset all.

        Chains held of it before are void.
        """
        ...

    def notified(self, index: int) -> None:
        """Look at queue `index`: the driver says that there are new chains.  It has been activated."""
        ...

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; empty when nothing is held."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the queues have been activated.  Raises `BadState`."""
        ...


class Queue:
    """A queue in the hands of its backend.

    Nothing raises here: a ring that makes no sense stops the whole device until
    the guest resets it, and there are no more chains then.
    """

    def __init__(self, device: VirtioPci, ring: Virtqueue) -> None:
        self._device = device
        self._ring = ring
        self._fresh = False  # chains were given back that the driver may not know of

    def take(self) -> Chain | None:
        """Return the next chain that the driver has made available, or None."""
        if self._device.state.broken:
            return None
        try:
            return self._ring.take()
        except (BrokenRing, IndexError):
            self.give_up()
            return None

    def take_room(self, size: int) -> list[Chain]:
        """Return the next chains, enough for `size` bytes to be written; fewer if there are no more."""
        if self._device.state.broken:
            return []
        try:
            return self._ring.take_room(size)
        except (BrokenRing, IndexError):
            self.give_up()
            return []

    def put_all(self, chains: list[tuple[Chain, int]]) -> None:
        """Give chains back as `put` does, all at once."""
        if self._device.state.broken:
            return
        try:
            self._ring.put_all(chains)
            self._fresh = True
        except IndexError:
            self.give_up()

    def put(self, chain: Chain, written: int) -> None:
        """Give a chain back with `written` bytes in its writable buffers; `tell` tells the driver."""
        self.put_all([(chain, written)])

    def tell(self) -> None:
        """Interrupt the driver, where it wants that, if chains were given back since the last time."""
        if not self._fresh or self._device.state.broken:
            return
        self._fresh = False
        try:
            if self._ring.wants_interrupt():
                self._device.interrupt()
        except IndexError:
            self.give_up()

    @property
    def waiting(self) -> int:
        """How many chains the driver has made available that were not taken."""
        if self._device.state.broken:
            return 0
        try:
            return self._ring.waiting()
        except (BrokenRing, IndexError):
            return 0  # it is asked for by the outside, which must change nothing: no replay asks

    def put_back(self, chains: int) -> None:
        """Undo the last `chains` of `take`: nothing was done with those chains."""
        self._ring.put_back(chains)

    @property
    def features(self) -> int:
        """The features that the driver has accepted."""
        return self._device.state.guest_features

    def configuration_changed(self) -> None:
        """Tell the driver to read the device configuration again."""
        if not self._device.state.broken:
            self._device.configuration_changed()

    def held(self, saved: object, where: str) -> Chain:
        """Return a chain that the backend held when it was saved; raises `BadState`."""
        return self._ring.held(saved, where)

    def give_up(self) -> None:
        """Stop the device: the driver has asked for something that makes no sense."""
        self._device.give_up()


@dataclass(slots=True)
class State:
    """The registers of the header and the queues behind them."""

    guest_features: U32 = 0
    select: U16 = 0
    status: U8 = 0
    isr: Annotated[int, range(4)] = 0
    broken: bool = False
    queues: list[QueueState] = field(default_factory=list)


class VirtioPci:
    """One legacy virtio device; `irq` is its INTA# line.

    A ring that makes no sense stops the device until the guest resets it: it
    never harms the machine.
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
        config = self.backend.config if offset + size > _CONFIG else b""
        while done < size:
            at = offset + done
            register = max((r for r in _WIDTH if r <= at), default=0) if at < _CONFIG else at
            if at >= _CONFIG:
                part, width = config[at - _CONFIG : at - _CONFIG + 1], 1
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

    def interrupt(self) -> None:
        """Raise the queue interrupt."""
        self.state.isr |= _QUEUE_INTERRUPT
        self._irq.set(True)

    def configuration_changed(self) -> None:
        """Tell the driver to read the device configuration again."""
        self.state.isr |= _CONFIG_INTERRUPT
        self._irq.set(True)

    def give_up(self) -> None:
        """Stop until the guest resets the device."""
        self.state.broken = True
        self.state.status |= _NEEDS_RESET

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        self.state.queues = [queue.state for queue in self._queues]
        saved, held = pack(self.state), self.backend.save()
        return saved | {"backend": held} if held else saved

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        held: dict[str, Any] = {}
        if isinstance(state, dict) and "backend" in state:
            state = dict(state)
            held = state.pop("backend")
            if not isinstance(held, dict) or not held:
                raise misfit(f"{self.name}.backend", "it is not a table of fields")
        s = unpack(State, state, self.name)
        if len(s.queues) != len(self._queues):
            raise misfit(self.name, f"{len(s.queues)} queues instead of {len(self._queues)}")
        if s.guest_features & ~self.backend.features:
            raise misfit(f"{self.name}.guest_features", "some of them were never offered")
        if s.broken and not s.status & _NEEDS_RESET:
            raise misfit(f"{self.name}.status", "a device that gave up says so")
        self.state = s
        for index, (queue, saved) in enumerate(zip(self._queues, s.queues, strict=True)):
            queue.state = saved
            self._activate(index)
        self.backend.load(held)
        self._irq.level = bool(self.state.isr)

    def _activate(self, index: int) -> None:
        ring = self._queues[index]
        self.backend.activate(index, Queue(self, ring) if ring.state.pfn else None)

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
                self._activate(s.select)
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
        for index, queue in enumerate(self._queues):
            queue.reset()
            self._activate(index)
        self._irq.set(False)

    def _notify(self, index: int) -> None:
        if not self.state.broken and index < len(self._queues) and self._queues[index].state.pfn:
            self.backend.notified(index)
