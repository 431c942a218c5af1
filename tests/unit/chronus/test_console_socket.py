"""A console as a unix socket: several clients, the past, and clients that misbehave."""

from __future__ import annotations

import queue
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tt.chronus.runners.console_socket import ConsoleSocket


@pytest.fixture
def typed() -> queue.SimpleQueue[bytes]:
    return queue.SimpleQueue()


@pytest.fixture
def console(typed: queue.SimpleQueue[bytes]) -> Iterator[ConsoleSocket]:
    with ExitStack() as stack:
        served = ConsoleSocket(typed.put, b"past ")
        stack.callback(served.close)
        yield served


def client(console: ConsoleSocket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(console.path))
    return sock


def hear(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def test_everybody_hears_all_of_it_and_may_type(
    console: ConsoleSocket, typed: queue.SimpleQueue[bytes]
) -> None:
    with client(console) as first:
        assert hear(first, 5) == b"past "
        console.feed(b"now")
        assert hear(first, 3) == b"now"
        with client(console) as second:
            assert hear(second, 8) == b"past now"
            second.sendall(b"from two")
            assert typed.get(timeout=20) == b"from two"
        first.sendall(b"from one")
        assert typed.get(timeout=20) == b"from one"
        console.feed(b"!")
        assert hear(first, 1) == b"!"


def test_who_has_said_everything_still_hears(console: ConsoleSocket, typed: queue.SimpleQueue[bytes]) -> None:
    with client(console) as sock:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        assert typed.get(timeout=20) == b"bye"
        console.feed(b"heard")
        assert hear(sock, 10) == b"past heard"


def test_closing_ends_clients_and_removes_the_socket(typed: queue.SimpleQueue[bytes]) -> None:
    console = ConsoleSocket(typed.put)
    folder = console.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with client(console) as sock:
        console.feed(b"last words")
        assert hear(sock, 10) == b"last words"
        console.close()
        assert sock.recv(1) == b""
    assert not folder.exists()


def test_the_end_of_the_guest_is_the_end_of_the_file(console: ConsoleSocket) -> None:
    with client(console) as sock:
        console.feed(b"last words")
        console.end()
        assert hear(sock, 100) == b"past last words"
    with client(console) as late:
        assert hear(late, 100) == b"past last words"


def test_who_does_not_listen_has_to_go(console: ConsoleSocket) -> None:
    with client(console) as deaf, client(console) as other:
        assert hear(other, 5) == b"past "
        piece = bytes(1 << 20)
        for _ in range(8):
            console.feed(piece)
            assert len(hear(other, len(piece))) == len(piece)
        total = 0
        while data := deaf.recv(1 << 20):
            total += len(data)
        assert total < 8 << 20


def test_there_is_an_end_to_how_many_may_listen(console: ConsoleSocket) -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(client(console)) for _ in range(16)]
        assert all(hear(sock, 5) == b"past " for sock in listeners)
        with client(console) as late:
            assert late.recv(1) == b""
