"""Differences of texts: they turn one into the other, are as small as can be, and end in time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.chronus.files.text_diff import edits, is_text, lines_of, unified

texts = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "\n"]), max_size=14)


def patched(old: list[str], hunks: list[str]) -> list[str]:
    """Do what patch(1) does with exact hunks."""
    out: list[str] = []
    at = 0
    for line in hunks:
        if line.startswith("@@"):
            begin, _, count = line.split()[1][1:].partition(",")
            goal = int(begin) - (count != "0")
            out += old[at:goal]
            at = goal
        elif line.startswith("\\"):
            out[-1] = out[-1][:-1]
        elif line[0] == "+":
            out.append(f"{line[1:]}\n")
        else:
            assert old[at].rstrip("\n") == line[1:]
            if line[0] == " ":
                out.append(old[at])
            at += 1
    return out + old[at:]


@settings(deadline=None, max_examples=60)
@given(texts, texts, st.integers(0, 4))
def test_a_patch_makes_the_new_text(old: list[str], new: list[str], context: int) -> None:
    assert patched(old, unified(old, new, context)) == new


@settings(deadline=None, max_examples=60)
@given(texts, texts)
def test_no_edit_more_than_needed(old: list[str], new: list[str]) -> None:
    cost = sum(b - a + d - c for a, b, c, d in edits(old, new))
    common = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, one in enumerate(old):
        for j, two in enumerate(new):
            same = common[i][j] + 1
            common[i + 1][j + 1] = same if one == two else max(common[i][j + 1], common[i + 1][j])
    assert cost == len(old) + len(new) - 2 * common[-1][-1]


def test_as_diff_writes_it() -> None:
    old, new = lines_of(b"one\ntwo\nthree\n"), lines_of(b"one\n2\nthree")
    assert unified(old, new) == [
        "@@ -1,3 +1,3 @@",
        " one",
        "-two",
        "-three",
        "+2",
        "+three",
        "\\ No newline at end of file",
    ]
    assert unified([], lines_of(b"x\n")) == ["@@ -0,0 +1 @@", "+x"]
    assert unified(lines_of(b"x\n"), []) == ["@@ -1 +0,0 @@", "-x"]
    assert not unified(old, old)


def test_bytes_that_are_no_text_survive() -> None:
    assert (
        "".join(lines_of(b"\xff\xfe\r\n\x1b[2Jx")).encode("utf-8", "surrogateescape")
        == b"\xff\xfe\r\n\x1b[2Jx"
    )
    assert is_text(b"\xff") and not is_text(b"a\0b")


@pytest.mark.slow
def test_what_has_nothing_in_common_ends_in_time() -> None:
    chance = random.Random(1)
    old = [f"{chance.random()}\n" for _ in range(4000)]
    new = [f"{chance.random()}\n" for _ in range(4000)]
    old[0] = new[0] = "same\n"
    assert edits(old, new) == [(1, 4000, 1, 4000)]
