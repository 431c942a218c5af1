"""Debian on the network: the host through passt, recorded; then everything again with no network at all."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_rig import Inside
from gdb_rig import GdbServer, needs_gdb
from network_rig import Conversation, free_port, needs_passt, serving

from tt.events import FRAMES, Kind
from tt.log import Trace
from tt.replay import verify
from tt.travel import Timeline
from tt.travel.branches.fork import Fork

pytestmark = [pytest.mark.slow, needs_passt]

HERE = Path(__file__).parent
PROMPT = "root@debian:~# "
MB = 1 << 20


def ask_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
        return str(page.read().decode())


def replays_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay agrees with the record, where there is neither passt nor any socket."""

    def no_socket(*args: object, **options: object) -> None:
        raise AssertionError("a replay opened a socket")

    with monkeypatch.context() as alone:
        alone.setenv("PATH", "/nowhere")
        alone.setattr(socket, "socket", no_socket)
        alone.setattr(subprocess, "Popen", no_socket)
        with Trace.open(path) as trace:
            assert trace.verify_structure() == []
            verdict = verify(trace)
            assert verdict.good, verdict


def frame_bytes(path: Path) -> tuple[int, int]:
    """Return how many bytes of frames a trace has, and how many bytes they take in it."""
    with Trace.open(path) as trace:
        told = sum(len(frame.data) for frame in trace.frames())
    db = sqlite3.connect(path)
    try:
        (stored,) = db.execute("SELECT sum(length(packed)) FROM frame_packs").fetchone()
    finally:
        db.close()
    return told, stored


@dataclass
class Talk:
    trace: Path
    conversation: Conversation
    page: str


