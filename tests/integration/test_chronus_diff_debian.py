"""What `chronus diff`, `log` and `blame` say of a guest, against e2fsprogs and what it was told to do."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.chronus.files.blame import blame
from tt.chronus.files.difference import DiskIndex, diff, pair_renames
from tt.chronus.store.history import History
from tt.cli.chronus.main import main
from tt.cli.main import main as tt_main

pytestmark = pytest.mark.slow

LOGS = {"/var/log/messages", "/var/log/uptime"}
"""What the guest writes by itself, at any time."""
STEPS = [
    "mkdir /etc/app; echo alpha > /etc/app/a.conf; echo beta > /etc/app/b.conf",
    "echo gamma >> /etc/app/a.conf",
    "mv /etc/app/b.conf /etc/app/c.conf",
    "chmod 600 /etc/app/a.conf; chown 7:8 /etc/app/c.conf",
    "ln -s a.conf /etc/app/link; ln /etc/app/a.conf /etc/app/hard",
    "cp /etc/app/a.conf /etc/app/new; echo delta >> /etc/app/new; mv /etc/app/new /etc/app/a.conf",
    "rm /etc/app/c.conf /etc/app/link",
    "dd if=/dev/urandom of=/root/big bs=64k count=20",
    "dd if=/dev/zero of=/root/big bs=4096 count=1 seek=7 conv=notrunc",
    "mkdir -p /srv/x/y; for i in 0 1 2 3 4 5 6 7 8 9; do echo $i > /srv/x/y/f$i; done",
    "mv /srv/x /srv/z",
    "rm -r /srv/z",
]

Seen = tuple[int, int, int, int, bytes | str | None]
"""(mode, owner, group, mtime, contents or target)."""


@pytest.fixture(scope="module")
def recording(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of a guest that does `STEPS`, each in a burst of its own."""
    folder = tmp_path_factory.mktemp("chronus")
    script = folder / "steps"
    script.write_text("".join(f"{step}; sync; sleep 3\n" for step in STEPS) + "poweroff -f\n")
    out = folder / "steps.tt"
    assert tt_main(["record", str(debian_image), "-o", str(out), "--input", str(script), "--no-pace"]) == 0
    return out


@pytest.fixture(scope="module")
def history(recording: Path) -> Iterator[History]:
    with History.open(recording) as history:
        yield history


def after_mounting(history: History, instant: int, folder: Path) -> dict[str, Seen]:
    """Return all files of an instant as e2fsprogs show them once the journal was replayed."""
    image = folder / f"w{instant}.img"
    view = history.at(instant)
    with image.open("wb") as f:
        for lba in range(0, view.sectors, 2048):
            data = view.read(lba, min(2048, view.sectors - lba))
            f.seek(lba * 512)
            if any(data):
                f.write(data)
        f.truncate(view.size)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    env = {**os.environ, "PATH": path}
    subprocess.run(["e2fsck", "-fy", "-E", "journal_only", image], env=env, capture_output=True, check=False)
    files = folder / f"w{instant}"
    files.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {files}", image], env=env, capture_output=True, check=True)
    image.unlink()
    found = {}
    for path in files.rglob("*"):
        status = path.lstat()
        contents: bytes | str | None = None
        if stat.S_ISLNK(status.st_mode):
            contents = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            contents = path.read_bytes()
        owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 else (0, 0)
        mtime = 0 if stat.S_ISLNK(status.st_mode) else int(status.st_mtime)
        found[f"/{path.relative_to(files)}"] = (status.st_mode, *owner, mtime, contents)
    shutil.rmtree(files)
    return found


def expected(old: dict[str, Seen], new: dict[str, Seen]) -> dict[str, tuple[str, set[str]]]:
    """Return the changes between two listings: path -> (kind, ways)."""
    found: dict[str, tuple[str, set[str]]] = {}
    for path in old.keys() | new.keys():
        one, two = old.get(path), new.get(path)
        if one is None or two is None:
            found[path] = ("added" if one is None else "removed", set())
        elif one != two:
            link = stat.S_ISLNK(two[0])
            ways = {
                "mode": one[0] != two[0] and not link,
                "owner": one[1:3] != two[1:3],
                "time": one[3] != two[3],
                "link" if link else "contents": one[4] != two[4],
            }
            found[path] = ("changed", {way for way, differs in ways.items() if differs})
    return found


