"""The kit's network stack by itself: two of them on a cable with every mishap, and frames made by hand."""

from __future__ import annotations

import ctypes
import random
import shutil
import socket
import subprocess
from pathlib import Path

import dpkt
import pytest
from net_rig import (
    AGAIN,
    BUFFER,
    CAN_RECEIVE,
    CAN_SEND,
    DATAGRAM,
    FLAGS,
    FOREVER,
    HOST,
    IS_OVER,
    REFUSED,
    RESET,
    WRONG,
    Pair,
    Stack,
    build,
    ip,
    sources,
    transfer,
)

from tt.net.link import Conditions

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
MS = 1_000_000
FIN, SYN, RST, ACK = 1, 2, 4, 16
BAD = Conditions(latency_ns=5 * MS, loss=0.05, duplicate=0.05, reorder=0.1, corrupt=0.02, seed=7)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stack"))


def test_a_connection_from_beginning_to_end(library: Path) -> None:
    pair = Pair(library)
    _listener, caller, called = pair.connect()
    assert pair.one.put(caller, b"hello") == 5
    pair.until(lambda: pair.two.ready(called) & CAN_RECEIVE)
    assert pair.two.get(called) == b"hello"
    assert pair.two.get(called) == AGAIN
    assert pair.one.close(caller) == 0
    pair.until(lambda: pair.two.ready(called) & CAN_RECEIVE)
    assert pair.two.get(called) == b""  # the other side has said all
    assert pair.two.put(called, b"x" * 10) == 10 and pair.two.close(called) == 0
    pair.until(lambda: pair.one.used() == 0 and pair.two.used() == 1, most=2000)  # the listener stays
    peer, port = ctypes.c_uint32(), ctypes.c_uint32()
    pair.two.peer_of(called, ctypes.byref(peer), ctypes.byref(port))
    assert peer.value == 0


def test_both_ways_over_a_good_cable(library: Path) -> None:
    pair = Pair(library)
    _listener, caller, called = pair.connect()
    data = random.Random(1).randbytes(300_000)
    assert transfer(pair, pair.one, caller, pair.two, called, data) == data
    assert transfer(pair, pair.two, called, pair.one, caller, data[:100_000]) == data[:100_000]
    sizes = [len(frame) for _side, frame in pair.frames]
    assert max(sizes) == 1514 and len(sizes) < 700  # nothing is sent twice on a cable without loss


@pytest.mark.parametrize("seed", range(6))
def test_a_cable_with_every_mishap(library: Path, seed: int) -> None:
    """Loss, duplicates, reordering, spoilt bits: the bytes are the same, or TCP's sum has failed us."""
    pair = Pair(library, Conditions(**{**vars(BAD), "seed": seed}))
    _listener, caller, called = pair.connect()
    data = random.Random(seed).randbytes(60_000)
    assert transfer(pair, pair.one, caller, pair.two, called, data) == data
    pair.two.shutdown(called)
    for s, stack in ((caller, pair.one), (called, pair.two)):
        stack.close(s)
    pair.until(lambda: pair.one.used() == 0 and pair.two.used() == 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 30))
def test_megabytes_over_such_cables(library: Path, seed: int) -> None:
    chance = random.Random(seed)
    worse = {name: chance.random() * 0.15 for name in ("loss", "duplicate", "reorder", "corrupt")}
    pair = Pair(
        library, Conditions(latency_ns=chance.randint(1, 50) * MS, seed=seed, bits_per_s=10**7, **worse)
    )
    _listener, caller, called = pair.connect()
    data = chance.randbytes(1_000_000)
    assert transfer(pair, pair.one, caller, pair.two, called, data) == data


def test_many_connections_at_once(library: Path) -> None:
    pair = Pair(library, Conditions(latency_ns=MS, loss=0.02, seed=3))
    listener = pair.two.open(80)
    assert pair.two.listen(listener) == 0
    callers = [pair.one.open() for _ in range(20)]
    for caller in callers:
        pair.one.connect(caller, ip("10.0.0.2"), 80)
    called: list[int] = []

    def accept() -> bool:
        while (s := pair.two.accept(listener)) >= 0:
            pair.two.wait_at_most(s, ctypes.c_uint64(0))
            called.append(s)
        return len(called) == 20

    pair.until(accept)
    pair.until(lambda: all(pair.one.ready(c) & CAN_SEND for c in callers))
    for number, caller in enumerate(callers):
        assert pair.one.put(caller, b"%d" % number) > 0
        pair.one.shutdown(caller)
    got: dict[int, bytes] = dict.fromkeys(called, b"")

    def read() -> bool:
        over = 0
        for s in called:
            piece = pair.two.get(s)
            if isinstance(piece, bytes):
                got[s] += piece
                over += not piece
        return over == len(called)

    pair.until(read)
    assert sorted(map(int, got.values())) == list(range(20))


