"""`tt record`, `replay`, `verify` and `demo` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import ROOT, TT, Inside, unmeasured

from tt.events import Event, Kind
from tt.log import Trace
from tt.replay import verify
from tt.vmm.machine import Machine

EPOCH = "1700000000"


def content(path: Path) -> tuple[list[Event], list[tuple[int, bytes]], int]:
    """Return all that two equal recordings share."""
    with Trace.open(path) as trace:
        return list(trace.events()), list(trace.digests()), trace.end_tick


@contextmanager
def busy_host() -> Iterator[None]:
    """Keep two cores busy while the block runs."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


# ---- recording


def test_record_and_verify(tt: TT, denali_demo: Path) -> None:
    done = tt("record", denali_demo)
    assert done.stdout.startswith(b"Denali demo: 16 MiB")
    assert b"tt: recorded demo.tt, " in done.stderr
    assert b"it ended: terminated with status 0" in done.stderr
    assert b"try: tt verify demo.tt" in done.stderr
    assert tt.out("console", "demo.tt").encode() == done.stdout
    said = tt.out("verify", "demo.tt")
    assert said.startswith("demo.tt: good: ")
    assert "events and 1 digest of the whole state agree" in said
    facts = json.loads(tt.out("verify", "demo.tt", "--json"))
    assert (facts["good"], facts["sealed"], facts["detail"]) == (True, True, [])
    info = tt.out("info", "demo.tt")
    assert "denali, 16.0 MB of memory" in info
    assert "4.0 MB, blank" in info


def test_traces_are_never_overwritten_unasked(inside: Inside, denali_demo: Path) -> None:
    few = ("--max-ticks", "1_000_000")
    for name in (b"demo.tt", b"demo-2.tt", b"demo-3.tt"):
        assert b"tt: recorded " + name in inside("record", denali_demo, *few).stderr
    taken = inside("record", denali_demo, "-o", "demo.tt", code=2)
    assert taken.stderr == b"tt: demo.tt exists already: --force overwrites it, -o takes another name\n"
    assert b"recorded demo.tt" in inside("record", denali_demo, "--force", *few).stderr
    assert sorted(path.name for path in inside.folder.glob("*.tt")) == ["demo-2.tt", "demo-3.tt", "demo.tt"]


def test_a_script_is_typed(tt: TT, denali_demo: Path) -> None:
    (tt.folder / "script").write_text("hello\nquit\n")
    done = tt("record", denali_demo, "--input", "script", stdin=b"not this")
    assert b"echo: hello\n" in done.stdout
    assert b"echo: quit\n" in done.stdout
    assert b"not this" not in done.stdout


def test_limits(tt: TT, denali_demo: Path) -> None:
    facts = json.loads(tt.out("record", denali_demo, "--max-ticks", "10,000,001", "--json"))
    assert (facts["end_tick"], facts["reason"]) == (10_000_001, "reached 10,000,001 ticks")
    begin = time.monotonic()
    facts = json.loads(tt.out("record", denali_demo, "--pace", "--timeout", "0.7", "--json"))
    assert facts["reason"] == "time is up"
    assert facts["host_s"] < 1.5
    assert time.monotonic() - begin < 10
    assert facts["trace"] == "demo-2.tt"
    tt("verify", "demo.tt")
    tt("verify", "demo-2.tt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_headless_recording_cleanly(tt: TT, denali_demo: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*tt.command, "record", str(denali_demo), "--pace"],
        cwd=tt.folder,
        env=tt.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(number)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"it ended: stopped by" in err
    assert "good" in tt.out("verify", "demo.tt")


def test_a_console_that_nobody_reads_ends_the_recording(tt: TT, denali_demo: Path) -> None:
    command = f"{' '.join(tt.command)} record {denali_demo} --pace | head -n 3"
    done = subprocess.run(
        command,
        shell=True,
        cwd=tt.folder,
        env=tt.env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.stdout.count(b"\n") == 3
    assert b"the guest's console is not read any more" in done.stderr
    assert "good" in tt.out("verify", "demo.tt")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ((), 2, "nothing to run"),
        (("no.img",), 3, "no.img"),
        (("garbage",), 3, "garbage"),
        (("/dev",), 3, "/dev"),
        (("{demo}", "--mem", "lots"), 2, "'lots' is not a size"),
        (("{demo}", "--append", "quiet"), 2, "a Denali guest is one ELF file"),
        (("{demo}", "--machine", "vax"), 2, "invalid choice: 'vax'"),
        (("{demo}", "--max-ticks", "-1"), 2, "--max-ticks"),
        (("{demo}", "--timeout", "0"), 2, "give seconds above 0"),
        (("{demo}", "--epoch", "999999999999"), 2, "before the year 10000"),
        (("{demo}", "--input", "no"), 3, "cannot read --input no"),
        (("{demo}", "--disk", "no.img"), 3, "no.img"),
        (("{demo}", "-o", "no/such/x.tt"), 3, "no/such"),
        (("garbage", "--machine", "denali"), 3, "not an ELF file"),
    ],
)
def test_errors_are_one_line(
    inside: Inside, denali_demo: Path, words: tuple[str, ...], code: int, complaint: str
) -> None:
    (inside.folder / "garbage").write_bytes(bytes(range(256)) * 64)
    done = inside("record", *(word.replace("{demo}", str(denali_demo)) for word in words), code=code)
    assert done.stderr.startswith(b"tt: ")
    assert done.stderr.count(b"\n") == 1
    assert complaint in done.stderr.decode()
    assert not list(inside.folder.glob("*.tt"))


