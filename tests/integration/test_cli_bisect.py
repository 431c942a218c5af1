"""`tt bisect` as a user runs it, on a recording of the Denali demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import TT, Inside, Terminal

from tt.log import Trace
from tt.symbols import for_timeline
from tt.travel import Timeline
from tt.travel.bisect import bisect, cause, watched_transitions
from tt.travel.expressions import compile_condition

BEATS = 20


@pytest.fixture
def demo(tt: TT, demo_trace: Path) -> str:
    shutil.copy(demo_trace, tt.folder / "demo.tt")
    return "demo.tt"


@pytest.fixture(scope="module")
def timeline(demo_trace: Path) -> Iterator[Timeline]:
    with Trace.open(demo_trace) as trace:
        yield Timeline(trace)


# ---- the library on a real recording


def test_a_counter_in_memory(timeline: Timeline) -> None:
    names = for_timeline(timeline)
    for number in (1, 7, BEATS):
        condition = compile_condition(f"*beats >= {number}", names)
        verdict = bisect(timeline, 0, timeline.end_tick, condition)
        assert verdict.tick == timeline.tick and verdict.monotonic
        assert condition(timeline)
        timeline.step()
        timeline.reverse_step(2)
        assert not condition(timeline)
        found = cause(timeline, verdict.latest)
        assert timeline.tick == verdict.tick
        name, _offset = names.at(found.addr) or ("", 0)
        assert name == "beat"
        beats = names.find("beats")
        assert beats is not None
        timeline.step()
        write = timeline.last_write(beats, 8)
        assert write is not None and (write.tick, write.rip) == (verdict.tick, found.addr)


def test_every_store_is_a_transition(timeline: Timeline) -> None:
    names = for_timeline(timeline)
    odd = compile_condition("*(u32*)beats & 1", names)
    assert odd.places is not None
    timeline.seek(5_000_000)
    digest = timeline.digest()
    found = watched_transitions(timeline, 0, timeline.end_tick, odd, odd.places)
    assert timeline.digest() == digest and timeline.tick == 5_000_000
    assert [change.bad for change in found.changes] == [True, False] * (BEATS // 2)
    assert all(change.earliest == change.latest for change in found.changes)
    in_between = watched_transitions(
        timeline, found.changes[3].latest, found.changes[8].latest, odd, odd.places
    )
    assert in_between.changes == found.changes[4:9]
    assert in_between.starts_bad is found.changes[3].bad
    assert not list(timeline.stops)
    physical = compile_condition("p8[" + hex(odd.places[0].addr) + "] % 2 == 1")
    assert physical.places is not None
    again = watched_transitions(timeline, 0, timeline.end_tick, physical, physical.places)
    assert again.changes == found.changes


def test_an_interrupted_search_leaves_everything(timeline: Timeline) -> None:
    timeline.seek(3_000_000)
    digest = timeline.digest()
    condition = compile_condition("*beats > 9", for_timeline(timeline))
    calls = 0

    def progress(tick: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt

    timeline.progress = progress
    with pytest.raises(KeyboardInterrupt):
        bisect(timeline, 0, timeline.end_tick, condition)
    timeline.progress = None
    assert timeline.tick == 3_000_000 and timeline.digest() == digest


# ---- expressions on the command line


def test_an_expression(inside: Inside, demo: str) -> None:
    done = inside("bisect", demo, "--expr", "*beats >= 3")
    first, by, see = done.stdout.decode().splitlines()
    assert first.endswith("0.300000 s: from here on *beats >= 3 holds")
    assert by.startswith("  by 0x") and "beat+0x" in by and "mov qword ptr" in by
    assert done.stderr == b""
    assert see.startswith("see it: tt replay demo.tt --to-tick ")
    tick = int(see.split()[-1])
    assert first.startswith(f"tick {tick:,}, ")
    facts = json.loads(inside.out("bisect", demo, "--expr", "*beats >= 3", "--json"))
    assert (facts["found"], facts["tick"], facts["becomes"], facts["monotonic"]) == (True, tick, "bad", True)
    assert facts["symbol"].startswith("beat+") and facts["instruction"]["text"].startswith("mov ")
    assert facts["probes"][0] == {"tick": 0, "is": "good"}
    shown = inside.out(*see.removeprefix("see it: tt ").split())
    assert f"tick {tick:,} of " in shown


def test_when_it_was_over(inside: Inside, demo: str) -> None:
    [found, *_] = inside.out(
        "bisect", demo, "--bad", "40%", "--good", "end", "--expr", "*beats < 3"
    ).splitlines()
    assert found.endswith("0.300000 s: from here on *beats < 3 does not hold")


def test_what_was_printed(inside: Inside, demo: str) -> None:
    found = inside.out("bisect", demo, "--expr", r'console ~ "heartbeat\s+5 at 500"', "-v").splitlines()
    assert found[0].endswith(r'from here on console ~ "heartbeat\s+5 at 500" holds')
    assert "vmcall" in found[1]


def test_progress_is_told_like_git_does(inside: Inside, demo: str) -> None:
    lines = inside("bisect", demo, "--expr", "tick > 1000", "-v").stderr.decode().splitlines()
    assert lines[0] == "Bisecting: 25 probes left (roughly); tick 0 is good"
    assert lines[1].startswith("Bisecting: 25 probes left (roughly); tick 22,0")
    assert lines[1].endswith(" is bad")
    assert any("1 probe left" in line for line in lines)


def test_it_never_holds(inside: Inside, demo: str) -> None:
    said = inside("bisect", demo, "--expr", "*beats == 77", code=1).stderr.decode()
    assert "given as bad, *beats == 77 does not hold: nor would any of the 16 places" in said
    assert said.count("\n") == 1
    facts = json.loads(inside.out("bisect", demo, "--expr", "*beats == 77", "--json", code=1))
    assert facts["found"] is False and "given as bad" in facts["message"]
    passed = inside("bisect", demo, "--expr", "$pc == beat", "--check", "0", code=1).stderr.decode()
    assert passed.endswith("; where an instruction is executed `break` finds, in tt replay\n")
    swapped = inside("bisect", demo, "--good", "end", "--bad", "start", "--expr", "*beats > 3", code=1)
    assert b"good and bad are the wrong way round" in swapped.stderr


def test_not_monotonic(inside: Inside, demo: str) -> None:
    expression = "tick > 3_000_000 && tick < 8_000_000 || tick > 15_000_000"
    said = inside.out("bisect", demo, "--expr", expression)
    assert "it is not monotonic: at tick " in said and "--all finds them" in said
    every = inside.out("bisect", demo, "--expr", expression, "--all").splitlines()
    assert "3 changes from tick 0 to " in every[0]
    ticks = [line.split()[0] for line in every[2:5]]
    assert ticks == ["3,000,001", "8,000,000", "15,000,001"]
    assert every[5].startswith("looked every 22,0")


def test_all_stores_to_memory(inside: Inside, demo: str) -> None:
    said = inside.out("bisect", demo, "--expr", "*beats == 3 || *beats == 5", "--all").splitlines()
    assert "4 changes" in said[0]
    assert [line.split("  ")[2].strip() for line in said[2:6]] == ["holds", "does not hold"] * 2
    assert said[6] == "every store to the memory it reads was looked at"
    facts = json.loads(inside.out("bisect", demo, "--expr", "*beats == 3", "--all", "--json"))
    assert [change["becomes"] for change in facts["changes"]] == ["bad", "good"]
    assert facts["every"] is None
    none = inside("bisect", demo, "--expr", "*beats == 77", "--all", code=1)
    assert b"0 changes" in none.stdout


def test_symbols_from_a_file(inside: Inside, demo: str) -> None:
    (inside.folder / "System.map").write_text("0000000000100000 T my_start\n")
    said = inside.out(
        "bisect",
        demo,
        "--expr",
        "$pc != my_start",
        "--symbols",
        "System.map",
        "--bad",
        "1000",
        "--check",
        "0",
    )
    assert said.startswith("tick 1, ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expr", "beats > 3"], "*beats or u32[beats] is what lies there"),
        (["--expr", "1 +"], "column 4 of '1 +'"),
        (["--expr", "nosuch"], "there is no symbol or register 'nosuch'"),
        ([], "one of the arguments --expr --run is required"),
        (["--expr", "1", "--run", "true"], "not allowed with"),
        (["--expr", "1", "--every", "5"], "--every goes with --all"),
        (["--expr", "1", "--all", "--every", "0"], "--every 0: give a number, 1 or more"),
        (["--expr", "1", "--check", "x"], "--check x: give a number, 0 or more"),
        (["--expr", "1", "--memory"], "--memory goes with --run"),
        (["--expr", "1", "--good", "5", "--bad", "5"], "same tick, 5"),
        (["--expr", "1", "--bad", "99_000_000_000"], "past the end"),
        (["--run", "no-such-command-here"], "cannot be run (exit code 127)"),
        (["--run", "./demo.tt"], "chmod +x"),
    ],
)
def test_wrong_use(inside: Inside, demo: str, words: list[str], said: str) -> None:
    error = inside("bisect", demo, *words, code=2).stderr.decode()
    assert said in error
    assert error.splitlines()[-1].startswith("tt: ")


def test_bad_input(inside: Inside, demo: str) -> None:
    assert b"nothing.tt" in inside("bisect", "nothing.tt", "--expr", "1", code=3).stderr
    missing = inside("bisect", demo, "--expr", "*beats > 3", "--symbols", "nowhere", code=3)
    assert missing.stderr == b"tt: cannot read symbols from nowhere: No such file or directory\n"


# ---- commands


def script(tt: TT, text: str) -> str:
    path = tt.folder / "judge.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return "./judge.sh"


def test_a_command(tt: TT, demo: str) -> None:
    done = tt("bisect", demo, "--run", 'grep -q "heartbeat  3" "$TT_CONSOLE" && exit 1; exit 0')
    found = done.stdout.decode().splitlines()[0]
    assert "is bad" in found and found.startswith("tick 9,02")
    assert done.stderr.startswith(b"Bisecting: 25 probes left (roughly); tick 0 is good\n")
    by_expression = tt.out("bisect", demo, "--expr", 'console ~ "heartbeat  3"')
    assert by_expression.split(",")[:3] == found.split(",")[:3]


def test_what_a_command_is_given(tt: TT, demo: str) -> None:
    judge = script(
        tt,
        """
        test "$TT_TRACE" = "$PWD/demo.tt" || exit 200
        test -f "$TT_REGISTERS" && test -f "$TT_CONSOLE" || exit 201
        test "$(stat -c %s "$TT_MEMORY")" = 16777216 || exit 202
        printf '{"tick": %s, "ns": %s, "registers": ' "$TT_TICK" "$TT_NS" >> seen
        cat "$TT_REGISTERS" >> seen
        echo '}' >> seen
        cp "$TT_MEMORY" memory
        echo told
        test "$TT_TICK" -lt 1000
        """,
    )
    done = tt("bisect", demo, "--bad", "2000", "--run", judge, "--memory")
    assert done.stdout.startswith(b"tick 1,000, ") and b"told" not in done.stdout
    assert done.stderr.count(b"told\n") == done.stderr.count(b"Bisecting")
    seen = [json.loads(line) for line in (tt.folder / "seen").read_text().splitlines()]
    with Trace.open(tt.folder / demo) as trace:
        timeline = Timeline(trace)
        for look in seen:
            timeline.seek(look["tick"])
            assert look["registers"] == timeline.registers()
            assert look["ns"] == timeline.machine.now_ns
        assert (tt.folder / "memory").read_bytes() == timeline.machine.engine.read(0, 16 << 20)
    assert not os.environ.get("TT_TRACE")


def test_tt_works_inside_a_command(tt: TT, demo: str) -> None:
    judge = 'tt replay "$TT_TRACE" --to-tick "$TT_TICK" --batch where --json | grep -q \'"tick": [0-4],\''
    wrapper = tt.folder / "bin" / "tt"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(tt.command)} "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    assert tt.out("bisect", demo, "--bad", "8", "--run", judge, PATH=path).startswith("tick 5, ")


def test_skips(inside: Inside, demo: str) -> None:
    judge = script(inside, "test $TT_TICK -lt 500 && exit 0; test $TT_TICK -lt 600 && exit 125; exit 3")
    done = inside("bisect", demo, "--bad", "5000", "--run", judge, code=1)
    assert b"`./judge.sh` is bad from some tick on, 500 to 600: everything in between" in done.stdout
    assert b" is skipped" in done.stderr
    facts = json.loads(inside.out("bisect", demo, "--bad", "5000", "--run", judge, "--json", code=1))
    assert (facts["found"], facts["tick"], facts["earliest"], facts["latest"]) == (False, None, 500, 600)


@pytest.mark.parametrize(("judge", "said"), [("exit 128", "exits with 128"), ("kill -9 $$", "signal 9")])
def test_a_command_that_gives_up(inside: Inside, demo: str, judge: str, said: str) -> None:
    error = inside("bisect", demo, "--run", judge, code=3).stderr.decode()
    assert said in error and "ends the search" in error


def test_all_with_a_command(inside: Inside, demo: str) -> None:
    judge = script(inside, "test $TT_TICK -gt 250 && test $TT_TICK -le 750")
    said = inside.out("bisect", demo, "--bad", "1000", "--run", judge, "--all", "--every", "100").splitlines()
    assert [line.split()[0] for line in said[2:4]] == ["251", "751"]
    assert said[4].startswith("looked every 100 ticks")


# ---- Ctrl-C


def test_ctrl_c_between_looks(tt: TT, demo: str) -> None:
    command = [*tt.command, "bisect", demo, "--expr", "tick > 5", "--all", "--every", "1", "-v"]
    process = subprocess.Popen(command, cwd=tt.folder, env=tt.env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for _ in range(100):
        assert b"Bisecting: " in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error[-500:]
    assert error.endswith(b"tt: interrupted\n")


def test_ctrl_c(tt: TT, demo: str) -> None:
    judge = script(tt, "echo > running; exec sleep 60")
    process = subprocess.Popen(
        [*tt.command, "bisect", demo, "--run", judge],
        cwd=tt.folder,
        env=tt.env,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tt.folder / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.endswith(b"tt: interrupted\n")


def test_on_a_terminal_the_way_is_shown(tt: TT, demo: str) -> None:
    command = [*tt.command, "bisect", demo, "--expr", "tick > 5", "--all", "--every", "500"]
    with Terminal(command, tt.folder, tt.env) as terminal:
        terminal.wait_for(b"looked every", timeout_s=120)
        # After a second, so a fast host shows nothing of it.
        shown, _, printed = terminal.seen.rpartition(b"\r\x1b[K")
        assert (b"replaying, tick " in shown) == bool(shown)
        assert printed.startswith(b"tick > 5: 1 change")
        terminal.wait()
