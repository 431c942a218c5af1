"""Do what docs/tutorial.md shows, and write what was printed into it.

python docs/generate_tutorial.py          writes it
python docs/generate_tutorial.py --check  exits with 1 if something else was printed than is shown, with 77
                                          if that cannot be told: another compiler makes another guest

In a block ```console a line that begins with `$ `, `(tt ...) ` or `(gdb) ` is typed; what follows it was
printed, at a terminal 100 wide.  All of it is deterministic, but for the host's speed and the trace's size.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("tutorial.md")
NOT_HERE = 77
GUEST = "hunt/bug.elf"
MADE_WITH = re.compile(r"<!-- Made with (.*), (.*): bug.elf is ([0-9a-f]{64})\. -->")
PORT = 1234

_TIMEOUT_S = 120
_ROWS, _COLUMNS = 40, 100
_TYPED = re.compile(r"(\$|\(tt [^)]*\)|\(gdb\)) (.*)")
_SHELL_PROMPT = re.compile(r"(?:^|\n)(\(tt [^)\n]*\)) $")
_PROGRESS = re.compile(r"(?:\r?\x1b\[K|\r)[^\r\n]*(?=\r(?!\n)|\r?\x1b\[K)|\r?\x1b\[(?:K|\?\d+[hl])")
# What depends on the host: how fast it was, and how the trace's pages came to be cut.
_HOSTLY = re.compile(r"[\d.]+ [KM]B\b|in [\d.]+ s \([\d,]+ million ticks a second\)")


@dataclass
class Step:
    """One line that is typed, and what is printed then."""

    prompt: str
    typed: str
    printed: list[str]


class Terminal:
    """A process at a terminal that can do nothing but text."""

    def __init__(self, command: str, folder: Path, env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command, shell=True, cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def read(self, until: re.Pattern[str] | None = None) -> str:
        """Return what is printed until that matches, or until the end."""
        data, deadline = b"", time.monotonic() + _TIMEOUT_S
        while True:
            text = _PROGRESS.sub(
                "", data.decode(errors="replace").replace("\r\r\n", "\n").replace("\r\n", "\n")
            )
            if until is not None and until.search(text):
                return text
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {_TIMEOUT_S} s: {text[-500:]!r}")
            if select.select([self._master], [], [], 1)[0]:
                try:
                    more = os.read(self._master, 1 << 16)
                except OSError:  # how a pty says that the other end is closed
                    more = b""
                if not more:
                    self.process.wait(_TIMEOUT_S)
                    os.close(self._master)
                    return text
                data += more

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        os.write(self._master, line.encode() + b"\r")


class Stage:
    """A folder in which the page's commands are done, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / ".tools"
        tools.mkdir()
        program = tools / "tt"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tt.cli.main "$@"\n')
        program.chmod(0o755)
        self._env = {
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tools),
            "LC_ALL": "C.UTF-8", "TERM": "dumb",
        }  # fmt: skip
        self._shell: Terminal | None = None
        self._prompt = ""
        self._server: subprocess.Popen[str] | None = None
        self._port = 0
        self._gdb: subprocess.Popen[bytes] | None = None

    def do(self, step: Step, then: Step | None) -> Step:
        """Type a step's line and return it with what was really printed."""
        if step.prompt == "(gdb)":
            return Step(step.prompt, step.typed, self._type_to_gdb(step.typed))
        if step.prompt != "$":
            assert self._shell is not None, f"no shell for {step.typed!r}"
            prompt = self._prompt
            self._shell.type(step.typed)
            return Step(prompt, step.typed, self._hear_shell(echo=step.typed))
        self._end_dialogue()
        return Step("$", step.typed, self._run(step.typed, then))

    def close(self) -> None:
        """End what still runs."""
        self._end_dialogue()
        if self._server is not None:
            self._server.wait(_TIMEOUT_S)

    # ---- the kinds of commands

    def _run(self, command: str, then: Step | None) -> list[str]:
        if command.startswith("cd "):
            self.folder = self.folder / command[3:]
            return []
        if command.startswith("tt gdb "):
            return self._serve(command)
        if command.startswith("gdb "):
            return self._start_gdb(command)
        terminal = Terminal(command, self.folder, self._env)
        if then is not None and then.prompt.startswith("(tt "):
            self._shell = terminal
            return self._hear_shell()
        return _lines(terminal.read())

    def _hear_shell(self, echo: str = "") -> list[str]:
        assert self._shell is not None
        text = self._shell.read(_SHELL_PROMPT)
        found = _SHELL_PROMPT.search(text)
        if found:
            self._prompt = found[1]
            text = text[: found.start()]
        else:
            self._shell = None
        # A dumb terminal shows what is typed twice: once by itself, once by the prompt.
        while echo and text.startswith(f"{echo}\n") or echo and text == echo:
            text = text[len(echo) + 1 :]
        return _lines(text)

    def _serve(self, command: str) -> list[str]:
        self._server = subprocess.Popen(
            [*shlex.split(command), "--listen", "127.0.0.1:0"], cwd=self.folder, env=self._env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        said = self._server.stdout.readline()
        self._port = int(re.findall(r":(\d+)", said)[0])
        return _lines(said.replace(f":{self._port}", f":{PORT}"))

    def _start_gdb(self, command: str) -> list[str]:
        words = shlex.split(command.replace(f":{PORT}", f":{self._port}"))
        self._gdb = subprocess.Popen(
            [*words, "-nx", "-ex", "set confirm off"], cwd=self.folder, env=self._env, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return self._hear_gdb()

    def _type_to_gdb(self, line: str) -> list[str]:
        assert self._gdb is not None and self._gdb.stdin is not None
        self._gdb.stdin.write(f"{line}\n".encode())
        if line == "quit":
            self._gdb.wait(_TIMEOUT_S)
            self._gdb = None
            return []
        return self._hear_gdb()

    def _hear_gdb(self) -> list[str]:
        assert self._gdb is not None and self._gdb.stdin is not None and self._gdb.stdout is not None
        mark = "<that was it>"
        self._gdb.stdin.write(f"echo {mark}\\n\n".encode())
        data = b""
        while f"{mark}\n".encode() not in data:
            more = os.read(self._gdb.stdout.fileno(), 1 << 16)
            assert more, f"gdb ended: {data.decode()}"
            data += more
        text = data.decode().partition(mark)[0].replace(f":{self._port}", f":{PORT}")
        return _lines(text.replace("(gdb) ", ""))

    def _end_dialogue(self) -> None:
        if self._shell is not None:
            self._shell.type("quit")
            self._shell.read()
            self._shell = None
        if self._gdb is not None:
            self._type_to_gdb("quit")


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def steps_of(block: str) -> list[Step]:
    """Return what a block of the page shows."""
    steps: list[Step] = []
    for line in block.splitlines():
        typed = _TYPED.match(line)
        if typed:
            steps.append(Step(typed[1], typed[2], []))
        else:
            steps[-1].printed.append(line)
    return steps


def same(shown: list[str], printed: list[str]) -> bool:
    """Whether two outputs are the same but for what depends on the host."""
    return [_HOSTLY.sub("...", line) for line in shown] == [_HOSTLY.sub("...", line) for line in printed]


def play(page: str, folder: Path) -> str:
    """Return the page with what its commands print; a line that differs by the host's speed only stays."""
    stage = Stage(folder)
    pieces = re.split(r"(?ms)^(```console\n.*?^```$)", page)
    blocks = {number: steps_of(pieces[number][11:-3]) for number in range(1, len(pieces), 2)}
    steps = [step for number in blocks for step in blocks[number]]
    done = []
    try:
        for step, then in zip(steps, [*steps[1:], None], strict=True):
            done.append(stage.do(step, then))
    finally:
        stage.close()
    results = iter(done)
    for number, shown in blocks.items():
        lines = []
        for step in shown:
            result = next(results)
            printed = step.printed if same(step.printed, result.printed) else result.printed
            lines += [f"{result.prompt} {step.typed}", *printed]
        pieces[number] = "\n".join(["```console", *lines, "```"])
    return MADE_WITH.sub(made_with(folder), "".join(pieces))


def version_of(program: str) -> str:
    """Return `gcc 12.2.0` or the like; "" where there is no such program."""
    if shutil.which(program) is None:
        return ""
    first = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return f"{program} {first.split()[-1]}"


def made_with(folder: Path) -> str:
    """Return the line that tells what made the guest and the output."""
    digest = hashlib.sha256((folder / GUEST).read_bytes()).hexdigest()
    return f"<!-- Made with {version_of('gcc')}, {version_of('gdb')}: bug.elf is {digest}. -->"


def comparable(page: str) -> bool:
    """Whether this host's compiler makes the page's guest, and its gdb is the page's."""
    sys.path.insert(0, str(ROOT))
    from tt.guests import denali

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "hunt"
        denali.build(folder)
        return made_with(Path(name)) in page


def main(check: bool) -> int:
    """Write the page, or check it; return the exit code."""
    page = PAGE.read_text()
    if check and not comparable(page):
        print("another gcc or gdb than the page's: it cannot be checked here")
        return NOT_HERE
    with tempfile.TemporaryDirectory(prefix="tt-tutorial-") as name:
        printed = play(page, Path(name))
    if not check:
        PAGE.write_text(printed)
    elif printed != page:
        import difflib

        print("docs/tutorial.md shows something else than was printed:")
        print("\n".join(difflib.unified_diff(page.splitlines(), printed.splitlines(), lineterm="", n=1)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
