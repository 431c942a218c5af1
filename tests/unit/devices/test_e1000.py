"""The e1000 card, from the point of view of a driver written by Intel 317453-006."""

from __future__ import annotations

import json
import random
import socket
import struct
import zlib

import dpkt
import pytest
from device_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.errors import BadState
from tt.events import Kind
from tt.vmm.devices import e1000_registers as r
from tt.vmm.devices.e1000 import E1000, MEMORY_SIZE, E1000Ports
from tt.vmm.router import Router
from tt.vmm.wiring import wire_ethernet

MAC = bytes.fromhex("525400740000")
OTHER = bytes.fromhex("525400aabbcc")
RX, TX, BUFFERS = 0x1000, 0x2000, 0x4000  # where the driver keeps its rings and buffers
EOP, IFCS, IC, RS, DEXT, VLE = 1, 2, 4, 8, 0x20, 0x40


class Card:
    """A card with a driver: 8 receive descriptors, 7 of them free, and 8 to send with."""

    def __init__(self, start: bool = True) -> None:
        self.rig = Rig(1 << 18)
        self.port = wire_ethernet(
            Router(self.rig.door),
            self.rig.door,
            0,
            lambda f: self.card.receive(f),
            lambda up: self.card.link(up),
        )
        self.card = E1000("e1000-0", self.rig.memory, self.rig.wire(), self.port, MAC)
        if start:
            for i in range(8):
                self.rig.memory.write(RX + 16 * i, struct.pack("<QQ", BUFFERS + 2048 * i, 0))
            for at, value in (
                (r.RDBAL, RX), (r.RDLEN, 128), (r.RDT, 7), (r.TDBAL, TX), (r.TDLEN, 128), (r.IMS, r.CAUSES),
                (r.RCTL, r.RCTL_EN | r.RCTL_BAM), (r.TCTL, r.TCTL_EN | r.TCTL_PSP),
            ):  # fmt: skip
                self[at] = value

    def __getitem__(self, at: int) -> int:
        return self.card.read(at, 4)

    def __setitem__(self, at: int, value: int) -> None:
        self.card.write(at, 4, value)

    @property
    def sent(self) -> list[bytes]:
        return [event.data for event in self.rig.events if event.kind is Kind.FRAME_OUT]

    def descriptor(self, i: int) -> tuple[int, int, int, int, int]:
        """Return length, checksum, status, errors and special of a receive descriptor."""
        return struct.unpack("<HHBBH", self.rig.memory.read(RX + 16 * i + 8, 8))

    def send(self, *descriptors: bytes) -> None:
        tail = self[r.TDT]
        for raw in descriptors:
            self.rig.memory.write(TX + 16 * tail, raw)
            tail = (tail + 1) % 8
        self[r.TDT] = tail

    def put(
        self, data: bytes, command: int = EOP | IFCS | RS, cso: int = 0, css: int = 0, special: int = 0
    ) -> bytes:
        """Return a legacy descriptor for `data`, which is stored in memory."""
        self.rig.memory.write(0x20000, data)
        return struct.pack("<QHBBBBH", 0x20000, len(data), 0, command, 0, 0, special)


def frame(to: bytes = MAC, size: int = 100) -> bytes:
    return to + OTHER + b"\x08\x00" + random.Random(size).randbytes(size - 14)


def test_after_a_reset() -> None:
    card = Card(start=False)
    assert card[r.STATUS] & 0xC3 == 0x83  # full duplex, link, 1000 Mb/s
    assert card[r.RAL] == int.from_bytes(MAC[:4], "little")
    assert card[r.RAH] == int.from_bytes(MAC[4:], "little") | r.RAH_AV
    words = []
    for at in range(64):
        card[r.EERD] = at << 8 | 1
        assert card[r.EERD] & 1 << 4
        words.append(card[r.EERD] >> 16)
    assert sum(words) & 0xFFFF == 0xBABA
    assert struct.pack("<3H", *words[:3]) == MAC
    assert [serial_read(card, at) for at in range(64)] == words
    for register, value in ((2, 0x0141), (3, 0x0C20)):
        card[r.MDIC] = 2 << 26 | 1 << 21 | register << 16
        assert card[r.MDIC] & 0x1000FFFF == 1 << 28 | value
    card[r.MDIC] = 2 << 26 | 2 << 21
    assert card[r.MDIC] & 1 << 30  # there is one PHY only
    card[r.RCTL] = 0xFFFF
    card[r.CTRL] = r.CTRL_RST
    assert card[r.RCTL] == 0


