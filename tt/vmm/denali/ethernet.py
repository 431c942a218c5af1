"""The network cards of a Denali machine, of either model, and the one that needs one instruction a frame.

After Denali's virtual Ethernet (Whitaker et al., OSDI'02, sections 3.3 and 5.3): one virtual
instruction sends a frame and one takes a frame that came.  The guest gives the card pages
beforehand; frames that come are put there, in order, when control is handed to the guest.
The other model, `tt.vmm.denali.classic`, is there to be compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from tt.errors import UsageError
from tt.vmm.config import NetConfig
from tt.vmm.denali.classic import ClassicCard
from tt.vmm.denali.registers import PAGE, REFUSED, Call, CardItem, is_buffer
from tt.vmm.memory import Memory
from tt.vmm.messages import SHORTEST_FRAME as SHORTEST
from tt.vmm.messages import EthernetSend
from tt.vmm.nondeterminism import Door
from tt.vmm.router import Port, Router
from tt.vmm.state import U64, AtMost, misfit, pack, unpack
from tt.vmm.wiring import wire_ethernet

LONGEST = PAGE
"""Bytes of the longest frame of a card of the model `denali`."""

MOST_CARDS = 16
MOST_PAGES = 256
"""Most pages that a card holds: given, or with a frame that was not taken yet."""

QUEUE_FRAMES = 64
"""Most frames that wait in a card beyond those for which it has a page."""

MORE = 1 << 63
"""`net_receive`: another frame is there."""

_SIZE_SHIFT = 48  # net_receive: the frame's length stands above the page's address


class Card(Protocol):
    """What the machine asks of a card of either model."""

    longest: int
    model_number: int
    link: bool
    received: int
    sent: int
    dropped: int

    def arrive(self, frame: bytes) -> None:
        """Take a frame from outside; the guest gets it at a hand-over."""
        ...

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it out."""
        ...

    @property
    def room(self) -> int | None:
        """How many frames more the guest has buffers for, None where it does not listen."""
        ...

    @property
    def due(self) -> bool:
        """Whether a hand-over would have something to tell an idling guest."""
        ...

    def hand_over(self) -> bool:
        """Put frames into the guest's memory; return whether there is news for the guest."""
        ...

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; raises `BadState`."""
        ...


@dataclass
class Stored:
    """A frame in the guest's memory that `net_receive` has not named yet."""

    page: U64 = 0
    size: Annotated[int, range(SHORTEST, LONGEST + 1)] = SHORTEST


@dataclass
class State:
    """What a card has: `given` are its empty pages in order, `waiting` frames that are in no page yet."""

    link: bool = True
    listening: bool = False
    news: bool = False
    given: Annotated[list[U64], AtMost(MOST_PAGES)] = field(default_factory=list)
    stored: Annotated[list[Stored], AtMost(MOST_PAGES)] = field(default_factory=list)
    waiting: Annotated[list[bytes], AtMost(MOST_PAGES + QUEUE_FRAMES)] = field(default_factory=list)
    received: U64 = 0
    sent: U64 = 0
    dropped: U64 = 0


