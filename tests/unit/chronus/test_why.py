"""What a finding says of a turn, and the evidence for it on the disk; histories without a machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from file_rig import FILES, edited, make_ext, need, put

from tt.chronus.files.checkout import Checkout
from tt.chronus.files.difference import DiskIndex, written_blocks
from tt.chronus.files.nearby import blocks_between
from tt.chronus.files.patch import PatchedDisk, Patcher, deltas
from tt.chronus.files.tree import Tree
from tt.chronus.search.bisect import Bisection, Options, bisect
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.history import History
from tt.chronus.store.importing import import_images, pictures
from tt.chronus.store.view import DiskView, ImageView
from tt.chronus.why.evidence import evidence, first_difference, last_write_at, raw_evidence
from tt.chronus.why.finding import Finding, explain
from tt.chronus.why.writer import Writers
from tt.errors import BadInput


@dataclass(frozen=True)
class NoTool:
    """Bad where /usr/bin/tool is no file that may be run."""

    def key(self) -> str:
        return "no tool"

    def describe(self) -> str:
        return "--files 'test -x usr/bin/tool'"

    def run(self, disk: DiskView) -> ProbeVerdict:
        tree = Tree(disk)
        good = tree.exists("/usr/bin/tool") and bool(tree.stat("/usr/bin/tool").mode & 0o100)
        return ProbeVerdict(Outcome.GOOD if good else Outcome.BAD, output="it is there\n" if good else "")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history of states of a small file system; the fourth breaks the tool, among others."""
    folder = tmp_path_factory.mktemp("why")
    need("debugfs", "e2fsck")
    image = make_ext(folder / "i0", FILES, "-O", "^has_journal", size="2M")
    steps = [
        ("sif /usr/bin/tool mode 0100755", "rm /etc/hosts", put(folder, b"one\n2\nthree\n", "/etc/hosts")),
        ("symlink /etc/now hosts",),
        (
            "sif /usr/bin/tool mode 0100644",
            "rm /etc/fstab",
            put(folder, b"/dev/vda / ext4 ro\n", "/etc/fstab"),
            put(folder, b"new", "/etc/new"),
            "rm /etc/link",
        ),
        (put(folder, b"last", "/etc/last"),),
    ]
    images = [image]
    for step in steps:
        images.append(edited(images[-1], *step))
    named = [path.rename(folder / f"s{n}.img") for n, path in enumerate(images)]
    out = folder / "web.tt"
    import_images(out, pictures(named))
    return out


def searched(history: History, *, bursts: bool) -> Bisection:
    good = history.bursts()[1].after
    return bisect(history, NoTool(), good, history.count, Options(bursts=bursts, keep=False))


def test_why_names_the_smallest_set_and_verifies_it(trace: Path) -> None:
    said: list[str] = []
    with History.open(trace) as history:
        found = searched(history, bursts=True)
        finding = explain(history, found.turns[0], NoTool(), found, say=said.append)
        assert finding.paths == ["/usr/bin/tool"]
        assert finding.minimal is not None
        assert finding.minimal.verified and finding.minimal.among >= 4
        assert finding.shown[0].path == "/usr/bin/tool"
        assert {change.path for change in finding.shown} >= {"/etc/fstab", "/etc/link", "/etc/new"}
        assert finding.authors == [] and finding.notes == []
        plain = json.loads(json.dumps(finding.plain()))
        assert plain["files"] == ["/usr/bin/tool"] and plain["minimal"]["verified"] is True
        assert any("turns it" in line for line in said)
        lines = finding.minimal.lines()
        assert "alone makes the difference" in lines[0] and lines[1] == "  /usr/bin/tool"
        assert lines[-1] == "verified: undoing only this turns it back"


@pytest.mark.slow
def test_without_a_probe_it_lists_what_changed(trace: Path) -> None:
    with History.open(trace) as history:
        found = searched(history, bursts=True)
        finding = explain(history, found.turns[0], None, found)
        assert finding.minimal is None
        assert set(finding.paths) >= {"/usr/bin/tool", "/etc/fstab", "/etc/link", "/etc/new"}


