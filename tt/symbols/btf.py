"""BTF, the kernel's own description of its types (Documentation/bpf/btf.rst): where fields of structs are.

u16 magic 0xeB9F, u8 version, u8 flags, u32 header size,
u32 offset and size of the types, u32 offset and size of the strings, both from the header's end

a type:     u32 name, u32 info (bits 0-15 count, 24-28 kind, 31 flag), u32 size; then by its kind
a member:   u32 name, u32 type, u32 offset in bits (with the flag: in its lower 24 bits)
"""

from __future__ import annotations

import struct
from collections.abc import Collection

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
_DEEPEST = 4  # nameless structs in nameless structs
_MOST_TYPES = 1 << 20
# Bytes after a type of each kind, for the type and for each thing it counts.
_EXTRA = dict.fromkeys(range(1, 20), (0, 0))
_EXTRA |= {1: (4, 0), 3: (12, 0), 14: (4, 0), 17: (4, 0)}  # integer, array, variable, declaration tag
_EXTRA |= {4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 15: (0, 12), 19: (0, 12)}


def struct_offsets(data: bytes, names: Collection[str]) -> dict[str, dict[str, int]]:
    """Return {struct: {field: offset in bytes}} of the structs `names`, those of them that there are.

    Of several structs of one name the first counts.  Damaged data gives fewer, or none.
    """
    if len(data) < _HEADER.size:
        return {}
    magic, _version, _flags, size, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return {}
    strings = data[size + strings_at : size + strings_at + strings_size]
    wanted = {}
    for name in names:
        at = strings.find(b"\0" + name.encode() + b"\0") + 1
        if at:
            wanted[at] = name
    found: dict[str, dict[str, int]] = {}
    at, end = size + types_at, min(len(data), size + types_at + types_size)
    for _ in range(_MOST_TYPES):
        if at + _TYPE.size > end or len(found) == len(wanted):
            break
        name_at, info, _size = _TYPE.unpack_from(data, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind not in _EXTRA:
            break
        at += _TYPE.size
        if kind == _STRUCT and name_at in wanted:
            found.setdefault(wanted[name_at], _members(data[at : at + 12 * count], strings, info >> 31))
        fixed, each = _EXTRA[kind]
        at += fixed + each * count
    return found


def _members(data: bytes, strings: bytes, flag: int) -> dict[str, int]:
    members = {}
    for name_at, _type, bits in struct.iter_unpack("<III", data[: len(data) // 12 * 12]):
        end = strings.find(b"\0", name_at)
        name = strings[name_at:end].decode("ascii", "replace")
        members[name] = (bits & 0xFF_FFFF if flag else bits) // 8
    return members


def nested_offsets(data: bytes, name: str) -> dict[str, int]:
    """Return {field: offset in bytes} of the first struct `name`, fields of nameless structs in it too.

    Damaged data gives fewer, or none.
    """
    if len(data) < _HEADER.size or data[:2] != _MAGIC.to_bytes(2, "little"):
        return {}
    _magic, _version, _flags, size, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
    strings = data[size + strings_at : size + strings_at + strings_size]
    wanted = strings.find(b"\0" + name.encode() + b"\0") + 1
    places: list[int] = [0]  # by the number of a type; 0 is void
    outer = 0
    at, end = size + types_at, min(len(data), size + types_at + types_size)
    while at + _TYPE.size <= end and len(places) <= _MOST_TYPES:
        name_at, info, _size = _TYPE.unpack_from(data, at)
        kind = info >> 24 & 31
        if kind not in _EXTRA:
            break
        if wanted and name_at == wanted and kind == _STRUCT and not outer:
            outer = at
        places.append(at)
        fixed, each = _EXTRA[kind]
        at += _TYPE.size + fixed + each * (info & 0xFFFF)
    return _nested(data, strings, places, outer, 0, 0) if outer else {}


def _nested(
    data: bytes, strings: bytes, places: list[int], at: int, offset: int, depth: int
) -> dict[str, int]:
    _name, info, _size = _TYPE.unpack_from(data, at)
    found: dict[str, int] = {}
    members = data[at + _TYPE.size : at + _TYPE.size + 12 * (info & 0xFFFF)]
    for name_at, kind, bits in struct.iter_unpack("<III", members[: len(members) // 12 * 12]):
        here = offset + (bits & 0xFF_FFFF if info >> 31 else bits) // 8
        if name_at:
            name = strings[name_at : strings.find(b"\0", name_at)].decode("ascii", "replace")
            found.setdefault(name, here)
        elif depth < _DEEPEST and 0 < kind < len(places):
            inner = _TYPE.unpack_from(data, places[kind])[1] >> 24 & 31
            if inner in (_STRUCT, _UNION):
                for name, place in _nested(data, strings, places, places[kind], here, depth + 1).items():
                    found.setdefault(name, place)
    return found
