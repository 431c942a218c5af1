"""What is in an Ethernet frame: addresses, protocols, and one line like tcpdump's.

dpkt takes the frames apart.  A frame may hold anything, so whatever dpkt makes of garbage,
the answer is a line that says so.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

import dpkt  # type: ignore[import-untyped]

from tt.events import Event, Kind
from tt.log import Frame
from tt.log.text import printable

_FLAGS = (
    (dpkt.tcp.TH_SYN, "S"),
    (dpkt.tcp.TH_FIN, "F"),
    (dpkt.tcp.TH_RST, "R"),
    (dpkt.tcp.TH_PUSH, "P"),
    (dpkt.tcp.TH_URG, "U"),
    (dpkt.tcp.TH_ECE, "E"),
    (dpkt.tcp.TH_CWR, "W"),
    (dpkt.tcp.TH_ACK, "."),
)
_ICMP = {
    0: "echo reply",
    3: "destination unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMP6 = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
    143: "multicast listener report",
}
_DHCP = ("", "discover", "offer", "request", "decline", "ack", "nak", "release", "inform")
_DNS_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV"}
_HTTP = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"HTTP/1.")
_LONGEST_TEXT = 80
_GARBAGE = (dpkt.Error, struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError, OSError)
PROTOCOLS = ("arp", "ip", "ip6", "icmp", "icmp6", "tcp", "udp", "dns", "dhcp", "http")
"""The protocols that frames are told apart by."""


@dataclass(frozen=True)
class Segment:
    """A TCP segment: its `seq` and `ack` numbers as they are sent, `flags` (dpkt.tcp.TH_...)."""

    seq: int
    ack: int
    flags: int


@dataclass(frozen=True)
class Packet:
    """A frame taken apart.

    `protocols` are all that it is, outermost first: ("ip", "tcp", "http"); `source` and `destination`
    are IP addresses, or those of the cards where there are none.  `payload` is what TCP or UDP carries.
    """

    frame: Frame
    protocols: tuple[str, ...]
    source: str
    destination: str
    source_port: int | None = None
    destination_port: int | None = None
    payload: bytes = b""
    tcp: Segment | None = None
    summary: str = ""

    @property
    def ports(self) -> tuple[int | None, int | None]:
        """The source's and the destination's port."""
        return self.source_port, self.destination_port


class Dissector:
    """Takes frames apart, in order: it remembers where TCP connections began, to count from there.

    Without `counting`, TCP's numbers are shown as they are sent, and a frame says the same alone.
    """

    def __init__(self, counting: bool = True) -> None:
        self._counting = counting
        self._first_seq: dict[tuple[int, str, int, str, int], int] = {}

    def __call__(self, frame: Frame) -> Packet:
        """Return what is in a frame."""
        destination, source = card_text(frame.data[:6]), card_text(frame.data[6:12])
        try:
            ethernet = dpkt.ethernet.Ethernet(frame.data)
            return self._inside(frame, ethernet.data, ethernet.type, source, destination)
        except _GARBAGE:
            pass
        summary = f"{source} > {destination}: malformed, {len(frame.data)} bytes"
        return Packet(frame, (), source, destination, summary=summary)

    # ---- inside

    def _inside(self, frame: Frame, inner: object, kind: int, source: str, destination: str) -> Packet:
        if isinstance(inner, dpkt.arp.ARP):
            return _arp(frame, inner)
        if isinstance(inner, dpkt.ip.IP):
            return self._ip(frame, inner, "ip", socket.inet_ntoa(inner.src), socket.inet_ntoa(inner.dst))
        if isinstance(inner, dpkt.ip6.IP6):
            addresses = (socket.inet_ntop(socket.AF_INET6, a) for a in (inner.src, inner.dst))
            return self._ip(frame, inner, "ip6", *addresses)
        size = len(frame.data)
        summary = f"{source} > {destination}: type {kind:#06x}, length {size}"
        return Packet(frame, (), source, destination, summary=summary)

    def _ip(self, frame: Frame, ip: dpkt.Packet, layer: str, source: str, destination: str) -> Packet:
        inner = ip.data
        if isinstance(inner, dpkt.tcp.TCP):
            return self._tcp(frame, inner, layer, source, destination)
        if isinstance(inner, dpkt.udp.UDP):
            return _udp(frame, inner, layer, source, destination)
        head = f"{layer.upper()} {source} > {destination}: "
        if isinstance(inner, (dpkt.icmp.ICMP, dpkt.icmp6.ICMP6)):
            name = "icmp" if isinstance(inner, dpkt.icmp.ICMP) else "icmp6"
            summary = head + _icmp(inner, name)
            return Packet(frame, (layer, name), source, destination, summary=summary)
        number = getattr(ip, "p", getattr(ip, "nxt", 0))
        fragment = getattr(ip, "offset", 0)
        what = f"fragment at byte {fragment}" if fragment else f"protocol {number}"
        summary = f"{head}{what}, length {len(bytes(inner))}"
        return Packet(frame, (layer,), source, destination, summary=summary)

    def _tcp(self, frame: Frame, tcp: dpkt.tcp.TCP, layer: str, source: str, destination: str) -> Packet:
        here = (frame.card, source, tcp.sport, destination, tcp.dport)
        there = (frame.card, destination, tcp.dport, source, tcp.sport)
        payload = bytes(tcp.data)
        if self._counting and (tcp.flags & dpkt.tcp.TH_SYN or here not in self._first_seq):
            self._first_seq[here] = tcp.seq
        begin = (tcp.seq - self._first_seq.get(here, 0)) & 0xFFFFFFFF
        flags = "".join(letter for bit, letter in _FLAGS if tcp.flags & bit) or "none"
        text = f"{layer.upper()} {source}:{tcp.sport} > {destination}:{tcp.dport}: Flags [{flags}]"
        if payload or tcp.flags & (dpkt.tcp.TH_SYN | dpkt.tcp.TH_FIN | dpkt.tcp.TH_RST):
            text += f", seq {begin}:{begin + len(payload)}" if payload else f", seq {begin}"
        if tcp.flags & dpkt.tcp.TH_ACK:
            text += f", ack {(tcp.ack - self._first_seq.get(there, 0)) & 0xFFFFFFFF}"
        text += f", win {tcp.win}, length {len(payload)}"
        protocols: tuple[str, ...] = (layer, "tcp")
        if payload.startswith(_HTTP):
            protocols += ("http",)
            text += f": HTTP: {_first_line(payload)}"
        segment = Segment(tcp.seq, tcp.ack, tcp.flags)
        return Packet(frame, protocols, source, destination, tcp.sport, tcp.dport, payload, segment, text)


def in_words(event: Event) -> str:
    """Return what a FRAME_IN or FRAME_OUT event says, by itself."""
    incoming = event.kind is Kind.FRAME_IN
    return Dissector(counting=False)(Frame(0, 0, event.tick, 0, 0, event.unit, incoming, event.data)).summary


def card_text(address: bytes) -> str:
    """Return a card's address as text: 52:54:00:74:00:00."""
    return address.hex(":") if address else "nobody"