class DenaliCard:
    """A card of the model `denali`; `held` are the pages that the machine's cards hold, shared by them."""

    longest = LONGEST
    model_number = 0

    def __init__(self, port: Port, memory: Memory, held: set[int]) -> None:
        self.link = True
        self.received = 0
        self.sent = 0
        self.dropped = 0
        self._port = port
        self._memory = memory
        self._held = held
        self._given: deque[int] = deque()
        self._stored: deque[tuple[int, int]] = deque()  # pages and sizes, oldest first
        self._waiting: deque[bytes] = deque()
        self._listening = False  # whether the guest ever gave a page
        self._news = False  # the link changed since the last hand-over

    # ---- virtual instructions

    def give(self, page: int) -> int:
        """Take an empty page for a frame; return 0, or REFUSED."""
        if len(self._given) + len(self._stored) >= MOST_PAGES or page in self._held:
            return REFUSED
        if page % PAGE or not is_buffer(page, PAGE, self._memory.size):
            return REFUSED
        self._listening = True
        self._held.add(page)
        self._given.append(page)
        return 0

    def send(self, addr: int, size: int) -> int:
        """Send `size` bytes at guest-physical `addr`; return `size`, 0 where there is no link, or REFUSED."""
        if not SHORTEST <= size <= LONGEST or addr + size > self._memory.size:
            return REFUSED
        if not self.link:
            self.dropped += 1
            return 0
        self.sent += 1
        self._port.send(EthernetSend(self._memory.read(addr, size)))
        return size

    def receive(self, page: int) -> int:
        """Return the oldest stored frame, 0 if there is none, or REFUSED; `page` is given for it."""
        if page != REFUSED and self.give(page) == REFUSED:
            return REFUSED
        if not self._stored:
            return 0
        taken, size = self._stored.popleft()
        self._held.remove(taken)
        return taken | size << _SIZE_SHIFT | (MORE if self._stored else 0)

    # ---- from outside, and at hand-overs: see `Card`

    def arrive(self, frame: bytes) -> None:
        """Keep a frame for the next hand-over, or drop it."""
        full = len(self._waiting) >= len(self._given) + QUEUE_FRAMES
        if full or not self.link or not self._listening or not SHORTEST <= len(frame) <= LONGEST:
            self.dropped += 1
        else:
            self._waiting.append(frame)

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it out; the guest learns of it at the next hand-over."""
        self._news |= up != self.link
        self.link = up

    @property
    def room(self) -> int | None:
        """How many frames more there are pages for."""
        if not self.link or not self._listening:
            return None
        return max(0, len(self._given) - len(self._waiting))

    @property
    def due(self) -> bool:
        """Whether a frame can be stored, or the link has changed."""
        return self._news or bool(self._waiting and self._given)

    def hand_over(self) -> bool:
        """Put frames that wait into pages, as many as there are."""
        news, self._news = self._news, False
        while self._waiting and self._given:
            frame, page = self._waiting.popleft(), self._given.popleft()
            self._memory.write(page, frame)
            self._stored.append((page, len(frame)))
            self.received += 1
            news = True
        return news

    # ---- state

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return pack(
            State(
                self.link,
                self._listening,
                self._news,
                list(self._given),
                [Stored(page, size) for page, size in self._stored],
                list(self._waiting),
                self.received,
                self.sent,
                self.dropped,
            )
        )

    def load(self, state: dict[str, Any]) -> None:
        """Put a saved state back; the pages of all cards must have been let go before."""
        where = self._port.name
        saved = unpack(State, state, where)
        pages = [*saved.given, *(stored.page for stored in saved.stored)]
        if len(pages) > MOST_PAGES:
            raise misfit(where, f"it holds {len(pages)} pages, at most {MOST_PAGES} can be")
        for page in pages:
            if page % PAGE or not is_buffer(page, PAGE, self._memory.size):
                raise misfit(where, f"no page can be at {page:#x}")
            if page in self._held:
                raise misfit(where, f"the page at {page:#x} is held twice")
            self._held.add(page)
        if any(not SHORTEST <= len(frame) <= LONGEST for frame in saved.waiting):
            raise misfit(f"{where}.waiting", "a frame has a length that none has")
        if (pages or saved.waiting or saved.received) and not saved.listening:
            raise misfit(f"{where}.listening", "frames came before the guest gave a page")
        self.link, self._listening, self._news = saved.link, saved.listening, saved.news
        self.received, self.sent, self.dropped = saved.received, saved.sent, saved.dropped
        self._given, self._waiting = deque(saved.given), deque(saved.waiting)
        self._stored = deque((stored.page, stored.size) for stored in saved.stored)


class Cards:
    """All network cards of one machine, "ethernet0", "ethernet1", ... in the order of `nets`.

    Raises `UsageError` when there are too many, or one of an unknown model.
    """

    def __init__(self, nets: Sequence[NetConfig], router: Router, door: Door, memory: Memory) -> None:
        if len(nets) > MOST_CARDS:
            raise UsageError(f"a Denali machine has at most {MOST_CARDS} network cards, not {len(nets)}")
        self._held: set[int] = set()
        self._cards: list[DenaliCard | ClassicCard] = []
        self._addresses = [int.from_bytes(net.address, "little") for net in nets]
        for number, net in enumerate(nets):
            port = self._wire(router, door, number)
            if net.model == "denali":
                self._cards.append(DenaliCard(port, memory, self._held))
            elif net.model == "classic":
                self._cards.append(ClassicCard(port, memory))
            else:
                raise UsageError(f"a Denali machine has no network card of the model {net.model!r}")

    def __len__(self) -> int:
        return len(self._cards)

    def call(self, number: int, rdi: int, rsi: int, rdx: int) -> int:
        """Carry out a virtual instruction of the network; what is none of them is refused."""
        if number == Call.NET_INFO:
            return self._info(rdi, rsi)
        if rdi >= len(self._cards):
            return REFUSED
        card = self._cards[rdi]
        if isinstance(card, DenaliCard):
            match number:
                case Call.NET_SEND:
                    return card.send(rsi, rdx)
                case Call.NET_RECEIVE:
                    return card.receive(rsi)
                case Call.NET_GIVE:
                    return card.give(rsi)
        elif number == Call.NET_PORT_READ:
            return card.read_port(rsi)
        elif number == Call.NET_PORT_WRITE:
            return card.write_port(rsi, rdx)
        return REFUSED

    def room(self, card: int) -> int | None:
        """Return how many frames card `card` has room for, None where nobody listens."""
        return self._cards[card].room if card < len(self._cards) else None

    def counters(self, number: int) -> dict[str, int]:
        """Return what a card counts; see `CardItem`."""
        card = self._cards[number]
        return {"received": card.received, "sent": card.sent, "dropped": card.dropped}

    @property
    def due(self) -> bool:
        """Whether a hand-over would have something to tell an idling guest."""
        return any(card.due for card in self._cards)

    def hand_over(self) -> bool:
        """Put frames into the guest's memory; return whether there is news for the guest."""
        news = False
        for card in self._cards:
            news |= card.hand_over()
        return news

    def save(self) -> list[dict[str, Any]]:
        """Return the state as plain data, a table a card."""
        return [card.save() for card in self._cards]

    def load(self, state: object) -> None:
        """Put a saved state back; raises `BadState`."""
        if not isinstance(state, list) or len(state) != len(self._cards):
            raise misfit("the network cards", f"a list of {len(self._cards)} tables was expected")
        self._held.clear()
        for card, saved in zip(self._cards, state, strict=True):
            card.load(saved)

    # ---- inside

    def _wire(self, router: Router, door: Door, number: int) -> Port:
        return wire_ethernet(
            router,
            door,
            number,
            lambda frame: self._cards[number].arrive(frame),
            lambda up: self._cards[number].set_link(up),
        )

    def _info(self, number: int, item: int) -> int:
        if number == REFUSED and self._cards:
            return len(self._cards)
        if number >= len(self._cards):
            return REFUSED
        card = self._cards[number]
        match item:
            case CardItem.MODEL:
                return card.model_number
            case CardItem.ADDRESS:
                return self._addresses[number]
            case CardItem.LINK:
                return int(card.link)
            case CardItem.LONGEST:
                return card.longest
            case CardItem.RECEIVED:
                return card.received
            case CardItem.SENT:
                return card.sent
            case CardItem.DROPPED:
                return card.dropped
            case _:
                return REFUSED
