"""A whole small kernel, built with gcc, that writes down all that a Multiboot loader tells it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot, replays_exactly

from tt.log import Trace
from tt.replay import config_of
from tt.vmm.config import configure_pc

HERE = Path(__file__).parent
MEM = 16 << 20
SCRIPT = """
ENTRY(_start)
SECTIONS {
    . = 0x100000;
    .text : { *(.multiboot) *(.text*) }
    .data : { *(.rodata*) *(.data*) }
    .bss : { *(.bss*) *(COMMON) }
    /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) }
}
"""
FLAGS = "-m32 -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -O1 -Wall -Werror"

LINK = "ld -m elf_i386 -nostdlib -z noexecstack -T link.ld"
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


def build(folder: Path, *options: str) -> Path:
    """Build the kernel; `options` go to the compiler."""
    for tool in ("gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (folder / "link.ld").write_text(SCRIPT)
    for command in (
        ["gcc", *FLAGS.split(), *options, "-c", str(HERE / "multiboot_kernel.c"), "-o", "k.o"],
        [
            "ld",
            "-m",
            "elf_i386",
            "-nostdlib",
            "-z",
            "noexecstack",
            "-T",
            "link.ld",
            "-o",
            "kernel.elf",
            "k.o",
        ],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "kernel.elf"


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
def test_from_a_menu_with_modules(
    kernel: Path, tmp_path: Path, make_image: Callable[..., Path], two: str, told: str
) -> None:
    config = (
        f"menuentry x {{ multiboot{two} /k a b; module{two} /m 'one x' two; module{two} /e; module{two} /m }}"
    )
    files = {"boot/grub/grub.cfg": config.encode(), "k": kernel.read_bytes(), "m": b"data\n", "e": b""}
    image = make_image(tmp_path / "disk", files)
    boot = Boot(configure_pc(image, mem_bytes=MEM, append="more", epoch=EPOCH), tmp_path / "x.tt")
    assert boot.console == told.format(flags=0x26D, line="line <a b more> of GRUB\n", modules=MODULES)
    replays_exactly(tmp_path / "x.tt")
    with Trace.open(tmp_path / "x.tt") as trace:
        assert config_of(trace).boot_kind == f"multiboot{two or 1}"


@pytest.fixture
def make_image() -> Callable[..., Path]:
    """Return a function that makes an ext2 image of files."""

    def make(path: Path, files: dict[str, bytes]) -> Path:
        tree = path.with_suffix(".tree")
        for name, contents in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(contents)
        tool = shutil.which("mke2fs") or "/usr/sbin/mke2fs"
        if not Path(tool).exists():
            pytest.skip("mke2fs is not installed")
        command = [tool, "-q", "-F", "-t", "ext2", "-d", str(tree), str(path), "4M"]
        subprocess.run(command, check=True, capture_output=True)
        return path

    return make
