"""Saving, restoring and running on equals running on."""

from __future__ import annotations

import json
from typing import Any

from denali_rig import RamDisk, Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.vmm.denali.disk import Drive
from tt.vmm.denali.registers import REFUSED, Call, Register

small = st.integers(0, 5)
pages = st.sampled_from([0x3000, 0x4000, 0x5000, 0x1000, 0x5001])
steps = st.one_of(
    st.tuples(st.just("compute"), st.integers(1, 40)),
    st.tuples(st.just("idle"), st.sampled_from([0, 1, 5_000, 210_000, REFUSED])),
    st.tuples(st.just("sleep")),
    st.tuples(st.just("type"), st.binary(max_size=9)),
    st.tuples(st.just("timer"), st.integers(0, 2_000_000)),
    st.tuples(st.just("enable"), st.booleans()),
    st.tuples(st.just("poke"), st.sampled_from([0x3000, 0x4000]), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("call"), st.sampled_from([10, 11]), st.integers(0, 2), small, pages),
    st.tuples(st.just("call"), st.just(Call.DISK_DONE), small, small, small),
    st.tuples(st.just("call"), st.sampled_from([7, 8]), pages, small, small),
)


def make() -> Rig:
    return Rig(Drive(RamDisk(4)), Drive(RamDisk(4), read_only=True))


def carry_out(rig: Rig, step: tuple[Any, ...]) -> Any:
    match step:
        case ("compute", quanta) if not rig.board.idling:
            return [rig.compute() for _ in range(quanta)]
        case ("idle", timeout_ns) if not rig.board.idling:
            return rig.call(Call.IDLE_WITH_TIMEOUT, timeout_ns)
        case ("sleep",):
            if rig.board.idling and rig.board.next_wake_ns() is not None:
                return rig.sleep(), rig.now_ns
            return rig.board.next_wake_ns()
        case ("type", data):
            return rig.board.typed(data)
        case ("timer", timer_ns):
            rig[Register.TIMER_NS] = timer_ns
        case ("enable", on):
            rig.take_events(on)
        case ("poke", addr, data):
            rig.memory.write(addr, data)
        case ("call", number, *arguments) if not rig.board.idling:
            return rig.call(number, *arguments)
    return None


def restored(rig: Rig) -> Rig:
    """Another machine with this one's state, by way of JSON."""
    other = make()
    state = json.loads(json.dumps({"board": rig.board.save(), "clock": rig.clock.save()}))
    other.tick = rig.tick
    other.memory.ram[:] = rig.memory.ram
    for ours, theirs in zip(other.drives, rig.drives, strict=True):
        assert isinstance(ours.disk, RamDisk)
        assert isinstance(theirs.disk, RamDisk)
        ours.disk.data[:] = theirs.disk.data
    other.clock.load(state["clock"])
    other.board.load(state["board"])
    return other


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=25), st.lists(steps, min_size=1, max_size=25))
def test_restored_in_the_middle_goes_on_the_same(before: list[Any], after: list[Any]) -> None:
    rig = make()
    for step in before:
        carry_out(rig, step)
    twin = restored(rig)
    assert twin.board.save() == rig.board.save()
    rig.events.clear()
    rig.rax = None
    for step in after:
        assert carry_out(rig, step) == carry_out(twin, step), step
    assert twin.events == rig.events
    assert twin.rax == rig.rax
    assert twin.memory.ram == rig.memory.ram
    assert twin.board.save() == rig.board.save()


def test_loading_drops_what_was_there() -> None:
    rig, busy = make(), make()
    busy.call(Call.DISK_WRITE, 0, 0, 0x3000)
    busy.board.typed(b"abc")
    busy.compute()
    busy.call(Call.IDLE_WITH_TIMEOUT, 5)
    busy.call(Call.TERMINATE, 5)
    saved = busy.board.save()
    busy.board.load(rig.board.save())
    assert busy.board.save() == rig.board.save() != saved
