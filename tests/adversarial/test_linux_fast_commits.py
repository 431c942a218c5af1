"""Fast commits as Linux writes them: chronus shows at each instant what e2fsck makes of the disk there."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adversary_rig import debian_image
from cli_rig import TT

sys.path.append(str(Path(__file__).parents[1] / "unit" / "boot"))

from boot_disks import make_ext
from fast_commits import seen

from tt.chronus.files.ext_volume import ExtVolume
from tt.chronus.store.history import History

pytestmark = pytest.mark.slow

SCRIPT = """\
mkdir -p /m; mount -t ext4 -o commit=300 /dev/vdb /m; cd /m; echo base > base; sync
for i in 1 2 3; do echo file $i > new$i; sync -d new$i || fsync new$i; done
dd if=/dev/urandom of=big bs=1k count=300 2>/dev/null; fsync big
mv new1 moved; fsync moved; ln new2 linked; fsync linked; rm new3; echo more >> base; fsync base
dd if=/dev/urandom of=big bs=1k seek=500 count=20 conv=notrunc 2>/dev/null; fsync big
chmod 600 base; fsync base; poweroff -f
"""


LOOK = """\
mkdir -p /m; mount -t ext4 /dev/vdb /m; cd /m; sha256sum $(find . -xdev -type f)
poweroff -f
"""


def test_every_instant_is_as_recovery_makes_it(tt: TT, tmp_path: Path) -> None:
    make_ext(tt.folder / "d.img", {"conf": b"old\n"}, "-O", "fast_commit", size="64M")
    (tt.folder / "input").write_text(SCRIPT)
    tt("record", debian_image(), "--disk", "d.img", "-o", "t.tt", "--input", "input", timeout_s=300)
    history = History.open(tt.folder / "t.tt", disk=1)
    now, copy, left = tmp_path / "now", tmp_path / "copy", tt.folder / "left.img"
    fast = 0
    for instant in range(history.first + 1, history.count + 1, 2):
        now.write_bytes(history.at(instant).read(0, history.sectors))
        mine = seen(now)
        shutil.copy(now, copy)
        done = subprocess.run(["/usr/sbin/e2fsck", "-fy", str(copy)], capture_output=True, check=False)
        if b"Invalid argument while recovering journal" in done.stderr:
            # Fast commits of an earlier transaction lie there; e2fsck gives up, the kernel passes over them.
            shutil.copy(now, left)
            continue
        assert mine == seen(copy), f"instant {instant}"
        newer = ExtVolume(io.BytesIO(now.read_bytes()), "disk").newer
        fast += any(block.data is not None for block in newer.values())
    assert fast
    if left.exists():
        (tt.folder / "look").write_text(LOOK)
        console = tt.out("record", debian_image(), "--disk", "left.img", "-o", "l.tt", "--input", "look")
        by_linux = {path: digest for digest, path in re.findall(r"([0-9a-f]{64})  \.(/\S+)", console)}
        assert {path: row[4] for path, row in seen(left).items() if row[0] == "file"} == by_linux
