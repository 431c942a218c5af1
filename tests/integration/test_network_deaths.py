"""Networks that die, are missing, in the way or too slow; what listens meanwhile; what is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import TT, Inside
from denali_net_rig import build, build_pingpong, net_config
from network_rig import Conversation, alive, children, free_port, needs_passt, serving, soon
from parents_rig import replays

from tt.errors import BadInput, TTError
from tt.events import Event, Kind
from tt.log import Trace
from tt.net.network import Cable, Network
from tt.net.passt import Passt
from tt.net.spec import connect, parse_net
from tt.net.stream import Stream
from tt.recording import record
from tt.replay import Replay, verify
from tt.vmm.live import LiveSource

# Linux says the second where passt died with something unread.
CLOSED = re.compile(
    r"passt is gone \((it closed the connection|Connection reset by peer)\): the guest's cable is unplugged"
)

FLOOD = r"""
#include "denali.h"

static u8 frame[1500];

int main(void)
{
    u64 taken = 0;
    network_start(NULL);
    for (u64 i = 0; i < 3000; i++)
        taken += network_send(0, frame, sizeof frame);
    print("%lu of 3000 sent\n", taken);
    return 0;
}
"""


def has_committed(path: Path) -> bool:
    with contextlib.suppress(BadInput), Trace.open(path) as trace:
        return trace.end_tick > 0
    return False


@pytest.fixture(scope="module")
def pingpong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a guest that looks for somebody to play with, again and again."""
    return build_pingpong(tmp_path_factory.mktemp("pingpong"))


