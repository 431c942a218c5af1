"""The guests of the kit's network stack: a web server and a client, with each other, Linux, and the host."""

from __future__ import annotations

import hashlib
import re
import socket
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Inside
from denali_net_rig import EPOCH, KIT, net_config
from network_rig import Conversation, free_port, needs_passt, serving
from parents_rig import replays

from tt.net.link import Link
from tt.vmm.config import MachineConfig
from tt.vmm.denali.guest_build import FETCH, PARTS, WEB, build_guest, elf_file

ASKER = r"""
#include "net.h"

int main(void)
{
    if (!net_start_dhcp(100 * 1000000000ul))
        panic("nobody answers");
    u32 own = net_address(), gateway = net_gateway(), dns = net_dns();
    print(IP_FORMAT " " IP_FORMAT " " IP_FORMAT "\n", IP_PARTS(own), IP_PARTS(gateway), IP_PARTS(dns));
    return 0;
}
"""


@pytest.fixture(scope="session")
def web(denali_demo: Path) -> Path:
    """Return the web server."""
    return elf_file(denali_demo.parent, WEB)


@pytest.fixture(scope="session")
def fetch(denali_demo: Path) -> Path:
    """Return the client."""
    return elf_file(denali_demo.parent, FETCH)


def body(size: int) -> bytes:
    """Return what the server sends as /bytes/SIZE."""
    return bytes((i * 7 + (i >> 8) * 13) & 0xFF for i in range(size))


def denali(guest: Path, **options: Any) -> MachineConfig:
    return net_config(guest, "denali")


def test_a_server_and_a_client_over_bad_cables(web: Path, fetch: Path, inside: Inside) -> None:
    paths = ["80 /bytes/60000", "80 /", "80 /none", "81 /", "80 /end"]
    (inside.folder / "f.txt").write_text("".join(f"10.1.0.1 {path}\n" for path in paths) + "quit\n")
    done = inside(
        "lan", f"web={web}", f"fetch={fetch}", "-o", "lan", "--input", "fetch=f.txt", "--seed", 1,
        "--epoch", EPOCH, "--cable", "latency=1ms,loss=2%,duplicate=2%,reorder=5%,corrupt=1%,seed=3",
    )  # fmt: skip
    out = done.stdout.decode()
    wanted = [
        f"status 200, 60000 bytes, crc {zlib.crc32(body(60_000)):08x}",
        f"status 200, 33 bytes, crc {zlib.crc32(b'Denali serves you, visitor     2' + bytes([10])):08x}",
        "status 404, 0 bytes, crc 00000000",
        "cannot connect (-3)",
        "status 200, 8 bytes, crc ",
    ]
    found = re.findall(r"^fetch \| > fetch: (.*)$", out, re.M)
    assert len(found) == len(wanted), out
    assert all(line.startswith(start) for line, start in zip(found, wanted, strict=True)), found
    assert re.search(r"^web   \| web: 4 served$", out, re.M)
    assert re.search(r"cables lost [1-9]", done.stderr.decode())
    for name in ("web", "fetch"):
        replays(inside.folder / f"lan/{name}.tt")


@needs_passt
def test_many_visitors_from_the_host(web: Path, tmp_path: Path) -> None:
    port, echo = free_port(), free_port()

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as page:
            return bytes(page.read())

    def say(guest: Conversation) -> None:
        guest.wait_for("web: 10.0.2.15 port 80")
        with ThreadPoolExecutor(8) as visitors:
            sizes = [20_000 + 1000 * i for i in range(8)]
            assert list(visitors.map(get, (f"bytes/{size}" for size in sizes))) == [body(s) for s in sizes]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(30)
            udp.connect(("127.0.0.1", echo))
            for text in (b"hello", b"x" * 1400):
                udp.send(text)
                assert udp.recv(2000) == text
        assert get("end") == b"It ends\n"
        guest.wait_for("web: 9 served")

    forwards = [f"{port}:80", f"udp:127.0.0.1:{echo}-7"]
    talk = Conversation(web, tmp_path / "web.tt", say, forwards=forwards, config=denali)
    assert talk.recording.reason == "terminated with status 0"
    replays(tmp_path / "web.tt")


@needs_passt
@pytest.mark.slow
def test_the_manuals_server(tmp_path: Path) -> None:
    manual = (KIT.parents[1] / "docs" / "denali-machine.md").read_text()
    [source] = [code for code in re.findall(r"^```c\n(.*?)^```", manual, re.M | re.S) if "net.h" in code]
    (tmp_path / "tiny.c").write_text(source)
    build_guest([tmp_path / "tiny.c", *(KIT / n for n in PARTS)], tmp_path / "tiny.elf", kit=KIT)
    port = free_port()

    def say(guest: Conversation) -> None:
        guest.wait_for("http://10.0.2.15/")
        for _ in range(2):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                assert page.read() == b"hello\n"

    Conversation(tmp_path / "tiny.elf", tmp_path / "tiny.tt", say, forwards=[f"{port}:80"], config=denali)


