"""What is kept of values that are costly to make."""

from __future__ import annotations

from tt.log.kept import Kept


def test_those_used_last_stay() -> None:
    kept: Kept[int, str] = Kept(10)
    for key in range(3):
        assert kept.put(key, str(key), 4) == str(key)
    assert [kept.get(key) for key in range(3)] == [None, "1", "2"]
    assert kept.get(1) == "1"  # used now: 2 goes first
    kept.put(3, "3", 4)
    assert [kept.get(key) for key in (1, 2, 3)] == ["1", None, "3"]
    kept.put(4, "4", 100)
    assert [kept.get(key) for key in (1, 3, 4)] == [None, None, "4"], "the newest stays, however large"


def test_so_many_and_no_more() -> None:
    kept: Kept[str, int] = Kept(1000, 2)
    for number, key in enumerate("abc"):
        kept.put(key, number, 1)
    assert [kept.get(key) for key in "abc"] == [None, 1, 2]
