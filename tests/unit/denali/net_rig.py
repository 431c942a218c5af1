"""The kit's network stack as a library of this computer, two of them on a cable that a test spoils."""

from __future__ import annotations

import ctypes
import heapq
import shutil
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

from tt.net.link import Conditions, Link

KIT = Path(__file__).parents[3] / "guests" / "denali"
HOST = Path(__file__).parent / "net"
PARTS = ("net_link.c", "net_ip.c", "net_udp.c", "net_tcp.c", "net_socket.c")
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    f"-I{KIT}",
    "-include",
    str(HOST / "rename.h"),
)
STREAM, DATAGRAM = 1, 2
AGAIN, RESET, REFUSED, WRONG = -1, -2, -3, -4
CAN_RECEIVE, CAN_SEND, IS_OVER = 1, 2, 4
FOREVER = (1 << 64) - 1
BUFFER = 16384
GOOD = Conditions(latency_ns=1_000_000)

_COPIES = count()
_Output = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_uint64)


def sources() -> list[str]:
    """Return the C files of the stack, and of its host."""
    return [*(str(KIT / part) for part in PARTS), str(HOST / "host.c")]


def build(folder: Path) -> Path:
    """Compile the stack; return the library."""
    library = folder / "stack.so"
    subprocess.run(["gcc", *FLAGS, "-shared", "-fPIC", *sources(), "-o", str(library)], check=True)
    return library


def ip(text: str) -> int:
    """Return an address as the stack has it."""
    return int.from_bytes(bytes(map(int, text.split("."))), "big")


class Stack:
    """One stack: its functions by name, without their prefix; `sent` gets its frames."""

    def __init__(
        self, library: Path, number: int, sent: Callable[[bytes], object], address: str = ""
    ) -> None:
        own = library.with_name(f"stack-{next(_COPIES)}.so")  # a library is loaded once for each file
        shutil.copy(library, own)
        self._library = ctypes.CDLL(str(own))
        self._output = _Output(lambda data, size: sent(ctypes.string_at(data, size)) and None)
        self.mac = bytes([2, 0, 0, 0, 0, number])
        own_address = address or f"10.0.0.{number}"
        self._library.net_deadline.restype = ctypes.c_uint64
        for name in ("send", "recv", "sendto", "recvfrom"):
            getattr(self._library, f"kit_{name}").restype = ctypes.c_long
        mask = ip("255.255.255.0") if address != "0.0.0.0" else 0
        self._library.host_setup(self.mac, ip(own_address), mask, 0, self._output)

    def __getattr__(self, name: str) -> Callable[..., int]:
        for full in (f"kit_{name}", f"net_{name}", f"host_{name}", name):
            if hasattr(self._library, full):
                return getattr(self._library, full)
        raise AttributeError(name)

    def tell_time(self, ns: int) -> None:
        self._library.host_time(ctypes.c_uint64(ns))

    def input(self, frame: bytes) -> None:
        self._library.net_input(frame, ctypes.c_uint64(len(frame)))

    def open(self, port: int = 0, kind: int = STREAM) -> int:
        """Return a socket that never waits."""
        s = self.socket(kind)
        assert s >= 0
        self.wait_at_most(s, ctypes.c_uint64(0))
        if port:
            assert self.bind(s, port) == 0
        return s

    def put(self, s: int, data: bytes) -> int:
        return self.send(s, data, ctypes.c_uint64(len(data)))

    def get(self, s: int, size: int = 65536) -> bytes | int:
        """Return what `recv` gives: bytes, or a number below 0."""
        room = ctypes.create_string_buffer(size)
        got = self.recv(s, room, ctypes.c_uint64(size))
        return got if got < 0 else room.raw[:got]


class Pair:
    """Two stacks on a cable; `step` lets time go on to the next thing that happens."""

    def __init__(self, library: Path, conditions: Conditions = GOOD) -> None:
        self.now = 1_000_000_000
        self.links = [Link(conditions, 0), Link(conditions, 1)]
        self.coming: list[tuple[int, int, int, bytes]] = []
        self.frames: list[tuple[int, bytes]] = []
        self.cut = False
        self._order = 0
        self.one = Stack(library, 1, lambda frame: self._sent(0, frame))
        self.two = Stack(library, 2, lambda frame: self._sent(1, frame))
        for stack in self.both:
            stack.tell_time(self.now)

    @property
    def both(self) -> tuple[Stack, Stack]:
        return self.one, self.two

    def _sent(self, side: int, frame: bytes) -> None:
        self.frames.append((side, frame))
        if self.cut:
            return
        for at, what in self.links[side].carry(self.now, frame):
            self._order += 1
            heapq.heappush(self.coming, (at, self._order, 1 - side, what))

    def step(self) -> bool:
        """Go on to the next frame or timer; false if nothing will ever happen."""
        due = min(stack.deadline() for stack in self.both)
        if self.coming:
            due = min(due, self.coming[0][0])
        if due >= FOREVER:
            return False
        self.now = max(self.now, due)
        for stack in self.both:
            stack.tell_time(self.now)
        while self.coming and self.coming[0][0] <= self.now:
            _at, _order, side, frame = heapq.heappop(self.coming)
            self.both[side].input(frame)
        for stack in self.both:
            stack.tick()
        return True

    def until(self, done: Callable[[], object], most: int = 100_000) -> None:
        """Step until something holds."""
        for _ in range(most):
            if done():
                return
            assert self.step(), "nothing happens any more"
        raise AssertionError("it takes too long")

    def connect(self, port: int = 80) -> tuple[int, int, int]:
        """Return a listening socket of `two`, and both ends of a connection from `one` to it."""
        listener = self.two.open(port)
        assert self.two.listen(listener) == 0
        caller = self.one.open()
        assert self.one.connect(caller, ip("10.0.0.2"), port) == AGAIN
        self.until(lambda: self.one.ready(caller) & CAN_SEND)
        self.until(lambda: self.two.ready(listener) & CAN_RECEIVE)
        called = self.two.accept(listener)
        assert called >= 0
        self.two.wait_at_most(called, ctypes.c_uint64(0))
        return listener, caller, called


def transfer(pair: Pair, sender: Stack, s: int, receiver: Stack, r: int, data: bytes) -> bytes:
    """Send all of `data`, end it, and return what arrives."""
    sent, got, over = 0, bytearray(), False
    for _ in range(200_000):
        while sent < len(data) and (n := sender.put(s, data[sent : sent + 4096])) > 0:
            sent += n
        if sent == len(data) and not over:
            over = True
            sender.shutdown(s)
        while isinstance(piece := receiver.get(r), bytes):
            if not piece:
                return bytes(got)
            got += piece
        assert piece == AGAIN, piece
        assert pair.step(), "nothing happens any more"
    raise AssertionError("it takes too long")
