"""`console` in expressions, to the byte: a small PC guest that prints slowly, and the Denali demo."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.log import Trace
from tt.recording import record
from tt.travel import Timeline
from tt.travel.bisect import bisect
from tt.travel.expressions import compile_condition, compile_expression, evaluate_any
from tt.vmm.configure import configure

TEXT = b"slowly, but it prints\n and more"
FIRST, EACH = 5, 105  # the first byte is out with tick 5, each other one 105 ticks after the one before

_LOAD = 0x100000
_MAGIC = 0x1BADB002


def multiboot_image() -> bytes:
    """Return a kernel: lodsb; out; wait for 50 rounds of two; and so on; cli; hlt."""
    header_size = 32
    text_addr = _LOAD + header_size + 32
    code = "66baf803 be{} b9{} ac ee bb32000000 4b 75fd 49 75f3 fa f4".format(
        text_addr.to_bytes(4, "little").hex(), len(TEXT).to_bytes(4, "little").hex()
    )
    body = bytes.fromhex(code).ljust(32, b"\x90") + TEXT
    flags = 1 << 16  # the addresses are in the header
    end = _LOAD + header_size + len(body)
    header = struct.pack(
        "<8I", _MAGIC, flags, -(_MAGIC + flags) % (1 << 32), _LOAD, _LOAD, end, end, _LOAD + header_size
    )
    return header + body


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timeline]:
    folder = tmp_path_factory.mktemp("slow")
    (folder / "kernel").write_bytes(multiboot_image())
    record(configure(folder / "kernel", mem_bytes=4 << 20, epoch=1_700_000_000), folder / "slow.tt")
    with Trace.open(folder / "slow.tt") as trace:
        yield Timeline(trace)


def test_each_byte_at_its_own_tick(slow: Timeline) -> None:
    assert [data for _tick, _unit, data in slow.trace.console()] == [TEXT[:22], TEXT[22:]]
    exact = compile_expression("console")
    for number in range(len(TEXT)):
        tick = FIRST + EACH * number
        slow.seek(tick)
        assert exact.value(slow, exact=True) == TEXT[: number + 1]
        assert slow.tick == tick
        slow.seek(tick - 1)
        assert exact.value(slow, exact=True) == TEXT[:number]
        # By the record alone a line is there from its first byte on.
        if number:
            assert exact.value(slow) == (TEXT[:22] if number <= 22 else TEXT)
    slow.seek(slow.end_tick)
    assert evaluate_any("console", slow) == TEXT


@pytest.mark.parametrize("word", ["slow", "ly,", "prints\\n", "more"])
def test_bisecting_to_the_last_byte_of_a_word(slow: Timeline, word: str) -> None:
    condition = compile_condition(f'console ~ "{word}"')
    verdict = bisect(slow, 0, slow.end_tick, condition)
    last_byte = TEXT.index(word.replace("\\n", "\n").encode()) + len(word.replace("\\n", "\n")) - 1
    assert verdict.tick == FIRST + EACH * last_byte


def test_denali_prints_with_the_instruction(demo_trace: Path) -> None:
    with Trace.open(demo_trace) as trace:
        timeline = Timeline(trace)
        for begin, _unit, data in list(trace.console())[:5]:
            timeline.seek(begin)
            assert bytes(evaluate_any("console", timeline)).endswith(data)
            timeline.seek(begin - 1)
            assert not bytes(evaluate_any("console", timeline)).endswith(data)
