"""Ext4 images with fast commits in their journal, and what recovery by e2fsprogs makes of them."""

from __future__ import annotations

import hashlib
import io
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from boot_disks import make_ext, need, run

from tt.vmm.boot._crc32c import crc32c
from tt.vmm.boot.ext import ExtFileSystem
from tt.vmm.boot.fast_commit import Tag

BLOCK = 1024
FAST_BLOCKS = 256
EXTENTS = 0x80000

Record = tuple[int, bytes]
Seen = dict[str, tuple[object, ...]]


def tlv(tag: int, value: bytes) -> bytes:
    return struct.pack("<HH", tag, len(value)) + value


def name_record(tag: Tag, parent: int, inode: int, name: str) -> Record:
    return tag, struct.pack("<II", parent, inode) + name.encode()


def add_range(inode: int, first: int, block: int, count: int) -> Record:
    return Tag.ADD_RANGE, struct.pack("<IIHHI", inode, first, count, block >> 32, block & 0xFFFFFFFF)


def del_range(inode: int, first: int, count: int) -> Record:
    return Tag.DEL_RANGE, struct.pack("<III", inode, first, count)


def inode_record(inode: int, mode: int, size: int, links: int = 1, flags: int = EXTENTS) -> Record:
    body = bytearray(160)
    struct.pack_into("<HHIIIIIHHII", body, 0, mode, 1000, size, 9, 9, 9, 0, 100, links, 2, flags)
    struct.pack_into("<I", body, 100, 77)  # generation
    struct.pack_into("<H", body, 128, 32)
    return Tag.INODE, struct.pack("<I", inode) + bytes(body)


class FastImage:
    """An image whose journal holds one transaction of the log and, after `commit`, fast commits behind it."""

    def __init__(self, folder: Path, files: Mapping[str, bytes | str], *options: str) -> None:
        need("mke2fs", "debugfs", "e2fsck")
        self.path = make_ext(
            folder / "fast", dict(files), "-b", str(BLOCK), "-O", "fast_commit", "-J", "size=4", *options,
            size="16M",
        )  # fmt: skip
        (folder / "zeros").write_bytes(bytes(BLOCK))
        spare = self.path.stat().st_size // BLOCK - 1  # some block that nothing uses
        (folder / "jw").write_text(f"jo\njw -b {spare} {folder / 'zeros'}\njc\n")
        run("debugfs", "-w", "-f", folder / "jw", self.path)
        found = re.findall(r"\d+", run("debugfs", "-R", "bmap <8> 0", self.path))
        self.journal_at = int(found[0]) * BLOCK
        self._data = bytearray(self.path.read_bytes())
        head = self.journal_at
        length, _, self.transaction = struct.unpack_from(">III", self._data, head + 16)
        self.transaction += 1
        (features,) = struct.unpack_from(">I", self._data, head + 0x28)
        struct.pack_into(">I", self._data, head + 0x28, features | 0x20)
        struct.pack_into(">I", self._data, head + 0x54, FAST_BLOCKS)
        self.log_end = length - FAST_BLOCKS
        self.set_start(self._data, struct.unpack_from(">I", self._data, head + 28)[0])
        self._fast = head + (self.log_end + 1) * BLOCK
        self._used = 0

    def set_start(self, data: bytearray, start: int) -> None:
        """Let the log begin at a block of the journal, and make the checksum right."""
        head = self.journal_at
        struct.pack_into(">I", data, head + 28, start)
        if struct.unpack_from(">I", data, head + 0x28)[0] & 0x18:
            struct.pack_into(">I", data, head + 0xFC, 0)
            struct.pack_into(">I", data, head + 0xFC, crc32c(data[head : head + 1024], 0xFFFFFFFF))

    def forget(self) -> None:
        """Let the next fast commit be the first."""
        self._used = 0

    def write(self, block: int, data: bytes) -> None:
        """Write contents of a file where the fast commits will say that it lies."""
        self._data[block * BLOCK : block * BLOCK + len(data)] = data

    def number(self, path: str) -> int:
        return int(re.findall(r"Inode: (\d+)", run("debugfs", "-R", f"stat {path}", self.path))[0])

    def commit(self, records: list[Record], *, transaction: int | None = None, crc: int = 0) -> None:
        """Add a fast commit, as the kernel writes it; `crc` damages its checksum."""
        owner = self.transaction if transaction is None else transaction
        if not self._used:
            records = [(Tag.HEAD, struct.pack("<II", 0, owner)), *records]
        out = bytearray()
        for tag, value in records:
            left = BLOCK - len(out) % BLOCK
            if len(value) + 4 > left - 4:
                out += tlv(Tag.PAD, bytes(left - 4))
            out += tlv(tag, value)
        if BLOCK - len(out) % BLOCK < 16:
            out += tlv(Tag.PAD, bytes(BLOCK - len(out) % BLOCK - 4))
        out += struct.pack("<HHI", Tag.TAIL, BLOCK - len(out) % BLOCK - 4, owner)
        out += struct.pack("<I", crc32c(bytes(out), 0) ^ crc)
        out += bytes(-len(out) % BLOCK)
        at = self._fast + self._used
        self._data[at : at + len(out)] = out
        self._used += len(out)
        self.path.write_bytes(self._data)

    def raw_tail(self, data: bytes) -> None:
        """Put bytes behind the fast commits."""
        at = self._fast + self._used
        self._data[at : at + len(data)] = data
        self.path.write_bytes(self._data)


