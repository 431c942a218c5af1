"""Ports of a guest on tt's machine, reached from the host; and what such a guest may send."""

from __future__ import annotations

import socket

import dpkt
import pytest

from tt.chronus.probes.run import RunProbe, named_ports
from tt.chronus.runners import ports
from tt.chronus.runners.ports import ForwardedPorts, leads_out
from tt.chronus.runners.runner import Guest, Setup
from tt.chronus.search.verdicts import Outcome, ProbeError
from tt.chronus.store.view import DiskView
from tt.net.passt import Passt


class Empty(DiskView):
    """A disk without anything."""

    sectors, size, where = 8, 4096, "nowhere"

    def blocks(self, first: int, count: int) -> list[bytes]:
        return [bytes(4096)] * count


def test_a_command_names_its_ports() -> None:
    command = "curl http://127.0.0.1:$CHRONUS_PORT_80/ && nc 127.0.0.1 ${CHRONUS_PORT_25} < $CHRONUS_PORT_80"
    assert named_ports(command) == (80, 25)
    assert named_ports("echo $CHRONUS_PORT_ $MY_CHRONUS_PORT_80 $CHRONUS_PORT_80x") == ()


def ip(protocol: int, inner: bytes, options: int = 0) -> bytes:
    header = bytes([0x45 + options]) + bytes(8) + bytes([protocol]) + bytes(10 + 4 * options)
    return bytes(12) + b"\x08\x00" + header + inner


def tcp(flags: int) -> bytes:
    return bytes(dpkt.tcp.TCP(sport=80, dport=5000, flags=flags))


def udp(to: int) -> bytes:
    return bytes(dpkt.udp.UDP(sport=68, dport=to, data=b"x" * 20))


@pytest.mark.parametrize(
    ("frame", "leads"),
    [
        (bytes(12) + b"\x08\x06" + bytes(28), False),  # ARP
        (bytes(12) + b"\x86\xdd" + bytes(60), True),  # IPv6
        (ip(6, tcp(dpkt.tcp.TH_SYN)), True),
        (ip(6, tcp(dpkt.tcp.TH_SYN), options=10), True),
        (ip(6, tcp(dpkt.tcp.TH_SYN | dpkt.tcp.TH_ECE)), True),
        (ip(6, tcp(dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK)), False),
        (ip(6, tcp(dpkt.tcp.TH_ACK | dpkt.tcp.TH_PUSH)), False),
        (ip(6, tcp(dpkt.tcp.TH_RST)), False),
        (ip(6, b"short"), True),
        (ip(17, udp(67)), False),
        (ip(17, udp(53)), True),
        (ip(17, b""), True),
        (ip(1, b"\x08" + bytes(20)), True),  # a ping
        (ip(1, b"\x00" + bytes(20)), False),  # its answer
        (ip(47, bytes(20)), True),
        (b"\x08\x00", True),
    ],
)
def test_what_a_guest_begins_by_itself_goes_nowhere(frame: bytes, leads: bool) -> None:
    assert leads_out(frame) is leads


def test_without_passt_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.shutil, "which", lambda name: None)
    with pytest.raises(ProbeError, match=r"needs passt, .* apt install passt, or use --runner qemu"):
        ForwardedPorts([80])


def test_a_passt_that_does_not_run_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(ProbeError, match="gets no network: .*passt does not start: it ended with code 1"):
        ForwardedPorts([80])


class NoPasst(Passt):
    def __init__(self, forwards: object, say: object) -> None:
        self.lost, self.name = 0, "none"

    def close(self) -> None:
        pass


def test_each_guest_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.shutil, "which", lambda name: name)
    monkeypatch.setattr(ports, "_Closed", NoPasst)
    guests = [ForwardedPorts([80, 22, 80]) for _ in range(50)]
    taken = [outside for guest in guests for outside in guest.ports.values()]
    assert all(list(guest.ports) == [80, 22] for guest in guests) and len(set(taken)) == 100
    for outside in taken[:10]:  # held, and free for one who listens as passt does
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", outside))
            listener.listen()
    for guest in guests:
        guest.close()
        guest.close()
    with socket.socket() as after:
        after.bind(("127.0.0.1", taken[0]))


class Printer:
    """A guest that prints `pieces` at their seconds, and ends at `end_s`."""

    console_socket = nbd_url = None
    reads: frozenset[int] = frozenset()

    def __init__(self, pieces: list[tuple[float, bytes]], end_s: float = 1000) -> None:
        self.seconds = 0.0
        self.console = b""
        self.ports = {80: 1}
        self._pieces, self._end_s = pieces, end_s

    @property
    def ended(self) -> str | None:
        return "it fell over" if self.seconds >= self._end_s else None

    def read(self, timeout_s: float) -> bytes:
        self.seconds = round(self.seconds + timeout_s, 3)
        fresh = b""
        while self._pieces and self._pieces[0][0] <= self.seconds:
            fresh += self._pieces.pop(0)[1]
        self.console += fresh
        return fresh

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Started:
    name = "tt"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def start(self, disk: object, setup: Setup) -> Guest:
        return self._guest


@pytest.mark.parametrize(
    ("pieces", "start_s"),
    [
        ([(1, b"Booting\r\n"), (2, b"\x1b[1mroot@debian\x1b[0m:~# \x1b[6n")], (3.0, 3.4)),
        ([(1, b"Booting\r\n"), (2, b"web login: "), (2.6, b"\r\nmore\r\n"), (5, b"web login: ")], (6.0, 6.4)),
        ([(1, b"Booting\r\n"), (4, b"up\r\n")], (14.0, 14.4)),
        ([], (10.0, 10.4)),
    ],
)
def test_a_command_with_ports_starts_when_the_guest_is_up(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, bytes]], start_s: tuple[float, float]
) -> None:
    guest = Printer(pieces)
    monkeypatch.setattr("tt.chronus.probes.run.runner", lambda name: Started(guest))
    before: list[float] = []
    monkeypatch.setattr(
        "tt.chronus.probes.run._Command.run",
        lambda command: (before.append(guest.seconds), setattr(command, "code", 0), command.ended.set()),
    )
    verdict = RunProbe("true", "tt", Setup(forward=(80,))).run(Empty())
    assert verdict.outcome is Outcome.GOOD
    assert start_s[0] <= before[0] <= start_s[1]


def test_a_guest_that_ends_before_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Printer([(1, b"Booting\r\n")], end_s=3)
    monkeypatch.setattr("tt.chronus.probes.run.runner", lambda name: Started(guest))
    verdict = RunProbe("exit 9", "tt", Setup(forward=(80,))).run(Empty())
    assert (verdict.outcome, verdict.signature) == (Outcome.CRASH, "the guest ended: it fell over")