# ---- the same again


def test_two_recordings_are_equal(tt: TT, denali_demo: Path) -> None:
    tt("record", denali_demo, "-o", "a.tt", "--epoch", EPOCH, PYTHONHASHSEED="1")
    with busy_host():
        tt("record", denali_demo, "-o", "b.tt", "--epoch", EPOCH, PYTHONHASHSEED="2")
    assert content(tt.folder / "a.tt") == content(tt.folder / "b.tt")


def test_host_clock_replays(tt: TT, denali_demo: Path) -> None:
    tt("record", denali_demo, "--clock", "host")
    assert "good" in tt.out("verify", "demo.tt", PYTHONHASHSEED="3")


def test_a_tampered_replay_is_found_to_the_tick(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        wake = next(event for event in trace.events(kinds={Kind.WAKE}) if event.tick > 13_000_000)

        def tamper(machine: Machine) -> None:
            def see(event: Event) -> None:
                if event.kind is Kind.WAKE and event.tick == wake.tick:
                    machine.engine.write(0xF00000, b"!")

            machine.door.subscribe(see)

        verdict = verify(trace, tamper=tamper)
    assert not verdict.good
    assert verdict.detail[0] == f"first bad tick: {wake.tick + 1:,}"
    assert verdict.detail[1] == "memory 0xf00000+1: 00 | 21 (expected | found)"


# ---- replaying


@pytest.fixture
def demo(tt: TT, demo_trace: Path) -> str:
    """Return the name of a recording of the demo in the command's folder."""
    (tt.folder / "demo.tt").write_bytes(demo_trace.read_bytes())
    return "demo.tt"


def test_replay_goes_anywhere(inside: Inside, demo: str) -> None:
    asked = [0, 1, 1_171, 9_021_377, 9_021_426, 13_000_000]
    for tick in asked:
        facts = json.loads(inside.out("replay", demo, "--to-tick", tick, "--batch", "regs; digest", "--json"))
        assert facts["tick"] == tick
        assert [answer["command"] for answer in facts["answers"]] == ["regs", "digest"]
    end = json.loads(inside.out("replay", demo, "--batch", "digest; console 1", "--json"))
    assert end["tick"] == end["end_tick"]
    assert end["ended"] == "terminated with status 0"
    assert end["answers"][1]["console"][0]["text"].startswith("done: 20 heartbeats")
    half = inside.out("replay", demo, "--to-tick", "50%").splitlines()
    assert half[0].startswith(f"tick {end['end_tick'] // 2:,} of {end['end_tick']:,}; ")
    assert any(line.startswith("-> 0x0000000000") for line in half)
    at_event = json.loads(inside.out("replay", demo, "--to-tick", "#100", "--batch", "", "--json"))
    with Trace.open(inside.folder / demo) as trace:
        assert at_event["tick"] == trace.event(100).tick


def test_replay_commands(inside: Inside, demo: str) -> None:
    for command in (
        "help",
        "where",
        "info",
        "devices",
        "devices clock",
        "disas",
        "disas 2 0x100000",
        "console 3",
    ):
        assert inside.out("replay", demo, "--to-tick", "10%", "--batch", command).strip(), command
    shown = inside.out(
        "replay", demo, "--to-tick", "start", "--batch", "x 0x100000 20; xp rip 4; x rsp-0x10 8"
    )
    assert len(shown.splitlines()) == 4
    code = bytes.fromhex("".join(shown.splitlines()[0].split("  ")[1:3]))
    assert bytes.fromhex(shown.splitlines()[2].split("  ")[1]) == code[:4]


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("--batch", "fly"), 2, "'fly' is no command"),
        (("--batch", "x"), 2, "it is x ADDR [LEN]"),
        (("--batch", "x nowhere 1"), 2, "'nowhere' is no address"),
        (("--batch", "x 0 0"), 2, "give a number from 1"),
        (("--batch", "x 0 'a"), 2, "the quote is not closed"),
        (("--batch", "disk cat 'a"), 2, "No closing quotation"),
        (("--batch", "devices nothing"), 2, "there is no device 'nothing'"),
        (("--to-tick", "soon"), 2, "'soon' is not a position"),
        (("--to-tick", "99999999999"), 2, "past the end of the trace"),
        (("--base", "zero=x"), 2, "give the disk's number"),
    ],
)
def test_replay_errors(inside: Inside, demo: str, words: tuple[str, ...], code: int, complaint: str) -> None:
    done = inside("replay", demo, *words, code=code)
    assert complaint in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_memory_that_is_not_there_is_an_answer_of_no(inside: Inside, demo: str) -> None:
    done = inside("replay", demo, "--batch", "x 0xfffffffffffffff0 32; xp 0x1000000 1; where", code=1)
    assert done.stdout.count(b"no memory is mapped there") == 2
    assert b"tick 22," in done.stdout


