"""Clients of the NBD server that lie, stall, leave, or send noise; and a server that is killed."""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adversary_rig import ROOT
from nbd_rig import Client, named, request

from tt.chronus.nbd import RawFileExport, Server, serving
from tt.chronus.nbd import protocol as nbd
from tt.chronus.nbd.negotiation import MAX_OPTION
from tt.chronus.nbd.server import MAX_CLIENTS
from tt.chronus.store.history import History

SIZE = 4 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a server of a disk, which still serves afterwards."""
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(3).randbytes(SIZE))
    with RawFileExport(image) as export, serving([export]) as server:
        yield server
        with Client.connect(server) as client:
            assert client.size == SIZE and len(client.read(0, SIZE)) == SIZE


@pytest.mark.parametrize("seed", range(8))
def test_noise_instead_of_a_negotiation(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        with Client(server) as client:
            client.greet(chance.choice([0, 1, 3, 3, 3, 3, chance.getrandbits(32)]))
            try:
                for _ in range(10):
                    data = chance.choice(
                        [
                            chance.randbytes(chance.randrange(64)),
                            named("") + chance.randbytes(chance.randrange(40)),
                            struct.pack(">I", chance.getrandbits(32)) + bytes(chance.randrange(50)),
                            named("") + struct.pack(">I", chance.choice([1, 2, 2**32 - 1])) + named("base:"),
                        ]
                    )
                    size = len(data) if chance.random() < 0.9 else chance.getrandbits(chance.choice([8, 32]))
                    magic = nbd.OPTION_MAGIC if chance.random() < 0.97 else chance.randbytes(8)
                    option = chance.choice([2, 3, 5, 6, 7, 8, 9, 10, chance.getrandbits(32)])
                    client.sock.sendall(nbd.OPTION.pack(magic, option, size) + data)
            except ConnectionError:
                pass  # it was sent away, and rightly so


@pytest.mark.parametrize("seed", range(8))
def test_noise_among_the_requests(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    for structured in (False, True):
        with Client.connect(server, structured=structured) as client:
            try:
                for _ in range(60):
                    head = nbd.REQUEST.pack(
                        nbd.REQUEST_MAGIC if chance.random() < 0.99 else chance.getrandbits(32),
                        chance.choice([0, 0, 1, chance.getrandbits(16)]),
                        chance.choice([0, 3, 4, 5, 7, chance.getrandbits(16) | 8]),
                        chance.getrandbits(64),
                        chance.choice([0, SIZE - 1, chance.randrange(SIZE), chance.getrandbits(64)]),
                        chance.choice([0, 1, 512, SIZE, chance.getrandbits(32)]),
                    )
                    client.sock.setblocking(True)
                    client.sock.sendall(head)
                    client.sock.setblocking(False)
                    try:
                        while client.sock.recv(1 << 20):
                            pass
                    except BlockingIOError:
                        pass
            except ConnectionError:
                pass


def test_what_is_too_large_is_refused_or_ends_it(server: Server) -> None:
    with Client.connect(server) as client:
        assert client.ask(nbd.CMD_READ, 0, 2**32 - 1)[0] == 22
        client.sock.sendall(request(nbd.CMD_WRITE, 0, nbd.MAX_REQUEST + 1))
        assert client.gone()
    with Client(server) as client:
        client.greet()
        assert client.option(99)[0][0] == nbd.REP_ERR_UNSUP
        assert client.option(99, bytes(MAX_OPTION))[0][0] == nbd.REP_ERR_UNSUP
        client.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, 99, MAX_OPTION + 1))
        assert client.gone()
    with Client(server) as client:
        client.greet()
        for _ in range(1000):
            client.option(99)
        assert client.gone()


@pytest.mark.slow
def test_the_largest_write_there_may_be(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(nbd.MAX_REQUEST + 4096)
    data = random.Random(1).randbytes(nbd.MAX_REQUEST)
    with RawFileExport(image) as export, serving([export]) as server, Client.connect(server) as client:
        assert client.ask(nbd.CMD_WRITE, 100, data=data) == (0, b"")
        assert client.ask(nbd.CMD_READ, 100, len(data))[1] == data
        assert client.ask(nbd.CMD_READ, 100, len(data), flags=nbd.FLAG_DF)[1] == data


def test_many_reads_and_nobody_who_takes_the_answers(server: Server) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clients = [Client.connect(server) for _ in range(4)]
    for client in clients:
        client.sock.setblocking(False)
        for _ in range(40):
            try:
                client.sock.send(request(nbd.CMD_READ, 0, SIZE) * 100)
            except BlockingIOError:
                break
    with Client.connect(server) as other:  # others are served meanwhile
        assert len(other.read(0, SIZE)) == SIZE
    for client in clients:
        client.sock.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KB


def test_clients_that_stall_do_not_keep_others_out(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    said: list[str] = []
    with (
        RawFileExport(image) as export,
        serving([export], negotiation_s=0.5, say=said.append) as server,
    ):
        stalled = [Client(server) for _ in range(MAX_CLIENTS * 2)]
        with Client.connect(server) as client:
            assert client.read(0, 1) == b"\0"
            slow = Client(server)  # a byte now and then is not enough either
            slow.recv(nbd.GREETING.size)
            end = time.monotonic() + 10
            try:
                while time.monotonic() < end:
                    slow.sock.sendall(b"\0")
                    time.sleep(0.1)
                    if slow.sock.recv(1, 0x40) == b"":  # MSG_DONTWAIT
                        break
            except BlockingIOError:
                pass
            except ConnectionError:
                pass
            assert slow.gone()
        for one in stalled:
            assert one.gone()
            one.sock.close()
    assert any("negotiation" in line for line in said)


def test_more_clients_than_there_is_room_for(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with RawFileExport(image) as export, serving([export]) as server:
        clients = [Client.connect(server) for _ in range(MAX_CLIENTS)]
        with Client(server) as late:
            assert late.gone()
        for client in clients:
            assert client.read(0, 1) == b"\0"
            client.sock.close()
        deadline = time.monotonic() + 10
        while True:  # there is room again as soon as their threads have noticed
            try:
                Client.connect(server).sock.close()
                break
            except EOFError:
                assert time.monotonic() < deadline


def test_clients_that_leave_amid_everything(server: Server) -> None:
    chance = random.Random(2)
    stream = (
        request(nbd.CMD_WRITE, 0, 4096) + bytes(4096) + request(nbd.CMD_WRITE, 0, 3 << 20) + bytes(3 << 20)
    )
    for _ in range(20):
        with Client.connect(server) as client:
            client.sock.sendall(stream[: chance.randrange(len(stream))])
    for size in range(0, 40, 5):
        with Client(server) as client:
            client.sock.sendall((struct.pack(">I", 3) + nbd.OPTION.pack(nbd.OPTION_MAGIC, 7, 40))[:size])


def test_stopping_does_not_wait_for_clients(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with RawFileExport(image) as export:
        server = Server([export]).start()
        idle, half, fresh = Client.connect(server), Client.connect(server), Client(server)
        half.sock.sendall(request(nbd.CMD_WRITE, 0, 4096))
        server.stop()
        server.stop()
        assert idle.gone() and half.gone() and fresh.gone()


def _contents(number: int, block: int) -> bytes:
    return struct.pack(">QQ", number, block) * 256


def _serve(path: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tt.cli.chronus.main", "serve", str(path), "--json"]
    if not path.exists():
        command += ["--size", "4M"]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


class _At:
    """Where a client connects to."""

    def __init__(self, address: str) -> None:
        self.address = address


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flush", "fua"])
def test_a_killed_server_has_what_it_acknowledged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.tt"
    chance = random.Random(kind)
    number = 0
    safe: dict[int, int] = {}  # block -> the newest write of it that is surely there
    for _ in range(12):
        process, address = _serve(path)
        newest = dict(safe)
        client = Client.connect(_At(address))  # type: ignore[arg-type]
        for block in safe:  # what was safe before is there now
            found = struct.unpack_from(">QQ", client.read(block * 4096, 4096))
            assert found[1] == block and found[0] >= safe[block]
        deadline = time.monotonic() + chance.uniform(0.05, 0.4)
        while time.monotonic() < deadline:
            for _ in range(chance.randrange(1, 20)):
                number += 1
                block = chance.randrange(1024)
                flags = nbd.FLAG_FUA if kind == "fua" else 0
                data = _contents(number, block)
                assert client.ask(nbd.CMD_WRITE, block * 4096, data=data, flags=flags) == (0, b"")
                newest[block] = number
            if kind == "flush":
                assert client.ask(nbd.CMD_FLUSH) == (0, b"")
            safe = dict(newest)
        client.sock.sendall(  # and it dies under load
            b"".join(request(nbd.CMD_WRITE, at * 4096, 4096) + _contents(number + 1, at) for at in range(32))
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        client.sock.close()
        number += 1
    with History.open(path) as history:
        for block, wrote in safe.items():
            found = struct.unpack_from(">QQ", history.block(block, history.count))
            assert found[1] == block and found[0] >= wrote
        assert history.trace.verify_structure() == []