def serial_read(card: Card, at: int) -> int:
    """Read a word of the EEPROM by its serial lines, as drivers do (section 5.3.1)."""

    def clock(bit: int) -> int:
        card[r.EECD] = 0x40 | 2 | bit << 2
        card[r.EECD] = 0x40 | 2 | bit << 2 | 1
        out = card[r.EECD] >> 3 & 1
        card[r.EECD] = 0x40 | 2 | bit << 2
        return out

    card[r.EECD] = 0x40
    assert card[r.EECD] & 0x80
    for bit in f"{6:03b}{at:06b}":
        clock(int(bit))
    word = 0
    for _ in range(16):
        word = word << 1 | clock(0)
    card[r.EECD] = 0
    return word


def test_interrupts() -> None:
    card = Card(start=False)
    card[r.ICS] = r.LSC
    assert card.rig.levels() == []
    card[r.IMS] = r.LSC
    assert card.rig.levels() == [True] and card[r.IMS] == r.LSC
    assert card[r.ICR] == r.LSC and card[r.ICR] == 0
    assert card.rig.levels() == [True, False]
    card[r.IMC] = r.LSC
    card[r.ICS] = r.LSC
    assert card.rig.levels() == [True, False]


def test_a_frame_arrives() -> None:
    card = Card()
    card.card.receive(frame())
    size, _sum, status, errors, _special = card.descriptor(0)
    assert (size, status & 3, errors) == (104, 3, 0)
    stored = card.rig.memory.read(BUFFERS, size)
    assert stored == frame() + zlib.crc32(frame()).to_bytes(4, "little")
    assert card[r.RDH] == 1 and card[r.ICR] & r.RXT0
    assert (card[r.GPRC], card[r.GPRC]) == (1, 0)  # reading clears it
    card[r.RCTL] = r.RCTL_EN | r.RCTL_SECRC
    card.card.receive(frame(size=20))  # padded, as on a cable
    assert card.descriptor(1)[0] == 60


def test_long_frames_take_several_buffers_and_never_half_of_them() -> None:
    card = Card()
    card[r.RCTL] = r.RCTL_EN | r.RCTL_LPE | 2 << 16  # buffers of 512 bytes
    card.card.receive(frame(size=1500))
    assert [card.descriptor(i)[0] for i in range(3)] == [512, 512, 480]
    assert [card.descriptor(i)[2] & 3 for i in range(3)] == [1, 1, 3]
    assert card[r.RDH] == 3
    card.card.receive(frame(size=3000))  # 6 buffers, and 4 are free
    assert (card[r.RDH], card[r.MPC], card[r.ICR] & r.RXO) == (3, 1, r.RXO)
    card[r.RCTL] = r.RCTL_EN
    card.card.receive(frame(size=1600))
    assert (card[r.RDH], card[r.ROC]) == (3, 1)


def test_which_frames_are_for_the_card() -> None:
    group = bytes.fromhex("01005e000001")
    bit = (group[4] | group[5] << 8) >> 4 & 0xFFF

    def taken(to: bytes, control: int, table: bool = False) -> bool:
        card = Card()
        card[r.RCTL] = r.RCTL_EN | control
        if table:
            card[r.MTA + 4 * (bit >> 5)] = 1 << (bit & 31)
        card.card.receive(frame(to))
        return bool(card[r.RDH])

    assert taken(MAC, 0) and not taken(OTHER, 0) and taken(OTHER, r.RCTL_UPE)
    assert not taken(b"\xff" * 6, 0) and taken(b"\xff" * 6, r.RCTL_BAM)
    assert not taken(group, r.RCTL_UPE) and taken(group, r.RCTL_MPE) and taken(group, 0, table=True)