def test_nobody_listens_and_nobody_is_there(library: Path) -> None:
    pair = Pair(library)
    caller = pair.one.open()
    pair.one.connect(caller, ip("10.0.0.2"), 81)
    pair.until(lambda: pair.one.ready(caller) & IS_OVER)
    assert pair.one.connect(caller, ip("10.0.0.2"), 81) == REFUSED
    assert pair.one.put(caller, b"x") == REFUSED and pair.one.close(caller) == 0
    lost = pair.one.open()
    pair.one.connect(lost, ip("10.0.0.99"), 80)
    pair.until(lambda: pair.one.ready(lost) & IS_OVER)
    assert pair.one.get(lost) == RESET
    assert pair.now > 60_000 * MS  # it asked for a while


def test_a_peer_that_vanishes_and_a_reset(library: Path) -> None:
    pair = Pair(library)
    _listener, caller, called = pair.connect()
    pair.cut = True
    assert pair.one.put(caller, b"x" * 100) == 100
    pair.until(lambda: pair.one.ready(caller) & IS_OVER)
    assert pair.one.get(caller) == RESET
    pair.cut = False
    assert pair.two.put(called, b"hello?") == 6  # the other side knows nothing of this any more
    pair.until(lambda: pair.two.ready(called) & IS_OVER)
    assert pair.two.get(called) == RESET


def test_a_window_that_closes_and_opens(library: Path) -> None:
    """A reader that sleeps stops the writer; what was lost of the news of its waking is asked for."""
    pair = Pair(library)
    _listener, caller, called = pair.connect()
    data = random.Random(2).randbytes(3 * BUFFER)
    sent = 0
    until = pair.now + 20_000 * MS
    while pair.now < until:
        while sent < len(data) and (n := pair.one.put(caller, data[sent:])) > 0:
            sent += n
        assert pair.step()
    assert sent == 2 * BUFFER  # one buffer on each side
    got = pair.two.get(called)
    assert isinstance(got, bytes) and data.startswith(got)
    pair.coming.clear()  # the news of the open window is lost
    rest = transfer(pair, pair.one, caller, pair.two, called, data[sent:])
    assert got + rest == data


def test_a_listener_takes_no_more_than_it_can(library: Path) -> None:
    pair = Pair(library)
    listener = pair.two.open(80)
    pair.two.listen(listener)
    callers = [pair.one.open() for _ in range(12)]
    for caller in callers:
        pair.one.connect(caller, ip("10.0.0.2"), 80)
    pair.until(lambda: sum(bool(pair.one.ready(c) & CAN_SEND) for c in callers) == 8)
    assert pair.two.close(listener) == 0
    pair.until(lambda: all(pair.one.ready(c) & IS_OVER for c in callers))
    assert pair.two.used() == 0


def test_datagrams(library: Path) -> None:
    pair = Pair(library)
    server, client = pair.two.open(53, DATAGRAM), pair.one.open(0, DATAGRAM)
    to = ip("10.0.0.2")
    for text in (b"one", b"", b"x" * 1472):
        assert pair.one.sendto(client, text, ctypes.c_uint64(len(text)), to, 53) == len(text)
        pair.until(lambda: pair.two.ready(server) & CAN_RECEIVE)
        assert pair.two.get(server) == text
    assert pair.one.sendto(client, b"x" * 1473, ctypes.c_uint64(1473), to, 53) == WRONG
    assert pair.two.get(server) == AGAIN
    assert pair.one.sendto(client, b"?", ctypes.c_uint64(1), to, 54) == 1  # nobody has that port
    while pair.coming:
        pair.step()
    told = [frame for side, frame in pair.frames if side == 1 and frame[12:14] == b"\x08\x00"]
    assert any(dpkt.ethernet.Ethernet(frame).data.p == 1 for frame in told)


