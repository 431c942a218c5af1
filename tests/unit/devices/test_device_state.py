"""States as plain data: everything comes back, and nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tt.errors import BadInput
from tt.vmm.state import U8, pack, unpack


@dataclass
class Inner:
    small: U8 = 1


@dataclass
class Outer:
    number: int = 0
    flag: bool = False
    text: str = ""
    raw: bytes = b"ab"
    growing: bytearray = field(default_factory=bytearray)
    maybe: U8 | None = None
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=lambda: [Inner(), Inner()])


def test_round_trip() -> None:
    state = Outer(-5, True, "x", b"\0\xff", bytearray(b"abc"), 7, Inner(2), [Inner(3), Inner(4)])
    packed = json.loads(json.dumps(pack(state)))
    assert unpack(Outer, packed, "thing") == state
    packed["maybe"] = None
    assert unpack(Outer, packed, "thing").maybe is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": "1"}, "thing.number"),
        ({"number": True}, "int was expected"),
        ({"flag": 1}, "bool was expected"),
        ({"raw": "zz"}, "hex digits"),
        ({"raw": "00"}, "1 entries instead of 2"),
        ({"raw": None}, "hex digits"),
        ({"maybe": 256}, "256 is not in 0..255"),
        ({"maybe": -1}, "thing.maybe"),
        ({"inner": {"small": 1, "odd": 2}}, "odd"),
        ({"inner": 3}, "thing.inner"),
        ({"many": [{"small": 1}]}, "1 entries instead of 2"),
        ({"many": [{"small": 1}, {"small": 999}]}, r"thing.many\[1\].small"),
        ({"many": 5}, "a list was expected"),
        ({"extra": 5}, "extra"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        unpack(Outer, pack(Outer()) | change, "thing")


def test_no_table_at_all() -> None:
    with pytest.raises(BadInput, match="table"):
        unpack(Outer, [1, 2], "thing")