def test_nothing_comes_by_a_pulled_cable() -> None:
    card = Card()
    assert card.card.room == 7
    card.card.link(False)
    assert card[r.ICR] == r.LSC and not card[r.STATUS] & r.STATUS_LU and card.card.room is None
    card.card.receive(frame())
    card.send(card.put(frame()))
    assert card[r.RDH] == 0 and card.sent == []
    card.card.link(True)
    assert card[r.ICR] & r.LSC and card[r.STATUS] & r.STATUS_LU


def test_a_frame_is_sent_from_pieces_and_padded() -> None:
    card = Card()
    card.rig.memory.write(0x21000, frame(OTHER, 40))
    one = struct.pack("<QHBBBBH", 0x21000, 20, 0, 0, 0, 0, 0)
    two = struct.pack("<QHBBBBH", 0x21014, 20, 0, EOP | RS, 0, 0, 0)
    card.send(one, two)
    assert card.sent == [frame(OTHER, 40).ljust(60, b"\0")]
    assert card.rig.memory.read(TX + 28, 1)[0] & 1 and not card.rig.memory.read(TX + 12, 1)[0] & 1
    assert card[r.ICR] == r.TXDW | r.TXQE and card[r.TDH] == 2 and card[r.GPTC] == 1


LAST = dpkt.tcp.TH_PUSH | dpkt.tcp.TH_FIN | dpkt.tcp.TH_ACK


def packet(data: bytes) -> bytes:
    """Return an Ethernet frame with TCP in it, its checksums right."""
    tcp = dpkt.tcp.TCP(sport=1, dport=2, seq=1000, flags=LAST, data=data)
    here, there = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
    ip = dpkt.ip.IP(src=here, dst=there, p=6, id=7, data=tcp)
    ip.len = len(ip)
    return OTHER + MAC + b"\x08\x00" + bytes(ip)


def context(command: int, payload: int = 0, header: int = 0, mss: int = 0) -> bytes:
    """Return a context descriptor for IPv4 and TCP behind 14 bytes of Ethernet."""
    low = payload | (command | DEXT) << 24
    return struct.pack("<BBHBBHII", 14, 24, 33, 34, 50, 0, low, header << 8 | mss << 16)


