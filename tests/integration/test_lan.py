"""Guests behind one switch: each recorded alone, the same each time, their frames at exact times."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from cli_rig import TT, Inside
from denali_net_rig import ECHO, EPOCH, ROUNDS, build, build_pingpong, net_config
from parents_rig import replays
from stories import story

from tt.cli.lan import Consoles
from tt.errors import UsageError
from tt.events import Event, Kind
from tt.fleet.lan import Guest, open_lan
from tt.log import BackgroundWriter, Trace
from tt.net.link import Conditions
from tt.recording import Recording
from tt.replay import Replay, verify
from tt.vmm import live
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.configure import configure_denali

L = 50_000

# Sends to everybody, more than they take, and waits for the end.
FLOOD = r"""
#include "denali.h"

static u8 frame[200];

static bool never(void *unused)
{
    (void)unused;
    return false;
}

int main(void)
{
    u64 taken = 0;
    network_start(NULL);
    for (u64 i = 0; i < sizeof frame; i++)
        frame[i] = 0xff;
    frame[6] = 2;
    for (u64 i = 0; i < 400; i++)
        taken += network_send(0, frame, sizeof frame) ? 1 : 0;
    print("%lu sent\n", taken);
    wait_until(never, NULL, DENALI_FOREVER);
    return 0;
}
"""


@pytest.fixture(scope="module")
def pingpong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the guest of `pingpong.c`."""
    return build_pingpong(tmp_path_factory.mktemp("pingpong"))


def play(
    guest: Path,
    folder: Path,
    *cables: Conditions,
    max_ns: int = 1 << 60,
    models: tuple[str, str] = ("denali", "classic"),
) -> list[Recording]:
    """Record two guests in a folder."""
    folder.mkdir()
    guests = []
    for number, model in enumerate(models):
        config = configure_denali(guest, epoch=EPOCH, nets=[NetConfig(model, default_mac(0, number))])
        guests.append(
            Guest(f"m{number}", config, folder / f"m{number}.tt", cables=cables[number : number + 1])
        )
    lan = open_lan(guests, seed=1)
    try:
        return lan.run(max_ns=max_ns)
    finally:
        lan.close()


def test_two_guests_play_and_each_trace_replays_alone(pingpong: Path, tmp_path: Path) -> None:
    first, second = play(pingpong, tmp_path / "game", Conditions(latency_ns=L), Conditions(latency_ns=3 * L))
    assert first.reason == second.reason == "terminated with status 0"
    frames = []
    for result in (first, second):
        assert result.path is not None
        replays(result.path)
        with Trace.open(result.path) as trace:
            console = "\n".join(text for _, _, text in trace.console_lines())
            assert re.search(rf"{ROUNDS} rounds in \d+ us, 0 sent again", console), console
            frames.append([(f.incoming, trace.ns_at_tick(f.tick), f.data) for f in trace.frames()])
    # Each frame is two cables away, to the nanosecond but for the tick (4 ns) at which a guest gets it.
    for one, other in (frames, frames[::-1]):
        sent = [(at, data) for incoming, at, data in one if not incoming]
        came = [(at, data) for incoming, at, data in other if incoming]
        assert len(sent) - 2 <= len(came) <= len(sent) and len(came) >= ROUNDS
        for (left, what), (arrived, found) in zip(sent[-len(came) :], came, strict=True):
            assert what == found and 4 * L <= arrived - left < 4 * L + 8


def test_the_same_run_comes_out_each_time(pingpong: Path, tmp_path: Path) -> None:
    bad = Conditions(latency_ns=L, bits_per_s=10_000_000, loss=0.1, duplicate=0.1, reorder=0.1, seed=5)
    for name in ("a", "b"):
        play(pingpong, tmp_path / name, bad, bad, max_ns=300_000_000)
    for machine in ("m0.tt", "m1.tt"):
        assert story(tmp_path / "a" / machine) == story(tmp_path / "b" / machine)
    with Trace.open(tmp_path / "a/m0.tt") as trace:
        assert sum(event.kind is Kind.FRAME_IN for event in trace.events()) > 20
        assert verify(trace).good