def test_every_kind_of_instant_against_e2fsprogs(history: History, tmp_path: Path) -> None:
    """Instants between any two writes, most with a journal that was not replayed, forwards and back."""
    if shutil.which("e2fsck", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("e2fsck is not installed")
    chance = random.Random(4)
    instants = sorted({0, history.count, *(chance.randrange(history.count) for _ in range(22))})
    truth = {instant: after_mounting(history, instant, tmp_path) for instant in instants}
    chance.shuffle(instants)
    index = DiskIndex(history.at(instants[0]))
    exact = ("time", "links", "attributes")  # debugfs restores whole seconds of some files, and no links
    for one, two in zip(instants, instants[1:], strict=False):
        found = index.move(history.at(two), history.changed_blocks(one, two))
        told = {c.path: (c.kind, set(c.what) - set(exact)) for c in found if c.path != "/"}
        wanted = {
            p: (kind, ways - set(exact)) for p, (kind, ways) in expected(truth[one], truth[two]).items()
        }
        told = {p: each for p, each in told.items() if each != ("changed", set())}
        wanted = {p: each for p, each in wanted.items() if each != ("changed", set())}
        assert told == wanted, (one, two)


def test_the_index_that_moved_says_the_same_as_a_new_one(history: History) -> None:
    ends = [burst.after for burst in history.bursts()]
    index = DiskIndex(history.at(0))
    for one, two in zip([0, *ends], ends, strict=False):
        blocks = history.changed_blocks(one, two)
        moved = index.move(history.at(two), blocks)
        assert moved == diff(history.at(one), history.at(two), blocks)
    everything = diff(history.at(0), history.at(ends[-1]))  # without a word on what was written
    assert everything == diff(history.at(0), history.at(ends[-1]), history.changed_blocks(0, ends[-1]))


def test_each_step_is_a_burst_with_its_files(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", str(recording), "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    bursts = [
        {(f["kind"], f["path"], tuple(w for w in f["what"] if w != "time")) for f in entry["files"]}
        for entry in entries
    ]
    wanted = [
        {("changed", "/etc/app/a.conf", ("contents",))},
        {("renamed", "/etc/app/c.conf", ())},
        {("changed", "/etc/app/a.conf", ("mode",)), ("changed", "/etc/app/c.conf", ("owner",))},
        {
            ("changed", "/etc/app/a.conf", ("links",)),
            ("added", "/etc/app/hard", ()),
            ("added", "/etc/app/link", ()),
        },
        {("changed", "/etc/app/a.conf", ("contents", "links")), ("changed", "/etc/app/hard", ("links",))},
        {("removed", "/etc/app/c.conf", ()), ("removed", "/etc/app/link", ())},
        {("added", "/root/big", ())},
        {("changed", "/root/big", ("contents",))},
        {("added", path, ()) for path in ("/srv/x", "/srv/x/y", *(f"/srv/x/y/f{i}" for i in range(10)))},
        {("renamed", "/srv/z", ())},
        {("removed", path, ()) for path in ("/srv/z", "/srv/z/y", *(f"/srv/z/y/f{i}" for i in range(10)))},
    ]
    first = next(n for n, files in enumerate(bursts) if wanted[0] <= files)
    for step, files in zip(wanted, bursts[first:], strict=False):
        assert step <= files
        assert {path for _kind, path, _what in files - step} <= LOGS
    assert {"journal", "inode table"} <= {region["kind"] for region in entries[first]["regions"]}
    main(["log", str(recording), "--json", "--path", "/srv", "--limit", "2"])
    only = [json.loads(line)["burst"] for line in capsys.readouterr().out.splitlines()]
    assert only == [entry["burst"] for entry in entries if entry["files"] and any(
        each["path"].startswith("/srv") for each in entry["files"])][-2:]  # fmt: skip
    main(["log", str(recording), "--json", "--reverse", "--path", "/etc"])
    backwards = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["burst"] for entry in backwards] == sorted((e["burst"] for e in backwards), reverse=True)
    by_number = {entry["burst"]: entry for entry in entries}
    for entry in backwards:
        there = [f for f in by_number[entry["burst"]]["files"] if f["path"].startswith("/etc")]
        assert entry["files"] == there


def test_blame_finds_what_looking_at_every_instant_finds(history: History) -> None:
    for path in ("/etc/app/a.conf", "/etc/app/c.conf", "/etc/app/link", "/root/big", "/srv/x/y/f3", "/srv"):
        found = [(entry.after, entry.change.kind, entry.change.what) for entry in blame(history, path)]
        index = DiskIndex(history.at(0))
        every = []
        for write in history.writes():
            for change in index.move(history.at(write.number), set(write.blocks)):
                if change.path == path and not change.only_times:
                    every.append((write.number, change.kind, change.what))
        if path != "/srv":
            assert found == every, path
        assert found, path


def test_renames_of_whole_folders(history: History) -> None:
    moves = [entry.change for entry in blame(history, "/srv/z")]
    assert [change.kind for change in moves] == ["added", "removed"]
    bursts = history.bursts()
    for burst in bursts:
        blocks = history.changed_blocks(burst.before, burst.after)
        changes = diff(history.at(burst.before), history.at(burst.after), blocks)
        paired = pair_renames(changes)
        if any(change.path == "/srv/z" and change.kind == "renamed" for change in paired):
            assert {c.path for c in paired if not c.only_times} - LOGS == {"/srv/z"}
            return
    raise AssertionError("no burst renamed /srv/x")