def seen(path: Path) -> Seen:
    """Return what tt shows of an image: path -> kind, mode, size, links, contents."""
    data = path.read_bytes()
    files = ExtFileSystem(io.BytesIO(data), "image")
    found: Seen = {}
    waiting = ["/"]
    while waiting:
        at = waiting.pop()
        stat = files.lstat(at)
        if stat.kind == "directory":
            found[at] = (stat.kind, stat.mode)
            waiting += [f"{at.rstrip('/')}/{name}" for name in files.listdir(at)]
        elif stat.kind == "file":
            digest = hashlib.sha256(files.read(at)).hexdigest()
            found[at] = (stat.kind, stat.mode, stat.size, stat.nlink, digest)
        else:
            found[at] = (stat.kind, stat.mode, files.readlink(at) if stat.kind == "symlink" else "")
    # e2fsck puts there what lost its last name.
    return {path: row for path, row in found.items() if not path.startswith("/lost+found")}


def recovered(path: Path) -> Path:
    """Return a copy of an image that e2fsck has recovered and found nothing wrong with any more."""
    copy = path.with_name(path.name + ".recovered")
    shutil.copy(path, copy)
    for _ in range(2):
        done = subprocess.run(["/usr/sbin/e2fsck", "-fy", str(copy)], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    return copy


def random_commits(image: FastImage, seed: int, names: list[str]) -> None:
    """Add fast commits of files that are made, written to, cut, linked, renamed and removed."""
    rnd = random.Random(seed)
    folder = image.number("/d")
    inodes: dict[str, int] = {name: image.number(f"/d/{name}") for name in names}
    free_inode, free_block = 200, 9000
    maps: dict[int, dict[int, int]] = {}
    links = dict.fromkeys(inodes.values(), 1)
    for _ in range(rnd.randrange(1, 4)):
        records: list[Record] = []
        for _ in range(rnd.randrange(1, 12)):
            action = rnd.choice(["make", "make", "write", "cut", "link", "rename", "remove"])
            mine = [name for name, inode in inodes.items() if inode in maps]
            if action == "make" or not inodes or (action in ("write", "cut") and not mine):
                name = f"n{free_inode}" + "x" * rnd.randrange(60)
                inodes[name], maps[free_inode], links[free_inode] = free_inode, {}, 1
                records.append(inode_record(free_inode, 0o100644, 0))
                records.append(name_record(Tag.CREAT, folder, free_inode, name))
                free_inode += 1
            elif action in ("write", "cut"):
                name = rnd.choice(mine)
                inode = inodes[name]
                blocks = maps[inode]
                if action == "write":
                    for _ in range(rnd.randrange(1, 9)):
                        first, count = rnd.randrange(40), rnd.randrange(1, 4)
                        for i in range(count):
                            blocks[first + i] = free_block + i
                            image.write(free_block + i, rnd.randbytes(BLOCK))
                        records.append(add_range(inode, first, free_block, count))
                        free_block += count + rnd.randrange(2)
                else:
                    first = rnd.randrange(40)
                    records.append(del_range(inode, first, 50))
                    for block in [block for block in blocks if block >= first]:
                        del blocks[block]
                size = (max(blocks) + 1) * BLOCK - rnd.randrange(BLOCK) if blocks else 0
                records.append(inode_record(inode, 0o100600, size, links[inode]))
            elif action == "link":
                inode = inodes[rnd.choice(sorted(inodes))]
                name = f"l{rnd.randrange(1 << 30)}"
                inodes[name] = inode
                links[inode] += 1
                records.append(name_record(Tag.LINK, folder, inode, name))
            else:
                name = rnd.choice(sorted(inodes))
                inode = inodes.pop(name)
                if action == "rename":
                    new = f"r{rnd.randrange(1 << 30)}"
                    inodes[new] = inode
                    records.append(name_record(Tag.LINK, folder, inode, new))
                else:
                    links[inode] -= 1
                records.append(name_record(Tag.UNLINK, folder, inode, name))
        image.commit(records)