def test_wrong_sockets(library: Path) -> None:
    stack = Pair(library).one
    assert stack.bind(99, 1) == stack.listen(-1) == stack.accept(5) == stack.close(7) == WRONG
    one, two = stack.open(80), stack.open()
    assert stack.bind(two, 80) == WRONG and stack.bind(two, 70_000) == WRONG
    assert stack.listen(two) == WRONG  # it has no port
    assert stack.put(one, b"x") == WRONG and stack.get(one) == WRONG
    assert [stack.socket(1) for _ in range(31)][-1] == WRONG


class Alone:
    """One stack, and the frames that it sends taken apart."""

    def __init__(self, library: Path, address: str = "10.0.0.1") -> None:
        self.sent: list[dpkt.ethernet.Ethernet] = []
        self.stack = Stack(library, 1, lambda f: self.sent.append(dpkt.ethernet.Ethernet(f)), address)
        self.stack.tell_time(10**9)
        arp = dpkt.arp.ARP(
            op=1, sha=b"\2\0\0\0\0\2", spa=socket.inet_aton("10.0.0.2"), tpa=socket.inet_aton(address)
        )
        self.give(dpkt.ethernet.ETH_TYPE_ARP, arp, b"\xff" * 6)

    def give(self, kind: int, inner: object, to: bytes = b"\2\0\0\0\0\1") -> None:
        self.stack.input(bytes(dpkt.ethernet.Ethernet(dst=to, src=b"\2\0\0\0\0\2", type=kind, data=inner)))

    def give_ip(
        self, protocol: int, inner: dpkt.Packet, to: str = "10.0.0.1", source: str = "10.0.0.2"
    ) -> None:
        packet = dpkt.ip.IP(src=socket.inet_aton(source), dst=socket.inet_aton(to), p=protocol, data=inner)
        packet.len = len(packet)
        self.give(dpkt.ethernet.ETH_TYPE_IP, packet)

    def tcp(
        self, seq: int, flags: int, ack: int = 0, data: bytes = b"", win: int = 4000, opts: bytes = b""
    ) -> dpkt.tcp.TCP | None:
        """Give a segment to port 80; return the last one that is sent because of it."""
        before = len(self.sent)
        segment = dpkt.tcp.TCP(sport=5000, dport=80, seq=seq & 0xFFFFFFFF, ack=ack, flags=flags, win=win)
        segment.opts, segment.data = opts, data
        segment.off = 5 + len(opts) // 4
        self.give_ip(6, segment)
        return self.sent[-1].data.data if len(self.sent) > before else None

    def accept(self, s: int, opts: bytes = b"", win: int = 4000) -> tuple[int, dpkt.tcp.TCP]:
        """Connect to the listening socket `s`; return the new one, and the answer to the SYN."""
        answer = self.tcp(1000, SYN, opts=opts)
        assert answer is not None
        self.tcp(1001, ACK, answer.seq + 1, win=win)
        c = self.stack.accept(s)
        assert c >= 0
        self.stack.wait_at_most(c, ctypes.c_uint64(0))
        return c, answer


def test_it_answers_arp_and_ping(library: Path) -> None:
    alone = Alone(library)
    (reply,) = alone.sent
    assert (reply.data.op, reply.data.sha, reply.dst) == (2, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
    alone.give_ip(1, dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=1, seq=2, data=b"abc" * 100)))
    pong = alone.sent[-1].data.data
    assert (pong.type, pong.data.id, pong.data.seq, pong.data.data) == (0, 1, 2, b"abc" * 100)


