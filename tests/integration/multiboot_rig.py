"""The kernel of `multiboot_kernel.c`, and disk images for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
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


def build(folder: Path, *options: str, source: str = "multiboot_kernel.c") -> Path:
    """Build the kernel, or another `source`; `options` go to the compiler."""
    for tool in ("gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (folder / "link.ld").write_text(SCRIPT)
    for command in (
        ["gcc", *FLAGS.split(), *options, "-c", str(HERE / source), "-o", "k.o"],
        [*LINK.split(), "-o", "kernel.elf", "k.o"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "kernel.elf"


def make_image(tree: Path) -> Path:
    """Make an ext2 image of a folder, beside it."""
    tool = shutil.which("mke2fs") or "/usr/sbin/mke2fs"
    if not Path(tool).exists():
        pytest.skip("mke2fs is not installed")
    image = tree.with_suffix(".img")
    command = [tool, "-q", "-F", "-t", "ext2", "-d", str(tree), str(image), "4M"]
    subprocess.run(command, check=True, capture_output=True)
    return image
