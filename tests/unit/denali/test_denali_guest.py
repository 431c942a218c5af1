"""The C kit and the demo: built, in step with the machine, and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from denali_rig import KIT, MANUAL

from tt.errors import TTError
from tt.vmm.denali import registers
from tt.vmm.denali.disk import FAILED, READ_ONLY
from tt.vmm.denali.guest_build import DEMO, build_guest, build_kit
from tt.vmm.denali.image import GuestImage
from tt.vmm.denali.registers import Call, EventBit, Register

# ---- the build


def test_the_build_is_reproducible(demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "some where" / "else.elf"
    build_guest([KIT / DEMO], again, kit=KIT)
    assert again.read_bytes() == demo.read_bytes()
    assert list(again.parent.iterdir()) == [again]
    copied = demo.parent / "copied.elf"  # the copied kit is as good as the original
    build_guest([demo.parent / DEMO], copied, kit=demo.parent)
    assert copied.read_bytes() == demo.read_bytes()


@pytest.mark.slow
def test_a_kit_is_built_where_it_lies(demo: Path) -> None:
    before = demo.read_bytes()
    assert build_kit(demo.parent, demo.parent).read_bytes() == before


def test_the_demo_has_lines_and_no_paths(demo: Path) -> None:
    data = demo.read_bytes()
    assert b".debug_line" in data
    assert b"demo.c" in data
    assert b"/tmp" not in data
    assert b"GCC: (" not in data.split(b".debug_info")[0][:0x3000]
    assert len(data) < 100_000
    image = GuestImage.open(demo)
    assert image.entry == image.segments[0].addr == 0x100000


def test_what_does_not_compile_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.c"
    bad.write_text("int main(void) { return 1 }\nint x = y;\n")
    with pytest.raises(TTError) as error:
        build_guest([bad], tmp_path / "bad.elf", kit=KIT)
    assert re.fullmatch(r"cannot build \S+bad.elf: bad.c:1:26: error: [^\n]+", str(error.value))
    with pytest.raises(TTError, match="no C compiler 'no-such-cc' found"):
        build_guest([bad], tmp_path / "bad.elf", kit=KIT, cc="no-such-cc")
    with pytest.raises(TTError, match="No such file"):
        build_guest([tmp_path / "none.c"], tmp_path / "bad.elf", kit=KIT)
    assert not (tmp_path / "bad.elf").exists()


# ---- in step with the machine


def test_the_header_says_what_the_machine_does(tmp_path: Path) -> None:
    """Let the compiler compare `denali.h` with `registers.py`."""
    fields = {
        **{r: r.name.lower() for r in Register if r < 0x100},
        **{r: "event." + r.name[6:].lower() for r in Register if 0x100 <= r < 0x140},
        **{r: "exception." + r.name[10:].lower() for r in Register if r >= 0x140},
    }
    checks = [
        f"__builtin_offsetof(struct denali_registers, {field}) == {int(r)}" for r, field in fields.items()
    ]
    checks += [f"DENALI_{c.name} == {int(c)}" for c in Call]
    checks += [f"DENALI_EVENT_{b.name} == {int(b)}" for b in EventBit if b != EventBit.NETWORK]
    checks += [
        f"DENALI_REGISTERS == {registers.REGISTER_PAGE}",
        f"DENALI_MAGIC == {registers.MAGIC}ul",
        f"DENALI_REFUSED == {registers.REFUSED}ul",
        f"DENALI_FAILED == {FAILED}ul",
        f"DENALI_READ_ONLY == {READ_ONLY}ul",
    ]
    source = tmp_path / "check.c"
    asserts = "".join(f'_Static_assert({c}, "{c}");\n' for c in checks)
    source.write_text(f'#include "denali.h"\n{asserts}int main(void) {{ return 0; }}\n')
    build_guest([source], tmp_path / "check.elf", kit=KIT)


def test_the_manual_lists_every_register_and_instruction() -> None:
    text = MANUAL.read_text()
    for register in (r for r in Register if r < 0x100):
        assert f"| 0x{register:02x} | `{register.name.lower()}` |" in text
    for register in (r for r in Register if r >= 0x100):
        assert f"| 0x{register:x} |" in text
    for call in Call:
        assert f"| {int(call)} | `{call.name.lower()}` |" in text
