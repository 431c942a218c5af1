"""Base images that are missing or not what they were: one line that says which and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from adversary_rig import EPOCH, elf_kernel, fill_noise

from tt.errors import BadInput
from tt.log import Trace
from tt.recording import record
from tt.replay import Replay, verify
from tt.vmm.config import MachineConfig
from tt.vmm.configure import configure_denali, configure_pc

SIZE = 3 << 20


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may read nothing that is not everybody's."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def remove(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(512))


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[SIZE // 2] ^= 1
    path.write_bytes(data)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def forbid(path: Path) -> None:
    path.chmod(0)


DEEDS: dict[Callable[[Path], None], str] = {
    remove: "missing",
    grow: f"has changed: it has {SIZE + 512} bytes, and had {SIZE}",
    shrink: f"has changed: it has {SIZE - 1} bytes, and had {SIZE}",
    empty: "has changed: it has 0 bytes",
    change: "has changed since it was recorded",
    become_directory: "",
    become_device: "",
    become_pipe: "",
    dangle: "missing",
    forbid: "",
}


def one_line(error: BadInput, path: Path, says: str) -> None:
    """Check an error about a base image."""
    message = str(error)
    assert str(path) in message and says in message and "\n" not in message
    assert error.exit_code == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that everybody may look into."""
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.owner() == Path(tmp_path).owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return tmp_path


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_replaying_with_another_base(demo: Path, folder: Path, deed: Callable[[Path], None]) -> None:
    image, path = folder / "base.img", folder / "x.tt"
    image.write_bytes(fill_noise(SIZE, "base"))
    record(configure_denali(demo, disks=[image], epoch=EPOCH), path, max_ticks=3_000_000)
    path.chmod(0o644)
    deed(image)
    with nobody(), Trace.open(path) as trace:
        for replay in (Replay, verify):
            with pytest.raises(BadInput) as caught:
                replay(trace)
            one_line(caught.value, image, DEEDS[deed])


def test_the_base_has_moved(demo: Path, tmp_path: Path) -> None:
    image, path = tmp_path / "base.img", tmp_path / "x.tt"
    image.write_bytes(fill_noise(SIZE, "base"))
    record(configure_denali(demo, disks=[image], epoch=EPOCH), path, max_ticks=3_000_000)
    image.rename(tmp_path / "moved.img")
    with Trace.open(path) as trace:
        with pytest.raises(BadInput, match="--base 0=FILE"):
            Replay(trace)
        assert verify(trace, bases={0: tmp_path / "moved.img"}).good


def test_an_embedded_base_stands_in(demo: Path, tmp_path: Path) -> None:
    image, path = tmp_path / "base.img", tmp_path / "x.tt"
    image.write_bytes(fill_noise(SIZE, "base"))
    record(configure_denali(demo, disks=[image], epoch=EPOCH), path, max_ticks=3_000_000, embed=True)
    image.unlink()
    with Trace.open(path) as trace:
        assert verify(trace).good


def with_kernel(path: Path, kernel: Path) -> MachineConfig:
    return configure_pc(kernel, disks=[path])


def with_demo(path: Path, kernel: Path) -> MachineConfig:
    return configure_denali(kernel.with_name("demo.elf"), disks=[path])


@pytest.mark.parametrize("configure", [lambda path, kernel: configure_pc(path), with_kernel, with_demo])
@pytest.mark.parametrize(
    "deed", [remove, empty, become_directory, become_device, become_pipe, dangle, forbid]
)
def test_recording_with_no_such_image(
    demo: Path, folder: Path, deed: Callable[[Path], None], configure: Callable[[Path, Path], MachineConfig]
) -> None:
    image, kernel = folder / "base.img", folder / "kernel.elf"
    image.write_bytes(fill_noise(SIZE, "base"))
    kernel.write_bytes(elf_kernel(b"\xf4"))
    (folder / "demo.elf").write_bytes(demo.read_bytes())
    deed(image)
    with nobody(), pytest.raises(BadInput) as caught:
        record(configure(image, kernel), None, max_ticks=1000)
    one_line(caught.value, image, "")


@pytest.mark.parametrize("deed", [remove, empty, become_directory, become_device, become_pipe, forbid])
def test_no_such_kernel(folder: Path, deed: Callable[[Path], None]) -> None:
    kernel = folder / "kernel"
    kernel.write_bytes(elf_kernel(b"\xf4"))
    deed(kernel)
    for options in ({"guest": kernel}, {"guest": None, "kernel": kernel}):
        if deed is become_pipe and options["guest"] is None:
            continue  # a pipe is as good a kernel as any, as soon as somebody writes into it
        with nobody(), pytest.raises(BadInput) as caught:
            configure_pc(**options)  # type: ignore[arg-type]
        one_line(caught.value, kernel, "")
    if deed is become_pipe:
        return
    with nobody(), pytest.raises(BadInput) as caught:
        configure_denali(kernel)
    one_line(caught.value, kernel, "")
