"""Guests on tt's own machine: they run while they are read, the same each time, and write nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tt.chronus.runners import warm
from tt.chronus.runners.named import runner
from tt.chronus.runners.runner import Setup, setup_of
from tt.chronus.runners.tt_machine import TtGuest, TtRunner
from tt.chronus.search.verdicts import ProbeError
from tt.chronus.store.history import History
from tt.chronus.store.view import DiskView
from tt.errors import BadInput, UsageError


@pytest.fixture
def history(demo_trace: Path) -> Iterator[History]:
    """Open the recording of a Denali guest, and let go of machines afterwards."""
    with History.open(demo_trace) as history:
        yield history
    warm.forget()


def run(guest: TtGuest, seconds: float = 60.0) -> bytes:
    """Let a guest run to its end."""
    while guest.ended is None and guest.seconds < seconds:
        guest.read(1.0)
    return guest.console


def test_runs_to_its_end(history: History) -> None:
    """A recorded Denali guest runs again, on the disk of an instant."""
    with TtRunner().start(history.at(0), setup_of(history)) as guest:
        console = run(guest)
        assert guest.ended == "terminated with status 0"
        assert b"done: 20 heartbeats" in console
        assert guest.seconds == pytest.approx(2.0, abs=0.1)
        assert guest.read(1.0) == b""
    assert guest.console == console  # it can still be looked at
    guest.stop()


def test_always_the_same(history: History) -> None:
    """Each run prints the same after the same time: in a new machine or a kept one, read in any way."""
    setup = setup_of(history)
    found = set()
    for step_s in (1.0, 0.003, 0.25):
        for fresh in (True, False):
            if fresh:
                warm.forget()
            with TtRunner().start(history.at(5), setup) as guest:
                printed = b""
                while guest.ended is None:
                    printed += guest.read(step_s)
                assert printed == guest.console
                found.add((printed, guest.seconds, guest.reads))
    assert len(found) == 1


def test_stands_still(history: History) -> None:
    """A guest runs only while it is read, and not beyond the time that the reader gives."""
    with TtRunner().start(history.at(0), setup_of(history)) as guest:
        assert guest.read(0.0) == b""
        assert guest.seconds == 0.0
        before = guest.seconds
        while not guest.read(0.01):
            assert before < guest.seconds <= before + 0.011
            before = guest.seconds
        here = guest.seconds
        guest.console_socket.stat()
        assert guest.seconds == here < 1.0


def test_typing(history: History) -> None:
    """What is typed arrives, and where it does depends on what was read alone."""
    consoles = []
    for _ in range(2):
        with TtRunner().start(history.at(0), setup_of(history)) as guest:
            while b"heartbeat  3" not in guest.console:
                assert guest.read(1.0)
            guest.write(b"hello\r")
            consoles.append(run(guest, seconds=1.0))
    assert consoles[0] == consoles[1]
    assert b"hello" in consoles[0]


def test_touches_nothing(history: History, demo_trace: Path) -> None:
    """Neither the trace nor the instant changes."""
    before, disk = demo_trace.read_bytes(), history.at(history.count)
    blocks = disk.blocks(0, 64)
    with TtRunner().start(disk, setup_of(history)) as guest:
        run(guest)
    assert disk.blocks(0, 64) == blocks
    assert demo_trace.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kernel": Path("/vmlinuz")}, "kernel"),
        ({"append": "quiet"}, "command line"),
        ({"script_disk": bytes(4096)}, "shell"),
        ({"init": ("/bin/sh",)}, "shell"),
    ],
)
def test_not_for_denali(history: History, change: dict[str, object], what: str) -> None:
    """What a Denali guest, or the machine, has not is refused."""
    with pytest.raises(ProbeError, match=what):
        TtRunner().start(history.at(0), replace(setup_of(history), **change))  # type: ignore[arg-type]


class Damaged(DiskView):
    """A disk whose blocks cannot be read."""

    sectors, size, where = 8192, 8192 * 512, "somewhere"

    def blocks(self, first: int, count: int) -> list[bytes]:
        raise BadInput("block 0 is damaged")


def test_damaged_history() -> None:
    """Damage of the store is told as that, and is no verdict on the guest."""
    with pytest.raises(BadInput):
        TtRunner().start(Damaged(), Setup())


def test_setup(history: History) -> None:
    """A guest gets the memory of the recording, and a clock behind its last write."""
    setup = setup_of(history, mem="32M", timeout_s=5.0)
    assert setup.mem_bytes == 32 << 20
    assert setup_of(history).mem_bytes == 16 << 20
    assert setup.epoch >= 1_700_000_000
    assert setup.key() == replace(setup, timeout_s=9.0).key() != setup_of(history).key()
    with pytest.raises(UsageError, match="--timeout"):
        setup_of(history, timeout_s=float("nan"))
    with pytest.raises(UsageError, match="--port"):
        setup_of(history, ports=[70000])
    with pytest.raises(UsageError, match="there is no runner"):
        runner("vax")