@pytest.fixture(scope="module")
def talk(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """A boot, an address by DHCP, a file from the host, and a page for the host."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "www").mkdir()
    (folder / "www/hello").write_text("hello from the host\n")
    port, pages = free_port(), []

    def say(guest: Conversation) -> None:
        guest.wait_for(PROMPT)
        guest.ask("ifconfig eth0; route -n; cat /run/resolv.conf; echo A''LL", "ALL\n")
        guest.ask(f"wget -qO- http://10.0.2.2:{web}/hello", "hello from the host\n")
        pages.append(ask_page(port))
        guest.ask("echo served; echo A''LL", "ALL\n")

    with serving(folder / "www") as web:
        talked = Conversation(debian_image, folder / "net.tt", say, forwards=[f"{port}:80"])
    return Talk(folder / "net.tt", talked, pages[0])


def test_the_guest_has_an_address_and_is_reached(talk: Talk) -> None:
    console = talk.conversation.console
    assert "inet addr:10.0.2.15" in console and "HWaddr 52:54:00:74:00:00" in console
    assert re.search(r"^0\.0\.0\.0 +10\.0\.2\.2 ", console, re.M) and "\nnameserver " in console
    assert "It works" in talk.page and talk.conversation.said == []


def test_a_replay_needs_no_network(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    replays_alone(talk.trace, monkeypatch)


def test_frames_are_whole_and_timed(talk: Talk) -> None:
    with Trace.open(talk.trace) as trace:
        frames = list(trace.frames())
        events = list(trace.events(kinds=FRAMES))
    assert [frame.data for frame in frames] == [event.data for event in events]
    times = [frame.host_ns for frame in frames]
    assert times == sorted(times) and times[-1] - times[0] < 240e9
    assert any(b"hello from the host" in frame.data and frame.incoming for frame in frames)
    assert any(b"It works" in frame.data and not frame.incoming for frame in frames)


def test_going_back_and_forth_among_frames(talk: Talk) -> None:
    with Trace.open(talk.trace) as trace:
        timeline = Timeline(trace)
        ticks = [frame.tick for frame in trace.frames()][-9:]
        places = {}
        for tick in ticks:
            timeline.seek(tick)
            places[tick] = timeline.digest()
        for tick in random.Random(5).sample(ticks, len(ticks)):
            timeline.seek(min(tick + 1000, trace.end_tick))
            timeline.reverse_step(timeline.tick - tick)
            assert timeline.digest() == places[tick]


def test_the_tools_of_other_recordings(talk: Talk, inside: Inside) -> None:
    told = inside.out("info", talk.trace)
    assert re.search(r"network card 0 +virtio, 52:54:00:74:00:00, connected to user,forward=tcp:", told)
    found = inside.out("bisect", talk.trace, "--check", "0", "--expr", r'console ~ "(?m)^hello from"')
    with Trace.open(talk.trace) as trace:
        came = next(frame.tick for frame in trace.frames() if b"hello from the host" in frame.data)
    assert came < int(re.findall(r"[\d,]{9,}", found)[0].replace(",", ""))


@needs_gdb
def test_gdb_goes_back_to_what_takes_a_packet(talk: Talk) -> None:
    with GdbServer(talk.trace, "--to-tick", "end") as server:
        said = server.gdb("break ip_rcv", "reverse-continue", "info symbol $pc", "print $tick", "detach")
    assert "ip_rcv in section .text" in said
    with Trace.open(talk.trace) as trace:
        last = max(frame.tick for frame in trace.frames() if frame.incoming)
        tick = int(re.findall(r"^\$\d+ = (\d+)", said, re.M)[0])
        assert last - 100_000_000 < tick <= trace.end_tick


def run_beside(fork: Fork, work: Callable[[], None]) -> None:
    """Let a fork run while `work` does something with it from outside."""
    failed: list[BaseException] = []

    def careful() -> None:
        try:
            work()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=careful)
    thread.start()
    while thread.is_alive():
        fork.run(timeout_s=0.2)
    if failed:
        raise failed[0]


def test_forks(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: Inside) -> None:
    with Trace.open(talk.trace) as trace:
        timeline = Timeline(trace)
        asked = next(frame.tick for frame in trace.frames() if b"GET /hello" in frame.data)
        timeline.seek(asked + 1)
        with timeline.fork(tmp_path / "kept.tt", keep_inputs=True) as kept:
            kept.run(until=trace.end_tick)
            timeline.seek(trace.end_tick)
            assert kept.digest() == timeline.digest()
        line = next(event.tick for event in trace.events(kinds={Kind.INPUT}) if b"wget" in event.data)
        timeline.seek(line)
        script = [b"timeout 3 wget -qO- http://10.0.2.2:80/ || echo cut''off\n"]
        with timeline.fork(tmp_path / "off.tt", script=script) as off:
            off.run(until_prompt=True, timeout_s=120)
        port = free_port()
        pages = []
        with Fork(timeline, tmp_path / "live.tt", network=["user"], forwards=[f"{port}:80"]) as live:
            run_beside(live, lambda: pages.append(ask_page(port)))
        assert "It works" in pages[0]
    for made in (off, live):
        replays_alone(made.path, monkeypatch)
    with Trace.open(off.path) as child:
        assert "cutoff" in "".join(text for _tick, _unit, text in child.console_lines())
        assert not [frame for frame in child.frames(line) if frame.incoming]
        assert [frame for frame in child.frames(line) if not frame.incoming]
    with Trace.open(live.path) as child:
        assert any(b"It works" in frame.data for frame in child.frames(line))
        assert child.meta["networks"] == [f"user,forward=tcp:127.0.0.1:{port}-80"]
    assert f"tick {line + 1:,}" in inside.out("diff", talk.trace, off.path, code=1)


def fetch(guest: Conversation, folder: Path, web: int, size: int) -> str:
    """Move a file from the host to the guest, which gets what the host has; return its checksum."""
    blob = random.Random(size).randbytes(size)
    (folder / "blob").write_bytes(blob)
    wanted = hashlib.md5(blob).hexdigest()
    guest.ask(f"wget -qO /tmp/blob http://10.0.2.2:{web}/blob; md5sum /tmp/blob", f"{wanted}  /tmp/blob")
    return wanted


def fetch_back(port: int, wanted: str) -> None:
    """Move the file from the guest's web server to the host, which gets what it was."""
    digest = hashlib.md5()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/blob", timeout=60) as blob:
        while piece := blob.read(MB):
            digest.update(piece)
    assert digest.hexdigest() == wanted


def test_a_hundred_megabytes_each_way_and_a_guest_that_means_no_good(
    debian_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    built = subprocess.run([compiler, "-O2", "-static", "-o", tmp_path / "flood", HERE / "flood.c"])
    assert built.returncode == 0

    def say(guest: Conversation) -> None:
        guest.wait_for(PROMPT)
        wanted = fetch(guest, tmp_path, web, 100 * MB)
        guest.ask("httpd -c /dev/null -p 81 -h /tmp; echo UP''PED", "UPPED\n")
        fetch_back(port, wanted)
        guest.ask("rm /tmp/blob; ifconfig eth0 mtu 68; ifconfig eth0 | grep -o MTU.*", "MTU:68 ")
        guest.ask(f"timeout 5 wget -qO- http://10.0.2.2:{web}/hello; echo TR''IED", "TRIED\n")
        guest.ask("ifconfig eth0 mtu 65535; ifconfig eth0 | grep -o MTU.*", "MTU:65535 ")
        guest.ask(
            f"wget -qO /tmp/flood http://10.0.2.2:{web}/flood; chmod +x /tmp/flood; echo G''OT", "GOT\n"
        )
        sizes = guest.ask("/tmp/flood eth0 1", r"sizes: (\d+) sent, (\d+) refused\n")
        assert int(sizes[1]) > 100, sizes[0]
        assert int(guest.wait_for(r"flooded: (\d+)\n")[1]) > 1000
        guest.ask(f"wget -qO- http://10.0.2.2:{web}/hello", "hello from the host\n")

    port = free_port()
    (tmp_path / "hello").write_text("hello from the host\n")
    with serving(tmp_path) as web:
        talked = Conversation(debian_image, tmp_path / "big.tt", say, forwards=[f"{port}:81"], timeout_s=400)
    assert talked.said == []
    told, stored = frame_bytes(tmp_path / "big.tt")
    assert told > 200 * MB and stored < 1.1 * told
    replays_alone(tmp_path / "big.tt", monkeypatch)


def test_a_bad_cable(debian_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the guest only: passt of 2023 never repeats an ACK that was lost, however often the data comes."""

    def say(guest: Conversation) -> None:
        guest.wait_for(PROMPT)
        fetch(guest, tmp_path, web, 8 * MB)
        guest.ask("ifconfig eth2 | grep -o inet.addr:[0-9.]*", r"inet addr:10\.0\.4\.15")
        assert "It works" in ask_page(port)

    net = "user,loss=1%,reorder=1%,seed=7"
    second = f"user,forward={(port := free_port())}-80"
    with serving(tmp_path) as web:
        talked = Conversation(
            debian_image, tmp_path / "bad.tt", say, nets=[net, "none", second], timeout_s=300
        )
    (cable, unplugged, _second) = talked.network.cables
    assert cable.inwards.lost + cable.outwards.lost > 0 and unplugged.received == 0
    with Trace.open(tmp_path / "bad.tt") as trace:
        assert [(e.unit, e.value) for e in trace.events(kinds={Kind.LINK})] == [(1, 0)]
    replays_alone(tmp_path / "bad.tt", monkeypatch)