def unsummed(whole: bytes, with_length: bool) -> bytes:
    """Return a frame as drivers hand it over: IP's sum 0, TCP's that of the pseudo header."""
    pseudo = whole[26:34] + b"\0\6" + ((len(whole) - 34).to_bytes(2, "big") if with_length else b"\0\0")
    total = sum(struct.unpack(">6H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    return whole[:24] + b"\0\0" + whole[26:50] + total.to_bytes(2, "big") + whole[52:]


def test_checksums_are_put_in() -> None:
    whole = packet(b"some data, an odd number of bytes")
    card = Card()
    card.rig.memory.write(0x21000, unsummed(whole, with_length=True))
    data = struct.pack("<QII", 0x21000, len(whole) | 1 << 20 | (EOP | RS | DEXT) << 24, 3 << 8)
    card.send(context(0), data)
    assert card.sent == [whole]


def test_segments_are_cut() -> None:
    text = random.Random(1).randbytes(3500)
    whole = packet(text)
    card = Card()
    card.rig.memory.write(0x21000, unsummed(whole, with_length=False))
    tse = 4
    command = EOP | RS | DEXT | tse
    data = struct.pack("<QII", 0x21000, len(whole) | 1 << 20 | command << 24, 3 << 8)
    card.send(context(1 | 2 | tse, len(text), 54, 1460), data)
    assert b"".join(sent[54:] for sent in card.sent) == text
    for number, sent in enumerate(card.sent):
        ip = dpkt.ethernet.Ethernet(sent).data
        tcp = ip.data
        last = number == 2
        assert (ip.id, tcp.seq, bool(tcp.flags & dpkt.tcp.TH_FIN)) == (7 + number, 1000 + 1460 * number, last)
        at = 1460 * number
        wanted = dpkt.ethernet.Ethernet(sent)
        wanted.data.sum = wanted.data.data.sum = 0  # dpkt puts them in anew
        assert bytes(wanted) == sent, number
        assert len(sent) == 54 + len(text[at : at + 1460])


def test_tags_of_networks() -> None:
    tagged = MAC + OTHER + b"\x81\x00\x00\x05" + frame()[12:]
    card = Card()
    card.card.receive(tagged)
    assert card.descriptor(0)[0] == len(tagged) + 4
    card[r.CTRL] = card[r.CTRL] | r.CTRL_VME
    card.card.receive(tagged)
    size, _sum, status, _errors, special = card.descriptor(1)
    assert (size, status & 8, special) == (len(tagged), 8, 5)
    assert card.rig.memory.read(BUFFERS + 2048, 100) == frame()
    card.send(card.put(frame(OTHER), EOP | VLE, special=5))
    assert card.sent == [frame(OTHER)[:12] + b"\x81\x00\x00\x05" + frame(OTHER)[12:]]
    card[r.RCTL] = r.RCTL_EN | r.RCTL_VFE
    card.card.receive(tagged)
    assert card[r.RDH] == 2
    card[r.VFTA] = 1 << 5
    card.card.receive(tagged)
    assert card[r.RDH] == 3


def test_registers_behind_ports() -> None:
    card = Card(start=False)
    ports = E1000Ports(card.card)
    ports.write(0, 4, r.RCTL)
    ports.write(4, 4, r.RCTL_UPE)
    assert (ports.read(0, 4), ports.read(4, 4), card[r.RCTL]) == (r.RCTL, r.RCTL_UPE, r.RCTL_UPE)
    assert card.card.read(r.RCTL + 1, 1) == 0 and card.card.read(r.RCTL, 2) == r.RCTL_UPE
    card.card.write(r.RCTL, 1, 0xFF)  # a part of a register: nothing
    assert card[r.RCTL] == r.RCTL_UPE


KNOWN = [*r.PLAIN, r.CTRL, r.EECD, r.EERD, r.MDIC, r.ICR, r.ICS, r.IMS, r.IMC, r.TDT, r.RDT, r.TCTL, r.RCTL]
VALUES = st.sampled_from([0, 1, 8, 0x80, 0x1000, 0x2000, 0xFFFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_driver_that_does_anything(data: st.DataObject) -> None:
    """Nothing raises or goes on for ever, and a card that was saved goes on in the same way."""
    one, two = Card(), Card()
    chance = random.Random(data.draw(st.integers(0, 1 << 32)))
    garbage = chance.randbytes(0x3000)
    for card in (one, two):
        card.rig.memory.write(RX, garbage)
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["write", "write", "read", "frame", "link", "save"]))
        at = data.draw(st.sampled_from(KNOWN))
        value = data.draw(VALUES)
        seen = []
        for card in (one, two):
            if what == "write":
                card[at] = value
            elif what == "read":
                seen.append(card[at])
            elif what == "frame":
                card.card.receive(garbage[: 14 + value % 2000])
            elif what == "link":
                card.card.link(bool(value & 1))
            elif card is two:
                state = json.loads(json.dumps(card.card.save()))
                card.card = E1000("e1000-0", card.rig.memory, card.rig.wire(), card.port, MAC)
                card.card.load(state)
        assert len(set(seen)) <= 1
    assert one.card.save() == two.card.save()
    assert one.rig.memory.read(0, 1 << 18) == two.rig.memory.read(0, 1 << 18) and one.sent == two.sent


@pytest.mark.parametrize(
    "change",
    [
        {"icr": 1 << 20},
        {"port_address": MEMORY_SIZE},
        {"registers": [{"offset": r.STATUS, "value": 1}]},
        {"registers": [{"offset": r.RDLEN, "value": 1}]},
        {"registers": [{"offset": r.PBA, "value": 0x100030}]},
        {"registers": [{"offset": r.RCTL, "value": 2}, {"offset": r.RCTL, "value": 2}]},
        {"link": 3},
    ],
)
def test_states_that_no_card_saves(change: dict[str, object]) -> None:
    card = Card(start=False)
    with pytest.raises(BadState):
        card.card.load(card.card.save() | change)
