"""Forks, the tree of timelines, differences and bisecting, by commands."""

from __future__ import annotations

import pytest

from tt.errors import UsageError
from tt.log import Trace
from tt.shell import Session


def test_a_fork_from_beginning_to_end(session: Session) -> None:
    tick, before = session.tick, session.machine.digest()
    answer = session.run("fork what-if")
    assert answer.data["fork_tick"] == tick
    assert session.prompt() == f"(tt fork:what-if {tick:,}) "
    session.run("set $rax = 0x1234")
    assert session.run("p $rax").data["value"] == 0x1234
    session.run("set u32[0x102000] = 7")
    assert session.run("p u32[0x102000]").data["value"] == 7
    session.run("set p8[0x102004] = -1")
    assert session.run("p p8[0x102004]").data["value"] == 255
    assert session.run("step 10").data["tick"] == tick + 10
    for line in ("rsi", "goto 0", "rc", "fork again", "break main", "last-write 0x102000", "diff 0", "next",
                 "bookmark x", "gdb", "switch x", "back", "run", "restart", "advance main",
                 "bisect start end 1"):  # fmt: skip
        with pytest.raises(UsageError, match="live branch"):
            session.run(line)
    for line in ("regs", "disas", "bt", "stack", "x $rsp", "console", "devices", "digest", "when", "info",
                 "timelines", "disk", "events", "timeline", "info b"):  # fmt: skip
        session.run(line)
    assert session.run("continue 1000").data["tick"] == tick + 1010
    ran = session.run("continue")
    assert "the machine has ended" in ran.lines[-2]
    assert "heartbeat" in ran.data["output"]
    closed = session.run("close")
    assert closed.data["at_end"]
    assert session.prompt().startswith("(tt what-if ")
    session.run("goto start")
    session.run(f"goto {tick}")
    assert session.machine.digest() == before
    session.run("step")
    assert session.machine.engine.registers()["rax"] != 0x51
    tree = session.run("timelines")
    assert tree.data["tree"]["children"][0]["name"] == "what-if"
    session.run("close")
    assert session.tick == tick
    assert session.machine.digest() == before
    with pytest.raises(UsageError, match="nothing to close"):
        session.run("close")
    parting = session.run("diff what-if")
    assert parting.data["same_until"] == tick
    assert parting.data["tick"] == tick + 1
    assert session.run("switch what-if end").data["at_end"]
    session.run("close")


@pytest.mark.parametrize(
    "line", ["set $foo = 1", "set u8[0x100] = 999", "set 0x100 5 = 1", "set $rax = zzz", "set $rax"]
)
def test_what_cannot_be_set(session: Session, line: str) -> None:
    session.run("fork")
    with pytest.raises(UsageError):
        session.run(line)


def test_typing_into_a_fork(session: Session) -> None:
    session.run("fork typed")
    assert session.run("type hello").data["typed"] == "hello\n"
    assert session.run(r'type "a\x03b"').data["typed"] == "a\x03b"
    session.run(r"type quit\n")
    output = session.run("continue").data["output"]
    assert "echo: hello" in output
    session.run("close")
    assert session.run("events input").data["events"]


def test_disks_and_inputs_of_a_fork(session: Session) -> None:
    with pytest.raises(UsageError, match="`fork`"):
        session.run("disk write 0 'x'")
    before = session.run("disk hex 5").data["bytes"]
    session.run("fork kept keep-inputs")
    session.run("disk write 5 'hello\\n'")
    session.run("disk write vda:6 0102")
    assert session.run("disk hex 5").data["bytes"] == b"hello\n".hex() + before[12:]
    assert session.run("disk hex 6").data["bytes"].startswith("0102")
    for line in (
        "disk write",
        "disk write 5",
        "disk write x 00",
        "disk write 99999999 00",
        "disk write 5 zz",
    ):
        with pytest.raises(UsageError):
            session.run(line)
    session.run("step 5")
    session.run("close")
    assert session.run("disk hex 5").data["bytes"].startswith(b"hello\n".hex())
    session.run("close")
    assert session.run("disk hex 5").data["bytes"] == before
    with pytest.raises(UsageError):
        session.run("fork a b")


def test_leaving_seals_a_fork(session: Session) -> None:
    path = session.run("fork x").data["path"]
    session.run("step 5")
    session.run("quit")
    assert session.ended
    session.close()
    with Trace.open(path) as trace:
        assert trace.sealed
        assert trace.end_tick == trace.meta["parent"]["fork_tick"] + 5


def test_names_of_forks(session: Session) -> None:
    session.run("fork one")
    session.run("close")
    session.run("close")
    for line in ("fork one", "fork ../x", "fork -x", "fork a b"):
        with pytest.raises(UsageError):
            session.run(line)
    assert session.live is None


def test_differences_of_moments(session: Session) -> None:
    answer = session.run("diff +1")
    assert answer.data["ticks"] == [session.tick, session.tick + 1]
    assert "rip" in {each["where"] for each in answer.data["differences"]}
    assert session.run("diff 0 0").lines[-1] == "  the states are the same"
    assert session.run("diff 10% 20%").data["differences"]
    for line in ("diff nowhere", "diff 0 nowhere", "diff 1 2 3", "diff 99999999999"):
        with pytest.raises(UsageError):
            session.run(line)


def test_bisect(session: Session) -> None:
    answer = session.run('bisect start end console ~ "heartbeat  9"')
    assert answer.data["found"] == session.tick
    assert session.run("console 1").data["console"][0]["text"].startswith("heartbeat  9")
    before = session.tick
    for line in ("bisect start", "bisect start end", "bisect x end 1", "bisect 5 5 1", "bisect start end ("):
        with pytest.raises(UsageError):
            session.run(line)
    assert session.tick == before


def test_gdb_is_served_until_it_leaves(session: Session) -> None:
    import re
    import socket

    connections = []

    def connect(line: str) -> None:
        if match := re.search(r"target remote .*:([0-9]+)'", line):
            connection = socket.create_connection(("127.0.0.1", int(match[1])))
            connection.shutdown(socket.SHUT_WR)  # a gdb that says nothing and goes
            connections.append(connection)

    tick = session.tick
    session.run("break main")
    session.say = connect
    answer = session.run("gdb")
    assert len(answer.data["said"]) >= 2
    assert session.tick == tick
    assert len(session.timeline.stops) == 1
    connections[0].close()
    with pytest.raises(UsageError, match="from 1 to 65,535"):
        session.run("gdb 99999")
