"""A made-up stream of events with the size and jitter of a Debian boot: 1.2 G ticks of 4 ns."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tt.events import Event, Kind

TICKS = 1_200_000_000
COMMIT_TICKS = 50_000_000  # about a second of recording
_TEXT = """pci acpi probe registered device driver usb clocksource tsc kernel memory reserved node zone
scsi virtio_blk vda ext4 mounted filesystem cgroup Starting Started Reached target service"""
_WORDS = _TEXT.split()


def boot_stream(seed: int = 1) -> list[Event]:
    """Return the events, console bytes one by one, in order of ticks."""
    chance = random.Random(seed)
    events = [*_timers(chance), *_console(chance), *_disk(chance)]
    return sorted(events, key=lambda event: event.tick)


def _timers(chance: random.Random) -> Iterator[Event]:
    """250 a second, late where interrupts were off; each becomes an IRQ."""
    for period in range(1, 1200):
        ns = period * 4_000_000
        tick = ns // 4 + (chance.randrange(4000) if chance.random() < 0.3 else chance.randrange(8))
        yield Event(tick, Kind.TIMER, 0, ns)
        yield Event(tick + chance.randrange(1, 3000), Kind.IRQ, 0, 0x30)


def _console(chance: random.Random) -> Iterator[Event]:
    """30 KB of lines, the later half 16 bytes an interrupt."""
    tick, printed = 30_000_000, 0
    while printed < 30_000:
        words = " ".join(chance.choice(_WORDS) for _ in range(chance.randrange(3, 9)))
        line = f"[{tick * 4e-9:12.6f}] {words}: {chance.randrange(1 << 20):#x}\r\n".encode()
        for at, byte in enumerate(line):
            if printed > 15_000 and at % 16 == 0:
                yield Event(tick, Kind.IRQ, 0, 0x34)
            yield Event(tick, Kind.CONSOLE, 0, 0, bytes([byte]))
            tick += chance.randrange(80, 400)
        printed += len(line)
        tick += chance.randrange(3_000_000)


def _disk(chance: random.Random) -> Iterator[Event]:
    """2,500 completions, of which 300 are of writes."""
    for number in range(2500):
        tick = chance.randrange(300_000_000, TICKS)
        yield Event(tick, Kind.IRQ, 0, 0x3A)
        if number < 300:
            data = chance.randbytes(64) * 8 * chance.choice([8, 8, 8, 32])
            yield Event(tick, Kind.DISK_WRITE, 0, chance.randrange(1 << 18) * 8, data)