@contextlib.contextmanager
def recording(tt: TT, guest: Path, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Record a guest with a passt; give the process, and passt's number."""
    process = subprocess.Popen(
        [*tt.command, "record", guest, "-o", "net.tt", "--timeout", "60", *map(str, words)],
        cwd=tt.folder,
        env=tt.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert soon(lambda: bool(children(process.pid)) and has_committed(tt.folder / "net.tt"))
        [passt] = children(process.pid)
        yield process, passt
    finally:
        process.kill()
        process.communicate()


# ---- passt dies


@needs_passt
def test_passt_is_killed(pingpong: Path, tmp_path: Path) -> None:
    said: list[str] = []
    network = connect([parse_net("user")], said.append)
    end = network.cables[0].end
    assert isinstance(end, Passt) and end.up
    links: list[Event] = []

    def see(event: Event) -> None:
        if event.kind is Kind.FRAME_OUT and alive(end.pid):
            os.kill(end.pid, signal.SIGKILL)
            assert soon(lambda: not alive(end.pid))
        links.extend([event] * (event.kind is Kind.LINK))

    config = net_config(pingpong, "denali")
    source = LiveSource(network=network)
    record(config, tmp_path / "net.tt", source, max_ticks=1_000_000, on_event=see)
    network.close()
    assert [event.value for event in links] == [0]
    assert len(said) == 1 and CLOSED.fullmatch(said[0]), said
    replays(tmp_path / "net.tt")
    with Trace.open(tmp_path / "net.tt") as trace:
        assert trace.end_tick > links[0].tick and trace.summary["network"][0]["sent"] >= 1


@needs_passt
@pytest.mark.slow
def test_passt_is_killed_in_the_middle_of_a_transfer(debian_image: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/big").write_bytes(os.urandom(1 << 20) * 60)

    def talk(guest: Conversation) -> None:
        guest.wait_for("root@debian:~# ")
        guest.type(f"wget -qO- http://10.0.2.2:{web}/big | wc -c &")
        cable = guest.network.cables[0]
        assert isinstance(cable.end, Passt) and soon(lambda: cable.received > 200, 60)
        os.kill(cable.end.pid, signal.SIGKILL)
        guest.wait_for("root@debian:~# ")
        guest.ask("sleep 1; cat /sys/class/net/eth0/carrier || echo D''OWN", r"(?m)^(0|DOWN)$")
        guest.ask("echo still h''ere", "still here")

    with serving(tmp_path / "www") as web:
        talked = Conversation(debian_image, tmp_path / "net.tt", talk)
    assert len(talked.said) == 1 and talked.said[0].startswith("passt is gone (")
    with Trace.open(tmp_path / "net.tt") as trace:
        assert [e.value for e in trace.events() if e.kind is Kind.LINK] == [0]
        assert verify(trace).good


# ---- tt dies


@needs_passt
def test_tt_is_killed_and_passt_ends_with_it(pingpong: Path, tt: TT) -> None:
    with recording(tt, pingpong, "--net", "user") as (process, passt):
        assert listeners([process.pid, passt]) == set()  # nothing was forwarded
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert soon(lambda: not alive(passt)), "passt was left behind"
    with Trace.open(tt.folder / "net.tt") as trace:
        assert trace.verify_structure() == [] and not trace.sealed
        replay = Replay(trace)
        replay.run_to(trace.end_tick)
        assert replay.tick == trace.end_tick > 0
        assert any(event.kind is Kind.FRAME_OUT for event in trace.events())


# ---- what listens


def listeners(pids: list[int]) -> set[tuple[str, str, int]]:
    """Return (protocol, address, port) of all that processes listen at."""
    inodes = set()
    for pid in pids:
        try:
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        except PermissionError:
            pytest.skip("passt's descriptors can be seen by root only")
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
                inodes.update([found[1]] if found else [])
    out = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[9] in inodes and (fields[3] == "0A" or protocol.startswith("udp")):
                family = socket.AF_INET6 if len(address) > 8 else socket.AF_INET
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                if sys.byteorder == "big":
                    words = [word[::-1] for word in words]
                out.add((protocol, socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return out


@needs_passt
def test_nothing_listens_beyond_the_loopback_without_being_told(pingpong: Path, tt: TT) -> None:
    inner, outer, stream = free_port(), free_port(), free_port()
    nets = ("--net", f"user,forward=tcp:0.0.0.0:{outer}-81", "--forward", f"{inner}:80")
    nets += ("--net", f"stream::{stream},listen")
    with recording(tt, pingpong, *nets) as (process, passt):
        assert listeners([process.pid, passt]) == {
            ("tcp", "127.0.0.1", inner),
            ("tcp", "0.0.0.0", outer),
            ("tcp", "127.0.0.1", stream),
        }


# ---- what is in the way


def test_passt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TTError, match=r"^--net user needs passt: install the package `passt`"):
        Passt()


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo no >&2; echo luck >&2; exit 1", "luck"), ("exit 3", "it ended with code 3 and said nothing")],
)
def test_passt_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    (tmp_path / "passt").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "passt").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(TTError, match=f"^--net user: passt does not start: {why}$"):
        Passt()


@needs_passt
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_is_taken(pingpong: Path, inside: Inside, protocol: str, tmp_path: Path) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        done = inside("record", pingpong, "--forward", f"{protocol}:{port}-80", "-o", "x.tt", code=3)
        [line] = done.stderr.decode().splitlines()
        assert line == f"tt: cannot forward {protocol}:127.0.0.1:{port}-80: Address already in use"
    assert not (tmp_path / "x.tt").exists()


# ---- a guest that floods


def test_a_flood_to_a_peer_that_does_not_read(tmp_path: Path) -> None:
    ours, peer = socket.socketpair()
    end = Stream("stream:x", ours)
    network = Network([Cable(end)])
    path = tmp_path / "flood.tt"
    record(
        net_config(build(tmp_path, FLOOD), "denali"), path, LiveSource(network=network), max_ticks=10_000_000
    )
    [counts] = network.counters()
    assert counts["sent"] == 3000 and 0 < counts["lost"] < 3000
    assert len(end._out) < (1 << 20) + 1504
    network.close()
    peer.close()
    replays(path)
    with Trace.open(path) as trace:
        assert "3000 of 3000 sent" in "".join(text for _, _, text in trace.console_lines())
        assert trace.summary["network"] == [counts]
