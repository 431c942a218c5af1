"""Denali guests with network cards, and a network that a test writes."""

from __future__ import annotations

import functools
import random
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tt.events import Event, Kind
from tt.log import Trace
from tt.recording import record
from tt.vmm.config import MachineConfig, NetConfig, default_mac
from tt.vmm.configure import configure_denali
from tt.vmm.denali.guest_build import NETWORK, PINGPONG, build_guest
from tt.vmm.live import LiveSource
from tt.vmm.machine import Machine

KIT = Path(__file__).parents[1] / "guests" / "denali"
EPOCH = 1_000_000_000
PEER = bytes.fromhex("525400aabbcc")
ROUNDS = 100
HELLO, SERVE, RETURN, BYE = range(4)
Answer = Callable[[int, bytes], list[bytes]]


# Prints what comes, and sends it back by the same card, turned round; ends at an empty payload.
ECHO = r"""
#include "denali.h"

static volatile bool over;
static u64 frames;

static void handler(void)
{
    u64 size;
    u8 *frame;
    for (u64 card = 0; card < net_cards(); card++) {
        while ((frame = network_receive(card, &size)) != NULL) {
            frames++;
            print("card %lu: %lu bytes, crc %08x\n", card, size, crc32(0, frame, size));
            if (size == 14)
                over = true;
            for (u64 i = 0; i < size / 2; i++) {
                u8 byte = frame[i];
                frame[i] = frame[size - 1 - i];
                frame[size - 1 - i] = byte;
            }
            if (!network_send(card, frame, size))
                print("card %lu: not sent\n", card);
        }
        print("card %lu: link %s\n", card, network_link(card) ? "up" : "down");
    }
}

static bool is_over(void *unused)
{
    (void)unused;
    return over;
}

int main(void)
{
    u64 count = network_start(handler);
    print("%lu cards, batches %lu\n", count, denali_batches);
    wait_until(is_over, NULL, DENALI_FOREVER);
    print("over at %lu us, %lu frames in %lu batches\n", denali.time_ns / 1000, frames, denali_batches);
    return 0;
}
"""


class Wires:
    """The network of a live machine: each frame of the guest is answered by `answer(card, frame)`.

    What is answered arrives `latency_ns` of guest time later.  `later` are (guest ns, card,
    frame) that come by themselves; a frame of True or False is the link.
    """

    def __init__(
        self,
        answer: Answer = lambda card, frame: [],
        later: Sequence[tuple[int, int, bytes | bool]] = (),
        latency_ns: int = 20_000,
    ) -> None:
        self.room: Callable[[int], int | None] = lambda card: None
        self.sent: list[tuple[int, bytes]] = []
        self._answer = answer
        self._latency_ns = latency_ns
        self._coming = sorted(later, key=lambda each: each[0])
        self._due: deque[tuple[int, bytes | bool]] = deque()

    def send(self, card: int, frame: bytes, now_ns: int) -> None:
        self.sent.append((card, frame))
        for reply in self._answer(card, frame):
            self._coming.append((now_ns + self._latency_ns, card, reply))
        self._coming.sort(key=lambda each: each[0])

    def poll(self, now_ns: int) -> bool:
        while self._coming and self._coming[0][0] <= now_ns:
            self._due.append(self._coming.pop(0)[1:])
        return bool(self._due)

    def take(self, tick: int) -> list[Event]:
        events = []
        while self._due:
            card, frame = self._due.popleft()
            if isinstance(frame, bool):
                events.append(Event(tick, Kind.LINK, card, int(frame)))
            else:
                events.append(Event(tick, Kind.FRAME_IN, card, 0, frame))
        return events

    def due_ns(self, now_ns: int) -> int | None:
        return next((at for at, *_ in self._coming if at > now_ns), None)

    def descriptors(self) -> list[int]:
        return []

    def counters(self) -> list[dict[str, int]]:
        return []


def player(own: bytes = PEER) -> Answer:
    """Return the other end of `pingpong.c`: an end that returns or serves, with the address `own`."""

    def ball(to: bytes, what: int, number: int) -> bytes:
        filling = bytes((number + i) & 0xFF for i in range(40))
        return to + own + b"\x88\xb5" + struct.pack("<HI", what, number) + filling

    def answer(card: int, frame: bytes) -> list[bytes]:
        guest = frame[6:12]
        what, number = struct.unpack_from("<HI", frame, 14)
        serves = own < guest
        if what == HELLO:
            return [ball(guest, SERVE, 1)] if serves else [ball(guest, HELLO, 0)]
        if what == SERVE:
            return [ball(guest, RETURN, number)]
        if what == RETURN:
            return [ball(guest, SERVE, number + 1) if number < ROUNDS else ball(guest, BYE, number)]
        return []

    return answer


def net_config(guest: Path, *models: str) -> MachineConfig:
    """Return a machine with a card of each of `models`."""
    nets = [NetConfig(model, default_mac(card)) for card, model in enumerate(models)]
    return configure_denali(guest, epoch=EPOCH, nets=nets)


def build(folder: Path, text: str, name: str = "guest") -> Path:
    """Compile a guest that uses the network; return its ELF file."""
    guest = folder / f"{name}.elf"
    guest.write_bytes(_compiled(text, name))
    return guest


def build_pingpong(folder: Path, rounds: int = ROUNDS) -> Path:
    """Compile `pingpong.c` for a shorter game; return its ELF file."""
    text = (KIT / PINGPONG).read_text().replace("ROUNDS 1000", f"ROUNDS {rounds}")
    return build(folder, text, "pingpong")


@functools.cache  # the same few guests serve many tests
def _compiled(text: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.c"
        source.write_text(text)
        build_guest([source, KIT / NETWORK], source.with_suffix(".elf"), kit=KIT)
        return source.with_suffix(".elf").read_bytes()


def record_net(
    config: MachineConfig,
    path: Path | None,
    wires: Wires,
    *,
    max_ticks: int = 60_000_000,
    checkpoint_ticks: int = 1_000_000,
    on_start: Callable[[Machine], None] = lambda machine: None,
) -> str:
    """Record a machine on `wires`; return what it printed, "" without a trace."""
    source = LiveSource(network=wires)
    record(config, path, source, max_ticks=max_ticks, checkpoint_ticks=checkpoint_ticks, on_start=on_start)
    if path is None:
        return ""
    with Trace.open(path) as trace:
        return "".join(text + "\n" for _tick, _unit, text in trace.console_lines())


def shower(seed: int, count: int, longest: Sequence[int]) -> list[tuple[int, int, bytes | bool]]:
    """Return frames of 9 ms, of any length up to a card's `longest`; the last one ends `ECHO`."""
    chance = random.Random(seed)
    frames: list[tuple[int, int, bytes | bool]] = []
    for at in sorted(chance.randrange(1_000_000, 9_000_000) for _ in range(count)):
        card = chance.randrange(len(longest))
        size = chance.choice((15, 60, 61, 1000, 1514, longest[card], chance.randrange(15, longest[card])))
        frames.append((at, card, chance.randbytes(size)))
    return [*frames, (50_000_000, 0, bytes(14))]
