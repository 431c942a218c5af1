"""Frames made by hand, with dpkt."""

from __future__ import annotations

import socket

import dpkt

from tt.log import Frame

HOST, GUEST = "10.0.2.2", "10.0.2.15"
HOST_CARD, GUEST_CARD = bytes.fromhex("52550a000202"), bytes.fromhex("525400740000")
SYN, ACK, FIN, RST, PSH = (
    dpkt.tcp.TH_SYN,
    dpkt.tcp.TH_ACK,
    dpkt.tcp.TH_FIN,
    dpkt.tcp.TH_RST,
    dpkt.tcp.TH_PUSH,
)


def frame(data: bytes, number: int = 1, incoming: bool = False, tick: int | None = None) -> Frame:
    """Return `data` as the frame of a recording, at tick 1000 x `number` by default."""
    tick = 1000 * number if tick is None else tick
    return Frame(number, number - 1, tick, 4 * tick, 0, 0, incoming, data)


def ethernet(inner: dpkt.Packet, kind: int, incoming: bool = False) -> bytes:
    """Return the bytes of a frame between host and guest."""
    source, destination = (HOST_CARD, GUEST_CARD) if incoming else (GUEST_CARD, HOST_CARD)
    return bytes(dpkt.ethernet.Ethernet(src=source, dst=destination, type=kind, data=inner))


def ip(inner: dpkt.Packet, protocol: int, incoming: bool = False) -> bytes:
    """Return the bytes of a frame with an IPv4 packet."""
    source, destination = (HOST, GUEST) if incoming else (GUEST, HOST)
    packet = dpkt.ip.IP(
        src=socket.inet_aton(source), dst=socket.inet_aton(destination), p=protocol, data=inner
    )
    packet.len = len(packet)
    return ethernet(packet, dpkt.ethernet.ETH_TYPE_IP, incoming)


def tcp(
    seq: int, data: bytes = b"", flags: int = ACK, ack: int = 0, incoming: bool = False, port: int = 40_000
) -> bytes:
    """Return the bytes of a frame with a TCP segment between the guest's `port` and the host's port 80."""
    ports = {"sport": 80, "dport": port} if incoming else {"sport": port, "dport": 80}
    segment = dpkt.tcp.TCP(seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF, flags=flags, data=data, **ports)
    return ip(segment, dpkt.ip.IP_PROTO_TCP, incoming)


def udp(data: bytes, source: int, destination: int, incoming: bool = False) -> bytes:
    """Return the bytes of a frame with a UDP datagram."""
    datagram = dpkt.udp.UDP(sport=source, dport=destination, data=data)
    datagram.ulen = len(datagram)
    return ip(datagram, dpkt.ip.IP_PROTO_UDP, incoming)
