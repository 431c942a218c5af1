"""What machines load: their own saved states come back whole; anything else is one `BadState`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parents_rig import denali_guest, pc_guest

from tt.errors import BadState
from tt.vmm import running
from tt.vmm.build import build_machine
from tt.vmm.config import DiskConfig, MachineConfig
from tt.vmm.configure import configure_denali, configure_pc
from tt.vmm.disk_images import open_disks
from tt.vmm.machine import Machine
from tt.vmm.messages import DiskSize
from tt.vmm.router import Call

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 1 << 70, -(1 << 80), 0, 7, 255, 1.5),
    *("", "zz", "0", "AB", "00" * 300, [], [None], {}),
)


def keep_open(call: Call) -> None:
    """Answer nothing but what has to be answered at once."""
    if isinstance(call.message, DiskSize):
        call.pass_on()


@pytest.fixture(scope="module", params=["pc", "denali"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Return a machine with a disk request at a parent."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "pc":
        config = configure_pc(pc_guest(folder), epoch=1_700_000_000, mem_bytes=16 << 20)
    else:
        config = configure_denali(denali_guest(folder), epoch=1_700_000_000)
    config = MachineConfig(**{**vars(config), "disks": (DiskConfig("", 8 * 4096, ""),)})
    machine = build_machine(config, open_disks(config, check=False))
    machine.router.interpose("disk0", keep_open)
    machine.router.interpose("console0", Call.pass_on)
    running.run(machine, 200_000)
    assert machine.board.save()["router"]["ports"]
    return machine


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything inside."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from places(value[key])
    elif isinstance(value, list):
        for at in range(len(value)):
            yield value, at
            yield from places(value[at])


def changed(state: Any) -> Iterator[Any]:
    """Yield the state with one thing in it changed; the same object, put right in between."""
    for container, key in list(places(state)):
        before = container[key]
        near = [before + 1, before - 1] if type(before) is int else []
        for odd in [*ODD, *near]:
            if json.dumps(odd) != json.dumps(before):
                container[key] = odd
                yield state
        container[key] = before
        if isinstance(container, dict):
            del container[key]
            yield state
            container[key] = before
            container["odd"] = 0
            yield state
            del container["odd"]
        else:
            container.insert(key, copy.deepcopy(before))
            yield state
            del container[key]


def check(machine: Machine, part: Any, sound: dict[str, Any]) -> tuple[int, int]:
    """Load every change of a sound state; return how many were refused, and how many were states too."""
    refused = taken = 0
    for state in changed(copy.deepcopy(sound)):
        spelled = json.dumps(state, sort_keys=True)
        try:
            part.load(state)
        except BadState as e:
            assert "does not fit" in str(e) and "\n" not in str(e)
            refused += 1
        else:
            assert json.dumps(part.save(), sort_keys=True) == spelled
            taken += 1
    part.load(sound)
    assert part.save() == sound
    return refused, taken


def test_boards(machine: Machine) -> None:
    """Each field of each device: of another type, out of range, missing, one too many."""
    sound = json.loads(json.dumps(machine.board.save()))
    refused, taken = check(machine, machine.board, sound)
    assert refused > 5 * taken > 0


def test_clocks(machine: Machine) -> None:
    refused, taken = check(machine, machine.clock, machine.clock.save())
    assert refused > taken > 0


def test_machines(machine: Machine) -> None:
    """The machine's own parts; a state that is no table at all."""
    sound = machine.save()
    for name in ("tick", "halted", "ended", "cpu", "clock", "board"):
        for odd in (None, -1, 1 << 70, 1.5, [], {}, b"", "x"):
            if name == "ended" and odd in (None, "x"):
                continue
            with pytest.raises(BadState):
                machine.load({**sound, name: odd})
        with pytest.raises(BadState):
            machine.load({key: value for key, value in sound.items() if key != name})
    for odd in (None, [], "x", {**sound, "odd": 1}):
        with pytest.raises(BadState):
            machine.load(odd)  # type: ignore[arg-type]
    machine.load(sound)
    assert machine.save() == sound


def test_cpus(machine: Machine) -> None:
    """A CPU that never was is a `BadState`, or a state: the CPU is the one loaded."""
    sound = machine.save()
    chance = random.Random(5)
    refused = 0
    for _ in range(300):
        cpu = bytearray(sound["cpu"])
        for _ in range(chance.choice((1, 4))):
            cpu[chance.randrange(chance.choice((64, 1024, len(cpu))))] = chance.randrange(256)
        try:
            machine.load({**sound, "cpu": bytes(cpu)})
        except BadState:
            refused += 1
    with pytest.raises(BadState):
        machine.load({**sound, "cpu": sound["cpu"][:-1]})
    assert refused
    machine.load(sound)
    assert machine.save() == sound


def test_a_bug_in_a_device_is_not_a_damaged_checkpoint(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, demo_trace: Path
) -> None:
    """It comes out as what it is, with its traceback."""
    from tt.log import Trace
    from tt.travel import Timeline

    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace, spacing_ticks=1_000_000)
        timeline.seek(3_000_000)

        def buggy(state: dict[str, Any]) -> None:
            raise AttributeError("a bug")

        monkeypatch.setattr(timeline.machine.board.console, "load", buggy)
        with pytest.raises(AttributeError, match="a bug"):
            timeline.seek(1_000_000)
        assert timeline.damage == ""
