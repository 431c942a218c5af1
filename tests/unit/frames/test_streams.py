"""TCP connections put together again, whatever the cable did to them."""

from __future__ import annotations

import random

from frames_rig import ACK, FIN, RST, SYN, frame, tcp

from tt.frames.dissect import Dissector
from tt.frames.streams import Stream, streams_of, talk

FIRST = 0xFFFFFF00  # so that numbers wrap round


def put_together(sent: list[tuple[bytes, bool]]) -> list[Stream]:
    dissect = Dissector()
    return streams_of(dissect(frame(data, number, way)) for number, (data, way) in enumerate(sent, 1))


def opened() -> list[tuple[bytes, bool]]:
    return [
        (tcp(FIRST - 1, flags=SYN), False),
        (tcp(499, flags=SYN | ACK, ack=FIRST, incoming=True), True),
        (tcp(FIRST, ack=500), False),
    ]


def said(stream: Stream) -> tuple[bytes, bytes]:
    one, two = (b"".join(p.data for p in stream.pieces if p.side == side) for side in (0, 1))
    return one, two


def test_a_question_and_its_answer() -> None:
    (stream,) = put_together(
        [
            *opened(),
            (tcp(FIRST, b"hello ", ack=500), False),
            (tcp(FIRST + 6, b"there", ack=500), False),
            (tcp(500, b"hi", ack=FIRST + 11, incoming=True), True),
            (tcp(FIRST + 11, flags=FIN | ACK, ack=502), False),
            (tcp(502, flags=FIN | ACK, ack=FIRST + 12, incoming=True), True),
        ]
    )
    assert stream.state == "closed" and stream.sizes() == (11, 2) and stream.frames == 8
    assert stream.name == "10.0.2.15:40000 > 10.0.2.2:80"
    assert [(p.side, p.data, p.frame) for p in talk(stream)] == [(0, b"hello there", 4), (1, b"hi", 6)]


def test_any_order_repeated_and_cut_anew() -> None:
    """Segments of a long text, shuffled, doubled, overlapping: the text comes out."""
    for seed in range(30):
        chance = random.Random(seed)
        text = chance.randbytes(2000)
        cuts = [(at, min(2000, at + chance.randint(1, 300))) for at in range(0, 2000, 150)]
        cuts += [(b, 2000) for _, b in cuts[-1:] if b < 2000] + chance.choices(cuts, k=5)
        covered = {i for a, b in cuts for i in range(a, b)}
        cuts += [(i, i + 1) for i in range(2000) if i not in covered]
        chance.shuffle(cuts)
        sent = [(tcp(FIRST + a, text[a:b], ack=500), False) for a, b in cuts]
        (stream,) = put_together([*opened(), *sent])
        assert said(stream) == (text, b""), seed
        assert stream.waiting == 0
        assert stream.again == sum(b - a for a, b in cuts) - 2000


def test_a_gap_is_told() -> None:
    (stream,) = put_together([*opened(), (tcp(FIRST + 10, b"later", ack=500), False)])
    assert said(stream) == (b"", b"") and stream.waiting == 5


def test_the_same_ports_twice_and_a_reset() -> None:
    once = [*opened(), (tcp(FIRST, b"a"), False), (tcp(FIRST + 1, flags=RST), False)]
    again = [(tcp(7, flags=SYN), False), (tcp(8, b"b"), False)]
    first, second = put_together([*once, *again])
    assert (first.state, said(first)[0]) == ("reset", b"a")
    assert (second.number, second.state, said(second)[0]) == (2, "open", b"b")


def test_a_recording_that_begins_in_the_middle() -> None:
    (stream,) = put_together([(tcp(900, b"end of it", incoming=True), True), (tcp(5, b"bye"), False)])
    assert said(stream) == (b"end of it", b"bye")
    assert stream.ends[0] == ("10.0.2.2", 80)
