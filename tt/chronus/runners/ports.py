"""The network of a guest on tt's machine whose ports a probe wants to reach: passt, and no way out."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence

from tt.chronus.search.verdicts import ProbeError
from tt.errors import TTError
from tt.net.network import Cable, Network
from tt.net.passt import Forward, Passt

_LOOPBACK = "127.0.0.1"
_IPV4 = b"\x08\x00"
_ARP = b"\x08\x06"
_ICMP, _TCP, _UDP = 1, 6, 17
_ECHO_REQUEST = 8
_SYN, _ACK = 0x02, 0x10
_DHCP_SERVER = 67


class ForwardedPorts:
    """A network for one guest, in which each of its `guest_ports` (TCP) is at a free port of the loopback.

    The guest gets an address by DHCP and answers; it cannot connect to anything itself, as on the
    qemu runner: what a probe says is to depend on the disk.  `ports` maps a port of the guest to
    the host's.  `failed` says in words what became of the network, empty while it works.

    Raises `ProbeError` where passt is missing or does not run.
    """

    def __init__(self, guest_ports: Sequence[int]) -> None:
        if shutil.which("passt") is None:
            raise ProbeError(
                "reaching a port of a guest on tt's machine needs passt, which is not installed: "
                "apt install passt, or use --runner qemu"
            )
        self.failed = ""
        self._held: list[socket.socket] = []
        try:
            self.ports = {port: self._hold() for port in dict.fromkeys(guest_ports)}
            forwards = [Forward("tcp", _LOOPBACK, outside, port) for port, outside in self.ports.items()]
            self.passt = _Closed(forwards, self._fails)
        except TTError as e:
            self._let_go()
            raise ProbeError(f"a guest on tt's machine gets no network: {e}") from None
        except BaseException:
            self._let_go()
            raise
        self.network = Network([Cable(self.passt)])

    def close(self) -> None:
        """End passt; may be called twice."""
        self.network.close()
        self._let_go()

    def _hold(self) -> int:
        """Return a free port that nobody else is given; passt may listen there all the same."""
        held = socket.socket()
        self._held.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((_LOOPBACK, 0))
        return int(held.getsockname()[1])

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().close()

    def _fails(self, line: str) -> None:
        self.failed = self.failed or line


class _Closed(Passt):
    """A passt that never sees what a guest begins by itself, but for its question for an address."""

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Send a frame, or lose it."""
        if leads_out(frame):
            self.lost += 1
        else:
            super().send(frame, now_ns)


def leads_out(frame: bytes) -> bool:
    """Whether a frame begins something: a connection, a datagram but to a DHCP server, a ping.

    Frames that are neither IPv4 nor ARP do too: nobody is there for them.
    """
    kind = frame[12:14]
    if kind != _IPV4 or len(frame) < 34:
        return kind != _ARP
    transport = frame[14 + (frame[14] & 15) * 4 :]
    protocol = frame[23]
    if protocol == _TCP:
        return len(transport) < 20 or transport[13] & (_SYN | _ACK) == _SYN
    if protocol == _UDP:
        return int.from_bytes(transport[2:4], "big") != _DHCP_SERVER
    return protocol != _ICMP or transport[:1] == bytes([_ECHO_REQUEST])
