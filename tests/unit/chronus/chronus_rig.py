"""Disks with a known past, for tests of the time-travel disk."""

from __future__ import annotations

import random
from pathlib import Path

from tt.chronus.store.live import LiveDisk, create


def some_image(path: Path, size: int, seed: int = 1) -> Path:
    """Write an image of `size` bytes, half of it zeros."""
    chance = random.Random(seed)
    data = b"".join(
        chance.randbytes(4096) if chance.random() < 0.5 else bytes(4096) for _ in range(-(-size // 4096))
    )
    path.write_bytes(data[:size])
    return path


class Model:
    """What a disk should hold, at every instant at which somebody looked."""

    def __init__(self, contents: bytes) -> None:
        self.contents = bytearray(contents)
        self.then: dict[int, bytes] = {0: contents}

    def note(self, number: int) -> None:
        """Keep the contents as those of instant `number`."""
        self.then[number] = bytes(self.contents)


def scribble(disk: LiveDisk, model: Model, chance: random.Random, writes: int) -> None:
    """Do to a disk, and to the model of it, what a guest might."""
    size = disk.size
    for number in range(writes):
        offset = chance.randrange(size // 512) * 512
        length = min(chance.choice([512, 1024, 4096, 8192, 12800, 65536, 2 << 20]), size - offset)
        match chance.randrange(10):
            case 0:
                disk.zero(offset, length)
                model.contents[offset : offset + length] = bytes(length)
            case 1:
                disk.trim(offset, length)
                model.contents[offset : offset + length] = bytes(length)
            case 2:
                assert b"".join(disk.read(offset, length)) == model.contents[offset : offset + length]
            case 3:
                pieces = [(offset, chance.randbytes(512)), (offset, chance.randbytes(min(length, 4096)))]
                disk.write_many(pieces)
                for at, data in pieces:
                    model.contents[at : at + len(data)] = data
            case _:
                data = chance.randbytes(length)
                disk.write(offset, data)
                model.contents[offset : offset + length] = data
        if number % 40 == 0:
            disk.flush()
            model.note(disk.number)
    model.note(disk.number)


def lived(folder: Path, size: int = (3 << 20) + 1536, seed: int = 7, writes: int = 120) -> tuple[Path, Model]:
    """Make a history of `writes` random writes in two sessions; return it and what it should hold."""
    base = some_image(folder / "base.img", size)
    path = folder / "disk.tt"
    create(path, base)
    model, chance = Model(base.read_bytes()), random.Random(seed)
    for _session in range(2):
        with LiveDisk(path) as disk:
            scribble(disk, model, chance, writes // 2)
            assert b"".join(disk.read(0, size)) == model.contents
    return path, model