@needs_passt
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_host_gets_it_all_over_a_bad_cable(web: Path, tmp_path: Path, seed: int) -> None:
    """Everything happens to what the guest sends; what passt sends, which it never repeats, is not lost."""
    port = free_port()

    def say(guest: Conversation) -> None:
        [cable] = guest.network.cables
        cable.inwards = Link(replace(cable.conditions, loss=0.0))
        guest.wait_for("web: 10.0.2.15 port 80")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/bytes/300000", timeout=100) as page:
            assert page.read() == body(300_000)

    cable = f"user,loss=2%,reorder=3%,duplicate=3%,seed={seed}"
    talk = Conversation(web, tmp_path / "web.tt", say, nets=[cable], forwards=[f"{port}:80"], config=denali)
    [counted] = talk.network.counters()
    assert counted["lost"] > 0
    replays(tmp_path / "web.tt")


@needs_passt
@pytest.mark.slow
@pytest.mark.parametrize("cable", ["user", "user,reorder=3%,duplicate=3%,seed=1"])
def test_a_file_of_the_host(fetch: Path, tmp_path: Path, cable: str) -> None:
    """passt takes the window that comes last for the newest: what the guest sends keeps its order here."""
    data = body(1_000_000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/data").write_bytes(data)

    def say(guest: Conversation) -> None:
        [line] = guest.network.cables
        line.outwards = Link(replace(line.conditions, reorder=0.0))
        guest.wait_for("> ")
        answer = guest.ask(f"10.0.2.2 {port} /data", r"fetch: (.*)\n").group(1)
        assert answer == f"status 200, 1000000 bytes, crc {zlib.crc32(data):08x}"
        guest.ask("quit", "quit|$")

    with serving(tmp_path / "www") as port:
        Conversation(fetch, tmp_path / "fetch.tt", say, nets=[cable], config=denali)
    replays(tmp_path / "fetch.tt")


@pytest.mark.slow
def test_linux_on_bad_cables(debian_image: Path, web: Path, fetch: Path, inside: Inside) -> None:
    """Linux's own stack is the client of one, the server of the other, and sends datagrams and pings."""
    (inside.folder / "linux.txt").write_text(
        "ifconfig eth0 10.1.0.3\n"
        "ping -c 20 -i 0.2 10.1.0.1 | tail -n 2\n"
        "for i in 1 2 3 4 5 6; do wget -qO /tmp/$i http://10.1.0.1/bytes/200000 & done; wait\n"
        "md5sum /tmp/[1-6]\n"
        "wget -qO- http://10.1.0.1/\n"
        "wget -O- http://10.1.0.1:81/\n"
        "traceroute -n -q 8 -w 1 10.1.0.1\n"
        "printf 'interface eth0\\nstart 10.1.0.50\\nend 10.1.0.50\\nopt subnet 255.255.255.0\\n"
        "opt router 10.1.0.3\\nopt dns 10.1.0.4\\n' > /tmp/dhcp.conf\n"
        "touch /tmp/leases; udhcpd -f -I 10.1.0.3 /tmp/dhcp.conf &\n"
    )
    (inside.folder / "fetch.txt").write_text("10.1.0.3 80 /\n" * 12)
    cable = "latency=1ms,loss=1%,reorder=3%,duplicate=3%,seed=4"
    (inside.folder / "asker.c").write_text(ASKER)
    build_guest([inside.folder / "asker.c", *(KIT / n for n in PARTS)], inside.folder / "asker.elf", kit=KIT)
    guests = [f"web={web}", f"fetch={fetch}", f"linux={debian_image}", "asker=asker.elf"]
    words: tuple[object, ...] = ("lan", *guests, "-o", "lan", "--seed", 1)
    words += ("--input", "linux=linux.txt", "--input", "fetch=fetch.txt", "--epoch", EPOCH, "--cable", cable)
    out = inside(*words, "--max-time", "40s").stdout.decode()
    received = re.search(r"20 packets transmitted, (\d+) packets received", out)
    assert received is not None and 15 <= int(received[1]) <= 20, out
    told = hashlib.md5(body(200_000)).hexdigest()
    assert len(re.findall(rf"^linux \| {told}  /tmp/[1-6]$", out, re.M)) == 6, out
    assert "linux | Denali serves you, visitor     7" in out
    assert "linux | wget: can't connect to remote host (10.1.0.1): Connection refused" in out
    reached = re.search(r"^linux \|  1  (?:\* +)*10\.1\.0\.1 (.*)$", out, re.M)  # by its "port unreachable"
    assert reached is not None and reached[1].count(" ms") >= 4, out
    assert "asker | 10.1.0.50 10.1.0.3 10.1.0.4" in out, out
    pages = re.findall(r"^fetch \| > fetch: status 200, (\d+) bytes, crc (\w+)$", out, re.M)
    assert len(pages) >= 3 and len(set(pages)) == 1
    for path in (inside.folder / f"lan/{name}.tt" for name in ("web", "fetch", "linux", "asker")):
        replays(path)
