"""Network cards with one instruction a frame, on a board without a CPU."""

from __future__ import annotations

from typing import Any

import pytest
from denali_rig import RAM, Rig

from tt.errors import UsageError
from tt.events import Kind
from tt.vmm.config import NetConfig, default_mac
from tt.vmm.denali.ethernet import LONGEST, MORE, QUEUE_FRAMES
from tt.vmm.denali.registers import REFUSED, Call, CardItem, EventBit, Register
from tt.vmm.messages import EthernetLink, EthernetReceive

NETWORK = EventBit.NETWORK
FIRST, SECOND, THIRD = 0x8000, 0x9000, 0xA000


def rig_with(*models: str, **options: Any) -> Rig:
    """Return a board with a card of each of `models`, whose guest takes events."""
    nets = [NetConfig(model, default_mac(card)) for card, model in enumerate(models or ("denali",))]
    rig = Rig(nets=nets, **options)
    rig.take_events()
    return rig


def frame(number: int, size: int = 60) -> bytes:
    """Return a frame that no other one is equal to."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


def arrive(rig: Rig, *frames: bytes, card: int = 0) -> None:
    for each in frames:
        rig.board.router.deliver(f"ethernet{card}", EthernetReceive(each))


def give(rig: Rig, *pages: int, card: int = 0) -> None:
    for page in pages:
        assert rig.call(Call.NET_GIVE, card, page) == 0


def info(rig: Rig, item: CardItem, card: int = 0) -> int | None:
    return rig.call(Call.NET_INFO, card, item)


def receive(rig: Rig, page: int = REFUSED, card: int = 0) -> tuple[int, bytes, bool]:
    """Take a frame; return its page, its bytes and whether there are more."""
    got = rig.call(Call.NET_RECEIVE, card, page)
    assert got not in (None, REFUSED)
    addr, size = got & (1 << 48) - 1, got >> 48 & 0x7FFF
    return addr, rig.memory.read(addr, size), bool(got & MORE)


def sent(rig: Rig) -> list[tuple[int, bytes]]:
    return [(e.unit, e.data) for e in rig.events if e.kind is Kind.FRAME_OUT]


# ---- what cards there are


def test_what_a_card_tells_of_itself() -> None:
    rig = rig_with("denali", "classic", "denali")
    assert rig.call(Call.NET_INFO, REFUSED, 0) == 3
    assert [info(rig, CardItem.MODEL, card) for card in range(4)] == [0, 1, 0, REFUSED]
    address = info(rig, CardItem.ADDRESS, 2)
    assert address is not None
    assert address.to_bytes(8, "little") == bytes.fromhex("525400740002") + b"\0\0"
    assert [info(rig, CardItem.LONGEST, card) for card in range(3)] == [4096, 1518, 4096]
    assert [info(rig, CardItem.LINK, card) for card in range(3)] == [1, 1, 1]
    assert {rig.call(Call.NET_INFO, 0, item) for item in (7, 8, REFUSED)} == {REFUSED}


def test_a_machine_without_cards_is_as_before() -> None:
    rig = Rig()
    assert {rig.call(number, card, 0) for number in range(13, 32) for card in (0, REFUSED)} == {REFUSED}
    assert "cards" not in rig.board.save()
    arrive(rig, frame(1))
    rig.board.router.deliver("ethernet0", EthernetLink(False))
    assert rig.board.cards.room(0) is None
    assert rig.compute() == 0


def test_cards_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at most 16 network cards"):
        rig_with(*["denali"] * 17)
    with pytest.raises(UsageError, match="no network card of the model 'virtio'"):
        rig_with("virtio")


@pytest.mark.parametrize("number", [Call.NET_GIVE, Call.NET_SEND, Call.NET_RECEIVE])
def test_cards_that_are_not_there_or_of_the_other_model(number: Call) -> None:
    rig = rig_with("classic", "denali")
    assert {rig.call(number, card, FIRST, 60) for card in (0, 2, 1 << 63, REFUSED)} == {REFUSED}
    ports = {rig.call(call, 1, 0x14) for call in (Call.NET_PORT_READ, Call.NET_PORT_WRITE)}
    assert ports == {REFUSED}
    assert not sent(rig)


# ---- sending


def test_a_frame_goes_out_at_once_and_its_memory_is_free_again() -> None:
    rig = rig_with("denali", "denali")
    rig.memory.write(FIRST + 3, frame(7, 99))
    assert rig.call(Call.NET_SEND, 1, FIRST + 3, 99) == 99
    rig.memory.write(FIRST + 3, bytes(99))
    assert sent(rig) == [(1, frame(7, 99))]
    assert [info(rig, CardItem.SENT, card) for card in (0, 1)] == [0, 1]
    assert rig.compute() == 0  # nothing to be told


@pytest.mark.parametrize(
    ("addr", "size"),
    [
        (FIRST, 0),
        (FIRST, 13),
        (FIRST, LONGEST + 1),
        (FIRST, REFUSED),
        (RAM - 59, 60),
        (RAM, 60),
        (REFUSED, 60),
        (REFUSED - 59, 60),
        (1 << 63, 60),
    ],
)
def test_no_frame_is_sent_from_where_or_what_it_cannot_be(addr: int, size: int) -> None:
    rig = rig_with()
    assert rig.call(Call.NET_SEND, 0, addr, size) == REFUSED
    assert not sent(rig)
    assert info(rig, CardItem.SENT) == info(rig, CardItem.DROPPED) == 0


def test_the_shortest_and_the_longest_frame_at_the_ends_of_ram() -> None:
    rig = rig_with()
    rig.memory.write(RAM - LONGEST, frame(1, LONGEST))
    assert rig.call(Call.NET_SEND, 0, RAM - LONGEST, LONGEST) == LONGEST
    assert rig.call(Call.NET_SEND, 0, 0, 14) == 14
    assert rig.call(Call.NET_SEND, 0, 0x1000, 60) == 60  # the registers may be read
    assert [len(data) for _, data in sent(rig)] == [LONGEST, 14, 60]


# ---- receiving


def test_frames_come_at_hand_overs_in_pages_in_order() -> None:
    rig = rig_with()
    give(rig, FIRST, THIRD, SECOND)
    before = bytes(rig.memory.ram)
    arrive(rig, frame(1), frame(2, 4096))
    assert rig.memory.ram == before
    assert rig.call(Call.NET_RECEIVE, 0, REFUSED) == 0
    assert rig.compute() == NETWORK
    assert receive(rig) == (FIRST, frame(1), True)
    assert receive(rig) == (THIRD, frame(2, 4096), False)
    assert rig.call(Call.NET_RECEIVE, 0, REFUSED) == 0
    assert info(rig, CardItem.RECEIVED) == 2
    rig.take_events()
    assert rig.compute() == 0  # only new ones are an event
    arrive(rig, frame(3))
    assert rig.compute() == NETWORK
    assert receive(rig) == (SECOND, frame(3), False)


def test_a_page_changes_hands_with_the_frame() -> None:
    """In the long run one instruction a frame is all there is."""
    rig = rig_with()
    give(rig, FIRST, SECOND)
    free = REFUSED
    for number in range(10):
        arrive(rig, frame(number))
        rig.take_events()
        assert rig.compute() == NETWORK
        free, data, more = receive(rig, free)
        assert (data, more) == (frame(number), False)
    assert info(rig, CardItem.RECEIVED) == 10
    assert rig.call(Call.NET_GIVE, 0, free) == 0  # it was the guest's


def test_a_page_given_with_nothing_to_take_is_given() -> None:
    rig = rig_with()
    assert rig.call(Call.NET_RECEIVE, 0, FIRST) == 0
    assert rig.board.cards.room(0) == 1
    assert rig.call(Call.NET_GIVE, 0, FIRST) == REFUSED


@pytest.mark.parametrize("page", [FIRST + 1, FIRST + 2048, 0x1000, RAM, RAM - 2048, 1 << 63, REFUSED - 4095])
def test_pages_that_cannot_be_given(page: int) -> None:
    rig = rig_with()
    give(rig, FIRST)
    arrive(rig, frame(1))
    rig.compute()
    assert rig.call(Call.NET_GIVE, 0, page) == REFUSED
    assert rig.call(Call.NET_RECEIVE, 0, page) == REFUSED
    assert receive(rig) == (FIRST, frame(1), False)  # the refused one took nothing


def test_a_page_is_one_cards_only_and_until_it_is_named() -> None:
    rig = rig_with("denali", "denali")
    give(rig, FIRST)
    assert [rig.call(Call.NET_GIVE, card, FIRST) for card in (0, 1)] == [REFUSED, REFUSED]
    arrive(rig, frame(1))
    rig.compute()
    assert rig.call(Call.NET_GIVE, 1, FIRST) == REFUSED  # a frame lies there
    assert rig.call(Call.NET_RECEIVE, 0, FIRST) == REFUSED
    receive(rig)
    give(rig, FIRST, card=1)


def test_the_limit_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt.vmm.denali.ethernet.MOST_PAGES", 2)
    rig = rig_with()
    give(rig, FIRST, SECOND)
    assert rig.call(Call.NET_GIVE, 0, THIRD) == REFUSED
    arrive(rig, frame(1))
    rig.compute()
    assert rig.call(Call.NET_GIVE, 0, THIRD) == REFUSED  # one with a frame counts, too
    receive(rig)
    give(rig, THIRD)


def test_without_pages_some_frames_wait_and_the_rest_is_dropped() -> None:
    rig = rig_with()
    give(rig, FIRST)
    arrive(rig, *(frame(i) for i in range(QUEUE_FRAMES + 3)))
    assert info(rig, CardItem.DROPPED) == 2
    assert rig.compute() == NETWORK
    page, data, more = receive(rig)
    assert (data, more) == (frame(0), False)
    rig.take_events()
    assert rig.compute() == 0
    for number in range(1, QUEUE_FRAMES + 1):
        give(rig, page)
        rig.take_events()
        assert rig.compute() == NETWORK
        page, data, _ = receive(rig)
        assert data == frame(number)
    give(rig, page)
    rig.take_events()
    assert rig.compute() == 0
    assert [info(rig, item) for item in (CardItem.RECEIVED, CardItem.DROPPED)] == [QUEUE_FRAMES + 1, 2]


def test_what_is_dropped_at_the_door() -> None:
    rig = rig_with()
    arrive(rig, frame(1))  # nobody listens yet
    assert rig.board.cards.room(0) is None
    give(rig, FIRST)
    arrive(rig, frame(2, 13), b"", frame(3, LONGEST + 1), frame(4, 1 << 20))
    assert rig.compute() == 0
    assert info(rig, CardItem.DROPPED) == 5
    arrive(rig, frame(5, 14))
    assert rig.compute() == NETWORK


def test_room_is_pages_without_frames() -> None:
    rig = rig_with("denali", "denali")
    give(rig, FIRST, SECOND)
    assert [rig.board.cards.room(card) for card in range(3)] == [2, None, None]
    arrive(rig, frame(1))
    assert rig.board.cards.room(0) == 1
    arrive(rig, frame(2), frame(3), frame(4))
    assert rig.board.cards.room(0) == 0
    rig.compute()
    receive(rig)
    assert rig.board.cards.room(0) == 0
    give(rig, FIRST)
    assert rig.board.cards.room(0) == 0  # two frames wait for it


def test_several_cards_are_one_event_and_keep_their_frames_apart() -> None:
    rig = rig_with("denali", "denali")
    give(rig, FIRST)
    give(rig, SECOND, card=1)
    arrive(rig, frame(1), card=1)
    arrive(rig, frame(2), card=0)
    arrive(rig, frame(3), card=7)
    assert rig.compute() == NETWORK
    assert [e.value for e in rig.events if e.kind is Kind.BATCH] == [NETWORK]
    assert receive(rig, card=0)[:2] == (FIRST, frame(2))
    assert receive(rig, card=1)[:2] == (SECOND, frame(1))


# ---- the link


def test_a_link_that_is_down() -> None:
    rig = rig_with()
    give(rig, FIRST)
    arrive(rig, frame(1))
    rig.board.router.deliver("ethernet0", EthernetLink(False))
    assert info(rig, CardItem.LINK) == 0
    assert rig.board.cards.room(0) is None
    arrive(rig, frame(2))
    assert rig.call(Call.NET_SEND, 0, FIRST, 60) == 0
    assert rig.call(Call.NET_SEND, 0, FIRST, 13) == REFUSED
    assert not sent(rig)
    assert info(rig, CardItem.DROPPED) == 2
    assert rig.compute() == NETWORK
    assert receive(rig)[1] == frame(1)  # it had come before
    rig.take_events()
    rig.board.router.deliver("ethernet0", EthernetLink(False))
    assert rig.compute() == 0  # nothing new
    rig.board.router.deliver("ethernet0", EthernetLink(True))
    assert rig.compute() == NETWORK
    assert rig.call(Call.NET_RECEIVE, 0, REFUSED) == 0
    assert rig.call(Call.NET_SEND, 0, FIRST, 60) == 60


# ---- idling


def test_an_idling_guest_wakes_at_once() -> None:
    rig = rig_with()
    give(rig, FIRST)
    assert rig.call(Call.IDLE_WITH_TIMEOUT, REFUSED) is None
    assert rig.board.next_wake_ns() is None
    arrive(rig, frame(1))
    assert rig.board.next_wake_ns() == rig.now_ns
    rig[Register.ENABLED] = 0
    assert rig.sleep() == (NETWORK, 0)
    assert receive(rig)[1] == frame(1)


def test_frames_without_a_page_wake_nobody() -> None:
    rig = rig_with()
    give(rig, FIRST)
    arrive(rig, frame(1), frame(2))
    rig.compute()
    receive(rig)
    rig.take_events(on=False)
    assert rig.idle(5_000) == (0, 0)
    give(rig, FIRST)
    assert rig.idle(REFUSED) == (NETWORK, 0)


def test_a_link_wakes_an_idling_guest() -> None:
    rig = rig_with("classic")
    rig.take_events(on=False)
    rig.board.router.deliver("ethernet0", EthernetLink(False))
    assert rig.idle(REFUSED) == (NETWORK, 0)


# ---- parents


def test_parents_stand_before_a_card() -> None:
    rig = rig_with()
    give(rig, FIRST, SECOND)
    seen = []
    rig.board.router.interpose("ethernet0", lambda call: (seen.append(call.message), call.answer()))
    list(rig.door.take_inputs())
    arrive(rig, frame(1))
    assert rig.call(Call.NET_SEND, 0, THIRD, 60) == 60
    assert rig.compute() == 0
    assert seen[0] == EthernetReceive(frame(1))
    assert not sent(rig)
    rig.tick += 1
    rig.board.router.restore("ethernet0")
    list(rig.door.take_inputs())
    arrive(rig, frame(2))
    assert rig.compute() == NETWORK
