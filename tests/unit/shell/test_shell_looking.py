"""Looking at a machine and its recording by commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt.errors import BadInput, UsageError
from tt.shell import Session


def test_registers(session: Session) -> None:
    values = session.machine.engine.registers()
    assert session.run("regs").data["registers"] == values
    assert session.run("info registers").data["registers"] == values
    answer = session.run("regs rip $rsp eflags")
    assert list(answer.data["registers"]) == ["rip", "rsp", "eflags"]
    assert "<crc32+" in answer.lines[0]
    assert session.run("i r rip").data["registers"]["rip"] == values["rip"]
    with pytest.raises(UsageError, match="no register"):
        session.run("regs foo")


@pytest.mark.parametrize(
    ("line", "value", "shown"),
    [
        ("print 1 + 2 * 3", 7, "7"),
        ("p 0x1000", 4096, "0x1000 (4,096)"),
        ("p/x 255", 255, "0xff"),
        ("p/d (s8)0xff", -1, "-1"),
        ("p/t 5", 5, "101"),
        ("p/o 8", 8, "010"),
        ("p/c 65", 65, "65 'A'"),
        ("p/u -1", -1, "18446744073709551615"),
        ("p -1", -1, "-1 (0xffffffffffffffff)"),
        ("p/f 0x3ff0000000000000", 0x3FF0000000000000, "1.0"),
        ("p/z 5", 5, "0x0000000000000005"),
        ("p 1 ? 2 : 3", 2, "2"),
    ],
)
def test_print(session: Session, line: str, value: int, shown: str) -> None:
    answer = session.run(line)
    assert answer.data["value"] == value
    assert answer.lines == [shown]


def test_print_of_symbols_and_text(session: Session) -> None:
    addr = session.symbols.find("crc32")
    assert session.run("p crc32").lines == [f"{addr:#x} (<crc32>)"]
    assert session.run("p/a crc32+4").lines == [f"{(addr or 0) + 4:#x} <crc32+0x4>"]
    assert session.run("info symbol crc32+4").lines == [f"{(addr or 0) + 4:#x} is crc32+0x4"]
    assert session.run("info address crc32").data["physical"] == addr
    at = session.run('search "heartbeat"').data["found"][0]["addr"]
    assert session.run(f"p str[{at}]").data["value"].startswith("heartbeat")
    assert session.run(f"p/s {at}").data["value"].startswith("heartbeat")
    assert session.run(f"x/s {at}").data["texts"][0]["text"].startswith("heartbeat")


def test_memory(session: Session) -> None:
    raw = session.machine.engine.read_virtual(0x100000, 64)
    assert session.run("x 0x100000").data["bytes"] == raw.hex()
    assert session.run("x 0x100000 20").data["bytes"] == raw[:20].hex()
    assert session.run("xp 0x100000 4").data["bytes"] == raw[:4].hex()
    words = session.run("x/4xw 0x100000")
    assert words.data["values"] == [int.from_bytes(raw[at : at + 4], "little") for at in range(0, 16, 4)]
    assert "<_start>" in words.lines[0]
    assert len(session.run("x/3i $pc").data["instructions"]) == 3
    assert len(session.run("xp/3i 0x100000").data["instructions"]) == 3
    assert len(session.run("x/5c 0x100000").data["values"]) == 5
    assert session.run("x/2dg $rsp").good
    assert session.run("x $rsp + 8").data["addr"] == session.machine.engine.registers()["rsp"] + 8
    missing = session.run("x 0xffffffffffff0000")
    assert not missing.good
    assert missing.lines == ["0xffffffffffff0000: no memory is mapped there"]


@pytest.mark.parametrize(
    "line", ["x/0x 1", "x/8q 1", "x/99999999999 1", "x/xx 1", "x/200000xg 0", "x 0 0", "p/f/f 1"]
)
def test_bad_formats(session: Session, line: str) -> None:
    with pytest.raises(UsageError):
        session.run(line)


def test_code(session: Session) -> None:
    answer = session.run("disas")
    assert len(answer.data["instructions"]) == 5
    assert answer.lines[0].startswith("-> ")
    assert "crc32+" in answer.lines[0]
    assert len(session.run("disas 3 main").data["instructions"]) == 3
    assert session.run("disas main").data["instructions"][0]["addr"] == session.symbols.find("main")


def test_the_stack(session: Session) -> None:
    frames = session.run("bt").data["frames"]
    assert [frame["name"].split("+")[0] for frame in frames] == ["crc32", "main", "_start"]
    assert len(session.run("bt 1").data["frames"]) == 1
    words = session.run("stack 2").data["stack"]
    assert words[0]["symbol"].startswith("main+")
    assert len(words) == 2


def test_search(session: Session) -> None:
    engine = session.machine.engine
    code = engine.read(0x100000, 12)
    found = session.run(f"search {code.hex()}").data["found"]
    assert 0x100000 in [each["addr"] for each in found]
    assert session.run(f"search {code.hex()} in 0x100000..0x100100").data["found"] == [
        {"addr": 0x100000, "virtual": 0x100000}
    ]
    assert not session.run('search "no such text \\x01\\x02"').good
    with pytest.raises(UsageError):
        session.run("search hello")
    with pytest.raises(UsageError):
        session.run("search 00 in 5..4")
    assert "more" in session.run("search 00").lines[-1]


def test_where_pieces_of_a_search_meet(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from tt.shell.commands import memory

    monkeypatch.setattr(memory, "_PIECE", 4096)
    engine = session.machine.engine
    for addr in (4096 * 256 - 3, 4096 * 256, 4096 * 257 - 8):
        wanted = engine.read(addr, 8)
        if any(wanted):
            found = session.run(f"search {wanted.hex()}").data["found"]
            assert addr in [each["addr"] for each in found]


def test_events_around_here(session: Session) -> None:
    answer = session.run("events 6")
    ticks = [event["tick"] for event in answer.data["events"]]
    assert len(ticks) == 6
    assert ticks == sorted(ticks)
    assert ticks[2] < session.tick <= ticks[3]
    only = session.run("events disk-write 4").data["events"]
    assert {event["kind"] for event in only} == {"disk-write"}
    session.run("goto end")
    assert len(session.run("events 6").data["events"]) == 6
    session.run("goto start")
    assert session.run("events 3").data["events"][0]["number"] == 0
    with pytest.raises(UsageError, match="no kind of event"):
        session.run("events weather")


def test_console_and_info(session: Session) -> None:
    assert session.run("console 1").data["console"][0]["text"].startswith("heartbeat  4")
    assert session.run("info").data["events"] == session.trace.event_count
    assert session.run("when").data["tick"] == session.tick
    assert session.run("devices").data["devices"]
    assert session.run("devices clock").data["devices"].keys() == {"clock"}
    assert session.run("digest").data["digest"] == session.machine.digest().hex()
    for what in (
        "trace",
        "events",
        "checkpoints",
        "symbols",
        "display",
        "stack",
        "frame",
        "program",
        "files",
    ):
        assert session.run(f"info {what}").lines, what
    with pytest.raises(UsageError, match="there are trace, breakpoints"):
        session.run("info weather")


def test_bookmarks(session: Session) -> None:
    tick = session.tick
    session.run("bookmark half")
    assert session.run("bookmark").data["name"] == "1"
    session.run("bookmark later +1000")
    session.run("goto start")
    session.run("goto @half")
    assert session.tick == tick
    session.run("goto later")
    assert session.tick == tick + 1000
    assert session.run("restart half").data["tick"] == tick
    assert session.run("bookmarks").data["bookmarks"] == {"1": tick, "half": tick, "later": tick + 1000}
    session.run("delete bookmark 1")
    assert session.run("info checkpoints").data["bookmarks"] == {"half": tick, "later": tick + 1000}
    from tt.log import Trace

    with Trace.open(session.trace.path) as again:
        assert again.bookmarks == {"half": tick, "later": tick + 1000}
    with pytest.raises(UsageError, match="there is no bookmark 'x'"):
        session.run("delete bookmark x")


def test_symbols_of_files(session: Session, tmp_path: Path, denali_demo: Path) -> None:
    known = len(session.symbols)
    file = tmp_path / "System.map"
    file.write_text("0000000000123000 T somewhere\n0000000000123100 T elsewhere\n")
    assert session.run(f"symbols {file}").data["added"] == 2
    assert session.run("p somewhere").data["value"] == 0x123000
    assert session.run(f"symbols {denali_demo} 0x1000000").data["symbols"] > known + 2
    assert session.run("symbols").data["symbols"] > known
    for bad in ("/nowhere/at/all", tmp_path, session.trace.path):
        with pytest.raises(BadInput):
            session.run(f"symbols {bad}")


def test_history_is_not_changed(session: Session) -> None:
    for line in ("set $rax = 5", "set u8[0x1000] = 1", "set var $rax = 5"):
        with pytest.raises(UsageError, match="`fork` makes a live branch"):
            session.run(line)
    with pytest.raises(UsageError, match="it is set"):
        session.run("set $rax == 5")
    with pytest.raises(UsageError, match="`fork`"):
        session.run("type hello")


def test_help(session: Session) -> None:
    listed = "\n".join(session.run("help").lines)
    assert "reverse-continue" in listed
    for topic in ("positions", "expressions", "x", "rc", "last"):
        assert session.run(f"help {topic}").lines
    with pytest.raises(UsageError, match="no command"):
        session.run("help weather")
