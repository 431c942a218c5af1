"""The script for the guest's shell: what real shells here make of it, with all that it needs faked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tt.chronus.probes.guest_script import DISK_SIZE, MAX_COMMAND, OUTPUT_SIZE, read_answer, script_disk
from tt.chronus.search.verdicts import ProbeError

SHELLS = [["dash"], ["bash"], ["bash", "--posix"]]
TOOLS = ("cat", "tail", "head", "awk", "od")


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Return a shell's command."""
    name = request.param[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return [str(shutil.which(name)), *request.param[1:]]


class Sandbox:
    """A folder that stands for a guest: its /dev and /proc, and programs that only look as if."""

    def __init__(self, folder: Path, shell: list[str]) -> None:
        self.folder = folder
        self.shell = shell
        self.bin = folder / "bin"
        for name in ("bin", "dev", "proc/self", "proc/sys/kernel", "sys/kernel"):
            (folder / name).mkdir(parents=True)
        (folder / "proc/sysrq-trigger").touch()
        (folder / "proc/mounts").write_text("tmpfs /run tmpfs rw 0 0\n")
        (self.bin / "sh").write_text(f'#!{shell[0]}\nexec {" ".join(shell)} "$@"\n')
        for name in ("mount", "hostname", "ip", "ifconfig", "sync", "mkdir", "grep"):
            (self.bin / name).write_text("#!/bin/sh\nexit 0\n")
        # A guest that is told to reboot is gone: end the shell that asked.
        (self.bin / "reboot").write_text("#!/bin/sh\nkill -9 $PPID\n")
        for path in self.bin.iterdir():
            path.chmod(0o755)
        for tool in TOOLS:
            found = shutil.which(tool)
            if found is not None:
                (self.bin / tool).symlink_to(found)

    def run(self, command: str) -> bytes:
        """Run the script for `command`; return its disk afterwards."""
        text = script_disk(command, early=True).decode("utf-8", "surrogateescape")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        assert text.count(path) == 2
        text = text.replace(path, str(self.bin)).replace("/bin/sh /", f"{self.bin}/sh /")
        for place in ("/dev/chronus", "/dev/vdb", "/dev/pts", "/dev/shm", "/proc", "/sys/kernel"):
            text = text.replace(place, f"{self.folder}{place}")
        assert "/sbin" not in text  # nothing of this host's own is in reach
        disk = self.folder / "dev/vdb"
        disk.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = subprocess.run(
            [*self.shell, str(disk)], env={"PATH": str(self.bin)}, timeout=30, stdin=subprocess.DEVNULL
        )
        assert done.returncode == -9
        return disk.read_bytes()


@pytest.fixture
def sandbox(tmp_path: Path, shell: list[str]) -> Sandbox:
    return Sandbox(tmp_path, shell)


@pytest.mark.parametrize("early", [True, False])
# busybox is only asked to read it: its shell has a `reboot` of its own, which no folder of fakes would stop.
@pytest.mark.parametrize("command", [*SHELLS, ["busybox", "sh"]], ids=" ".join)
def test_syntax(command: list[str], tmp_path: Path, early: bool) -> None:
    """Every shell takes the script, whatever the command has in it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    path = tmp_path / "script"
    path.write_bytes(script_disk("if [ -e '/x y' ]; then echo \"it's $HOME\"; fi\n{ } \\ `", early))
    done = subprocess.run([*command, "-n", str(path)], capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("exit 0", 0, b""),
        ("echo one; echo two >&2; exit 3", 3, b"one\ntwo\n"),
        ("false", 1, b""),
        ("exit 125", 125, b""),
        ("printf '\\000\\377\\n\\nchronus-end-0123456789\\n'", 0, b"\0\xff\n\nchronus-end-0123456789\n"),
        ("echo \"it's\" 'a \"quote\"' $((6 * 7)) `echo back` \\\\", 0, b"it's a \"quote\" 42 back \\\n"),
        ("# only a comment\n\nif true; then\n  echo deep\nfi", 0, b"deep\n"),
        ("kill -9 $$", 137, None),
        ("cat; echo no input", 0, b"no input\n"),
        ("echo \udcff\udc80", 0, b"\xff\x80\n"),
        ("chronus_answer() { :; }; exit 9", 9, b""),
    ],
)  # fmt: skip
def test_answer(sandbox: Sandbox, command: str, code: int, output: bytes | None) -> None:
    """Exit code and output come back over the disk as they were."""
    answer = read_answer(sandbox.run(command), command, early=True)
    assert answer is not None
    assert answer.code == code
    assert output is None or answer.output == output


def test_interpreter(sandbox: Sandbox) -> None:
    """A script that names its interpreter gets it."""
    if shutil.which("awk") is None:
        pytest.skip("awk is not installed")
    command = f"#!{sandbox.bin}/awk -f\nBEGIN {{ print 6 * 7; exit 5 }}\n"
    answer = read_answer(sandbox.run(command), command, early=True)
    assert answer is not None
    assert (answer.code, answer.output) == (5, b"42\n")


def test_much_output(sandbox: Sandbox) -> None:
    """Of much output the last part is kept."""
    command = "head -c 100000 /dev/zero; echo; echo the end"
    answer = read_answer(sandbox.run(command), command, early=True)
    assert answer is not None
    assert len(answer.output) == OUTPUT_SIZE
    assert answer.output.endswith(b"\0\nthe end\n")


def test_without_tools(sandbox: Sandbox) -> None:
    """In a guest that has lost `tail` and `sync` the answer comes all the same."""
    (sandbox.bin / "tail").unlink()
    (sandbox.bin / "sync").unlink()
    (sandbox.bin / "sleep").write_text("#!/bin/sh\n")
    (sandbox.bin / "sleep").chmod(0o755)
    answer = read_answer(sandbox.run("echo here; exit 4"), "echo here; exit 4", early=True)
    assert answer is not None
    assert (answer.code, answer.output) == (4, b"here\n")
    assert (sandbox.folder / "proc/sysrq-trigger").read_text() in ("b\n", "s\nb\n")


def test_no_answer_yet() -> None:
    """What is not all there is none: the script itself, `wait`, an answer to something else, rubbish."""
    disk = script_disk("exit 0", early=True)
    assert len(disk) == DISK_SIZE
    assert read_answer(disk, "exit 0", early=True) is None
    key = disk.split(b"chronus_key=")[1].split(b"\n")[0]
    whole = b"chronus-done 7\nx\nchronus-end-" + key + b"\n"
    full = whole + disk[len(whole) :]
    found = read_answer(full, "exit 0", early=True)
    assert found is not None
    assert (found.code, found.output) == (7, b"x")
    assert read_answer(full, "exit 0", early=False) is None
    assert read_answer(full, "exit 1", early=True) is None
    assert read_answer(full.replace(b"done", b"wait", 1), "exit 0", early=True) is None
    for code in (b"-1", b"", b"7 7", b"1e3", b"99999", b"\xff"):
        assert read_answer(full.replace(b"done 7", b"done " + code, 1), "exit 0", early=True) is None
    for cut in (0, 5, 14, len(whole) - 1):
        assert read_answer(full[:cut], "exit 0", early=True) is None


@pytest.mark.parametrize("command", ["", "  \n", "a\0b", "x" * (MAX_COMMAND + 1), "'" * MAX_COMMAND])
def test_refused(command: str) -> None:
    """What no shell could be given is refused."""
    with pytest.raises(ProbeError, match="command"):
        script_disk(command, early=True)
