"""Finding kernel modules and the order to load them in."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tt.errors import BadInput
from tt.guests.modules import ModuleTree, depends, load_order


def module(*needs: str) -> bytes:
    """Make an ELF file that has a `.modinfo` and nothing else."""
    modinfo = b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    modinfo_at, names_at = 64, 64 + len(modinfo)
    table = names_at + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2
    )
    sections = [(0, 0, 0, 0), (1, 1, modinfo_at, len(modinfo)), (10, 3, names_at, len(names))]
    return b"".join(
        [
            header,
            modinfo,
            names,
            *(struct.pack("<IIQQQQIIQQ", n, t, 0, 0, o, s, 0, 0, 1, 0) for n, t, o, s in sections),
        ]
    )


def order_of(graph: dict[str, list[str]], *wanted: str) -> list[str]:
    return load_order(wanted, graph.__getitem__)


def test_depends_are_read_from_the_module() -> None:
    assert depends(module("virtio", "virtio-ring")) == ["virtio", "virtio_ring"]
    assert depends(module()) == []


@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda junk: module("a")[:60] + junk))
def test_a_file_that_is_no_module_gives_one_clear_error(junk: bytes) -> None:
    try:
        depends(junk)
    except BadInput as e:
        assert "ELF" in str(e)


def test_each_module_comes_after_what_it_needs() -> None:
    graph = {"blk": ["ring", "virtio"], "pci": ["virtio"], "ring": [], "virtio": ["ring"]}
    assert order_of(graph, "pci", "blk") == ["ring", "virtio", "pci", "blk"]


def test_the_order_asked_for_is_kept_where_nothing_else_decides() -> None:
    graph: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    assert order_of(graph, "c", "a", "b") == ["c", "a", "b"]
    assert order_of(graph, "c", "c") == ["c"]


def test_a_circle_is_refused_with_its_members() -> None:
    with pytest.raises(BadInput, match="circle: a -> b -> a"):
        order_of({"a": ["b"], "b": ["a"]}, "a")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".ko", bytes),
        (".ko.xz", lzma.compress),
        (".ko.zst", zstandard.ZstdCompressor(write_content_size=False).compress),
    ],
)
def test_a_tree_of_modules(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / f"virtio-rng{suffix}").write_bytes(pack(module("virtio", "rng-core")))
    (tmp_path / "kernel" / f"virtio{suffix}").write_bytes(pack(module()))
    (tmp_path / "modules.builtin").write_text("kernel/drivers/char/hw_random/rng-core.ko\n")
    tree = ModuleTree(tmp_path)
    assert tree.image("virtio_rng") == module("virtio", "rng-core")
    assert tree.builtin("rng_core")
    assert not tree.builtin("virtio")
    assert load_order(["virtio_rng"], tree.depends) == ["virtio", "virtio_rng"]


def test_a_module_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.ko.xz").write_bytes(b"not xz")
    tree = ModuleTree(tmp_path)
    with pytest.raises(BadInput, match="no module virtio_blk"):
        tree.image("virtio_blk")
    with pytest.raises(BadInput, match="broken.ko.xz does not unpack"):
        tree.image("broken")
