"""Frames in a line each, and what garbage becomes."""

from __future__ import annotations

import socket

import dpkt
import pytest
from frames_rig import ACK, FIN, GUEST_CARD, HOST_CARD, SYN, ethernet, frame, ip, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.errors import UsageError
from tt.frames.dissect import PROTOCOLS, Dissector
from tt.frames.filters import Filter, parse


def test_a_tcp_connection_counts_from_its_beginning() -> None:
    dissect = Dissector()
    sent = [
        (tcp(0xFFFFFFF0, flags=SYN), False, "Flags [S], seq 0, win 65535, length 0"),
        (tcp(77, flags=SYN | ACK, ack=0xFFFFFFF1, incoming=True), True, "Flags [S.], seq 0, ack 1,"),
        (tcp(0xFFFFFFF1, b"GET / HTTP/1.1\r\n\r\n" * 2, ack=78), False, "seq 1:37, ack 1,"),
        (tcp(21, flags=FIN | ACK, ack=78), False, "Flags [F.], seq 37, ack 1,"),
    ]
    for number, (data, incoming, told) in enumerate(sent, 1):
        packet = dissect(frame(data, number, incoming))
        assert told in packet.summary, packet.summary
        assert packet.protocols[:2] == ("ip", "tcp")
    assert "HTTP: GET / HTTP/1.1" in dissect(frame(sent[2][0])).summary
    assert dissect(frame(sent[2][0])).ports == (40_000, 80)
    alone = Dissector(counting=False)(frame(sent[0][0])).summary
    assert "seq 4294967280" in alone


def test_other_protocols() -> None:
    dissect = Dissector()
    arp = dpkt.arp.ARP(sha=GUEST_CARD, spa=socket.inet_aton("10.0.2.15"), tpa=socket.inet_aton("10.0.2.2"))
    asked = dissect(frame(ethernet(arp, dpkt.ethernet.ETH_TYPE_ARP)))
    assert asked.summary == "ARP who has 10.0.2.2? tell 10.0.2.15"
    echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=7, seq=3, data=b"x"))
    assert dissect(frame(ip(echo, 1))).summary == "IP 10.0.2.15 > 10.0.2.2: ICMP echo request, id 7, seq 3"
    question = bytes(dpkt.dns.DNS(id=5, qd=[dpkt.dns.DNS.Q(name="example.org", type=1)]))
    packet = dissect(frame(udp(question, 5353, 53)))
    assert packet.protocols == ("ip", "udp", "dns") and packet.summary.endswith("DNS 5 A? example.org")
    assert dissect(frame(udp(b"abc", 1, 2))).summary.endswith("UDP, length 3")
    broken = dissect(frame(udp(b"abc", 1, 53)))  # to DNS's port, and none
    assert broken.protocols == ("ip", "udp")
    strange = dissect(frame(HOST_CARD + GUEST_CARD + b"\x88\xb5" + bytes(40)))
    assert "type 0x88b5, length 54" in strange.summary
    assert "malformed, 3 bytes" in dissect(frame(b"abc")).summary


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_garbage_is_told_as_such(data: st.DataObject) -> None:
    good = [tcp(1, b"GET / HTTP/1.0\r\n", SYN | ACK), udp(b"\0" * 250, 68, 67), udp(b"\0" * 30, 1, 53)]
    raw = bytearray(data.draw(st.sampled_from(good) | st.binary(max_size=90)))
    for _ in range(data.draw(st.integers(0, 12))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    packet = Dissector()(frame(cut))
    assert packet.summary and "\n" not in packet.summary
    assert set(packet.protocols) <= {*PROTOCOLS}


def test_filters() -> None:
    sent, got = (Dissector()(frame(tcp(1, b"GET /", incoming=way), incoming=way)) for way in (False, True))
    for words, both in (
        ("", (True, True)), ("in", (False, True)), ("out tcp port 80", (True, False)),
        ("port 40000", (True, True)),
        ("host 10.0.2.2", (True, True)), ("host 10.0.2.3", (False, False)), ("udp", (False, False)),
        ("host 52:54:00:74:00:00", (True, True)), ("card 1", (False, False)), ('"GET /" http', (True, True)),
        ("'nothing'", (False, False)),
    ):  # fmt: skip
        wanted = parse(words.replace("GET /", "GET\0/").split())
        wanted = Filter(**{**vars(wanted), "text": wanted.text and wanted.text.replace(b"\0", b" ")})
        assert (wanted(sent), wanted(got)) == both, words


@pytest.mark.parametrize("words", ["port", "port 70000", "host nowhere", "card x", "smtp", '"unclosed'])
def test_filters_that_make_no_sense(words: str) -> None:
    with pytest.raises(UsageError):
        parse(words.split())
