"""The shell in a recording of Debian: its symbols, its files, its system calls, and another history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot

from tt.log import Trace
from tt.shell import Session
from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

SCRIPT = ["echo found it > /root/sum", "sync; cat /root/sum"]


@pytest.fixture(scope="module")
def session(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return a session at the end of a recording in which a file was written."""
    path = tmp_path_factory.mktemp("debian") / "debian.tt"
    Boot(configure_pc(debian_image, mem_bytes=128 << 20, epoch=EPOCH), path, script=SCRIPT)
    with Trace.open(path) as trace:
        opened = Session(trace)
        opened.timeline.seek(trace.end_tick)
        yield opened
        opened.close()


def test_looking_and_another_history(session: Session) -> None:
    assert session.run("disk cat /root/sum").data["text"] == "found it\n"
    assert session.run("disk ls /etc").good
    session.run('break do_sys_openat2 if str[$rsi] == "/root/sum"')
    session.run("rc")  # cat
    cat = session.run("bt").data["frames"]
    assert [frame["name"].split("+")[0] for frame in cat[1:4]] == [
        "__x64_sys_openat", "do_syscall_64", "entry_SYSCALL_64_after_hwframe",
    ]  # fmt: skip
    assert session.run("rc").data["symbol"] == "do_sys_openat2"  # echo
    assert session.run("p str[$rsi]").data["value"] == "/root/sum"
    opened = session.tick
    assert session.run("finish").data["rax"] == 3
    before = session.machine.digest()

    session.run("fork refused")
    session.run("set $rax = -13")
    assert "can't create /root/sum: Permission denied" in session.run("continue").data["output"]
    session.run("type cat /root/sum")
    assert "found it" not in session.run("continue").data["output"]
    session.run("close")
    session.run("close")
    assert session.machine.digest() == before

    session.run("delete")
    wrote = session.run("last-write jiffies")
    assert wrote.data["writer_symbol"].startswith("tick_do_update_jiffies64+")
    assert wrote.data["tick"] < session.end_tick
    session.run(f"goto {opened}")
    session.run("catch syscall write")
    assert "write" in session.run("c").lines[0]
    session.run("delete")
    assert session.run('search "found it"').good


def test_the_strip_and_where_the_kernel_came_to_life(session: Session) -> None:
    rows = session.run("timeline").data["rows"]
    assert sum(rows["console"]) > 100
    assert sum(rows["interrupts"]) > 100
    answer = session.run("bisect start end *(int*)system_state >= 3")
    assert "kernel_init" in answer.lines[1]
    assert session.run("p *(int*)system_state").data["value"] == 3
