"""The smallest set of changed files: found by few probes on patched disks, and verified by undoing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from file_rig import edited, make_ext, need, put

from tt.chronus.files.difference import diff
from tt.chronus.files.patch import Delta, deltas
from tt.chronus.files.tree import Tree
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.view import DiskView, ImageView
from tt.chronus.why.minimize import Trial, judge_of, minimize

GOOD, BAD = ProbeVerdict(Outcome.GOOD), ProbeVerdict(Outcome.BAD)
FILES = {f"etc/conf.d/{number:02}": f"setting {number}\n".encode() for number in range(20)}


@dataclass(frozen=True)
class Looks:
    """A probe that is bad where all of `wrong` are there, path -> contents."""

    wrong: tuple[tuple[str, bytes], ...]

    def key(self) -> str:
        return repr(self.wrong)

    def describe(self) -> str:
        return "looks"

    def run(self, disk: DiskView) -> ProbeVerdict:
        tree = Tree(disk)
        if all(tree.exists(path) and tree.read(path) == data for path, data in self.wrong):
            return BAD
        return GOOD


@pytest.fixture
def ends(tmp_path: Path) -> tuple[ImageView, ImageView]:
    need("debugfs", "e2fsck")
    image = make_ext(tmp_path / "disk.img", FILES)
    lines = ["cd /etc/conf.d"]
    for number in range(12):
        lines += [f"rm {number:02}", put(tmp_path, b"other %d\n" % number, f"{number:02}")]
    lines += [f"rm /etc/conf.d/{number}" for number in (15, 16)]
    lines += ["cd /", "mkdir new", "cd new", put(tmp_path, b"new\n", "file")]
    return ImageView(image), ImageView(edited(image, *lines))


def found(
    ends: tuple[ImageView, ImageView], *wrong: tuple[str, bytes]
) -> tuple[tuple[str, ...], bool | None, str, list[Trial]]:
    trials: list[Trial] = []
    parts = deltas(diff(*ends))
    result = minimize(Looks(wrong), *ends, parts, judge_of(GOOD, BAD), on_trial=trials.append)
    assert result.among == len(parts) == 16
    assert list(result.trials) == trials
    return result.names, result.verified, result.note, trials


def test_one_file_is_found_and_verified(ends: tuple[ImageView, ImageView]) -> None:
    names, verified, note, trials = found(ends, ("/etc/conf.d/07", b"other 7\n"))
    assert (names, verified, note) == (("/etc/conf.d/07",), True, "")
    assert len(trials) <= 2 + 2 * 4, "both ends of the proof, and twice the logarithm of 16"
    assert trials[-1].names == names
    assert trials[-1].turned is False


@pytest.mark.slow
def test_two_files_that_do_it_together(ends: tuple[ImageView, ImageView]) -> None:
    names, verified, _, _ = found(ends, ("/etc/conf.d/02", b"other 2\n"), ("/new/file", b"new\n"))
    assert set(names) == {"/etc/conf.d/02", "/new/file"}
    assert verified


@pytest.mark.slow
def test_what_is_in_no_file_is_said(ends: tuple[ImageView, ImageView]) -> None:
    names, verified, note, trials = found(ends, ("/no/such/file", b""))
    assert (names, verified, len(trials)) == ((), None, 1)
    assert "in no file that can be told apart" in note


def test_no_change_at_all() -> None:
    disk = object.__new__(ImageView)
    assert minimize(Looks(()), disk, disk, [], judge_of(GOOD, BAD)).note == "no files changed in between"


@pytest.mark.slow
def test_a_disk_that_cannot_be_made_tells_nothing(ends: tuple[ImageView, ImageView]) -> None:
    parts = [*deltas(diff(*ends)), Delta("vda9:/x", (deltas(diff(*ends))[0].changes[0],), {})]
    broken = Delta("/etc/none", (parts[0].changes[0].__class__("vda9:/x", "removed"),))
    result = minimize(Looks(()), *ends, [broken], judge_of(GOOD, BAD))
    assert result.names == ()
    assert "cannot be done file by file" in result.note


def test_a_crash_is_like_another_only_with_the_same_signature() -> None:
    judge = judge_of(GOOD, ProbeVerdict(Outcome.CRASH, "Kernel panic: no init"))
    assert judge(ProbeVerdict(Outcome.CRASH, "Kernel panic: no init")) is True
    assert judge(ProbeVerdict(Outcome.CRASH, "Oops")) is None
    assert judge(BAD) is None
    assert judge(GOOD) is False
    assert judge_of(BAD, GOOD)(GOOD) is True, "a fix is searched the same way"
