"""Pages on their way into a trace and out: whole, as deltas, equal ones; nothing that is damaged passes."""

from __future__ import annotations

import random
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tt.errors import BadInput
from tt.log import Trace, TraceWriter
from tt.log._pages import ChangeIndex, DeltaPack, PagePacker, rank
from tt.log.checkpoints import DELTA_PACKS, PACK_PAGES, PAGE, ZEROS, CheckpointWriter, set_bits
from tt.log.schema import row_crc

STATE: dict[str, Any] = {"tick": 0, "cpu": b"cpu"}


class Store:
    """Packs in memory, and the pages that references stand for."""

    def __init__(self) -> None:
        self.packer = PagePacker()
        self.packs: dict[int, tuple[int, bytes]] = {}

    def add(self, pages: dict[int, bytes]) -> dict[int, int]:
        numbers = sorted(pages)
        refs, packs = self.packer.pack(
            struct.pack(f"<{len(numbers)}I", *numbers), b"".join(pages[n] for n in numbers)
        )
        for number, count, raw in packs:
            assert number not in self.packs
            self.packs[number] = (count, raw)
        return dict(zip(numbers, struct.unpack(f"<{len(numbers)}I", refs), strict=True))

    def page(self, ref: int) -> bytes:
        if ref == ZEROS:
            return bytes(PAGE)
        number, slot = divmod(ref, PACK_PAGES)
        count, raw = self.packs[number]
        assert slot < count
        if number < DELTA_PACKS:
            return raw[slot * PAGE : (slot + 1) * PAGE]
        deltas = DeltaPack(raw, count)
        base = deltas.base(slot)
        assert base // PACK_PAGES < DELTA_PACKS
        return deltas.page(slot, self.page(base))

    @property
    def whole(self) -> int:
        return sum(count for number, (count, _) in self.packs.items() if number < DELTA_PACKS)


def with_words(page: bytes, *words: int, value: int = 0xABCD) -> bytes:
    new = bytearray(page)
    for word in words:
        struct.pack_into("<Q", new, 8 * word, value)
    return bytes(new)


def test_whatever_changes_comes_back() -> None:
    rng = random.Random(5)
    store, ram = Store(), {}
    for _ in range(60):
        changed = {}
        for number in rng.sample(range(200), rng.randrange(100)):
            old = ram.get(number, bytes(PAGE))
            new = rng.choice(
                [
                    old,
                    bytes(PAGE),
                    rng.randbytes(PAGE),
                    ram.get(rng.randrange(200), old),
                    with_words(old, *rng.sample(range(512), rng.choice([1, 2, 63, 127, 128, 129, 511, 512]))),
                    with_words(old, 0, 511, value=0),
                ]
            )
            ram[number] = changed[number] = new
        for number, ref in store.add(changed).items():
            assert store.page(ref) == ram[number]