def test_base_images(inside: Inside, denali_demo: Path) -> None:
    image = inside.folder / "disk.img"
    image.write_bytes(os.urandom(64 * 4096))
    original = image.read_bytes()
    inside("record", denali_demo, "-o", "plain.tt", "--disk", "disk.img")
    inside("record", denali_demo, "-o", "embedded.tt", "--disk", "disk.img", "--embed")
    assert image.read_bytes() == original
    image.rename(inside.folder / "moved.img")
    missing = inside("verify", "plain.tt", code=3).stderr.decode()
    assert "missing" in missing
    assert "--base 0=FILE" in missing
    assert "good" in inside.out("verify", "plain.tt", "--base", "0=moved.img")
    assert "good" in inside.out("verify", "embedded.tt")
    image.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert "has changed" in inside("replay", "plain.tt", code=3).stderr.decode()


# ---- the demo


def test_demo(tt: TT) -> None:
    shown = tt.out("demo")
    lines = shown.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 110
    assert "549 of 549 events agree" in shown
    assert lines[-6].endswith("  equal") or any(line.endswith("  equal") for line in lines)
    assert "\x1b" not in shown
    assert not list(tt.folder.iterdir())


@pytest.mark.slow
def test_demo_keeps_its_recording(inside: Inside) -> None:
    assert "tt replay demo.tt --to-tick 50%" in inside.out("demo", "--keep")
    assert "tt replay demo-2.tt --to-tick 50%" in inside.out("demo", "--keep")
    for line in inside.out("demo", "--keep").splitlines():
        words = line.split("  ")[1:2]
        if words and words[0].startswith("tt ") and "guest build" not in words[0]:
            inside(*words[0].split()[1:])
    facts = json.loads(inside.out("demo", "--json"))
    assert facts["checked"] == sum(facts["kinds"].values())
    assert facts["recorded_digest"] == facts["replayed_digest"]


