"""Compile Denali guests with the C kit in `guests/denali`.

Used by `setup.py` when the package is built, and by `tt guest build denali`;
it needs nothing but gcc and the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tt.errors import TTError

KIT = ("denali.h", "net.h", "net_inside.h", "denali.c", "start.S", "denali.ld")
"""The kit: every guest is compiled against the headers, and linked with the rest."""

NETWORK = "network.c"
STACK = ("net_link.c", "net_ip.c", "net_udp.c", "net_tcp.c", "net_socket.c", "net_denali.c")
PARTS = (NETWORK, *STACK)
"""Parts of the kit that only those guests are linked with which use them."""

DEMO = "demo.c"
BUG = "bug.c"
PINGPONG = "pingpong.c"
WEB = "web.c"
FETCH = "fetch.c"
GUESTS = {DEMO: (), BUG: (), PINGPONG: (NETWORK,), WEB: PARTS, FETCH: PARTS}
"""The guests that come with the kit, a source file each, and the parts that they use: the demo, the one
of docs/tutorial.md, one that passes a frame to and fro with another, a web server and a client."""

# No SSE and no red zone: an upcall may come between any two instructions and
# saves neither.  No loop patterns: memcpy must not become a call of memcpy.
COMPILE_FLAGS = [
    *("-std=c11", "-O2", "-g", "-Wall", "-Wextra"),
    *("-ffreestanding", "-fno-stack-protector", "-fcf-protection=none", "-fno-tree-loop-distribute-patterns"),
    *("-mno-red-zone", "-mgeneral-regs-only", "-mcmodel=small", "-fno-pic"),
    *("-fno-asynchronous-unwind-tables", "-fno-ident", "-gno-record-gcc-switches"),
]
LINK_FLAGS = [
    *("-nostdlib", "-static", "-no-pie"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
]

_TIMEOUT_S = 120


def build_guest(source_files: Sequence[Path], output: Path, *, kit: Path, cc: str = "gcc") -> None:
    """Compile `source_files` (C or assembly) with the kit in folder `kit` into the ELF file `output`.

    The same sources and compiler give the same bytes wherever they lie: no
    build id, no time, no path of the host.  Raises `TTError` when there is no
    compiler or the sources do not compile.
    """
    _build({output: source_files}, kit, cc)


def build_kit(kit: Path, folder: Path, *, cc: str = "gcc") -> Path:
    """Copy the kit and its guests' sources into `folder` and build them there; return the demo's ELF file.

    Beside `demo.elf` lie the others of `GUESTS`.  The copy is a start for guests of
    one's own: `build_guest([...], out, kit=folder)`, with those `PARTS` that they use.
    """
    output = elf_file(folder, DEMO)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*KIT, *PARTS, *GUESTS):
        _copy(kit / name, folder / name, output)
    guests = {elf_file(folder, name): [folder / n for n in (name, *parts)] for name, parts in GUESTS.items()}
    _build(guests, folder, cc)
    return output


def elf_file(folder: Path, source: str) -> Path:
    """Return where `build_kit` puts the guest made of `source`."""
    return (folder / source).with_suffix(".elf")


def _build(guests: Mapping[Path, Sequence[Path]], kit: Path, cc: str) -> None:
    """Build guests, an ELF file each of its sources and the kit; a source of several is compiled once."""
    first = next(iter(guests))
    program = shutil.which(cc)
    if program is None:
        raise TTError(
            f"cannot build {first}: no C compiler {cc!r} found: install gcc and binutils for x86-64"
        )
    objects: dict[Path, str] = {}
    with tempfile.TemporaryDirectory(prefix="tt-guest-") as folder:
        work = Path(folder)
        prefix_map = f"-ffile-prefix-map={work.resolve()}=."
        for output, source_files in guests.items():
            sources = [kit / name for name in KIT] + [Path(s) for s in source_files]
            for source in sources:
                if source in objects:
                    continue
                _copy(source, work / source.name, output)
                if source.suffix in (".c", ".S"):
                    objects[source] = f"{len(objects)}.o"
            for source in sources:
                if source in objects and not (work / objects[source]).exists():
                    compile_one = [*COMPILE_FLAGS, prefix_map, "-c", source.name, "-o", objects[source]]
                    _run([program, *compile_one], work, output)
            linked = [objects[source] for source in sources if source in objects]
            _run([program, *LINK_FLAGS, "-Wl,-T,denali.ld", *linked, "-o", "guest.elf"], work, output)
            output.parent.mkdir(parents=True, exist_ok=True)
            # Into place in one step: a reader never sees half a guest.
            partial = output.with_name(output.name + ".partial")
            shutil.copyfile(work / "guest.elf", partial)
            partial.replace(output)


def _copy(source: Path, target: Path, output: Path) -> None:
    try:
        if not (target.exists() and source.samefile(target)):
            shutil.copyfile(source, target)
    except OSError as e:
        raise TTError(f"cannot build {output}: {source}: {e.strerror or e}") from None


def _run(command: list[str], folder: Path, output: Path) -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise TTError(f"cannot build {output}: {e}") from None
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if "error" in line.lower()
        ] or done.stderr.splitlines()
        raise TTError(f"cannot build {output}: {lines[0] if lines else f'{command[0]} failed'}")
