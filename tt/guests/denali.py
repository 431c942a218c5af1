"""Build the Denali machine's guests from the C sources that come with tt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tt.errors import BadInput
from tt.vmm.denali.guest_build import BUG, DEMO, GUESTS, build_kit, elf_file

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package carries the sources inside; a checkout has them beside.
_KITS = (_PACKAGE / "_guests" / "denali", _PACKAGE.parent / "guests" / "denali")


def demo_guest(scratch: Path) -> Path:
    """Return the demo's ELF file: the one in the package, or where there is none, one built in `scratch`."""
    shipped = elf_file(_KITS[0], DEMO)
    return shipped if shipped.exists() else build(scratch)


def build(out: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Copy the C kit and its guests' sources into `out`, build them there, and return the demo's ELF file.

    `bug_guest(out)` returns that of docs/tutorial.md, `guests(out)` all of them.

    Raises `BadInput` if `out` cannot be written, `TTError` without a C compiler.
    """
    kit = next((kit for kit in _KITS if all((kit / name).exists() for name in GUESTS)), None)
    if kit is None:
        raise BadInput(f"the sources of the Denali guest are not in {_KITS[0]}: install tt anew")
    try:
        out.mkdir(parents=True, exist_ok=True)
        image = build_kit(kit, out)
    except OSError as e:
        raise BadInput(f"cannot build the guest in {out}: {e}") from None
    say(f"C sources and kit in {out}")
    return image


def guests(out: Path) -> list[Path]:
    """Return the guests in a folder that `build` filled, the demo first."""
    return [elf_file(out, source) for source in GUESTS]


def bug_guest(out: Path) -> Path:
    """Return the guest of docs/tutorial.md in a folder that `build` filled."""
    return elf_file(out, BUG)