def test_the_public_names() -> None:
    code = (
        "import sys, tt\n"
        "assert 'unicorn' not in sys.modules and 'sqlite3' not in sys.modules\n"
        "for name in tt.__all__: getattr(tt, name)\n"
        "from tt.recording import record, Recording\n"
        "assert callable(tt.record) and tt.Recording is Recording and tt.__version__\n"
        "assert set(tt.__all__) <= set(dir(tt))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**unmeasured(), "PYTHONPATH": str(ROOT)})


# ---- Debian

SCRIPT = "echo hello > /root/x; sync\ncat /proc/uptime; head -c 8 /dev/urandom | od -x\npoweroff\n"


@pytest.mark.slow
def test_debian_recordings_are_equal_and_verify(tt: TT, debian_image: Path) -> None:
    (tt.folder / "script").write_text(SCRIPT)
    words = ("record", debian_image, "--input", "script", "--epoch", EPOCH, "--seed", "1", "-o")
    done = tt(*words, "a.tt", PYTHONHASHSEED="1")
    assert b"halted" in done.stderr
    with busy_host():
        again = tt(*words, "b.tt", PYTHONHASHSEED="2")
    assert again.stdout == done.stdout
    assert content(tt.folder / "a.tt") == content(tt.folder / "b.tt")
    assert "good" in tt.out("verify", "a.tt", PYTHONHASHSEED="3")
    other = tt("record", debian_image, "--input", "script", "--epoch", EPOCH, "--seed", "2", "-o", "c.tt")
    assert other.stdout != done.stdout
    middle = json.loads(tt.out("replay", "a.tt", "--to-tick", "50%", "--batch", "digest; x rip 16", "--json"))
    cold = json.loads(tt.out("replay", "b.tt", "--to-tick", "50%", "--batch", "digest; x rip 16", "--json"))
    assert middle == cold
    writes = tt.out("sql", "a.tt", "select count(*) from disk_writes", "--json")
    assert json.loads(writes)["count(*)"] > 0


@pytest.mark.slow
def test_debian_waits_for_a_pipe(tt: TT, debian_image: Path) -> None:
    process = subprocess.Popen(
        [*tt.command, "record", str(debian_image)],
        cwd=tt.folder,
        env=tt.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""
    while b"root@debian:~# " not in seen:
        seen += process.stdout.read1(4096)  # type: ignore[attr-defined]
    time.sleep(1)
    process.stdin.write(b"echo $((6 * 7))\n")
    out, err = process.communicate(timeout=60)
    assert b"\r\n42\r\n" in out
    assert b"all 1 lines of the script are typed, and the guest waits for more" in err
    assert "good" in tt.out("verify", "debian.tt")


@pytest.mark.slow
def test_debian_without_input_ends_at_its_prompt(tt: TT, debian_image: Path) -> None:
    done = tt("record", debian_image)
    assert b"it ended: no input is given, and the guest waits for more" in done.stderr


@pytest.mark.slow
def test_debian_on_the_host_clock(tt: TT, debian_image: Path) -> None:
    (tt.folder / "script").write_text("date; sleep 1; date\npoweroff\n")
    tt("record", debian_image, "--clock", "host", "--input", "script", "--timeout", "60")
    with Trace.open(tt.folder / "debian.tt") as trace:
        assert any(True for _ in trace.events(kinds={Kind.CLOCK}))
    assert "good" in tt.out("verify", "debian.tt")


@pytest.mark.slow
def test_a_tampered_debian_is_found_to_the_tick(tt: TT, debian_image: Path) -> None:
    tt("record", debian_image, "--max-ticks", "600_000_000", "-o", "a.tt")
    with Trace.open(tt.folder / "a.tt") as trace:
        irqs = [event.tick for event in trace.events(kinds={Kind.IRQ})]
        at = irqs[len(irqs) // 2]

        def tamper(machine: Machine) -> None:
            def see(event: Event) -> None:
                if event.kind is Kind.IRQ and event.tick == at:
                    machine.engine.write(0x7FFF000, b"!")

            machine.door.subscribe(see)

        verdict = verify(trace, tamper=tamper)
    assert not verdict.good
    assert verdict.detail[0] == f"first bad tick: {at + 1:,}"
    assert verdict.detail[1].startswith("memory 0x7fff000+1: ")
