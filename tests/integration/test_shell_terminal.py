"""The shell in a real terminal, which tmux draws."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import ROOT

_WAIT_S = 30


class Screen:
    """A terminal of 100 by 40 characters with `tt replay` in it."""

    def __init__(self, folder: Path, *words: object, **env: str) -> None:
        self._tmux = ("tmux", "-L", f"tt-{folder.name}", "-f", "/dev/null")
        self.folder = folder
        env = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "LC_ALL": "C.UTF-8"} | env
        settings = [f"{name}={value}" for name, value in env.items()]
        command = [sys.executable, "-m", "tt.cli.main", "replay", *map(str, words)]
        # The shell stays when tt ends, so that what it left on the screen can be seen.
        self._run("new-session", "-d", "-x", "100", "-y", "40", "-c", str(folder), "env", "PS1=left> ", "sh")
        self.type(" ".join(["env", *settings, *command]) + "; echo code=$?")

    def _run(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        """Type a line."""
        self._run("send-keys", "-l", "--", text)
        self._run("send-keys", "Enter")

    def keys(self, *names: str) -> None:
        """Press keys, by tmux's names."""
        self._run("send-keys", *names)

    def text(self, *options: str) -> str:
        """Return what can be seen."""
        return self._run("capture-pane", "-p", *options)

    def wait_for(self, text: str) -> str:
        """Return the screen as soon as it shows `text`."""
        deadline = time.monotonic() + _WAIT_S
        while text not in (shown := self.text()):
            assert time.monotonic() < deadline, f"no {text!r} in {_WAIT_S} s:\n{shown}"
            time.sleep(0.05)
        return shown

    def close(self) -> None:
        """End the terminal and all in it."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)


@pytest.fixture
def folder(tmp_path: Path, demo_trace: Path) -> Path:
    """Return a folder with the demo's recording."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    (tmp_path / "demo.tt").write_bytes(demo_trace.read_bytes())
    return tmp_path


@pytest.fixture
def screen(folder: Path) -> Iterator[Screen]:
    """Return a terminal with the shell at the middle of the demo."""
    opened = Screen(folder, "demo.tt", "--to-tick", "11_000_000")
    try:
        opened.wait_for("(tt 11,000,000)")
        yield opened
    finally:
        opened.close()


def test_a_conversation(screen: Screen) -> None:
    shown = screen.wait_for("demo.tt  11,000,000 of 22,")
    assert "Ctrl-D leaves" in shown
    assert "crc32+" in shown.splitlines()[-1]  # the bar at the bottom
    screen.type("si")
    screen.wait_for("(tt 11,000,001)")
    screen.keys("Enter")
    screen.wait_for("(tt 11,000,002)")
    screen.type("b crc32")
    screen.wait_for("1 stop set")
    screen.type("rc")
    assert "breakpoint 1, crc32" in screen.wait_for("ticks back)")
    screen.type("timeline")
    screen.wait_for("▲")
    screen.type("fly; regs")
    assert "rax" not in screen.wait_for("'fly' is no command").split("'fly'")[1]
    screen.type("goto end")
    screen.wait_for("[the end: terminated with status 0]")
    screen.keys("C-d")
    screen.wait_for("code=0")


def test_completion_and_history(screen: Screen, folder: Path) -> None:
    screen.keys("-l", "reverse-co")
    screen.keys("Tab")
    screen.wait_for("(tt 11,000,000) reverse-continue")
    screen.keys("C-c")
    screen.keys("-l", "p cr")
    screen.keys("Tab")
    screen.wait_for(") p crc32")
    screen.keys("Enter")
    screen.wait_for("(<crc32>)")
    screen.keys("Up")
    screen.wait_for("(tt 11,000,000) p crc32")
    screen.keys("C-c")
    screen.type("quit")
    screen.wait_for("code=0")
    assert "p crc32" in (folder / "state" / "tt" / "history").read_text()


def test_ctrl_c_stops_the_command_not_the_shell(screen: Screen) -> None:
    screen.type("step 4")
    screen.wait_for("(tt 11,000,004)")
    # An expression that never holds, asked at every instruction: long enough to be interrupted.
    screen.type("b crc32+0x76 if tick == 1")
    screen.wait_for("1 stop set")
    screen.type("rc")
    screen.wait_for("Ctrl-C stops")
    begin = time.monotonic()
    screen.keys("C-c")
    shown = screen.wait_for("interrupted: you are where you were")
    assert time.monotonic() - begin < 1.5
    assert "Ctrl-C stops" not in shown
    screen.keys("C-c")  # at the prompt it drops the line
    screen.type("when")
    screen.wait_for("tick 11,000,004 of")
    screen.keys("C-d")
    screen.wait_for("code=0")


def test_colours(screen: Screen) -> None:
    screen.type("disas 3")
    screen.wait_for("-> 0x")
    assert "\x1b[" in [line for line in screen.text("-e").splitlines() if "-> " in line or "0x000" in line][0]


def test_no_colours(folder: Path) -> None:
    screen = Screen(folder, "demo.tt", "--to-tick", "11_000_000", NO_COLOR="1")
    try:
        screen.wait_for("(tt 11,000,000)")
        screen.type("disas 3")
        screen.wait_for("0x0000")
        screen.type("fly")
        screen.wait_for("no command")
        colours = [line for line in screen.text("-e").splitlines() if "\x1b[3" in line or "\x1b[9" in line]
        assert not colours
    finally:
        screen.close()


def test_a_fork_at_the_terminal(screen: Screen) -> None:
    screen.type("fork try")
    screen.wait_for("(tt fork:try 11,000,000)")
    screen.wait_for("LIVE try")
    screen.type("type hello")
    screen.wait_for("bytes typed")
    screen.type("continue")
    screen.wait_for("the machine has ended")
    screen.type("close")
    screen.wait_for("sealed")
    screen.wait_for("(tt try ")
    screen.type("quit")
    screen.wait_for("code=0")


def test_a_history_that_cannot_be_kept(folder: Path) -> None:
    (folder / "state").write_text("a file where a folder should be")
    screen = Screen(folder, "demo.tt")
    try:
        screen.wait_for("[the end")
        screen.type("when")
        screen.wait_for(", the end;")
        screen.keys("C-d")
        screen.wait_for("code=0")
    finally:
        screen.close()
