"""A guest that is a Python function, with a clock of its own: what conversations are tested with."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Self

Story = Generator[bytes | float | None, bytes, str | None]
"""Yields what it prints, how many seconds pass, or None to be told what was typed; returns why it ended."""


class ToldGuest:
    """A guest that does what a story says, and is silent when that is over."""

    ports: dict[int, int] = {}
    nbd_url: str | None = None
    console_socket: Path | None = None

    def __init__(self, story: Story) -> None:
        self.seconds = 0.0
        self.ended: str | None = None
        self.typed = b""
        self.console = b""
        self._story = story
        self._unread = b""
        self._over = False
        self._ready_at = 0.0
        self._waits = False

    @property
    def reads(self) -> frozenset[int] | None:
        return frozenset({1, 2})

    def read(self, timeout_s: float) -> bytes:
        until = self.seconds + timeout_s
        while not self._over:
            if self._ready_at > self.seconds:
                if self._ready_at > until:
                    break
                self.seconds = self._ready_at
            if self._waits and not self._unread:
                break
            said = self._go_on()
            if said:
                self.console += said
                return said
        if self.ended is None:
            self.seconds = until
        return b""

    def _go_on(self) -> bytes:
        """Take one step of the story."""
        try:
            if self._waits:
                self._waits = False
                given, self._unread = self._unread, b""
                told = self._story.send(given)
            else:
                told = next(self._story)
        except StopIteration as e:
            self._over = True
            self.ended = e.value
            return b""
        if told is None:
            self._waits = True
        elif isinstance(told, float):
            self._ready_at = self.seconds + told
        else:
            return told
        return b""

    def write(self, data: bytes) -> None:
        self.typed += data
        self._unread += data

    def script_disk(self) -> bytes:
        return b""

    def stop(self) -> None:
        self._over = True
        self.ended = self.ended or "stopped"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()


def shell(codes: dict[str, int], prompt: bytes = b"root@debian:~# ") -> Story:
    """Be a shell that echoes, and whose commands (any part of a line) exit with these codes."""
    while True:
        yield prompt
        line = b""
        while not line.endswith(b"\r"):
            line += yield None
        yield line.replace(b"\r", b"\r\n")
        text = line.decode().strip()
        number = text.partition("chronus'-'")[2].partition("-")[0]
        code = next((code for part, code in codes.items() if part in text), 0)
        yield 0.01
        if number:
            yield f"said of {code}\r\nchronus-{number}-{code}-\r\n".encode()
