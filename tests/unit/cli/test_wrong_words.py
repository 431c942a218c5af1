"""Wrong use and inputs that cannot be used, verb by verb: one line that says what to do, and nothing made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_rig import ROOT, Inside

sys.path.append(str(ROOT / "tests" / "unit" / "chronus"))

from chronus_rig import lived


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a disk's history of some writes of noise."""
    return lived(tmp_path_factory.mktemp("history"), size=1 << 20, writes=20)[0]


@pytest.fixture
def past(history: Path, tmp_path: Path) -> Path:
    """Return a copy of it, with the image that it began with."""
    for path in history.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / history.name


@pytest.fixture
def run(demo_trace: Path, tmp_path: Path) -> Path:
    """Return a copy of the demo's recording."""
    return Path(shutil.copy(demo_trace, tmp_path / "run.tt"))


def complains(program: Inside, words: Sequence[object], code: int, says: str) -> None:
    """Run a command that must fail with one line, and leave no file."""
    before = sorted(program.folder.rglob("*"))
    done = program(*words, code=code)
    said = done.stderr.decode()
    assert said.startswith(f"{program.program.name}: ") and said.count("\n") == 1, said
    assert says in said, said
    assert done.stdout == b""
    assert sorted(program.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("blame disk.tt /etc --limit -1", 2, "--limit -1: give 0 or more"),
        ("cat disk.tt", 2, "give files to print, or --raw"),
        ("cat disk.tt --raw --offset 99999999", 2, "are not on a disk of 1,048,576"),
        ("cat disk.tt /etc/passwd", 3, "holds no file system that tt reads"),
        ("cp disk.tt out", 2, "and then the folder to copy it to"),
        ("find disk.tt --size +-5", 2, "-5"),
        ("bisect disk.tt --good start", 2, "give one probe"),
        ("bisect disk.tt --good start --files true --early", 2, "--early goes with --guest"),
        ("bisect disk.tt --good start --files true --after x", 2, "--after goes with --run"),
        ("bisect disk.tt --good start --guest true --path /etc", 2, "--path goes with --files"),
        ("bisect disk.tt --good start --files true --append x", 2, "--files boots nothing"),
        ("bisect disk.tt --good start --files true --timeout 0", 2, "give seconds above 0"),
        (
            "bisect disk.tt --good start --console base.img",
            3,
            "it is not text in UTF-8",
        ),
        ("bisect disk.tt --good start --console nowhere", 3, "cannot read the script nowhere"),
        ("export disk.tt -o no/such.img", 2, "cannot write no/such.img"),
        ("serve disk.tt --size 4M", 2, "its disk has a size: leave --size out"),
        ("serve disk.tt --size 4M --at w3", 2, "--size is for a new live disk"),
        ("serve disk.tt --disk 1", 2, "disk 0 alone: leave --disk out"),
        ("serve new.tt", 2, "--base IMAGE or --size SIZE makes it"),
        ("serve new.tt --base base.img --size 4M", 2, "an image has a size"),
        ("ls disk.tt --at b99", 2, "there is no burst b99"),
        ("ls disk.tt --at 25:61", 2, "give 2026-11-22T14:03:10"),
        ("ls disk.tt --at somewhere", 2, "'somewhere' is"),
        ("ls disk.tt --disk 3", 2, "disk 3"),
        ("squash disk.tt --before w999 -o out.tt", 2, "w999"),
        ("log nowhere.tt", 3, "nowhere.tt"),
    ],
)
def test_chronus(chronus: Inside, past: Path, words: str, code: int, says: str) -> None:
    complains(chronus, words.split(), code, says)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("diff run.tt run.tt --limit 0", 2, "--limit 0: give 1 or more"),
        ("record run.tt --force -o folder", 2, "folder is a folder: give the name of a file"),
        ("gdb run.tt --listen unix:here --script-out no/such", 3, "cannot write no/such"),
        ("gdb run.tt --listen unix:here --symbols-out no/such", 3, "cannot write no/such"),
        ("index run.tt --every 0", 2, "give a positive number"),
        ("index run.tt --every often", 2, "number of ticks"),
        ("sql run.tt nonsense", 2, "nonsense"),
        ("console nowhere.tt", 3, "nowhere.tt"),
    ],
)
def test_tt(inside: Inside, run: Path, words: str, code: int, says: str) -> None:
    (inside.folder / "folder").mkdir()
    complains(inside, words.split(), code, says)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ("x/fb 0x100000", "a float has 2, 4 or 8 bytes"),
        ("seek nowhere", "nowhere"),
        ("x 'abc'", "abc"),
    ],
)
def test_lines_of_the_shell(inside: Inside, run: Path, batch: str, says: str) -> None:
    done = inside("replay", run, "--to-tick", "start", "--batch", batch, code=2)
    assert says in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_what_machines_read(inside: Inside, chronus: Inside, past: Path, run: Path) -> None:
    facts = json.loads(inside.out("index", run, "--every", "5_000_000", "--json"))
    assert facts["checkpoints"] >= 4 and facts["bytes"] == run.stat().st_size
    facts = json.loads(chronus.out("squash", past, "--before", "w5", "-o", "short.tt", "--json"))
    assert (chronus.folder / "short.tt").exists() and facts
    facts = json.loads(chronus.out("export", past, "-o", "out.img", "--json"))
    assert facts["size"] == (chronus.folder / "out.img").stat().st_size == 1 << 20
