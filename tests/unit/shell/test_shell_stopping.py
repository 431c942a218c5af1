"""Stops by commands: what they are set on, what is told when they stop, and changing them."""

from __future__ import annotations

import pytest

from tt.errors import UsageError
from tt.shell import Session


def test_breakpoints(session: Session) -> None:
    answer = session.run("break crc32")
    assert answer.lines == [f" 1  breakpoint crc32 at {answer.data['addr']:#x}"]
    back = session.run("reverse-continue")
    assert back.data["reason"] == "break"
    assert back.data["number"] == 1
    assert back.lines[0].startswith("breakpoint 1, crc32   (")
    assert back.lines[0].endswith(" ticks back)")
    assert session.run("continue").data["symbol"] == "crc32"
    assert "[hit 2 times]" in session.run("info breakpoints").lines[0]
    assert session.run("i b").data["stops"][0]["hits"] == 2


def test_a_breakpoint_here_and_at_addresses(session: Session) -> None:
    rip = session.machine.engine.registers()["rip"]
    assert session.run("break").data["addr"] == rip
    addr = session.symbols.find("crc32")
    assert addr is not None
    for text in (f"*{addr:#x}", f"{addr:#x}", "crc32+0", "*crc32", f"{addr - 8:#x} + 8"):
        assert session.run(f"b {text}").data["addr"] == addr
    assert session.run("delete").lines == ["6 deleted"]
    assert session.run("info b").data["stops"] == []


def test_conditions(session: Session) -> None:
    session.run("goto start")
    session.run("break crc32 if tick > 11_000_000")
    assert session.run("c").data["tick"] > 11_000_000
    assert session.run("condition 1 tick < 10_000_000").data["condition"] == "tick < 10_000_000"
    before = session.tick
    assert session.run("rc").data["tick"] < 10_000_000 < before
    assert session.run("condition 1").data["condition"] is None
    with pytest.raises(UsageError, match="column"):
        session.run("condition 1 tick <")
    with pytest.raises(UsageError, match="column"):
        session.run("break crc32 if (")
    assert len(session.timeline.stops) == 1


def test_ignoring_and_switching(session: Session) -> None:
    session.run("break crc32")
    first = session.run("c").data["tick"]
    second = session.run("c").data["tick"]
    session.run("goto -")
    assert session.tick == first
    session.run("rc")
    session.run("ignore 1 1")
    assert session.run("c").data["tick"] == second
    session.run("disable 1")
    assert session.run("c").data["reason"] == "end"
    session.run("enable")
    assert session.run("rc").data["reason"] == "break"


@pytest.mark.parametrize(
    ("line", "addr", "size", "physical"),
    [
        ("watch 0x102000", 0x102000, 8, False),
        ("watch 0x102000 16", 0x102000, 16, False),
        ("watch u32[0x102000]", 0x102000, 4, False),
        ("watch p16[0x102000]", 0x102000, 2, True),
        ("watch *(u32*)0x102000", 0x102000, 4, False),
        ("watch *(unsigned char *)(0x102000 + 4)", 0x102004, 1, False),
        ("watch *0x102000", 0x102000, 8, False),
        ("watch -l 0x102000", 0x102000, 8, False),
        ("watch/p 0x102000 4", 0x102000, 4, True),
        ("watch 0x102000 + 8", 0x102008, 8, False),
        ("watch 0x102000 if 1 == 1", 0x102000, 8, False),
        ("rwatch s8[0x102000]", 0x102000, 1, False),
        ("awatch 0x102000 4096", 0x102000, 4096, False),
    ],
)
def test_what_a_watchpoint_watches(session: Session, line: str, addr: int, size: int, physical: bool) -> None:
    facts = session.run(line).data
    assert (facts["addr"], facts["size"], facts["physical"]) == (addr, size, physical)


def test_watchpoints_stop(session: Session) -> None:
    rsp = session.machine.engine.registers()["rsp"]
    session.run(f"watch {rsp:#x}")
    answer = session.run("rc")
    assert answer.data["reason"] == "watch"
    tick = answer.data["tick"]
    assert "watchpoint 1" in answer.lines[0]
    session.run("delete")
    session.run("goto -")
    wrote = session.run(f"last-write {rsp:#x}")
    assert wrote.data["tick"] == tick
    assert wrote.data["new"] == session.machine.engine.read_virtual(rsp, 8).hex()
    assert wrote.lines[0].startswith("written by ")
    earlier = session.run(f"last-write {rsp:#x}")
    assert earlier.data["tick"] is None or earlier.data["tick"] < tick