def test_few_words_are_a_delta_and_many_are_not() -> None:
    store, page = Store(), random.Random(1).randbytes(PAGE)
    store.add({3: page})
    few = store.add({3: with_words(page, *range(128))})[3]
    many = store.add({3: with_words(page, *range(129))})[3]
    assert (few // PACK_PAGES >= DELTA_PACKS, many // PACK_PAGES >= DELTA_PACKS) == (True, False)


def test_a_page_that_did_not_change_is_not_stored_again() -> None:
    store, page = Store(), random.Random(1).randbytes(PAGE)
    first, other = store.add({3: page})[3], with_words(page, 7)
    assert store.add({3: page})[3] == first
    delta = store.add({3: other})[3]
    assert store.add({3: other})[3] == delta
    assert store.add({3: page})[3] == first
    # What the delta was in may be gone by now: only what was said of a page last is surely there.
    assert store.add({3: other})[3] != delta


def test_equal_pages_are_stored_once() -> None:
    store, page = Store(), random.Random(1).randbytes(PAGE)
    refs = store.add(dict.fromkeys(range(10, 150), page))
    refs |= store.add({7: page})
    assert (len(set(refs.values())), store.whole) == (1, 1)


def test_a_page_of_zeros_is_stored_nowhere() -> None:
    store = Store()
    assert store.add({0: bytes(PAGE), 9: bytes(PAGE)}) == {0: ZEROS, 9: ZEROS}
    assert not store.packs
    page = with_words(bytes(PAGE), 511)
    assert store.page(store.add({9: page})[9]) == page


@pytest.mark.parametrize(
    ("pages", "contents"),
    [(b"\0\0\0", b""), (bytes(4), bytes(PAGE - 1)), (bytes(8), bytes(2 * PAGE)), (b"\xff" * 4, bytes(PAGE))],
    ids=["cut off", "too little", "the same twice", "far out"],
)
def test_what_does_not_fit_together_is_refused(pages: bytes, contents: bytes) -> None:
    with pytest.raises(ValueError):
        PagePacker().pack(pages, contents)


def delta(base: int, words: dict[int, int]) -> bytes:
    bits = sum(1 << word for word in words)
    return (
        struct.pack("<I", base)
        + bits.to_bytes(64, "little")
        + b"".join(struct.pack("<Q", words[word]) for word in sorted(words))
    )


def test_a_delta_is_as_documented() -> None:
    raw = delta(5, {0: 1, 511: 2}) + delta(77, {64: 3})
    pack = DeltaPack(raw, 2)
    assert (pack.count, pack.base(0), pack.base(1), pack.bases) == (2, 5, 77, {5, 77})
    page = pack.page(0, b"\xee" * PAGE)
    assert page == with_words(with_words(b"\xee" * PAGE, 0, value=1), 511, value=2)


@pytest.mark.parametrize("cut", [1, 8, 70])
def test_damaged_deltas_are_refused(cut: int) -> None:
    raw = delta(5, {0: 1}) + delta(6, {1: 1, 2: 2})
    for bad, count in ((raw[:-cut], 2), (raw + bytes(cut), 2), (raw, 1), (raw, 3), (raw, 0), (b"", 1)):
        with pytest.raises(ValueError):
            DeltaPack(bad, count)
    with pytest.raises(IndexError):
        DeltaPack(raw, 2).page(2, bytes(PAGE))
    with pytest.raises(IndexError):
        DeltaPack(raw, 2).page(0, bytes(PAGE - 1))


def test_the_index_finds_the_last_change() -> None:
    rng = random.Random(2)
    maps = [rng.randbytes(rng.choice([0, 1, 7, 8, 9, 30])) for _ in range(40)]
    index = ChangeIndex(maps, 240)
    sets = [set(set_bits(int.from_bytes(m, "little"))) for m in maps]
    for number in range(250):
        for upto in range(-1, 40):
            want = max((at for at in range(upto + 1) if number in sets[at]), default=-1)
            assert index.last(number, upto) == (want if number < 240 else -1)
    for bitmap, pages in zip(maps, sets, strict=True):
        assert [rank(bitmap, n) for n in range(300)] == [sum(p < n for p in pages) for n in range(300)]


def trace_with_deltas(path: Path, count: int, most: int) -> dict[int, list[bytes]]:
    """Write checkpoints of pages that change a little, most of them; return what they held at each."""
    rng = random.Random(9)
    ram = [rng.randbytes(PAGE) for _ in range(40)]
    held = {}
    with TraceWriter(path, {}) as writer:
        writer._checkpoints = CheckpointWriter(writer._db, writer._insert, most=most)
        for tick in range(1, count + 1):
            changed = sorted(rng.sample(range(40), 25)) if tick > 1 else list(range(40))
            for page in changed:
                ram[page] = with_words(ram[page], *rng.sample(range(512), 20), value=tick)
            writer.add_checkpoint(
                tick,
                STATE,
                bytes(16),
                struct.pack(f"<{len(changed)}I", *changed),
                b"".join(ram[n] for n in changed),
            )
            held[tick] = list(ram)
        writer.seal(count, "")
    return held


@pytest.mark.parametrize("most", [1000, 4])
def test_thinning_keeps_what_deltas_stand_on(tmp_path: Path, most: int) -> None:
    held = trace_with_deltas(tmp_path / "x.tt", 60, most)
    with Trace.open(tmp_path / "x.tt") as trace:
        ram = [bytes(PAGE)] * 40
        for checkpoint in trace.checkpoints:
            for page in set_bits(int.from_bytes(checkpoint.changed, "little")):
                ram[page] = bytes(checkpoint.page(page))
            assert ram == held[checkpoint.tick]
        packs = [row[0] for row in trace.sql("select number from page_packs").rows]
    assert any(pack >= DELTA_PACKS for pack in packs)
    whole = [pack for pack in packs if pack < DELTA_PACKS]
    assert (whole == list(range(max(whole) + 1))) == (most == 1000)  # some went


def test_a_delta_on_a_delta_is_refused(tmp_path: Path) -> None:
    """A loop of deltas must not hang whoever reads it."""
    path = tmp_path / "x.tt"
    trace_with_deltas(path, 2, 1000)
    db = sqlite3.connect(path)
    loop = delta(DELTA_PACKS * PACK_PAGES, {0: 1})
    packed = zstandard.ZstdCompressor().compress(loop)
    db.execute("DELETE FROM page_packs WHERE number = ?", (DELTA_PACKS,))
    crc = row_crc("page_packs", DELTA_PACKS, 1, packed)
    db.execute("INSERT INTO page_packs VALUES (?, ?, ?, ?)", (DELTA_PACKS, 1, packed, crc))
    db.commit()
    db.close()
    with Trace.open(path) as trace, pytest.raises(BadInput, match="is not based on a whole page"):
        trace.checkpoints[1].page(set_bits(int.from_bytes(trace.checkpoints[1].changed, "little"))[0])
