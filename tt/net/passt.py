"""A way to the host through passt: TCP, UDP and ping without privileges, DHCP, DNS, forwarded ports.

passt (https://passt.top, Debian's package `passt`) runs as a child process.  It gets one end of a
pair of sockets, so nothing is left behind in a folder.  The guest finds what QEMU's user network
has too:

    10.0.2.15    the guest itself, by DHCP
    10.0.2.2     the gateway, which is the host's loopback too

That is on card 0; on card 1 it is 10.0.3 instead of 10.0.2, and so on.

By DHCP it is told of the host's resolvers too, by their own addresses, or of 10.0.2.2 where one listens at
the host's loopback (as systemd-resolved's does).  There is no 10.0.2.3 as QEMU has: older versions of passt
can either tell the guest of such an address or take its questions there, not both.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tt.errors import TTError, UsageError
from tt.net.stream import Stream

_BROADCAST = b"\xff" * 6
_EXPERIMENTAL = b"\x88\xb5"  # an EtherType that means nothing to anybody (IEEE 802, local experiments)
_BUFFER_BYTES = 4 << 20  # the kernel gives what it allows (net.core.wmem_max)
_STARTS_S = 0.2  # a passt that cannot run has ended by then
_ENDS_S = 2.0
_FORWARD = re.compile(
    r"(?:(?P<protocol>tcp|udp):)?(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:]+\]):)?(?P<host>\d+)[-:](?P<guest>\d+)"
)


@dataclass(frozen=True)
class Forward:
    """Connections to `host_port` at the host's `address` reach the guest's `guest_port`."""

    protocol: str
    address: str
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        """Return it as it may be given."""
        return f"{self.protocol}:{self.address}:{self.host_port}-{self.guest_port}"


def parse_forward(text: str) -> Forward:
    """Return what `8080:80` or `tcp:127.0.0.1:8080-80` says; raises `UsageError`.

    Without an address only the host's own programs can connect.
    """
    found = _FORWARD.fullmatch(text)
    ports = (int(found["host"]), int(found["guest"])) if found else (0, 0)
    if found is None or not all(0 < port < 65536 for port in ports):
        raise UsageError(
            f"cannot forward {text!r}: give HOST_PORT:GUEST_PORT, or tcp:127.0.0.1:8080-80 (or udp:...)"
        )
    if ":" in (found["address"] or ""):
        raise UsageError(f"cannot forward {text!r}: --net user has IPv4 only: give an address as 127.0.0.1")
    return Forward(found["protocol"] or "tcp", found["address"] or "127.0.0.1", *ports)


class Passt(Stream):
    """The end of a cable at a passt of its own; `card` is the guest's, which says in which network it is."""

    def __init__(
        self,
        forwards: Sequence[Forward] = (),
        say: Callable[[str], None] = lambda line: None,
        card: int = 0,
    ) -> None:
        """Start passt; raises `TTError` where it is not installed or does not run."""
        program = shutil.which("passt")
        if program is None:
            raise TTError("--net user needs passt: install the package `passt` (apt install passt)")
        _check_free(forwards)
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # passt loses what does not fit, and sends it again
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        command = [program, "--foreground", "--quiet", "--ipv4-only", "--fd", str(theirs.fileno())]
        net = 2 + card
        command += ["--address", f"10.0.{net}.15", "--netmask", "255.255.255.0"]
        command += ["--gateway", f"10.0.{net}.2", "--mac-addr", f"52:55:0a:00:{net:02x}:02"]
        for protocol, option in (("tcp", "--tcp-ports"), ("udp", "--udp-ports")):
            wanted = [f"{f.address}/{f.host_port}:{f.guest_port}" for f in forwards if f.protocol == protocol]
            for each in wanted or ["none"]:
                command += [option, each]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C ends the recording, and that ends passt
        )
        theirs.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STARTS_S)
            ours.close()
            raise TTError(f"--net user: passt does not start: {self._complaint()}")
        super().__init__("passt", ours, say=say)

    def send(self, frame: bytes, now_ns: int = 0) -> None:
        """Send a frame without its padding: the passt of Debian 12 takes that for data of TCP."""
        if frame[12:14] == b"\x08\x00":
            frame = frame[: 14 + int.from_bytes(frame[16:18], "big")]
        super().send(frame, now_ns)

    def close(self) -> None:
        """End passt."""
        super().close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._said.close()

    def introduce(self, mac: bytes) -> None:
        """Tell passt the address of the guest's card.

        It learns that from the first frame it sees, and until then nobody can connect to the guest.
        A guest that has been there for long may send nothing.
        """
        self.send(_BROADCAST + mac + _EXPERIMENTAL + bytes(46))

    @property
    def pid(self) -> int:
        """passt's process."""
        return self._process.pid

    def _complaint(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self._process.returncode} and said nothing"


def _check_free(forwards: Sequence[Forward]) -> None:
    """Refuse ports that are taken: passt only warns of them."""
    for forward in forwards:
        kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((forward.address, forward.host_port))
            except OSError as e:
                raise TTError(f"cannot forward {forward}: {e.strerror or e}") from None
