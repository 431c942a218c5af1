"""Garbage images, kernels and programs: `BadInput`, or a guest that ends or is stopped; never a hang."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from adversary_rig import EPOCH, elf_kernel, fill_noise
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.log import Trace
from tt.recording import record
from tt.replay import verify
from tt.vmm.configure import configure_denali, configure_pc

MOST_TICKS = 100_000  # code that never repeats runs at the speed of translation
MEM = 16 << 20

everyday = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# How files that claim to be something begin.
HEADS = {
    "elf64": elf_kernel(b"")[:120],
    "elf32": b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIII", 2, 3, 1, 0x100000, 52, 0),
    "bzimage": bytes(0x1F1) + b"\x04" + bytes(12) + b"\x55\xaa\xeb\x66HdrS" + struct.pack("<HI", 0x20F, 0),
    "multiboot": struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF),
    "multiboot address": struct.pack(
        "<8I", 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)) & 0xFFFFFFFF, 0x100000, 0x100000, 0, 0, 0x100020
    ),
    "multiboot2": struct.pack("<4I", 0xE85250D6, 0, 24, -(0xE85250D6 + 24) & 0xFFFFFFFF),
    "mbr": bytes(446) + b"\x80\0\0\0\x83\0\0\0" + struct.pack("<II", 1, 200) + bytes(48) + b"\x55\xaa",
    "gpt": bytes(446) + b"\0\0\0\0\xee\0\0\0" + struct.pack("<II", 1, 200) + bytes(48) + b"\x55\xaaEFI PART",
    "ext4": bytes(1024 + 56) + b"\x53\xef",
    "fat": b"\xeb\x3c\x90MSDOS5.0" + struct.pack("<HBHBHHBH", 512, 1, 1, 2, 16, 200, 0xF8, 1),
    "qcow2": b"QFI\xfb" + struct.pack(">I", 3),
    "nothing": b"",
}


def try_to_run(guest: Path, out: Path | None = None) -> str:
    """Configure and run a guest for a while; return how it ended."""
    try:
        config = configure_pc(guest, mem_bytes=MEM, epoch=EPOCH)
    except BadInput as e:
        assert str(e) and "\n" not in str(e)
        return "refused"
    result = record(config, out, max_ticks=MOST_TICKS, entropy=bytes)
    assert result.end_tick <= MOST_TICKS
    return result.reason


@everyday
@given(head=st.sampled_from(sorted(HEADS)), tail=st.binary(max_size=4000), size=st.integers(0, 1 << 17))
@example(head="nothing", tail=b"", size=0)
@example(head="bzimage", tail=bytes(4000), size=1 << 17)
def test_garbage_files(tmp_path: Path, head: str, tail: bytes, size: int) -> None:
    path = tmp_path / "garbage"
    path.write_bytes((HEADS[head] + tail).ljust(size, b"\0"))
    try_to_run(path)


@everyday
@given(head=st.sampled_from(sorted(HEADS)), seed=st.integers(0, 1000), size=st.integers(600, 1 << 19))
def test_noise(tmp_path: Path, head: str, seed: int, size: int) -> None:
    path = tmp_path / "noise"
    path.write_bytes((HEADS[head] + fill_noise(size, seed))[:size])
    try_to_run(path)


@pytest.mark.slow
@everyday
@given(code=st.binary(min_size=1, max_size=64))
@example(code=b"\xeb\xfe")  # jmp .
@example(code=b"\xfa\xeb\xfe")  # cli; jmp .
@example(code=b"\xf4")  # hlt
@example(code=b"\x0f\x0b")  # ud2, with no IDT: a triple fault
@example(code=b"\x31\xc0\x0f\x22\xd8\xeb\xfe")  # paging from nothing
@example(code=b"\xf3\xaa\xeb\xfc")  # rep stosb over everything
def test_any_code(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "kernel").write_bytes(elf_kernel(code))
    assert try_to_run(tmp_path / "kernel") != "refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_noise_as_code_replays(tmp_path: Path, seed: int) -> None:
    """Kilobytes of random instructions on a board full of devices; what they did, a replay does."""
    code = fill_noise(8192, seed)
    (tmp_path / "kernel").write_bytes(elf_kernel(code))
    reason = try_to_run(tmp_path / "kernel", tmp_path / "x.tt")
    assert reason != "refused"
    with Trace.open(tmp_path / "x.tt") as trace:
        verdict = verify(trace)
    assert verdict.good, verdict


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_debians_kernel_with_flipped_bits(debian: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kernel = bytearray((debian.parent / "vmlinuz").read_bytes())
    for _ in range(chance.choice((1, 20))):
        # Half of them in the first kilobytes: the setup header and the decompressor.
        kernel[chance.randrange(chance.choice((4096, len(kernel))))] ^= 1 << chance.randrange(8)
    (tmp_path / "kernel").write_bytes(kernel)
    try:
        config = configure_pc(tmp_path / "kernel", mem_bytes=128 << 20, epoch=EPOCH)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert record(config, None, max_ticks=150_000_000).end_tick <= 150_000_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_debians_image_with_noise_in_it(debian: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    image = tmp_path / "debian.img"
    data = bytearray(debian.read_bytes())
    for _ in range(200):  # superblock, group descriptors, inode tables: where a file system lives
        at = chance.randrange(chance.choice((1 << 12, 1 << 16, 1 << 20)))
        data[at : at + 4] = chance.randbytes(4)
    image.write_bytes(data)
    try:
        config = configure_pc(image, mem_bytes=128 << 20, epoch=EPOCH)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert record(config, None, max_ticks=50_000_000).end_tick <= 50_000_000


@everyday
@given(flips=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 7)), min_size=1, max_size=6))
def test_denali_programs_with_flipped_bits(demo: Path, tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(demo.read_bytes())
    for place, bit in flips:
        data[place if place < 512 else 0x1000 + place] ^= 1 << bit
    (tmp_path / "guest.elf").write_bytes(data)
    try:
        config = configure_denali(tmp_path / "guest.elf", epoch=EPOCH)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert record(config, None, max_ticks=MOST_TICKS).end_tick <= MOST_TICKS
