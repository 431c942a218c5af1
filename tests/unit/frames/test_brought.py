"""Which frame brought some bytes: told apart by what lies around them in memory."""

from __future__ import annotations

import random

import pytest

from tt.frames.brought import AROUND, brought
from tt.log import Frame


def frames(*contents: bytes) -> list[Frame]:
    return [Frame(n, n, 100 + n, 0, 0, 0, True, data) for n, data in enumerate(contents, 1)]


def around(memory: bytes, at: int, size: int) -> tuple[bytes, bytes, bytes]:
    return (
        memory[at : at + size],
        memory[max(0, at - AROUND) : at],
        memory[at + size : at + size + AROUND],
    )


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_surroundings_decide(size: int) -> None:
    """Many frames hold the value; one of them holds it where memory has it."""
    chance = random.Random(size)
    contents = [bytes(chance.choices(b"abc", k=200)) for _ in range(50)]
    for number in chance.sample(range(50), 10):
        memory = chance.randbytes(100) + contents[number] + chance.randbytes(100)
        for at in (0, 1, AROUND, 150, 200 - size):
            found = brought(frames(*contents), *around(memory, 100 + at, size))
            assert found is not None and (found[0].number, found[1]) == (number + 1, at)


def test_of_equal_ones_the_last_and_of_none_none() -> None:
    equal = frames(b"x" * 60, b"y" * 60, b"x" * 60)
    found = brought(equal, b"x")
    assert found is not None and found[0].number == 3
    assert brought(equal, b"z") is brought(equal, b"") is brought([], b"x") is None


def test_a_frame_whose_surroundings_were_overwritten_is_found_still() -> None:
    found = brought(frames(b"....GET /....", b"............."), b"GET /", b"#" * AROUND, b"#" * AROUND)
    assert found is not None and (found[0].number, found[1]) == (1, 4)
