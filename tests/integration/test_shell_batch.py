"""The shell without a terminal: `--batch`, lines from a pipe, JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_rig import TT, Inside


@pytest.fixture
def demo(tt: TT, demo_trace: Path) -> str:
    """Return the name of a recording of the demo in the command's folder."""
    (tt.folder / "demo.tt").write_bytes(demo_trace.read_bytes())
    return "demo.tt"


def test_a_batch_may_travel(inside: Inside, demo: str) -> None:
    shown = inside.out(
        "replay", demo, "--to-tick", "50%", "--batch", "break crc32; reverse-continue; bt 1; quit; regs"
    )
    lines = shown.splitlines()
    assert lines[0].startswith(" 1  breakpoint crc32 at 0x")
    assert lines[1].startswith("breakpoint 1, crc32   (")
    assert lines[3].startswith("#0  0x")
    assert "rax" not in shown


def test_a_batch_as_json(inside: Inside, demo: str) -> None:
    facts = json.loads(
        inside.out(
            "replay", demo, "--to-tick", "50%", "--batch", "tb crc32; rc; regs; timeline; events 2", "--json"
        )
    )
    assert [answer["command"] for answer in facts["answers"]] == [
        "tbreak", "reverse-continue", "regs", "timeline", "events",
    ]  # fmt: skip
    assert facts["tick"] == facts["answers"][1]["tick"]
    assert facts["answers"][1]["symbol"] == "crc32"


@pytest.mark.parametrize(
    ("batch", "code", "complaint"),
    [
        ("regs; fly", 2, b"'fly' is no command"),
        ("p 1/0; regs", 2, b"divides by zero"),
        ("set $rax = 1", 2, b"`fork` makes a live branch"),
        ("x 0xffffffffffff0000", 1, b""),
    ],
)
def test_a_batch_ends_at_the_first_error(
    inside: Inside, demo: str, batch: str, code: int, complaint: bytes
) -> None:
    done = inside("replay", demo, "--batch", batch, code=code)
    assert complaint in done.stderr
    assert done.stderr.count(b"\n") == bool(complaint)
    assert b"rax" not in done.stdout


def test_lines_from_a_pipe(tt: TT, demo: str) -> None:
    script = b"# a comment\n\ngoto 50%\nfly\nsi 10; when\n\nx 0xffffffffffff0000\nquit\nregs\n"
    done = tt("replay", demo, "--to-tick", "start", stdin=script, code=2)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 4
    assert lines[3].endswith("no memory is mapped there")
    assert done.stderr == b"tt: line 4: 'fly' is no command: `help` lists them\n"


def test_lines_from_a_pipe_as_json(tt: TT, demo: str) -> None:
    done = tt("replay", demo, "--json", stdin=b"goto 10%\nfly\nregs rip\nsearch 7f\n", code=2)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer.get("command") for answer in answers] == ["goto", None, "regs", "search"]
    assert answers[1] == {"line": 2, "error": "'fly' is no command: `help` lists them", "exit_code": 2}
    assert answers[2]["tick"] == answers[0]["tick"]
    assert answers[2]["registers"]["rip"] == answers[0]["rip"]
    assert not done.stderr


def test_a_program_can_talk_with_it(tt: TT, demo: str) -> None:
    """Each answer comes at once, not when the pipe is closed."""
    command = [*tt.command, "replay", demo, "--json"]
    with subprocess.Popen(command, cwd=tt.folder, env=tt.env, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for tick in (5, 1000, 3):
            print(f"goto {tick}", file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline())["tick"] == tick
        process.stdin.close()
        assert process.wait(30) == 0


def test_with_nothing_to_do_the_plain_state_is_shown(tt: TT, demo: str) -> None:
    for stdin in (b"", b"\n\n  \n"):
        lines = tt.out("replay", demo, "--to-tick", "50%", stdin=stdin).splitlines()
        assert lines[0].startswith("tick ")
        assert any(line.startswith("-> ") for line in lines)
    facts = json.loads(tt.out("replay", demo, "--to-tick", "50%", "--json"))
    assert [answer["command"] for answer in facts["answers"]] == ["when", "regs", "disas", "console"]


def test_a_strip_for_old_terminals(tt: TT, demo: str) -> None:
    strip = tt.out(
        "replay", demo, "--to-tick", "50%", "--batch", "timeline", PYTHONIOENCODING="ascii", COLUMNS="60"
    )
    assert strip.isascii()
    assert "^" in strip
    assert all(len(line) <= 60 for line in strip.splitlines())
    wide = tt.out(
        "replay", demo, "--to-tick", "50%", "--batch", "timeline", PYTHONIOENCODING="utf-8", COLUMNS="90"
    )
    assert "▲" in wide