def test_segments_that_are_out_of_place(library: Path) -> None:
    """RFC 9293, 3.10.7, and RFC 5961: what a stranger sends into a connection does not harm it."""
    alone = Alone(library)
    s = alone.stack.open(80)
    alone.stack.listen(s)
    syn, rst, ack, fin = SYN, RST, ACK, FIN
    answer = alone.tcp(999, ack, 5)
    assert answer is not None and answer.flags == rst and answer.seq == 5
    first = alone.tcp(1000, syn)
    assert first is not None and first.flags == syn | ack and first.ack == 1001
    ours = first.seq + 1
    assert alone.tcp(1001, ack, ours) is None
    c = alone.stack.accept(s)
    assert c >= 0
    alone.stack.wait_at_most(c, ctypes.c_uint64(0))
    for second, (seq, flags, number, data) in enumerate((
        (1001, syn, 0, b""), (5000, rst, 0, b""), (1001, ack, ours + 100, b""), (900, ack, ours, b"old"),
        (1001 + BUFFER, ack, ours, b"beyond"), (1002, rst, 0, b""),
    ), 2):  # fmt: skip
        alone.stack.tell_time(second * 10**9)
        answer = alone.tcp(seq, flags, number, data)
        if not (flags & rst and seq == 5000):
            assert answer is not None and (answer.flags, answer.ack) == (ack, 1001), (seq, flags)
    assert alone.stack.get(c) == AGAIN
    alone.tcp(1004, ack, ours, b"lo")  # too early
    alone.tcp(1006, ack | fin, ours, b"!")
    assert alone.stack.get(c) == AGAIN
    last = alone.tcp(999, ack, ours, b"..hel")  # two old bytes in front
    assert last is not None and last.ack == 1008
    assert alone.stack.get(c) == b"hello!" and alone.stack.get(c) == b""
    assert alone.tcp(1008, rst) is None
    assert alone.stack.put(c, b"x") == RESET


def test_two_that_do_not_understand_each_other_do_not_talk_for_ever(library: Path) -> None:
    """Each answers what does not fit with an ACK that does not fit: it is answered now and then only."""
    alone = Alone(library)
    s = alone.stack.open(80)
    alone.stack.listen(s)
    _c, first = alone.accept(s)
    answers = 0
    for ms in range(2_000):
        alone.stack.tell_time(10**9 + ms * MS)
        answers += alone.tcp(1001, ACK, first.seq + 500) is not None
    assert answers == 4
    assert alone.tcp(900, ACK, first.seq + 1, b"old") is not None  # data is sent again until it is answered


def test_what_is_sent_again_may_be_longer(library: Path) -> None:
    """What was written in the meantime goes with it, and its acknowledgement is no surprise."""
    alone = Alone(library)
    s = alone.stack.open(80)
    alone.stack.listen(s)
    c, first = alone.accept(s)
    alone.stack.put(c, b"GET ")
    alone.stack.put(c, b"/index")
    alone.stack.tell_time(3 * 10**9)
    alone.stack.tick()
    assert alone.sent[-1].data.data.data == b"GET /index"
    assert alone.tcp(1001, ACK, first.seq + 11) is None
    alone.stack.put(c, b"!")
    assert alone.sent[-1].data.data.data == b"!" and alone.sent[-1].data.data.seq == first.seq + 11


def options(segment: dpkt.tcp.TCP) -> dict[int, bytes]:
    return dict(dpkt.tcp.parse_opts(segment.opts))


@pytest.mark.parametrize(("shift", "real"), [(None, 40), (0, 40), (3, 320), (200, 40 << 14)])
def test_windows_are_shifted_if_both_say_so(library: Path, shift: int | None, real: int) -> None:
    """RFC 7323: the window of a SYN is as it is, later ones are shifted, by 14 at most."""
    alone = Alone(library)
    s = alone.stack.open(80)
    alone.stack.listen(s)
    offer = b"" if shift is None else bytes([1, 3, 3, shift])
    c, answer = alone.accept(s, b"\2\4\5\xb4" + offer, win=40)
    assert options(answer).get(3) == (None if shift is None else b"\0")
    assert alone.stack.put(c, b"x" * 4000) == 4000
    alone.stack.tell_time(10**9 + 10**9)
    alone.stack.tick()  # a window below a segment is filled after a while
    sent = {(f.data.data.seq, len(f.data.data.data)) for f in alone.sent[1:] if f.data.data.data}
    assert sum(size for _seq, size in sent) == min(real, 2 * 1460)  # the rest is no segment (3.7.4)


def test_windows_are_shifted_by_whom_one_calls(library: Path) -> None:
    alone = Alone(library)
    c = alone.stack.open(80)
    alone.stack.connect(c, ip("10.0.0.2"), 5000)
    asked = alone.sent[-1].data.data
    assert options(asked) == {2: (1460).to_bytes(2, "big"), 3: b"\0", 1: b""}
    alone.tcp(7000, SYN | ACK, asked.seq + 1, win=40, opts=b"\2\4\5\xb4\1\3\3\7")
    assert alone.stack.put(c, b"x" * 4000) == 4000
    assert [len(f.data.data.data) for f in alone.sent[-1:]] == [0]  # 40 is no segment, and not shifted
    alone.tcp(7001, ACK, asked.seq + 1, win=40)
    assert [len(f.data.data.data) for f in alone.sent[-2:]] == [1460, 1460]


