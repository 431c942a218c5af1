"""The board of the pc machine: which devices it has and how they are wired.

    IRQ 0 timer    2 cascade    4 COM1    8 clock    10, 11 PCI INTA#, by slot
    PCI slot 0 host bridge, 1... disks in order, then the entropy source, then network cards

Ports that belong to no device read all ones and ignore writes.  Without `firmware`, as on the
board of older traces, so do the keyboard controller's, but for its reset command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tt.errors import UsageError
from tt.vmm.bus import MemoryBus, Ports, PortSpan, Region
from tt.vmm.clock import Clock
from tt.vmm.config import NetConfig
from tt.vmm.devices import e1000, virtio_blk, virtio_net, virtio_pci, virtio_rng
from tt.vmm.devices.cmos import Cmos
from tt.vmm.devices.device import Stateful
from tt.vmm.devices.kbc8042 import COMMAND, DATA, KeyboardController, SystemControlA
from tt.vmm.devices.pci import SLOTS, PciBus, PciFunction, host_bridge
from tt.vmm.devices.pic8259 import Pic8259
from tt.vmm.devices.pit8254 import Pit8254
from tt.vmm.devices.port61 import Port61
from tt.vmm.devices.reset import KeyboardReset, ResetControl
from tt.vmm.devices.uart16550 import Uart16550
from tt.vmm.disk import Disk
from tt.vmm.line import Line
from tt.vmm.memory import Memory
from tt.vmm.messages import ConsoleInput, ConsoleWrite
from tt.vmm.nondeterminism import Door
from tt.vmm.pc import firmware as left_behind
from tt.vmm.router import Port, Router
from tt.vmm.state import misfit
from tt.vmm.wiring import wire_console, wire_disk, wire_ethernet

MAX_DISKS = SLOTS - 2
_PCI_IRQS = (10, 11)
_BAR_BASE = 0xC000
_MEMORY_BAR_BASE = 0xFEB0_0000


class Board:
    """Everything of a PC below the CPU.

    `entropy(size)` returns random bytes, `epoch` (seconds since 1970) is the
    wall clock at power-on, `on_intr(level)` drives the CPU's INTR pin,
    `on_power(reason)` ends the machine.  With `host_clock` (ns since 1970) the
    wall clock is the host's.  The disks are units 0, 1, ... of events, in the order
    of `disks`; `router` lets one interpose on "disk0", "disk1", ..., "console0" and "ethernet0",
    "ethernet1", ...: the network cards `nets`, in order.
    Devices at memory addresses go on `memory_bus`; `on_memory_bus(spans)` is told where.
    With `firmware` there is a keyboard controller, and the devices are as firmware
    leaves them.

    Raises `UsageError` for more disks than there are slots.
    """

    def __init__(
        self,
        clock: Clock,
        door: Door,
        memory: Memory,
        disks: list[Disk],
        entropy: Callable[[int], bytes],
        epoch: int,
        on_intr: Callable[[bool], None],
        on_power: Callable[[str], None],
        host_clock: Callable[[], int] | None = None,
        discard: bool = False,
        firmware: bool = False,
        nets: Sequence[NetConfig] = (),
        on_memory_bus: Callable[[list[tuple[int, int]]], None] = lambda spans: None,
    ) -> None:
        if len(disks) + len(nets) > MAX_DISKS:
            both = f"{len(disks)} disks and {len(nets)} network cards" if nets else f"{len(disks)} disks"
            raise UsageError(f"{both} are too many: the machine has room for {MAX_DISKS}")
        self.router = Router(door)
        self.devices: dict[str, Stateful] = {}
        self._clock = clock
        self._door = door
        self._mem_bytes = memory.size
        self._on_intr = on_intr
        self._intr = Line(on_intr)
        self.ports = Ports()
        self.read, self.write = self.ports.read, self.ports.write
        self.memory_bus = MemoryBus(on_memory_bus)

        self.pic = Pic8259(self._intr)
        self.acknowledge = self.pic.acknowledge
        self.pit = Pit8254(clock, door, self.pic.line(0))
        self.cmos = Cmos(clock, door, self.pic.line(8), epoch, host_clock)
        self.port61 = Port61(clock, self.pit)
        console = wire_console(self.router, door, 0, lambda data: self.com1.receive(data))
        self.com1 = Uart16550(
            "com1", clock, door, self.pic.line(4), lambda data: console.send(ConsoleWrite(data))
        )
        self._console = console
        self.reset = ResetControl(on_power)
        self.pci = PciBus([self.pic.line(irq) for irq in _PCI_IRQS], self._remap)
        for device in (self.pic, self.pit, self.cmos, self.port61, self.com1, self.reset, self.pci):
            self._own(device)

        self.ports.claim(0x20, 2, self.pic.master)
        self.ports.claim(0xA0, 2, self.pic.slave)
        self.ports.claim(0x4D0, 2, self.pic.elcr)
        self.ports.claim(0x40, 4, self.pit)
        self.ports.claim(0x61, 1, self.port61)
        if not firmware:
            self.ports.claim(0x64, 1, KeyboardReset(on_power))
        self.ports.claim(0x70, 2, self.cmos)
        self.ports.claim(0x3F8, 8, self.com1)
        self.ports.claim(0xCF8, 8, self.pci, width=4)
        self.ports.claim(0xCF9, 1, self.reset)

        self.pci.add(0, host_bridge())
        for index, disk in enumerate(disks):
            port = wire_disk(self.router, door, disk, index)
            backend = virtio_blk.VirtioBlk(port, f"tt-disk{index}", discard)
            self._plug(1 + index, f"virtio-blk{index}", memory, backend, virtio_blk.PCI_CLASS)
        rng = virtio_rng.VirtioRng(door, entropy)
        self._plug(1 + len(disks), "virtio-rng", memory, rng, virtio_rng.PCI_CLASS)
        self._cards: list[virtio_net.VirtioNet | e1000.E1000] = []
        for card, net in enumerate(nets):
            self._plug_net(2 + len(disks) + card, card, net, memory)
        for irq in _PCI_IRQS:  # firmware makes the PCI interrupts level-triggered
            self.pic.elcr.write(1, 1, self.pic.elcr.read(1, 1) | 1 << (irq - 8))
        self._firmware = firmware
        if firmware:
            self._leave_behind(memory.size, on_power)

    def console_input(self, unit: int, data: bytes) -> None:
        """Type `data` into console `unit`; consoles that are not there ignore it."""
        if unit == 0:
            self._console.send(ConsoleInput(data))

    def frame_room(self, card: int) -> int | None:
        """Return how many frames card `card` has room for, None where nobody listens."""
        return self._cards[card].room if card < len(self._cards) else None

    def frame_counters(self, card: int) -> dict[str, int]:
        """Return what card `card` has counted, by name."""
        return self._cards[card].counters if card < len(self._cards) else {}

    def wakes_ns(self) -> int | None:
        """Return the guest ns of the next timer; None if none can ever interrupt."""
        if self._firmware and self.pic.master.state.imr & 1:
            # Timer 0 fires for ever; if it is the only timer, and masked, nothing can wake the guest.
            others = (t.deadline for t in self._clock.timers if t.name != self.pit.name)
            if all(deadline is None for deadline in others):
                return None
        return self._clock.next_deadline()

    @property
    def intr(self) -> bool:
        """Return the level of the CPU's INTR pin."""
        return self._intr.level

    @property
    def wants_input(self) -> bool:
        """Whether the guest waits for console input and has read all there was."""
        return self.com1.wants_input

    def save(self) -> dict[str, Any]:
        """Return the state of every device as plain data; the clock is saved by its owner."""
        saved = {name: device.save() for name, device in self.devices.items()}
        routes = self.router.save()
        return saved | {"router": routes} if routes else saved

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back and tell the CPU the level of INTR.

        The clock is loaded by its owner.  Raises `BadState` when this board could not
        have saved it.
        """
        if not isinstance(state, dict):
            raise misfit("the board", "a table of devices was expected")
        odd = (set(state) - {"router"}) ^ set(self.devices)
        if odd:
            raise misfit("the board", f"devices differ: {', '.join(sorted(map(str, odd)))}")
        for name, device in self.devices.items():
            device.load(state[name])
        if "router" in state:
            self.router.load(state["router"])
        else:
            self.router.start_over()
        self._on_intr(self._intr.level)

    # Building.

    def _leave_behind(self, mem_bytes: int, on_power: Callable[[str], None]) -> None:
        kbc = KeyboardController(self.pic.line(1), on_power)
        port92 = SystemControlA(on_power)
        for device in (kbc, port92):
            self._own(device)
        for offset in (DATA, COMMAND):
            self.ports.claim(0x60 + offset, 1, kbc, offset=offset)
        self.ports.claim(0x92, 1, port92)
        self._remap()
        for port, value in left_behind.SETUP:
            self.write(port, 1, value)
        for index, value in left_behind.cmos_fields(mem_bytes).items():
            self.cmos.state.ram[index] = value

    def _own(self, device: Stateful) -> None:
        self.devices[device.name] = device

    def _plug(
        self, slot: int, name: str, memory: Memory, backend: virtio_pci.Backend, class_code: int
    ) -> None:
        device = virtio_pci.VirtioPci(name, memory, self.pci.interrupt(slot), backend)
        self._own(device)
        function = PciFunction(
            name,
            virtio_pci.VENDOR,
            backend.pci_device,
            class_code,
            subsystem_vendor=virtio_pci.VENDOR,
            subsystem=backend.device_type,
            registers=device,
            bar_size=virtio_pci.BAR_SIZE,
            bar=_BAR_BASE + slot * virtio_pci.BAR_SIZE,
            irq=_PCI_IRQS[slot % len(_PCI_IRQS)],
        )
        self.pci.add(slot, function)

    def _plug_net(self, slot: int, card: int, net: NetConfig, memory: Memory) -> None:
        port = wire_ethernet(
            self.router,
            self._door,
            card,
            lambda frame: backend.receive(frame),
            lambda up: backend.link(up),
        )
        backend: virtio_net.VirtioNet | e1000.E1000
        if net.model == "e1000":
            backend = self._plug_e1000(slot, card, net, memory, port)
        else:
            backend = virtio_net.VirtioNet(port, net.address)
            self._plug(slot, f"virtio-net{card}", memory, backend, virtio_net.PCI_CLASS)
        self._cards.append(backend)

    def _plug_e1000(self, slot: int, card: int, net: NetConfig, memory: Memory, port: Port) -> e1000.E1000:
        base = _MEMORY_BAR_BASE + slot * e1000.MEMORY_SIZE
        if memory.size > _MEMORY_BAR_BASE:
            raise UsageError(
                f"an e1000 card lies in memory below 4 GB: give the guest at most "
                f"{_MEMORY_BAR_BASE >> 20} MB (--mem), or another card (model=virtio)"
            )
        name = f"e1000-{card}"
        device = e1000.E1000(name, memory, self.pci.interrupt(slot), port, net.address)
        self._own(device)
        function = PciFunction(
            name,
            e1000.VENDOR,
            e1000.DEVICE,
            e1000.PCI_CLASS,
            revision=e1000.REVISION,
            subsystem_vendor=e1000.SUBSYSTEM_VENDOR,
            subsystem=e1000.SUBSYSTEM,
            registers=e1000.E1000Ports(device),
            bar_size=e1000.PORTS_SIZE,
            bar=_BAR_BASE + slot * e1000.PORTS_SIZE,
            bar_number=2,
            irq=_PCI_IRQS[slot % len(_PCI_IRQS)],
            memory_registers=device,
            memory_size=e1000.MEMORY_SIZE,
            memory_bar=base,
        )
        self.pci.add(slot, function)
        return device

    def _remap(self) -> None:
        spans = self.pci.io_regions()
        self.ports.move(PortSpan(base, size, registers, 4) for base, size, registers in spans)
        # What a guest maps over RAM, or over another device, is not reached.
        regions = (region for region in self.pci.memory_regions() if region[0] >= self._mem_bytes)
        self.memory_bus.move(Region(*region, 4) for region in regions)