def test_a_flood_among_three_comes_out_the_same_however_the_host_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames wait for room in slow guests; commits, checkpoints and their delays change nothing of that."""
    (tmp_path / "f").mkdir()
    (tmp_path / "e").mkdir()
    flood, echo = build(tmp_path / "f", FLOOD), build(tmp_path / "e", ECHO)

    def run(name: str) -> list[tuple[object, ...]]:
        (tmp_path / name).mkdir()
        guests = []
        for number, (guest, model) in enumerate([(flood, "denali"), (echo, "classic"), (echo, "denali")]):
            config = configure_denali(guest, epoch=EPOCH, nets=[NetConfig(model, default_mac(0, number))])
            guests.append(Guest(str(number), config, tmp_path / name / f"{number}.tt"))
        lan = open_lan(guests, seed=1)
        try:
            lan.run(max_ns=2_000_000)
        finally:
            lan.close()
        return [story(tmp_path / name / f"{number}.tt") for number in range(3)]

    first = run("first")
    received = [list(card)[0]["received"] for card in (told[-1] for told in first)]
    assert min(received[1:]) > 100, received
    for number in range(3):
        with Trace.open(tmp_path / f"first/{number}.tt") as trace:
            assert verify(trace).good
    chance = random.Random(1)
    monkeypatch.setattr(live, "COMMIT_EVERY_S", 0.002)
    monkeypatch.setattr(BackgroundWriter, "behind", property(lambda self: chance.random() < 0.5))
    assert run("second") == first


def test_a_run_ends_at_a_time_of_the_guests(pingpong: Path, tmp_path: Path) -> None:
    for result in play(pingpong, tmp_path / "game", max_ns=5_000_000):
        assert result.reason == "reached 5,000,000 ns of guest time"
        assert 4_000_000 < result.guest_ns < 5_001_000
        assert result.path is not None
        replays(result.path)


def test_a_cable_without_latency_is_refused_and_nothing_is_left_open(pingpong: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a latency above 0"):
        play(pingpong, tmp_path / "game", Conditions())
    with pytest.raises(UsageError, match="m0.tt exists already"):
        guest = Guest("m0", net_config(pingpong, "denali"), tmp_path / "game/m0.tt")
        open_lan([guest, guest])


def test_the_command(pingpong: Path, inside: Inside) -> None:
    words = ("lan", f"left={pingpong}", f"right={pingpong}", "--seed", 1, "--epoch", EPOCH)
    done = inside(*words, "-o", "game")
    out, err = done.stdout.decode(), done.stderr.decode()
    assert re.search(rf"^left  \| {ROUNDS} rounds in ", out, re.M), out
    assert re.search(rf"^right \| {ROUNDS} rounds in ", out, re.M), out
    assert "tt: left: recorded game/left.tt; it ended: terminated with status 0\n" in err
    assert "tt: right: frames: 102 received, 102 sent, 0 dropped, 0 lost\n" in err
    assert "good: " in inside.out("verify", "game/right.tt")
    info = inside.out("info", "game/left.tt")
    assert re.search(r"^network card 0 .*52:54:00:74:00:00, connected to a switch with right$", info, re.M)
    assert re.search(r"^frames of card 0 +102 received, 102 sent, 0 dropped, 0 lost$", info, re.M)
    told = json.loads(inside.out(*words, "-o", "again", "--json", "--cable", "right:latency=1ms,loss=5%"))
    assert [machine["name"] for machine in told["machines"]] == ["left", "right"]
    assert told["switch"]["lost"] > 0 and told["machines"][0]["network"][0]["received"] > 80


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["{g}"], "one guest is no network: give two or more"),
        (["a={g}", "a={g}"], "two guests are called 'a'"),
        (["a/b={g}", "{g}"], "a/b={g}: give NAME=GUEST"),
        (
            ["{g}", "{g}", "--input", "x=y"],
            "--input x=y: give NAME=FILE, once for each of pingpong-1, pingpong-2",
        ),
        (["{g}", "{g}", "--cable", "x:loss=1%"], "--cable x:loss=1%: no guest is called 'x'"),
        (["{g}", "{g}", "--cable", "latency=0ms"], "--cable latency=0ms: the latency is to be above 0"),
        (["{g}", "{g}", "--max-time", "5"], "--max-time 5: give 10ms (units: ns, us, ms, s)"),
        (["{g}", "{g}", "--timeout", "0"], "--timeout 0.0: give seconds above 0"),
        (["{g}", "{g}", "--model", "virtio"], "a denali machine has no card 'virtio': give denali, classic"),
    ],
)
def test_wrong_use_is_told_in_a_line(pingpong: Path, inside: Inside, words: list[str], why: str) -> None:
    done = inside("lan", *(word.format(g=pingpong) for word in words), code=2)
    [line] = done.stderr.decode().splitlines()
    assert why.format(g=pingpong) in line
    assert not (inside.folder / "lan/pingpong-1.tt").exists()


def test_consoles_are_printed_line_by_line() -> None:
    out = io.StringIO()
    consoles = Consoles(out, 3)
    for name, text in (
        ("a", b"one\r\ntw"),
        ("bcd", b"\x1b[6n\x1b[1;31mred\x1b[0m\t\x07\n"),
        ("a", b"o\n\xff"),
        ("bcd", b"\x1b]0;title\x07$ "),
    ):
        consoles.see(name, Event(1, Kind.CONSOLE, 0, 0, text))
    consoles.see("a", Event(1, Kind.TIMER, 0, 0, b"x\n"))
    assert out.getvalue() == "a   | one\nbcd | red     \\x07\na   | two\n"
    consoles.finish()
    assert out.getvalue().endswith("a   | two\na   | \ufffd\nbcd | $ \n")


@pytest.mark.slow
def test_tt_is_killed_and_both_traces_are_whole(tmp_path: Path, tt: TT) -> None:
    (tmp_path / "f").mkdir()
    flood, echo = build(tmp_path / "f", FLOOD), build(tmp_path, ECHO)
    command = [*tt.command, "lan", f"a={flood}", f"b={echo}", f"c={echo}", "-o", "storm"]
    process = subprocess.Popen(command, cwd=tmp_path, env=tt.env, stdout=subprocess.DEVNULL)
    time.sleep(3)
    process.kill()
    process.wait()
    for name in "abc":
        with Trace.open(tmp_path / f"storm/{name}.tt") as trace:
            assert trace.verify_structure() == [] and not trace.sealed and trace.end_tick > 1000
            replay = Replay(trace)
            replay.run_to(trace.end_tick)
            assert replay.tick == trace.end_tick


@pytest.mark.slow
def test_two_debians_ping_each_other(debian_image: Path, inside: Inside) -> None:
    (inside.folder / "a.txt").write_text(
        "ifconfig eth0 10.1.0.1\nsleep 2\nping -c 3 10.1.0.2\nwget -qO- http://10.1.0.2/\n"
        "dd if=/dev/zero bs=1M count=2 | nc 10.1.0.2 99\n"
    )
    (inside.folder / "b.txt").write_text("ifconfig eth0 10.1.0.2\nnc -l -p 99 | md5sum\nping -c 2 10.1.0.1\n")
    words = ("lan", f"a={debian_image}", f"b={debian_image}", "--seed", 1, "--epoch", EPOCH)
    words += ("--cable", "latency=1ms,rate=100mbit,loss=0.3%,reorder=1%,duplicate=1%,seed=2")
    for name in ("one", "two"):
        done = inside(*words, "-o", name, "--input", "a=a.txt", "--input", "b=b.txt")
        out = done.stdout.decode()
        assert "a | 3 packets transmitted, 3 packets received, 0% packet loss" in out, out
        assert "b | 2 packets transmitted, 2 packets received, 0% packet loss" in out
        assert "a | <h1>It works</h1>" in out
        assert f"b | {hashlib.md5(bytes(2 << 20)).hexdigest()}  -" in out
    for machine in ("a.tt", "b.tt"):
        assert story(inside.folder / "one" / machine) == story(inside.folder / "two" / machine)
        with Trace.open(inside.folder / "one" / machine) as trace:
            assert verify(trace).good
