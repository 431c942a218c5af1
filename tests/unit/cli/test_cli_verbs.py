"""The verbs that need only the log, as a user would type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tt.cli import parser
from tt.cli.main import main
from tt.cli.output import format_ns, format_size
from tt.events import Event, Kind
from tt.log import TraceWriter


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "boot.tt"
    with TraceWriter(path, {"machine": {"kind": "pc", "mem": 1 << 28}, "period_ns": 4}) as writer:
        writer.add_file("kernel", b"k" * 5000)
        writer.add(Event(1_000, Kind.TIMER, 0, 4_000))
        writer.add(Event(1_200, Kind.IRQ, 0, 48))
        writer.add(Event(2_000, Kind.CONSOLE, 0, 0, b"\x1b[1mDebian\x1b[0m "))
        writer.add(Event(2_100, Kind.IRQ, 0, 52))
        writer.add(Event(2_200, Kind.CONSOLE, 0, 0, b"login: "))
        writer.add(Event(3_000, Kind.INPUT, 0, 0, b"root\r"))
        writer.add(Event(4_000, Kind.DISK_WRITE, 0, 8, bytes(4096)))
        writer.add_digest(4_500, b"d" * 16)
        writer.bookmark("login", 2_000)
        writer.seal(1_234_567, "power off", {"host_seconds": 1.5})
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must succeed quietly; return what it printed."""
    code = main(argv)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def fail(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Run a command that must fail with `code` and one line; return that line."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tt: ")
    assert err.count("\n") == 1
    return err


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_info(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    lines = [_squeeze(line) for line in run(capsys, "info", trace).splitlines()]
    for line in (
        "recorded 1,234,567 ticks, 0.004938 s of guest time",
        "ended power off",
        "events 7: 2 console, 1 disk-write, 1 input, 2 irq, 1 timer",
        "file kernel 4.9 KB",
        "bookmark @login 2,000",
        "machine.kind pc",
        "host_seconds 1.5",
    ):
        assert line in lines


def _squeeze(line: str) -> str:
    return " ".join(line.split())


def test_info_json(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    facts = json.loads(run(capsys, "info", "--json", trace))
    assert facts["end_tick"] == 1_234_567
    assert facts["guest_ns"] == 4 * 1_234_567
    assert facts["sealed"] is True
    assert facts["kinds"]["irq"] == 2
    assert facts["bookmarks"] == {"login": 2000}
    assert facts["meta"]["machine"] == {"kind": "pc", "mem": 1 << 28}


def test_info_check(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    assert "damage" in run(capsys, "info", "--check", trace)
    data = bytearray(Path(trace).read_bytes())
    at = data.index(b"d" * 16)
    data[at] ^= 1
    Path(trace).write_bytes(data)
    assert main(["info", "--check", trace]) == 1
    assert "a row of digests has a wrong checksum" in capsys.readouterr().out
    assert main(["info", "--check", "--json", trace]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_info_of_an_unsealed_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    TraceWriter(tmp_path / "x.tt", {}).close()
    assert "not sealed" in run(capsys, "info", str(tmp_path / "x.tt"))


def test_events(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    out = run(capsys, "events", trace)
    lines = [_squeeze(line) for line in out.splitlines()]
    assert lines[0] == "EVENT TICK KIND UNIT VALUE DATA"
    assert lines[1] == "#0 1,000 timer 0 4000"
    assert lines[3] == r"#2 2,000 console 0 0 \x1b[1mDebian\x1b[0m"
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--kind", "irq"], [1, 3]),
        (["--kind", "irq", "--kind", "DISK_WRITE"], [1, 3, 6]),
        (["--from", "@login"], [2, 3, 4, 5, 6]),
        (["--from", "@login", "--to", "+100"], [2, 3]),
        (["--to", "#1"], [0, 1]),
        (["--from=1_200", "--limit", "2"], [1, 2]),
        (["--limit", "0"], []),
        (["--from", "12us"], [5, 6]),
        (["--from", "end"], []),
    ],
)
def test_events_asked_for(
    capsys: pytest.CaptureFixture[str], trace: str, options: list[str], numbers: list[int]
) -> None:
    found = rows(run(capsys, "events", trace, "--json", *options))
    assert [row["number"] for row in found] == numbers


def test_events_json(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    found = rows(run(capsys, "events", trace, "--json", "--kind", "input"))
    assert found == [
        {
            "number": 5,
            "tick": 3000,
            "kind": "input",
            "unit": 0,
            "value": 0,
            "data": "726f6f740d",
            "text": "root\r",
        }
    ]


def test_sql(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    out = run(capsys, "sql", trace, "select kind, count(*) as n from events group by kind order by 1")
    assert out.splitlines()[:2] == ["kind        n", "console     2"]
    assert rows(run(capsys, "sql", trace, "--json", "select digest, null as x, tick from digests")) == [
        {"digest": "64" * 16, "x": None, "tick": 4500}
    ]
    assert run(capsys, "sql", trace, "select text from console") == "text\n\\x1b[1mDebian\\x1b[0m login:\n"
    assert "disk_writes" in run(capsys, "sql", trace, ".tables")
    assert json.loads(run(capsys, "sql", trace, "--json", ".tables"))["digests"]["tick"] == "INTEGER"


def test_console(capfdbinary: pytest.CaptureFixture[bytes], trace: str) -> None:
    assert main(["console", trace]) == 0
    assert capfdbinary.readouterr().out == b"\x1b[1mDebian\x1b[0m login: "
    assert main(["console", trace, "--unit", "1"]) == 0
    assert capfdbinary.readouterr().out == b""


def test_console_ticks(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    assert run(capsys, "console", trace, "--ticks") == "    2,000  \\x1b[1mDebian\\x1b[0m login: \n"
    assert rows(run(capsys, "console", trace, "--json")) == [
        {"tick": 2000, "unit": 0, "text": "\x1b[1mDebian\x1b[0m login: "}
    ]


def test_console_follows_guest_time(
    capfdbinary: pytest.CaptureFixture[bytes], trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert main(["console", trace, "--follow-time", "--speed", "2"]) == 0
    assert capfdbinary.readouterr().out == b"\x1b[1mDebian\x1b[0m login: "
    assert slept == pytest.approx([4e-6, 0.4e-6], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("argv", "code", "complaint"),
    [
        (["info"], 2, "required: TRACE (see tt info --help)"),
        (["nonsense"], 2, "'nonsense' is no verb of tt"),
        (["info", "{trace}", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["info", "no.tt"], 3, "no.tt does not exist"),
        (["info", "/dev/null"], 3, "not a regular file"),
        (["events", "{trace}", "--from", "soon"], 2, "'soon' is not a position"),
        (["events", "{trace}", "--from", "-1_000"], 2, "1,000 ticks before the start"),
        (["events", "{trace}", "--kind", "magic"], 2, "'magic' is no kind of event"),
        (["events", "{trace}", "--limit", "-1"], 2, "give 0 or more"),
        (["sql", "{trace}", "drop table meta"], 2, "can only read"),
        (["sql", "{trace}", "select * from x"], 2, "no such table: x"),
        (["console", "{trace}", "--speed", "0"], 2, "give a number above 0"),
        (["console", "{trace}", "--ticks", "--json"], 2, "not allowed with"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], trace: str, argv: list[str], code: int, complaint: str
) -> None:
    assert complaint in fail(capsys, code, *(word.replace("{trace}", trace) for word in argv))


def test_garbage_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a\nb.tt"
    path.write_bytes(b"garbage" * 100)
    for verb, *more in (["info"], ["events"], ["sql", "select 1"], ["console"]):
        assert r"a\nb.tt is not a tt trace" in fail(capsys, 3, verb, str(path), *more)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--help")
    for verb, about in parser.VERBS.items():
        assert verb in out
        assert about in " ".join(out.split())
    assert main([]) == 2


@pytest.mark.parametrize("verb", ["info", "events", "sql", "console"])
def test_every_verb_shows_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    out = run(capsys, verb, "--help")
    assert f"examples:\n  tt {verb} boot.tt" in out
    assert parser.VERBS[verb][1:] in " ".join(out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version").startswith("tt ")


def test_interrupt(capsys: pytest.CaptureFixture[str], trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tt.cli.info.run", interrupted)
    assert "interrupted" in fail(capsys, 130, "info", trace)


def test_a_reader_that_has_had_enough(trace: str) -> None:
    code = "import sys; from tt.cli.main import main; sys.exit(main())"
    query = "with recursive c(x) as (select 1 union all select x + 1 from c limit 1000000) select x from c"
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sql", trace, query], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert os.read(read, 10)
    os.close(read)
    assert process.communicate()[1] == b""
    assert process.returncode == 0


def test_reading_a_trace_needs_no_engine(trace: str) -> None:
    code = (
        "import sys; from tt.cli.main import main; code = main()\n"
        "unwanted = ('unicorn', 'tt.vmm', 'sqlite_utils')\n"
        "assert not [name for name in sys.modules if name.startswith(unwanted)], sys.modules\n"
        "sys.exit(code)"
    )
    for argv in (["--help"], ["info", trace], ["events", trace], ["console", trace]):
        subprocess.run([sys.executable, "-c", code, *argv], check=True, stdout=subprocess.DEVNULL)


def test_sizes_and_times() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 1536, 5 << 20, 3 << 40, 3 << 50)] == [
        "0 B", "1023 B", "1.0 KB", "1.5 KB", "5.0 MB", "3.0 TB", "3072.0 TB",
    ]  # fmt: skip
    assert format_ns(12_345_678_000) == "12.345678 s"
