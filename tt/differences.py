"""How two machines that stand still differ, as data and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tt.vmm.machine import Machine

_PAGE = 4096
_MOST_RANGES = 64  # of one page, before it is told as a whole
_SHOWN_BYTES = 16
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")


@dataclass(frozen=True)
class Difference:
    """One thing that differs: `part` is `tick`, `register`, `cpu`, `memory`, `device`, `clock` or `disk`.

    `where` is a register's name, a device's field, a guest-physical address or a
    disk's lba; `left` and `right` are the values, bytes for memory and disks.
    """

    part: str
    where: str | int
    left: Any
    right: Any
    unit: int = 0

    def __str__(self) -> str:
        if self.part == "memory":
            assert isinstance(self.where, int)
            size = len(self.left)
            return f"memory {self.where:#x}+{size}: {shown_bytes(self.left)} | {shown_bytes(self.right)}"
        if self.part == "disk":
            return f"disk {self.unit} lba {self.where}: {shown_bytes(self.left)} | {shown_bytes(self.right)}"
        name = self.part if self.part == self.where else f"{self.part} {self.where}"
        return f"{name}: {_value(self.left)} | {_value(self.right)}"


def machine_differences(left: Machine, right: Machine, limit: int | None = None) -> list[Difference]:
    """Return how two machines differ: the CPU, memory, devices, disks; at most `limit` of each.

    Memory comes in ranges of bytes that differ, by guest-physical address; disks
    in sectors.
    """
    if left.kind != right.kind:
        return [Difference("machine", "machine", left.kind, right.kind)]
    found = [] if left.tick == right.tick else [Difference("tick", "tick", left.tick, right.tick)]
    for part in (_cpu, _memory, _devices, _disks):
        found += islice(part(left, right), limit)
    return found


def _devices(left: Machine, right: Machine) -> Iterator[Difference]:
    for name in ("halted", "ended"):
        if getattr(left, name) != getattr(right, name):
            yield Difference("machine", name, getattr(left, name), getattr(right, name))
    yield from _plain("clock", "", left.clock.save(), right.clock.save())
    yield from _plain("device", "", left.board.save(), right.board.save())


def _cpu(left: Machine, right: Machine) -> Iterator[Difference]:
    found = False
    ours, theirs = left.engine.registers(), right.engine.registers()
    for name in ours:
        if ours[name] != theirs[name]:
            found = True
            yield Difference("register", name, ours[name], theirs[name])
    for number, (one, two) in enumerate(zip(left.engine.xmm(), right.engine.xmm(), strict=True)):
        if one != two:
            found = True
            yield Difference("register", f"xmm{number}", one, two)
    for name in _SEGMENTS:
        if left.engine.segment(name)[1:] != right.engine.segment(name)[1:]:
            found = True
            # As (base, limit, flags); a selector that differs is among the registers.
            yield Difference("cpu", f"segment {name}", left.engine.segment(name), right.engine.segment(name))
    if not found and left.digest_parts()["cpu"] != right.digest_parts()["cpu"]:
        yield Difference("cpu", "FPU, TLB or model-specific registers", "these", "others")


def _memory(left: Machine, right: Machine) -> Iterator[Difference]:
    if left.engine.size != right.engine.size:
        yield Difference("machine", "bytes of RAM", left.engine.size, right.engine.size)
    elif left.engine.ram_digest() == right.engine.ram_digest():
        return
    ours, theirs = left.engine.page_hashes(), right.engine.page_hashes()
    for page in range(min(len(ours), len(theirs)) // 16):
        at = slice(16 * page, 16 * page + 16)
        if ours[at] != theirs[at]:
            addr = page * _PAGE
            one, two = left.engine.read(addr, _PAGE), right.engine.read(addr, _PAGE)
            ranges = list(_ranges(one, two))
            if len(ranges) > _MOST_RANGES:
                ranges = [(ranges[0][0], ranges[-1][1])]
            for begin, end in ranges:
                yield Difference("memory", addr + begin, one[begin:end], two[begin:end])


def _ranges(one: bytes, two: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the bytes of a page differ; gaps of less than 8 equal bytes do not count."""
    begin = end = -1
    for line in range(0, len(one), 64):
        if one[line : line + 64] == two[line : line + 64]:
            continue
        for at in range(line, min(line + 64, len(one))):
            if one[at] == two[at]:
                continue
            if begin < 0:
                begin = at
            elif at - end >= 8:
                yield begin, end
                begin = at
            end = at + 1
    if begin >= 0:
        yield begin, end


def _plain(part: str, name: str, left: Any, right: Any) -> Iterator[Difference]:
    """Compare nested plain data; lists of the same length go by their places."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys(), key=str):
            yield from _plain(part, f"{name} {key}".strip(), left.get(key), right.get(key))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right) and len(left) > 1:
        for number, (one, two) in enumerate(zip(left, right, strict=True)):
            yield from _plain(part, f"{name} [{number}]", one, two)
    elif left != right:
        yield Difference(part, name, left, right)


def _disks(left: Machine, right: Machine) -> Iterator[Difference]:
    if len(left.disks) != len(right.disks):
        yield Difference("machine", "disks", len(left.disks), len(right.disks))
    for number, (one, two) in enumerate(zip(left.disks, right.disks, strict=False)):
        if one.sectors != two.sectors:
            yield Difference("machine", f"sectors of disk {number}", one.sectors, two.sectors)
        ours, theirs = one.snapshot()[0], two.snapshot()[0]
        for block in sorted(ours.keys() | theirs.keys()):
            if ours.get(block) == theirs.get(block):
                continue
            # Blocks that only one of them wrote, and wrote as they were, differ in the digest alone.
            for lba in range(block * 8, min(block * 8 + 8, one.sectors, two.sectors)):
                before, after = one.read(lba, 1), two.read(lba, 1)
                if before != after:
                    yield Difference("disk", lba, before, after, number)


def shown_bytes(data: bytes) -> str:
    """Return the first bytes in hex, with dots where there are more."""
    return data[:_SHOWN_BYTES].hex() + ("..." if len(data) > _SHOWN_BYTES else "")


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}" if value > 9 else str(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(item) for item in value) + ")"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
