"""Saving a machine with network cards, restoring it and running on equals running on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from denali_rig import RAM, Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from test_denali_network import arrive, frame, give, rig_with

from tt.errors import BadState
from tt.vmm.denali.classic import RAP, RDP, RESET
from tt.vmm.denali.registers import REFUSED, Call
from tt.vmm.messages import EthernetLink

RINGS = 0x10000
pages = st.sampled_from([0x3000, 0x4000, 0x5000, 0x6000, 0x1000, 0x5001, REFUSED])
cards = st.integers(0, 2)
registers = st.sampled_from([0, 0, 0, 1, 2, 3])
values = st.sampled_from([0, 1, 3, 4, 8, 0x42, 0x48, 0x7F00, 0x7940, RINGS & 0xFFFF, RINGS >> 16, 0xFFFF])
sizes = st.sampled_from([13, 14, 60, 700, 1518, 1519, 4096, 4097])
steps = st.one_of(
    st.tuples(st.just("compute")),
    st.tuples(st.just("frame"), cards, sizes),
    st.tuples(st.just("link"), cards, st.booleans()),
    st.tuples(st.just("enable"), st.booleans()),
    st.tuples(st.just("call"), st.sampled_from([Call.NET_GIVE, Call.NET_RECEIVE]), cards, pages),
    st.tuples(st.just("call"), st.just(Call.NET_SEND), cards, pages, sizes),
    st.tuples(st.just("call"), st.just(Call.NET_INFO), cards, st.integers(0, 7)),
    st.tuples(st.just("register"), registers, values),
    st.tuples(st.just("call"), st.just(Call.NET_PORT_READ), cards, st.sampled_from([RDP, RAP, RESET, 1])),
    st.tuples(st.just("own"), st.integers(0, 7)),
)


def make() -> Rig:
    """Return a machine with a card of each model, and rings for the second in its memory."""
    rig = rig_with("denali", "classic")
    block = struct.pack("<HHQQII", 0, 1 << 4 | 2 << 12, 0, 0, RINGS + 0x100, RINGS + 0x200)
    rig.memory.write(RINGS, block)
    return rig


def carry_out(rig: Rig, step: tuple[Any, ...]) -> Any:
    match step:
        case ("compute",):
            return rig.compute()
        case ("frame", card, size):
            return arrive(rig, frame(rig.tick, size), card=card)
        case ("link", card, up):
            return rig.board.router.deliver(f"ethernet{card}", EthernetLink(up))
        case ("enable", on):
            return rig.take_events(on)
        case ("call", number, *arguments):
            return rig.call(number, *arguments)
        case ("register", number, value):
            rig.call(Call.NET_PORT_WRITE, 1, RAP, number)
            return rig.call(Call.NET_PORT_READ, 1, RDP), rig.call(Call.NET_PORT_WRITE, 1, RDP, value)
        case ("own", at):
            return rig.memory.write(
                RINGS + 0x100 + 0x40 * at, struct.pack("<IHH", 0x20000 + 0x1000 * at, -700 & 0xFFFF, 0x8300)
            )
    raise AssertionError(step)


def restored(rig: Rig) -> Rig:
    """Another machine with this one's state, by way of JSON."""
    other = make()
    other.tick = rig.tick
    other.memory.ram[:] = rig.memory.ram
    other.clock.load(rig.clock.save())
    other.board.load(json.loads(json.dumps(rig.board.save())))
    return other


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25), st.lists(steps, min_size=1, max_size=25))
def test_restored_in_the_middle_goes_on_the_same(before: list[Any], after: list[Any]) -> None:
    rig = make()
    give(rig, 0x7000)
    carry_out(rig, ("register", 2, RINGS >> 16))
    carry_out(rig, ("register", 0, 0x43))
    for step in before:
        carry_out(rig, step)
    twin = restored(rig)
    assert twin.board.save() == rig.board.save()
    rig.events.clear()
    for step in after:
        assert carry_out(rig, step) == carry_out(twin, step), step
        assert rig.board.next_wake_ns() == twin.board.next_wake_ns()
        assert [rig.board.cards.room(card) for card in (0, 1)] == [
            twin.board.cards.room(card) for card in (0, 1)
        ]
    assert twin.events == rig.events
    assert twin.memory.ram == rig.memory.ram
    assert twin.board.save() == rig.board.save()


# ---- states that no machine saved


def busy() -> dict[str, Any]:
    """Return the state of a machine whose cards have something of everything."""
    rig = make()
    give(rig, 0x3000, 0x4000)
    arrive(rig, frame(1), frame(2), frame(3))
    rig.compute()
    give(rig, 0x5000, 0x6000)
    arrive(rig, frame(4))
    carry_out(rig, ("register", 2, RINGS >> 16))
    carry_out(rig, ("register", 0, 0x43))
    arrive(rig, frame(5), card=1)
    return rig.board.save()


def change(card: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["cards"][card].update(fields)


ODD = {
    "no cards": lambda state: state.pop("cards"),
    "a card too few": lambda state: state["cards"].pop(),
    "a table": lambda state: state.update(cards={}),
    "the other model": lambda state: state["cards"].reverse(),
    "a page twice": change(0, given=[0x5000, 0x5000]),
    "a page with a frame given": change(0, given=[0x3000]),
    "a page off": change(0, given=[0x5008]),
    "a page outside": change(0, given=[RAM]),
    "the register page": change(0, given=[0x1000]),
    "too many pages": change(0, given=[0x8000 + 0x1000 * i for i in range(257)]),
    "too many pages together": change(0, given=[0x1000 * i for i in range(256)]),
    "a size that none has": change(0, stored=[{"page": 0x3000, "size": 13}]),
    "a frame too long": change(0, waiting=["00" * 4097]),
    "a frame too short": change(0, waiting=["00" * 13]),
    "too many frames": change(0, waiting=["00" * 14] * 400),
    "nobody listens": change(0, listening=False),
    "a negative count": change(0, dropped=-1),
    "a text": change(0, link="up"),
    "past the end of a ring": change(1, receive_at=2),
    "past the end of the other ring": change(1, send_at=4),
    "a ring too long": change(1, receive_length=10),
    "bits that none has": change(1, csr0=0x8),
    "running, and not initialized": change(1, initialized=False),
    "frames for one that stands": change(1, csr0=4),
    "a long frame for a classic card": change(1, waiting=["00" * 1519]),
    "a register too wide": change(1, rap=1 << 16),
    "something more": change(1, speed=100),
}


@pytest.mark.parametrize("what", ODD)
def test_a_state_that_no_machine_saved_is_refused(what: str) -> None:
    state = json.loads(json.dumps(busy()))
    make().board.load(state)
    ODD[what](state)
    with pytest.raises(BadState, match=r"saved state of .* does not fit"):
        make().board.load(state)


def test_cards_in_the_state_of_a_machine_without() -> None:
    with pytest.raises(BadState, match="cards"):
        Rig().board.load(busy())


def test_loading_lets_go_of_pages() -> None:
    rig = make()
    give(rig, 0x3000)
    rig.board.load(make().board.save())
    give(rig, 0x3000)
    rig.board.load(rig.board.save())
    assert rig.call(Call.NET_GIVE, 0, 0x3000) == REFUSED
