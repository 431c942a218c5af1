"""Symbols and backtraces of a real kernel: against its own /proc/kallsyms, and at a thousand random ticks."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from tt.log import Trace
from tt.recording import record
from tt.replay import Replay
from tt.symbols import Stack, SymbolTable, for_timeline, of_machine, walk
from tt.symbols.guest import of_kernel_image
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource, seeded_entropy

pytestmark = pytest.mark.slow

SCRIPT = [
    "grep -v '\\[' /proc/kallsyms | md5sum",
    "grep '\\[' /proc/kallsyms | cut -d' ' -f1,3 | sort | md5sum",
    "find / -xdev | wc -l; dd if=/dev/urandom of=/tmp/x bs=64k count=10; sync; echo all done",
]
STACKS = 1000
PROPERLY = 0.99  # 1000 of 1000 when this was written


class Place:
    """A replay that stands somewhere, as far as symbols need one."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._replay = Replay(trace)

    @property
    def tick(self) -> int:
        return self._replay.tick

    def seek(self, tick: int) -> None:
        self._replay.run_to(tick)

    def registers(self) -> dict[str, int]:
        return self._replay.machine.engine.registers()

    def read(self, addr: int, size: int) -> bytes:
        return self._replay.machine.engine.read_virtual(addr, size)


@pytest.fixture(scope="module")
def recording(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record the guest while it prints digests of its own list of symbols."""
    path = tmp_path_factory.mktemp("symbols") / "debian.tt"
    source = LiveSource(script=[line.encode() + b"\n" for line in SCRIPT])
    config = configure(debian_image, epoch=1_700_000_000)
    record(config, path, source, max_ticks=6_000_000_000, entropy=seeded_entropy(1))
    return path


def digests(trace: Trace) -> list[str]:
    """Return the sums that the guest printed."""
    return [text.split()[0] for _tick, _unit, text in trace.console_lines() if text.endswith("  -")]


def md5(lines: Iterable[str]) -> str:
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def test_they_are_the_guests_own(recording: Path) -> None:
    """Each address, letter and name, in order: the digest is that of what the guest itself reads."""
    with Trace.open(recording) as trace:
        place = Place(trace)
        place.seek(trace.end_tick)
        table = for_timeline(place)
        kernel = next(source for source in table.sources if source.label == "kallsyms")
        own, of_modules = digests(trace)[:2]
        rows = zip(kernel.addresses, kernel.kinds, kernel.names, strict=True)
        assert md5(f"{addr:016x} {kind} {name}" for addr, kind, name in rows) == own
        loaded = [source for source in table.sources if source.label.startswith("module ")]
        names = {source: source.label.split()[1] for source in loaded}
        assert set(names.values()) >= {"virtio", "virtio_blk", "virtio_ring"}
        lines = [
            f"{addr:016x} {name}\t[{module}]"
            for source, module in names.items()
            for addr, name in zip(source.addresses, source.names, strict=True)
        ]
        assert md5(sorted(lines)) == of_modules
        assert all(source.orc is not None for source in loaded)
        image = of_kernel_image(trace.file("kernel"))
        assert image is not None
        assert (image.addresses, image.names) == (kernel.addresses, kernel.names)


def test_from_the_first_tick_on(recording: Path) -> None:
    """The kernel is unpacked by the loader, so its symbols are there before it has page tables."""
    with Trace.open(recording) as trace:
        place = Place(trace)
        at_first = of_machine(place.registers(), place.read)
        place.seek(100_000_000)
        later = of_machine(place.registers(), place.read)
        assert at_first.find("schedule") == later.find("schedule") is not None


def test_backtraces_at_random_ticks_end_where_stacks_begin(recording: Path) -> None:
    with Trace.open(recording) as trace:
        place = Place(trace)
        chance = random.Random(2024)
        # As many in the first billion as in all the rest: boot is the more varied part.
        ticks = [chance.randrange(min(10**9, trace.end_tick)) for _ in range(STACKS // 2)]
        ticks += [chance.randrange(trace.end_tick) for _ in range(STACKS // 2)]
        ends: Counter[str] = Counter()
        properly = 0
        for tick in sorted(ticks):
            place.seek(tick)
            table = for_timeline(place)
            stack = walk(place.registers(), place.read, table)
            ends[end_of(stack, table)] += 1
            properly += is_proper(stack, table)
            check_calls(place, stack)
        assert properly >= PROPERLY * STACKS, ends
        assert ends["ret_from_fork"] > STACKS // 10, ends
        assert ends["user mode"] > STACKS // 10, ends


def check_calls(place: Place, stack: Stack) -> None:
    """Assert that each of the kernel's return addresses has a call before it."""
    for inner, outer in pairwise(stack.frames):
        entry = inner.name.startswith(
            ("asm_", "error_", "entry_", "ret_from_fork", "common_interrupt_return")
        )
        if outer.pc < 1 << 47 or entry:
            continue
        code = place.read(outer.pc - 7, 7)
        # The startup code in head_64.S calls by pushing the address and a far return.
        assert code[2] == 0xE8 or 0xFF in code or code.endswith(b"\xcb"), (place.tick, inner, outer)


def end_of(stack: Stack, table: SymbolTable) -> str:
    """Return the function a stack begins in, or `user mode`."""
    last = stack.frames[-1]
    if last.pc < 1 << 47:
        return "user mode"
    found = table.at(last.pc - 1)
    return "nowhere" if found is None else found[0]


def is_proper(stack: Stack, table: SymbolTable) -> bool:
    """Whether a stack ends where one of Linux's may, and for no other reason."""
    known = ("ret_from_fork", "secondary_startup_64_no_verify", "startup_64", "user mode")
    early = ("x86_64_start_kernel", "start_kernel", "__startup_64")
    return stack.complete and end_of(stack, table).startswith((*known, *early, "entry_", "asm_", "error_"))