def _arp(frame: Frame, arp: dpkt.arp.ARP) -> Packet:
    sender, target = (socket.inet_ntoa(bytes(a)) for a in (arp.spa, arp.tpa))
    if arp.op == dpkt.arp.ARP_OP_REQUEST:
        text = f"ARP who has {target}? tell {sender}"
    elif arp.op == dpkt.arp.ARP_OP_REPLY:
        text = f"ARP {sender} is at {card_text(arp.sha)}"
    else:
        text = f"ARP operation {arp.op}, {sender} to {target}"
    return Packet(frame, ("arp",), sender, target, summary=text)


def _icmp(icmp: dpkt.Packet, name: str) -> str:
    names = _ICMP if name == "icmp" else _ICMP6
    text = f"{name.upper()} {names.get(icmp.type, f'type {icmp.type}')}"
    inner = icmp.data
    if isinstance(inner, (dpkt.icmp.ICMP.Echo, dpkt.icmp6.ICMP6.Echo)):
        text += f", id {inner.id}, seq {inner.seq}"
    return text


def _udp(frame: Frame, udp: dpkt.udp.UDP, layer: str, source: str, destination: str) -> Packet:
    payload = bytes(udp.data)
    ports = {udp.sport, udp.dport}
    text = f"{layer.upper()} {source}:{udp.sport} > {destination}:{udp.dport}: "
    protocols: tuple[str, ...] = (layer, "udp")
    told = ""
    try:
        if 53 in ports:
            told, name = _dns(payload), "dns"
        elif ports & {67, 68}:
            told, name = _dhcp(payload), "dhcp"
    except _GARBAGE:
        told = ""
    if told:
        protocols += (name,)
    text += told or f"UDP, length {len(payload)}"
    return Packet(frame, protocols, source, destination, udp.sport, udp.dport, payload, summary=text)


def _dns(payload: bytes) -> str:
    dns = dpkt.dns.DNS(payload)
    questions = ", ".join(f"{_DNS_TYPES.get(q.type, q.type)}? {printable(q.name)}" for q in dns.qd)
    if not dns.qr:
        return f"DNS {dns.id} {questions}"
    answers = [_dns_answer(answer) for answer in dns.an]
    refusal = {2: "server failure", 3: "no such name", 5: "refused"}.get(dns.rcode, "")
    return f"DNS {dns.id} {questions}: {', '.join(answers) or refusal or 'no answer'}"


def _dns_answer(answer: dpkt.Packet) -> str:
    kind = _DNS_TYPES.get(answer.type, str(answer.type))
    if answer.type == 1:
        return f"{kind} {socket.inet_ntoa(answer.rdata)}"
    if answer.type == 28:
        return f"{kind} {socket.inet_ntop(socket.AF_INET6, answer.rdata)}"
    return kind


def _dhcp(payload: bytes) -> str:
    dhcp = dpkt.dhcp.DHCP(payload)
    options = dict(dhcp.opts)
    kind = options.get(dpkt.dhcp.DHCP_OPT_MSGTYPE, b"\0")[0]
    name = _DHCP[kind] if kind < len(_DHCP) and kind else "BOOTP"
    text = f"DHCP {name}, card {card_text(bytes(dhcp.chaddr[:6]))}"
    if dhcp.yiaddr:
        text += f", address {socket.inet_ntoa(struct.pack('>I', dhcp.yiaddr))}"
    return text


def _first_line(payload: bytes) -> str:
    line = printable(payload.split(b"\n", 1)[0].rstrip(b"\r").decode("utf-8", "replace"))
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 3] + "..."