def test_where_a_value_came_from(session: Session) -> None:
    with pytest.raises(UsageError, match="comes first"):
        session.run("origin")
    session.run("tbreak crc32")
    session.run("rc")
    wrote = session.run("last-write $rsp").data
    assert wrote["tick"] == session.tick
    assert wrote["source"]["text"].startswith("call ")
    returned = wrote["source"]["inputs"][0]
    assert returned["kind"] == "immediate"
    assert returned["value"] == int.from_bytes(bytes.fromhex(wrote["new"]), "little")
    assert not session.run("origin").good
    session.run("rfin")
    tick = session.tick
    made = session.run("origin $rdi")
    assert made.data["tick"] < tick
    assert made.data["source"]["how"] in ("copied", "computed")
    for line in ("origin 99", "origin $zzz", "origin 0"):
        with pytest.raises(UsageError):
            session.run(line)


def test_nobody_wrote(session: Session) -> None:
    before = session.tick
    session.run("goto 10")
    answer = session.run("last-write/p 0x800000 4")
    assert not answer.good
    assert answer.data["tick"] is None
    assert session.tick == 10 != before


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("catch interrupt", "interrupt"),
        ("catch irq 2", "interrupt 2"),
        ("catch disk", "disk write"),
        ("catch disk 0-400", "disk write 0-400"),
        ("catch disk 0..400", "disk write 0..400"),
        ("catch console heartbeat +4", "console heartbeat +4"),
        ("catch console 'heartbeat +4'", "console 'heartbeat +4'"),
        ("catch power", "power"),
        ("catch timer", "device timer"),
    ],
)
def test_catchpoints_stop(session: Session, line: str, text: str) -> None:
    assert session.run(line).data["text"] == text
    session.run("goto start")
    answer = session.run("continue")
    assert answer.data["reason"] == "catch", answer
    if "console" in line:
        session.run("step 2_000")
        assert session.run("console 1").data["console"][0]["text"].startswith("heartbeat  4")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("catch", "it is catch WHAT"),
        ("catch love", "'love' cannot be caught"),
        ("catch syscall foo", "'foo' is not a system call"),
        ("catch exception ZZ", "'ZZ' is not an exception"),
        ("catch exception 999", "'999' is not an exception"),
        ("catch disk 9-2", "the last sector comes before the first"),
        ("catch disk x", "'x' is not a sector"),
        ("catch console", "regular expression"),
        ("catch console '('", "regular expression"),
        ("catch device lamp", "'lamp' is not a device"),
        ("break nothing_like_it", "is no address"),
        ("watch 0x1000 99999", "give a size from 1 to 4,096"),
        ("watch 0xfffffffffffffffe 8", "past the last address"),
        ("watch *(struct foo*)0x1000", "is no type tt knows"),
        ("watch/x 0x1000", "only /p is known"),
        ("delete 9", "there is no breakpoint 9"),
        ("delete x", "there is no breakpoint x"),
        ("enable 7", "there is no breakpoint 7"),
        ("condition 3 1", "there is no breakpoint 3"),
        ("ignore 4 4", "there is no breakpoint 4"),
    ],
)
def test_what_cannot_be_stopped_at(session: Session, line: str, complaint: str) -> None:
    with pytest.raises(UsageError) as e:
        session.run(line)
    assert complaint in str(e.value)
    assert len(session.timeline.stops) == 0


def test_names_of_system_calls_and_exceptions() -> None:
    from tt.shell.commands.catching import EXCEPTIONS, catchpoint
    from tt.shell.syscalls import NUMBERS

    assert (NUMBERS["read"], NUMBERS["openat"], NUMBERS["execve"], NUMBERS["clone3"]) == (0, 257, 59, 435)
    assert (EXCEPTIONS["PF"], EXCEPTIONS["GP"], EXCEPTIONS["UD"], EXCEPTIONS["MF"]) == (14, 13, 6, 16)
    assert catchpoint("syscall OPENAT").number_wanted == 257
    assert catchpoint("exception #pf").number_wanted == 14
    assert catchpoint("console panic\\.$").pattern == "panic\\.$"