def test_the_writes_of_a_disk_alone_have_no_authors(trace: Path) -> None:
    with History.open(trace) as history, pytest.raises(BadInput, match="does not know processes"):
        Writers(history)


@pytest.mark.slow
def test_evidence_is_what_the_change_wrote(trace: Path) -> None:
    """Every change shows in bytes that the write it is traced to wrote, and that were others before."""
    with History.open(trace) as history:
        seen = {}
        for burst in history.bursts()[1:]:
            old, new = history.at(burst.before), history.at(burst.after)
            for change in DiskIndex(old).move(new, history.changed_blocks(burst.before, burst.after)):
                if change.only_times:
                    continue
                found = list(evidence(history, change, burst.after))
                assert found, change
                first = found[0]
                seen[change.path] = first.what
                assert burst.first <= first.write.number <= burst.last
                assert 0 <= first.inside <= first.write.size - first.size
                assert _bytes(new, first.offset, first.size) != _bytes(old, first.offset, first.size)
        assert seen["/etc/link"] in ("its name", "its inode")
        assert seen["/usr/bin/tool"] == "its inode"
        assert seen["/etc/fstab"] == seen["/etc/hosts"] == "its contents"


def _bytes(disk: DiskView, offset: int, size: int) -> bytes:
    block = b"".join(disk.blocks(offset // 4096, 2 if offset // 4096 + 1 < disk.size // 4096 else 1))
    return block[offset % 4096 : offset % 4096 + size]


def test_raw_evidence_is_the_first_byte_that_a_write_changed(trace: Path) -> None:
    with History.open(trace) as history:
        write = history.write(history.count)
        found = raw_evidence(history, write)
        assert found is not None and 0 <= found.inside < write.size
        where = last_write_at(history, found.offset, history.count)
        assert where is not None and where.number == write.number


@pytest.mark.slow
def test_a_checkout_goes_to_a_patched_disk_by_what_was_patched(trace: Path) -> None:
    with History.open(trace) as history:
        burst = history.bursts()[3]
        old, new = history.at(burst.before), history.at(burst.after)
        written = history.changed_blocks(burst.before, burst.after)
        parts = deltas(DiskIndex(old).move(new, written))
        with Patcher(old) as patcher:
            disks = [patcher.apply(parts[:2], parts), patcher.apply(parts)]
        near = blocks_between(disks[0], disks[1])
        assert near is not None and set(written_blocks(*disks)) <= near
        assert blocks_between(old, ImageView(trace.with_name("s0.img"))) is None
        with Checkout() as moving:
            for disk in (old, *disks, new):
                moving.move(disk)
                with Checkout() as fresh:
                    fresh.move(PatchedDisk(ImageViewOf(disk), {}, "nothing"))
                    assert moving.fingerprint() == fresh.fingerprint()
                    assert moving.nodes.keys() == fresh.nodes.keys()


class ImageViewOf(DiskView):
    """A view of unknown origin."""

    def __init__(self, disk: DiskView) -> None:
        self.sectors, self.size, self.where = disk.sectors, disk.size, disk.where
        self._disk = disk

    def blocks(self, first: int, count: int) -> list[bytes]:
        return self._disk.blocks(first, count)


def test_first_difference() -> None:
    assert first_difference(b"abc", b"abc") is None
    assert first_difference(b"abc", b"ab") is None
    assert first_difference(b"", b"x") == 0
    assert first_difference(b"abcd", b"abXd") == 2
    assert first_difference(b"abc", b"abcd") == 3


def test_a_finding_without_anything_is_plain_too(trace: Path) -> None:
    with History.open(trace) as history:
        found = searched(history, bursts=True)
        finding = Finding(found.turns[0], [], [], [], None, [])
        assert finding.paths == [] and finding.shown == []
        json.dumps(finding.plain())
