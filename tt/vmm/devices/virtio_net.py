"""virtio-net: a network card for a legacy virtio device.

Source: Virtio PCI Card Specification 0.9.5, appendix C.  Offered are VIRTIO_NET_F_MAC,
VIRTIO_NET_F_STATUS and VIRTIO_NET_F_MRG_RXBUF.  Checksums and segmentation are the driver's:
what it sends is on the wire as it is, so a packet header that asks for more is not served.

    queue 0 receive, queue 1 send; each frame behind a header
        u8 flags, u8 gso_type, u16 hdr_len, u16 gso_size, u16 csum_start, u16 csum_offset
        u16 buffers, only with VIRTIO_NET_F_MRG_RXBUF
    configuration: u8 mac[6], u16 status (bit 0: the link is up)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tt.vmm.devices.virtio_pci import Queue
from tt.vmm.messages import LONGEST_FRAME, SHORTEST_FRAME, EthernetSend
from tt.vmm.router import Port
from tt.vmm.state import U64, pack, unpack

PCI_CLASS = 0x02_00_00  # network, Ethernet
_F_MAC, _F_MRG_RXBUF, _F_STATUS = 1 << 5, 1 << 15, 1 << 16
_HEADER, _MERGEABLE_HEADER = 10, 12
_RECEIVE, _SEND = 0, 1


@dataclass(slots=True)
class State:
    """What the card has beside its queues."""

    link: bool = True
    received: U64 = 0  # frames
    sent: U64 = 0
    dropped: U64 = 0  # frames for which the driver had no room, or that make no sense
    refused: U64 = 0  # frames that the driver sent and that are none


class VirtioNet:
    """The backend of a card with the address `mac`: what the guest sends goes to `port`."""

    device_type = 1
    pci_device = 0x1000
    features = _F_MAC | _F_STATUS | _F_MRG_RXBUF
    queue_sizes: tuple[int, ...] = (256, 256)

    def __init__(self, port: Port, mac: bytes) -> None:
        self.state = State()
        self._port = port
        self._mac = mac
        self._queues: list[Queue | None] = [None, None]

    @property
    def config(self) -> bytes:
        """The address, and whether the link is up."""
        return self._mac + bytes([self.state.link, 0])

    def activate(self, index: int, queue: Queue | None) -> None:
        """Take queue `index`; see `Backend.activate`."""
        self._queues[index] = queue

    def notified(self, index: int) -> None:
        """Send what the driver has put into the send queue; new receive buffers wait for frames."""
        queue = self._queues[index]
        if queue is None or index != _SEND:
            return
        header = _MERGEABLE_HEADER if queue.features & _F_MRG_RXBUF else _HEADER
        while (chain := queue.take()) is not None:
            self._send(chain.read(), header)
            queue.put(chain, 0)
        queue.tell()

    def receive(self, frame: bytes) -> None:
        """Give the driver a frame, or count it as dropped where there is no room for it."""
        queue = self._queues[_RECEIVE]
        whole = SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME
        if whole and queue is not None and self.state.link and self._store(queue, frame):
            self.state.received += 1
            queue.tell()
        else:
            self.state.dropped += 1

    @property
    def counters(self) -> dict[str, int]:
        """How many frames it received and sent, dropped (no room) and refused (none of a frame's)."""
        s = self.state
        return {"received": s.received, "sent": s.sent, "dropped": s.dropped, "refused": s.refused}

    @property
    def room(self) -> int | None:
        """How many frames the driver has buffers for (with the shortest buffers), None if it does not run."""
        queue = self._queues[_RECEIVE]
        return None if queue is None or not self.state.link else queue.waiting

    def link(self, up: bool) -> None:
        """Plug the cable in, or pull it out, and tell the driver."""
        if up == self.state.link:
            return
        self.state.link = up
        queue = self._queues[_RECEIVE]
        if queue is not None and queue.features & _F_STATUS:
            queue.configuration_changed()

    def save(self) -> dict[str, Any]:
        """Return the state as plain data; the queues are saved by the transport."""
        return pack(self.state)

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.state = unpack(State, state, f"{self._port.name}'s card")

    def _send(self, packet: bytes, header: int) -> None:
        frame = packet[header:]
        offloads = packet[0] & 1 or packet[1] if len(packet) > 1 else 0
        if offloads or not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME:
            self.state.refused += 1  # it asks for what was not offered, or is no frame
        elif self.state.link:
            self.state.sent += 1
            self._port.send(EthernetSend(frame))

    def _store(self, queue: Queue, frame: bytes) -> bool:
        """Write a frame into receive buffers; where they do not suffice, leave them all as they are."""
        mergeable = queue.features & _F_MRG_RXBUF
        header = _MERGEABLE_HEADER if mergeable else _HEADER
        wanted = header + len(frame)
        if mergeable:
            chains = queue.take_room(wanted)
        else:
            chain = queue.take()
            chains = [] if chain is None else [chain]
        room = sum([chain.writable_size for chain in chains])
        if room < wanted or chains[0].writable_size < header:
            queue.put_back(len(chains))
            return False
        packet = bytes(_HEADER) + (len(chains).to_bytes(2, "little") if mergeable else b"") + frame
        at, filled = 0, []
        for chain in chains:
            piece = packet[at : at + chain.writable_size]
            chain.write(0, piece)
            filled.append((chain, len(piece)))
            at += len(piece)
        queue.put_all(filled)
        return True
