"""Parents of devices (µDenali's interposition), recorded: the replay has none, and goes the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parents_rig import denali_guest, pc_guest, record_with, replays

from tt.events import Kind
from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.travel import Timeline
from tt.vmm.build import build_machine
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.configure import configure_denali, configure_pc
from tt.vmm.disk_images import open_disks
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine
from tt.vmm.messages import (
    ConsoleInput,
    ConsoleWrite,
    DiskFlush,
    DiskRead,
    DiskSize,
    DiskWrite,
    TimerExpired,
)
from tt.vmm.router import Call

EPOCH = 1_700_000_000
BLANK = DiskConfig("", 8 * 4096, "")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MachineConfig]:
    """Return both machines with a guest that writes, reads, prints and listens."""
    pc = configure_pc(pc_guest(tmp_path_factory.mktemp("pc")), epoch=EPOCH, mem_bytes=16 << 20)
    denali = configure_denali(denali_guest(tmp_path_factory.mktemp("denali")), epoch=EPOCH)
    return {
        kind: MachineConfig(**{**vars(config), "disks": (BLANK,)})
        for kind, config in (("pc", pc), ("denali", denali))
    }


both = pytest.mark.parametrize("kind", ["pc", "denali"])


def reads_changed(call: Call) -> None:
    """Turn what the guest reads into capitals."""
    if isinstance(call.message, DiskRead):
        call.ask(call.message, lambda answer: call.answer((answer or b"").upper()))
    else:
        call.pass_on()


def writes_swallowed(call: Call) -> None:
    """Lie about writes."""
    if isinstance(call.message, DiskWrite):
        call.answer()
    else:
        call.pass_on()


def writes_changed(call: Call) -> None:
    """Store something else, and a copy elsewhere; fail flushes."""
    if isinstance(call.message, DiskWrite):
        call.ask(DiskWrite(60, call.message.data[:512]))
        call.pass_on(DiskWrite(call.message.lba, call.message.data.swapcase()))
    elif isinstance(call.message, DiskFlush):
        call.fail()
    else:
        call.pass_on()


def everything_later(call: Call) -> None:
    """Do what the default handler does, 300 us of guest time later."""
    if isinstance(call.message, DiskSize):
        call.pass_on()
    else:
        call.after(300_000, call.pass_on)


def answers_later(call: Call) -> None:
    """Answer reads by itself, one at once and one later in turn."""
    if isinstance(call.message, DiskRead):
        data = b"%" * 512 * call.message.sectors
        if call.message.lba % 16 == 0:
            call.after(1, lambda: call.answer(data))
        else:
            call.answer(data)
    else:
        call.pass_on()


CASES: dict[str, tuple[Callable[[Call], None], str, str]] = {
    # what the pc's guest says of its rounds, and Denali's
    "reads": (reads_changed, "ok ok AAok |ok ok BBok |ok ok CCok ", "ok ok AA|ok ok BB|ok ok CC"),
    "swallowed": (
        writes_swallowed,
        "ok ok \0\0ok " + "|ok ok \0\0ok " * 2,
        "ok ok \0\0|ok ok \0\0|ok ok \0\0",
    ),
    "changed": (
        writes_changed,
        "ok ok AAfailed |ok ok BBfailed |ok ok CCfailed ",
        "ok ok AA|ok ok BB|ok ok CC",
    ),
    "later": (everything_later, "ok ok aaok |ok ok bbok |ok ok ccok ", "ok ok aa|ok ok bb|ok ok cc"),
    "answers": (answers_later, "ok ok %%ok |ok ok %%ok |ok ok %%ok ", "ok ok %%|ok ok %%|ok ok %%"),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_parents_of_a_disk(kind: str, case: str, machines: dict[str, MachineConfig], tmp_path: Path) -> None:
    parent, pc_says, denali_says = CASES[case]
    path = tmp_path / "x.tt"

    def start(machine: Machine) -> None:
        machine.router.interpose("disk0", parent)

    printed = record_with(machines[kind], path, start, typed=b"hi\n")
    wanted = (pc_says if kind == "pc" else denali_says).replace("|", "\n")
    assert wanted in printed and printed.endswith("> hi\nend\n"), printed
    machine = replays(path)
    with Trace.open(path) as trace:
        kinds = {event.kind for event in trace.events()}
        assert {Kind.ROUTE, Kind.PARENT} <= kinds
        assert (Kind.PARENT_LATER in kinds) == (case in ("later", "answers"))
        assert not machine.router._ports["disk0"].chain


@both
def test_parents_of_a_console(kind: str, machines: dict[str, MachineConfig], tmp_path: Path) -> None:
    path = tmp_path / "x.tt"

    def rot(call: Call) -> None:
        message = call.message
        if isinstance(message, ConsoleInput):
            call.after(10_000, lambda: call.pass_on(ConsoleInput(message.data.upper())))
        elif isinstance(message, ConsoleWrite) and b"o" in message.data:
            call.answer()
        else:
            assert isinstance(message, ConsoleWrite)
            call.pass_on(ConsoleWrite(message.data.replace(b"k", b"K")))

    printed = record_with(
        machines[kind], path, lambda machine: machine.router.interpose("console0", rot), typed=b"hi\n"
    )
    assert "o" not in printed
    assert printed.endswith("> HI\nend\n")
    assert ("K K aaK" in printed) == (kind == "pc")
    replays(path)


def test_a_late_timer(machines: dict[str, MachineConfig], tmp_path: Path) -> None:
    path = tmp_path / "x.tt"

    def late(call: Call) -> None:
        assert isinstance(call.message, TimerExpired)
        call.after(5_000_000, call.pass_on)

    before = record_with(machines["denali"], tmp_path / "y.tt", lambda machine: None, typed=b"\n")
    printed = record_with(
        machines["denali"], path, lambda machine: machine.router.interpose("timer0", late), typed=b"\n"
    )
    times = [int(text.split("timer at ")[1].split(" us")[0]) for text in (before, printed)]
    assert times[1] - times[0] == 5_000
    replays(path)


@both
def test_parents_come_and_go(kind: str, machines: dict[str, MachineConfig], tmp_path: Path) -> None:
    """Put before a running device and taken off again, by itself, with a message still open."""
    path = tmp_path / "x.tt"
    open_calls: list[Call] = []

    def start(machine: Machine) -> None:
        def first(call: Call) -> None:
            if isinstance(call.message, DiskRead):
                machine.router.interpose("disk0", second)
                machine.router.restore("console0")
            call.pass_on()

        def second(call: Call) -> None:
            if isinstance(call.message, DiskWrite):
                open_calls.append(call)
                call.after(50_000, lambda: machine.router.restore("disk0"))
            else:
                call.pass_on()

        machine.router.interpose("disk0", first)
        machine.router.interpose("console0", lambda call: call.pass_on())

    printed = record_with(machines[kind], path, start, typed=b"\n")
    assert "ok bb" in printed and len(open_calls) == 1
    replays(path)
    with Trace.open(path) as trace:
        routes = [(event.unit, event.value) for event in trace.events(kinds={Kind.ROUTE})]
    assert routes == [(0, 1), (1, 1), (1, 0), (0, 0)]


@both
def test_any_place_of_a_recording_with_parents(
    kind: str, machines: dict[str, MachineConfig], tmp_path: Path
) -> None:
    """Checkpoints with messages under way; each tick is the same however it was reached."""
    path = tmp_path / "x.tt"
    record_with(
        machines[kind],
        path,
        lambda machine: machine.router.interpose("disk0", everything_later),
        typed=b"hi\n",
    )
    with Trace.open(path) as trace:
        ticks = {
            tick
            for event in trace.events(kinds={Kind.PARENT, Kind.PARENT_LATER})
            for tick in (event.tick - 1, event.tick, event.tick + 1, event.tick + 500)
            if tick < trace.end_tick
        }
        straight, back = Timeline(trace, checkpoints=False), Timeline(trace, spacing_ticks=20_000)
        digests = {}
        for tick in sorted(ticks):
            straight.seek(tick)
            digests[tick] = straight.digest()
        back.seek(trace.end_tick)
        for tick in sorted(ticks, reverse=True):
            back.seek(tick)
            assert back.digest() == digests[tick], tick
        back.seek(max(event.tick for event in trace.events(kinds={Kind.PARENT})) + 500)
        assert back.machine.board.save()["router"]["ports"][0]["waiting"]


@both
@pytest.mark.parametrize("keep", [True, False])
def test_forks_of_a_recording_with_parents(
    kind: str, keep: bool, machines: dict[str, MachineConfig], tmp_path: Path
) -> None:
    """A fork has no parents: kept, the record's steps; without, the default handlers answer what is open."""
    path = tmp_path / "x.tt"
    record_with(
        machines[kind],
        path,
        lambda machine: machine.router.interpose("disk0", everything_later),
        typed=b"hi\n",
    )
    with Trace.open(path) as trace:
        under_way = [event.tick for event in trace.events(kinds={Kind.PARENT})]
        timeline = Timeline(trace)
        timeline.seek(under_way[len(under_way) // 2] + 1)
        fork = timeline.fork(tmp_path / "fork.tt", keep_inputs=keep)
        with fork:
            fork.run()
            assert fork.ended is not None
            if keep:
                assert fork.tick == trace.end_tick
                timeline.seek(trace.end_tick)
    with Trace.open(tmp_path / "fork.tt") as child:
        text = "".join(line + "\n" for _tick, _unit, line in child.console_lines())
        assert "> hi\nend\n" in text
        verdict = verify(child)
        assert verdict.good, verdict.message


@both
def test_nobody_between_is_as_before(kind: str, machines: dict[str, MachineConfig], tmp_path: Path) -> None:
    """A parent that passes everything on changes nothing but the log."""
    plain, watched = tmp_path / "plain.tt", tmp_path / "watched.tt"
    one = record_with(machines[kind], plain, lambda machine: None, typed=b"\n")
    two = record_with(
        machines[kind], watched, lambda machine: machine.router.interpose("disk0", Call.pass_on), typed=b"\n"
    )
    assert one == two
    parents = {Kind.ROUTE, Kind.PARENT, Kind.PARENT_LATER}
    with Trace.open(plain) as first, Trace.open(watched) as second:
        # Console bytes come in other runs: any other event ends one.
        others = set(Kind) - parents - {Kind.CONSOLE}
        assert list(second.events(kinds=others)) == list(first.events(kinds=others))
        assert [event.kind for event in first.events(kinds=parents)] == []


def test_time_that_passes_brings_timers_nearer(machines: dict[str, MachineConfig]) -> None:
    """An idle guest that is woken before its timer computes on, and the timer is still exact to the tick."""
    machine = build_machine(machines["pc"], open_disks(machines["pc"], check=False))
    machine.run(10_000)
    fired: list[int] = []
    timer = machine.clock.timer("test", lambda: fired.append(machine.tick))
    timer.arm(machine.now_ns + 400_000)
    machine.let_pass(100_000)
    machine.run(1_000_000, pausing=False)
    assert fired == [10_000 + 300_000 // 4]


@pytest.mark.slow
def test_debian_with_parents(debian_image: Path, tmp_path: Path) -> None:
    """A real kernel and its drivers: late answers with interrupts, a console that is watched, typed input."""
    path = tmp_path / "debian.tt"

    def later(call: Call) -> None:
        if isinstance(call.message, DiskSize):
            call.pass_on()
        else:
            call.after(2_000_000, call.pass_on)

    def shout(call: Call) -> None:
        if isinstance(call.message, ConsoleInput):
            call.pass_on(ConsoleInput(call.message.data.replace(b"whoami", b"echo parents")))
        else:
            call.pass_on()

    def start(machine: Machine) -> None:
        machine.router.interpose("disk0", later)
        machine.router.interpose("console0", shout)

    config = configure_pc(debian_image, epoch=EPOCH)
    source = LiveSource(script=[b"whoami\n", b"sync\n"])
    record(config, path, source, on_start=start)
    with Trace.open(path) as trace:
        text = "\n".join(line for _tick, _unit, line in trace.console_lines())
        assert "echo parents\nparents\n" in text.replace("\r", ""), "whoami was turned into something else"
        assert sum(1 for _ in trace.events(kinds={Kind.PARENT_LATER})) > 100
        verdict = verify(trace)
    assert verdict.good, verdict.message