def test_a_closed_window_is_asked_for_as_long_as_somebody_answers(library: Path) -> None:
    """RFC 9293, 3.8.6.1: for ever if the other side says that it is closed, else until the tries are used."""
    alone = Alone(library)
    s = alone.stack.open(80)
    alone.stack.listen(s)
    c, answer = alone.accept(s, win=0)
    assert alone.stack.put(c, b"x") == 1

    def wait() -> None:
        alone.stack.tell_time(alone.stack.deadline())
        alone.stack.tick()

    for _ in range(40):
        wait()
        assert not alone.stack.ready(c) & IS_OVER
        alone.tcp(1001, ACK, answer.seq + 1, win=0)
    for _ in range(30):
        wait()
    assert alone.stack.ready(c) & IS_OVER and alone.stack.get(c) == RESET


def test_an_address_of_ones_own_ends_dhcp(library: Path) -> None:
    alone = Alone(library, "0.0.0.0")
    alone.stack.dhcp_start()
    assert alone.stack.deadline() < FOREVER
    alone.stack.setup(b"\2\0\0\0\0\1", ip("10.0.0.1"), 0xFFFFFF00, 0)
    assert alone.stack.deadline() == FOREVER


def test_dhcp(library: Path) -> None:
    alone = Alone(library, "0.0.0.0")
    alone.stack.dhcp_start()

    def last() -> tuple[dpkt.dhcp.DHCP, dict[int, bytes]]:
        message = dpkt.dhcp.DHCP(bytes(alone.sent[-1].data.data.data))
        return message, dict(message.opts)

    def answer(kind: int, lease: int = 100, chaddr: bytes = b"\2\0\0\0\0\1") -> None:
        asked, _ = last()
        address = socket.inet_aton
        options = (
            (53, bytes([kind])), (54, address("10.0.0.2")), (1, address("255.255.255.0")),
            (3, address("10.0.0.2")), (6, address("10.0.0.3")), (51, lease.to_bytes(4, "big")),
        )  # fmt: skip
        reply = dpkt.dhcp.DHCP(op=2, xid=asked.xid, yiaddr=ip("10.0.0.9"), chaddr=chaddr, opts=options)
        datagram = dpkt.udp.UDP(sport=67, dport=68, data=bytes(reply))
        datagram.ulen = len(datagram)
        alone.give_ip(17, datagram, "255.255.255.255")

    assert last()[1][53] == b"\1"
    alone.stack.tell_time(3 * 10**9)
    alone.stack.tick()
    assert len(alone.sent) == 2  # it asks again
    answer(2, chaddr=b"\2\0\0\0\0\7")  # somebody else's
    assert last()[1][53] == b"\1"
    answer(2)
    assert last()[1][53] == b"\3" and last()[1][50] == socket.inet_aton("10.0.0.9")
    answer(5)
    known = alone.stack.net_address(), alone.stack.gateway(), alone.stack.dns()
    assert known == (ip("10.0.0.9"), ip("10.0.0.2"), ip("10.0.0.3"))
    alone.stack.tell_time(54 * 10**9)
    alone.stack.tick()  # half of the lease is over
    assert last()[0].ciaddr == ip("10.0.0.9")
    alone.stack.tell_time(200 * 10**9)
    alone.stack.tick()
    assert alone.stack.net_address() == 0 and last()[1][53] == b"\1"


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    flags = [*FLAGS, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(
        ["gcc", *flags, *sources(), str(HOST / "fuzz.c"), "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find -lasan" in done.stderr or "libasan" in done.stderr:
        pytest.skip("gcc has no address sanitizer here")
    assert done.returncode == 0, done.stderr
    return program


def fuzz(program: Path, seed: int, count: int) -> None:
    done = subprocess.run([program, str(seed), str(count)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > count // 10  # it was not all refused


def test_garbage_under_sanitizers(fuzzer: Path) -> None:
    fuzz(fuzzer, 1, 20_000)


@pytest.mark.slow
def test_much_garbage_under_sanitizers(fuzzer: Path) -> None:
    for seed in range(2, 8):
        fuzz(fuzzer, seed, 300_000)
