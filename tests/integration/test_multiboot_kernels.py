"""A whole small kernel, built with gcc, that writes down all that a Multiboot loader tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot, replays_exactly
from multiboot_rig import build, make_image

from tt.log import Trace
from tt.replay import config_of
from tt.vmm.configure import configure_pc

MEM = 16 << 20
SECTIONS = "sections size=40 .text .data .bss .symtab(zeros is there) .strtab .shstrtab\n"
MEMORY = "memory lower=639 upper=15360\n"
RAM = "ram from=0 kb=639\nram from=1024 kb=15360\n"
MODULES = """\
module ["one x" two] size=5 page=0 begins d
module [] size=0 page=0
module [] size=5 page=0 begins d
"""
FIRST = "@begin bss=0\nflags now={flags}\n{line}{modules}" + SECTIONS + MEMORY + RAM + "@end\n"
SECOND = (
    "@begin bss=0\naligned by8=1 reserved=0\nbase at=1048576\n{modules}"
    + RAM + SECTIONS + MEMORY + "total right=1\n{line}@end\n"
)  # fmt: skip


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("multiboot"))


@pytest.fixture(scope="session")
def kernel_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the kernel without its header of version 1."""
    path = build(tmp_path_factory.mktemp("multiboot2"))
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex("02b0ad1b"))
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    return path


def test_append_reaches_a_kernel_that_drops_a_first_word(
    kernel: Path, kernel_of_two: Path, tmp_path: Path
) -> None:
    line = "line <a b> of GRUB\n"
    for path in (kernel, build(tmp_path, "-DDROPS")):
        told = Boot(configure_pc(path, mem_bytes=MEM, append="a b", epoch=EPOCH)).console
        assert told == FIRST.format(flags=0x265, line=line, modules="")
    told = Boot(configure_pc(kernel_of_two, mem_bytes=MEM, append="a b", epoch=EPOCH)).console
    assert told == SECOND.format(line=line, modules="")


@pytest.mark.parametrize(("two", "told"), [("", FIRST), ("2", SECOND)], ids=["1", "2"])
def test_from_a_menu_with_modules(kernel: Path, tmp_path: Path, two: str, told: str) -> None:
    config = (
        f"menuentry x {{ multiboot{two} /k a b; module{two} /m 'one x' two; module{two} /e; module{two} /m }}"
    )
    files = {"boot/grub/grub.cfg": config.encode(), "k": kernel.read_bytes(), "m": b"data\n", "e": b""}
    for name, contents in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(contents)
    image = make_image(tmp_path / "tree")
    boot = Boot(configure_pc(image, mem_bytes=MEM, append="more", epoch=EPOCH), tmp_path / "x.tt")
    assert boot.console == told.format(flags=0x26D, line="line <a b more> of GRUB\n", modules=MODULES)
    replays_exactly(tmp_path / "x.tt")
    with Trace.open(tmp_path / "x.tt") as trace:
        assert config_of(trace).boot_kind == f"multiboot{two or 1}"
