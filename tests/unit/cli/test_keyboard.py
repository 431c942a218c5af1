"""Keys, lines and signals: what goes to the guest, and what ends a recording."""

from __future__ import annotations

import os
import pty
import signal
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tt.cli.keyboard import HELP, ConsoleOutput, Key, Keys, Listener, raw_terminal, script_lines
from tt.vmm.live import LiveSource


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"\x03", [Key.END]),
        (b"ab\x03cd", [b"ab", Key.END, b"cd"]),
        (b"\x01x", [Key.END]),
        (b"\x01c", [b"\x03"]),
        (b"\x01a", [b"\x01"]),
        (b"\x01\x01", [b"\x01"]),
        (b"\x01h", [Key.HELP]),
        (b"\x01?z", [Key.HELP, b"z"]),
        (b"\x1a\x1c\x11\x13\xff", [b"\x1a\x1c\x11\x13\xff"]),
    ],
)
def test_keys(typed: bytes, parts: list[bytes | Key]) -> None:
    assert list(Keys().split(typed)) == parts
    keys = Keys()
    one_by_one = [part for byte in typed for part in keys.split(bytes([byte]))]
    assert [part for part in one_by_one if isinstance(part, Key)] == [p for p in parts if isinstance(p, Key)]
    assert b"".join(p for p in one_by_one if isinstance(p, bytes)) == b"".join(
        p for p in parts if isinstance(p, bytes)
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [(b"", []), (b"a\nb\n", [b"a\r", b"b\r"]), (b"a\r\nb", [b"a\r", b"b\r"]), (b"\n\n", [b"\r", b"\r"])],
)
def test_script_lines(text: bytes, lines: list[bytes]) -> None:
    assert script_lines(text) == lines


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_raw_terminal_is_put_back_after_an_error(terminal: tuple[int, int]) -> None:
    _master, slave = terminal
    before = termios.tcgetattr(slave)
    with pytest.raises(RuntimeError), raw_terminal(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        raise RuntimeError
    assert termios.tcgetattr(slave) == before


def test_keys_reach_the_source(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    source = LiveSource()
    said: list[str] = []
    with raw_terminal(slave), Listener(source, keys=slave, say=said.append):
        os.write(master, b"hello\r\x01h")
        _until(lambda: said == [HELP])
        assert b"".join(event.data for event in source.take_inputs(0)) == b"hello\r"
        os.write(master, b"\x03")
        _until(lambda: source.stop_requested)
    assert source.stop_reason == "stopped by the user"


def test_lines_of_a_pipe_become_the_script() -> None:
    read, write = os.pipe()
    source = LiveSource(feeding=True)
    with Listener(source, lines=read):
        os.write(write, b"one\ntw")
        os.write(write, b"o\r\nthree")
        assert source.feeding
        os.close(write)
        _until(lambda: not source.feeding)
    os.close(read)
    assert list(source._script) == [b"one\r", b"two\r", b"three\r"]
    assert not source.stop_requested


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGINT, "stopped by the user"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "the terminal was closed"),
    ],
)
def test_signals_stop_the_source(number: signal.Signals, reason: str) -> None:
    before = signal.getsignal(number)
    source = LiveSource()
    with Listener(source):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a second one at once changes nothing
        _until(lambda: source.stop_requested)
    assert source.stop_reason == reason
    assert signal.getsignal(number) == before


def test_somebody_who_still_waits_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.cli.keyboard._PATIENCE_S", 0.0)
    with Listener(LiveSource()):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_console_that_nobody_reads() -> None:
    read, write = os.pipe()
    source = LiveSource()
    console = ConsoleOutput(write, source)
    console.show(b"hello\n")
    console.flush()
    assert os.read(read, 100) == b"hello\n"
    assert console.at_line_start
    os.close(read)
    console.show(b"lost")
    console.flush()
    os.close(write)
    assert source.stop_reason == "the guest's console is not read any more"


def test_a_reader_that_stops_reading_does_not_keep_a_stop_waiting() -> None:
    read, write = os.pipe()
    source = LiveSource()
    source.stop()
    console = ConsoleOutput(write, source)
    begin = time.monotonic()
    console.show(bytes(1 << 20))
    console.flush()
    assert time.monotonic() - begin < 1
    os.close(read)
    os.close(write)


def test_newlines_on_a_raw_terminal() -> None:
    read, write = os.pipe()
    console = ConsoleOutput(write, LiveSource(), raw=True)
    for data in (b"a\nb\r", b"\n", b"\n", b"\r\nc\n\n", b"\n", b"d"):
        console.show(data)
    console.flush()
    assert os.read(read, 100) == b"a\r\nb\r\n\r\n\r\nc\r\n\r\n\r\nd"
    os.close(read)
    os.close(write)


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
