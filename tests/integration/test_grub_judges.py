"""GRUB itself, in QEMU, on the same configurations and kernels: what it hands over is what tt hands over."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boot_rig import EPOCH, Boot
from grub_facts import FACTS, FILES
from multiboot_rig import build, make_image

from tt.vmm.configure import configure_pc

pytestmark = pytest.mark.slow

MEM = 64 << 20
ARGUMENTS = "-display none -monitor none -no-reboot -m 64 -device isa-debug-exit,iobase=0x501"


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("grub-mkrescue", "xorriso", "qemu-system-x86_64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not Path("/usr/lib/grub/i386-pc").is_dir():
        pytest.skip("grub-pc-bin is not installed")
    return build(tmp_path_factory.mktemp("kernel"))


def lay_out(tree: Path, kernel: Path, config: str) -> Path:
    """Write what GRUB boots: the kernel, a module, and the files beside the configuration."""
    files = FILES | {"/boot/ramdisk.img": "data\n", "/boot/grub/grub.cfg": f"set timeout=0\n{config}"}
    for name, text in files.items():
        (tree / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tree / name[1:]).write_text(text)
    shutil.copy(kernel, tree / "boot/kernel.elf")
    return tree


def said_under_grub(tree: Path) -> str:
    """Boot a tree with GRUB in QEMU; return what the kernel printed."""
    image, serial = tree.with_suffix(".iso"), tree.with_suffix(".txt")
    subprocess.run(["grub-mkrescue", "-o", image, tree], check=True, capture_output=True)
    command = ["qemu-system-x86_64", *ARGUMENTS.split(), "-cdrom", str(image), "-serial", f"file:{serial}"]
    subprocess.run(command, timeout=120, capture_output=True)
    text = serial.read_text().replace("\r", "")
    assert text.endswith("@end\n"), text
    return text


@pytest.mark.parametrize("name", sorted(FACTS))
def test_menus(kernel: Path, tmp_path: Path, name: str) -> None:
    config, told = FACTS[name]
    said = said_under_grub(lay_out(tmp_path / "tree", kernel, config))
    line = re.search(r"^line <(.*)> of GRUB$", said, re.MULTILINE)
    modules = re.findall(r"^module \[(.*)\] size=", said, re.MULTILINE)
    assert line is not None
    assert f"<{line[1]}>" + "".join(f"[{words}]" for words in modules) == told


@pytest.mark.parametrize("two", ["", "2"])
def test_all_that_a_kernel_is_told(kernel: Path, tmp_path: Path, two: str) -> None:
    config = (
        f"menuentry x {{ multiboot{two} /boot/kernel.elf a 'b c'; module{two} /boot/ramdisk.img 'one x' two\n"
        f"module{two} /boot/empty.img; module{two} /boot/ramdisk.img }}"
    )
    tree = lay_out(tmp_path / "tree", kernel, config)
    mine = Boot(configure_pc(make_image(tree), mem_bytes=MEM, epoch=EPOCH)).console
    assert "kb=64512" in mine

    def without_top(text: str) -> str:
        """Leave out how much RAM there is above 1 MB: QEMU's firmware keeps 128 KB at the top for itself."""
        return re.sub(r"(upper|from=1024 kb)=\d+", r"\1=", text)

    assert without_top(mine) == without_top(said_under_grub(tree))
