"""Fields of structs in structs without a name, by BTF."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tt.symbols.btf import nested_offsets

STRINGS = b"\0memory\0first\0begin\0end\0inner\0"
STRUCT, UNION, INTEGER = 4, 5, 1


def name(word: bytes) -> int:
    return STRINGS.index(b"\0" + word + b"\0") + 1 if word else 0


def record(kind: int, word: bytes, members: list[tuple[bytes, int, int]]) -> bytes:
    """Return a type with members (name, type, offset in bytes); an integer's 4 bytes come after it."""
    head = struct.pack("<III", name(word), kind << 24 | len(members), 8)
    if kind == INTEGER:
        return head + bytes(4)
    return head + b"".join(struct.pack("<III", name(word), of, at * 8) for word, of, at in members)


TYPES = b"".join(
    [
        record(INTEGER, b"inner", []),  # 1
        record(UNION, b"", [(b"begin", 1, 0), (b"end", 1, 8)]),  # 2
        record(STRUCT, b"memory", [(b"first", 1, 0), (b"", 3, 16), (b"inner", 3, 64)]),  # 3: holds itself
        record(STRUCT, b"", [(b"", 2, 24)]),  # 4
    ]
)
LOOPED = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(TYPES), len(TYPES), len(STRINGS)) + TYPES + STRINGS
SOUND = LOOPED.replace(struct.pack("<III", 0, 3, 16 * 8), struct.pack("<III", 0, 4, 16 * 8))


def test_fields_of_nameless_structs_count_as_the_outer_ones() -> None:
    assert nested_offsets(SOUND, "memory") == {"first": 0, "begin": 40, "end": 48, "inner": 64}


def test_what_is_not_there_is_empty() -> None:
    assert nested_offsets(SOUND, "nothing") == {}
    assert nested_offsets(b"", "memory") == {}
    assert nested_offsets(b"\1\2" + SOUND[2:], "memory") == {}


def test_a_struct_in_itself_ends() -> None:
    assert nested_offsets(LOOPED, "memory")["first"] == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_gives_less_and_no_error(data: st.DataObject) -> None:
    blob = bytearray(SOUND)
    for _ in range(data.draw(st.integers(0, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    nested_offsets(bytes(blob[: data.draw(st.integers(0, len(blob)))]), "memory")
