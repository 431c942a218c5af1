"""QEMU's reverse debugging, which `travel.py` compares with tt: a Debian boot, recorded and run backwards.

A recording is replayed with QEMU's gdb stub open and stopped at the start.
`replay-seek` (QMP) goes to an instruction; the packets `bs` and `bc` are what
gdb's `reverse-stepi` and `reverse-continue` send.  QEMU goes back by loading a
snapshot and replaying from there.  There is one at the start: QEMU makes it when gdb attaches, or, with
`rrsnapshot=`, while recording.  QEMU 7.2 hangs now and then on the way, mostly when the next packet comes at
once, so it is given time to settle; waiting for an answer has a limit, after which the hang is counted and a
new QEMU is started.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
STEPS = 5  # reverse-stepi at each place
_ANSWER_S = 60.0
_SETTLE_S = 0.2  # before a packet that makes it run: about as long as gdb reads the state
_PLACES = ((1, 1000), (1, 4), (1, 2), (9, 10))  # of the boot
_RSP = slice(7 * 8, 8 * 8)  # in the answer to `g`: rax rbx rcx rdx rsi rdi rbp rsp ...


class NoAnswer(Exception):
    """QEMU did not answer in time, or has ended."""


class Qemu:
    """A QEMU that replays, its gdb stub and its monitor open."""

    def __init__(self, command: list[str], folder: Path) -> None:
        gdb, qmp = folder / "gdb.sock", folder / "qmp.sock"
        gdb.unlink(missing_ok=True)
        qmp.unlink(missing_ok=True)
        command = [*command, "-S", "-gdb", f"unix:{gdb},server=on,wait=off"]
        command += ["-qmp", f"unix:{qmp},server=on,wait=off"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._rest = b""
        try:
            self._monitor = _connect(qmp, self._process)
            self._lines = self._monitor.makefile("rwb")
            self.ask_monitor("qmp_capabilities")
            self._gdb = _connect(gdb, self._process)
            self.ask(b"qSupported:multiprocess+;ReverseStep+;ReverseContinue+")
            self.ask(b"?")
        except BaseException:
            self.kill()
            raise

    def ask(self, packet: bytes) -> bytes:
        """Send a packet as gdb does and return the answer."""
        self._gdb.sendall(b"$%b#%02x" % (packet, sum(packet) & 255))
        return self.answer()

    def answer(self) -> bytes:
        """Return the next packet from the stub; raises `NoAnswer`."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            self._rest = self._rest.lstrip(b"+")
            end = self._rest.find(b"#")
            if 0 < end <= len(self._rest) - 3:
                packet, self._rest = self._rest[1:end], self._rest[end + 3 :]
                self._gdb.sendall(b"+")
                return packet
            if not select.select([self._gdb], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NoAnswer("gdb stub")
            data = self._gdb.recv(1 << 16)
            if not data:
                raise NoAnswer("QEMU ended")
            self._rest += data

    def ask_monitor(self, command: str, **arguments: object) -> Any:
        """Give the monitor a command and return its answer; raises `NoAnswer`."""
        try:
            self._lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            self._lines.flush()
            while line := self._lines.readline():
                answer = json.loads(line)
                if "return" in answer or "error" in answer:
                    return answer.get("return", answer.get("error"))
        except OSError:
            pass
        raise NoAnswer("monitor")

    def seek(self, icount: int) -> None:
        """Go to an instruction and wait until it is reached."""
        self.ask_monitor("replay-seek", icount=icount)
        self.answer()

    def settle(self) -> None:
        """Read the state as gdb does after a stop, and leave QEMU some time."""
        self.ask(b"g")
        time.sleep(_SETTLE_S)

    def rsp(self) -> int:
        """Return the stack pointer."""
        return int.from_bytes(bytes.fromhex(self.ask(b"g").decode())[_RSP], "little")

    def kill(self) -> None:
        """Kill it: a QEMU that hangs does not react to SIGTERM."""
        self._process.kill()
        self._process.wait()


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            connection.connect(str(path))
            connection.settimeout(_ANSWER_S)
            return connection
        connection.close()
        time.sleep(0.05)
    raise NoAnswer("QEMU does not start")


def command(program: str, guest: Path, cmdline: str, folder: Path, mode: str, *, snapshot: bool) -> list[str]:
    """Return the command line of a QEMU that records or replays; `snapshot`: one is made at the start."""
    shot = ",rrsnapshot=init" if snapshot else ""
    throwaway = "" if snapshot else ",snapshot=on"
    return [
        program,
        *("-machine", "pc,acpi=off", "-cpu", "qemu64", "-m", "256"),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-icount", f"shift=0,rr={mode},rrfile={folder / 'boot.rr'}{shot}"),
        *("-kernel", str(guest / "vmlinuz"), "-initrd", str(guest / "initrd.img"), "-append", cmdline),
        *("-drive", f"file={folder / 'disk.qcow2'},format=qcow2,if=none,id=base{throwaway}"),
        *("-drive", "driver=blkreplay,if=none,image=base,id=disk"),
        *("-device", "virtio-blk-pci,disable-modern=on,drive=disk"),
        *("-drive", f"file={folder / 'states.qcow2'},format=qcow2,if=none,id=states"),
    ]


def record(recording: list[str], image: Path, folder: Path, prompt: bytes) -> int:
    """Record a boot up to the prompt; return how many instructions it took."""
    for name, backing in (("disk", ["-b", str(image), "-F", "raw"]), ("states", ["1M"])):
        file = folder / f"{name}.qcow2"
        file.unlink(missing_ok=True)
        make = ["qemu-img", "create", "-q", "-f", "qcow2"]
        create = [*make, *backing, str(file)] if name == "disk" else [*make, str(file), *backing]
        subprocess.run(create, check=True)
    qmp = folder / "qmp.sock"
    qmp.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*recording, "-qmp", f"unix:{qmp},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        output, deadline = b"", time.monotonic() + _ANSWER_S
        while prompt not in output:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NoAnswer("no prompt while recording")
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise NoAnswer("QEMU ended while recording")
            output += data
        lines = _connect(qmp, process).makefile("rwb")
        lines.write(b'{"execute": "qmp_capabilities"}\n{"execute": "query-replay"}\n')
        lines.flush()
        while line := lines.readline():
            answer = json.loads(line).get("return")
            if answer:
                return int(answer["icount"])
        raise NoAnswer("monitor")
    except OSError:
        raise NoAnswer("monitor") from None
    finally:
        process.terminate()  # it must close its log
        try:
            process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def measure(
    program: str, guest: Path, image: Path, cmdline: str, folder: Path, prompt: bytes, limit_s: float
) -> dict[str, Any]:
    """Record a boot and go back in it, for each way to get the first snapshot; about `limit_s` each."""
    found: dict[str, Any] = {}
    for name, snapshot in (("snapshot when gdb attaches", False), ("rrsnapshot=init", True)):
        commands = [
            command(program, guest, cmdline, folder, m, snapshot=snapshot) for m in ("record", "replay")
        ]
        try:
            ticks = record(commands[0], image, folder, prompt)
        except NoAnswer as e:
            found[name] = {"instructions": 0, "places": [], "failed": f"recording: {e}"}
            continue
        found[name] = _drive(commands[1], folder, ticks, time.monotonic() + limit_s)
    return found


def _drive(replaying: list[str], folder: Path, ticks: int, deadline: float) -> dict[str, Any]:
    """Seek, step back and search back at each place, in a fresh QEMU after each hang."""
    places: list[dict[str, Any]] = []
    for over, under in _PLACES:
        icount = ticks * over // under
        place: dict[str, Any] = {"icount": icount, "seek_s": [], "step_s": [], "watch_s": [], "hung": []}
        places.append(place)
        doing = "start"
        for _attempt in range(3):
            if time.monotonic() > deadline:
                break
            qemu = None
            try:
                doing = "start"
                qemu = Qemu(replaying, folder)
                doing = "seek"
                place["seek_s"].append(_timed(qemu.seek, icount))
                doing = "reverse-stepi"
                while len(place["step_s"]) < STEPS and time.monotonic() < deadline:
                    qemu.settle()
                    place["step_s"].append(_timed(qemu.ask, b"bs"))
                doing = "reverse-continue"
                if time.monotonic() < deadline:
                    qemu.settle()
                    qemu.ask(b"Z2,%x,8" % (qemu.rsp() - 8))
                    place["watch_s"].append(_timed(qemu.ask, b"bc"))
                break
            except NoAnswer:
                place["hung"].append(doing)
            finally:
                if qemu is not None:
                    qemu.kill()
    return {"instructions": ticks, "places": places, "failed": ""}


def _timed(work: Callable[[T], object], argument: T) -> float:
    begin = time.perf_counter()
    work(argument)
    return time.perf_counter() - begin
