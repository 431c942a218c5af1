"""Partition tables as Linux itself reads them: a guest boots with generated disks and says what it found."""

from __future__ import annotations

import re
import string
import sys
from pathlib import Path

import pytest
from adversary_rig import debian_image
from cli_rig import TT

sys.path.append(str(Path(__file__).parents[1] / "unit" / "boot"))

from table_makers import EXTENDED, Found, ours, random_dos, random_gpt

pytestmark = pytest.mark.slow

DISKS = 22
SCRIPT = """\
cd /sys/block; for d in vd*/vd*; do echo found $d $(cat $d/start $d/size); done
poweroff -f
"""


def by_linux(tt: TT, disks: list[bytearray]) -> list[Found]:
    """Return the partitions of each disk as the guest's kernel lists them."""
    arguments = []
    for i, disk in enumerate(disks):
        (tt.folder / f"{i}.img").write_bytes(disk)
        arguments += ["--disk", f"{i}.img"]
    (tt.folder / "input").write_text(SCRIPT)
    console = tt.out("record", debian_image(), *arguments, "-o", "t.tt", "--input", "input", timeout_s=300)
    found: dict[str, Found] = {letter: [] for letter in string.ascii_lowercase}
    for letter, *row in re.findall(r"found vd([a-z])/vd[a-z](\d+) (\d+) (\d+)", console):
        number, start, count = map(int, row)
        found[letter].append((number, start, count))
    assert found["a"] == []
    return [sorted(found[string.ascii_lowercase[1 + i]]) for i in range(len(disks))]


@pytest.mark.parametrize("kind", ["dos", "gpt"])
def test_as_linux_reads_them(tt: TT, kind: str) -> None:
    disks = [random_dos(seed, wild=True) if kind == "dos" else random_gpt(seed) for seed in range(DISKS)]
    listed = by_linux(tt, disks)
    assert any(listed)
    for seed, (disk, theirs) in enumerate(zip(disks, listed, strict=True)):
        if kind == "dos":  # Linux lists an extended partition too, a sector or two of it
            theirs = [row for row in theirs if row[0] > 4 or disk[434 + 16 * row[0]] not in EXTENDED]
        mine = ours(disk)
        damaged = kind == "gpt" and mine and not theirs
        if damaged:  # Linux does not look at the backup unless told to; sfdisk and blkid do
            broken = bytearray(disk)
            broken[-512:] = bytes(512)
            mine = ours(broken)
        assert mine == theirs, f"{kind} {seed}"
