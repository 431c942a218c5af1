"""Who wrote it, in a real guest: processes that edit files, and what the reports say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tt.chronus.files.changes import Change, pair_renames
from tt.chronus.files.difference import DiskIndex
from tt.chronus.store.bursts import Burst
from tt.chronus.store.history import History
from tt.chronus.why.writer import Author, Writers
from tt.cli.chronus.main import main
from tt.cli.main import main as tt_main

pytestmark = pytest.mark.slow

# The script is written line by line, then it runs: its children are what changes the files.
SCRIPT = [
    "sed -i s/debian/DEBIAN/ /etc/hosts; sync; sleep 3",
    "echo added by a script >> /etc/fstab; sync; sleep 3",
    "rm /etc/shells; sync; sleep 3",
    "chmod 640 /etc/group; sync; sleep 3",
    "mv /etc/profile /etc/profile.old; sync; sleep 3",
]
STEPS = [
    "echo '#!/bin/sh' > /root/edit.sh; chmod +x /root/edit.sh",
    *(f"echo '{line}' >> /root/edit.sh" for line in SCRIPT),
    "sync; sleep 3",
    "/root/edit.sh",
    "vi -c ':%s/poweroff/POWEROFF/' -c ':wq' /etc/motd; sync; sleep 3",
    "",  # vi, which draws what looks like a prompt, takes it
    "ln -s /bin/sh /etc/newlink; cp /etc/os-release /etc/copy; sync; sleep 3",
    # Whoever looks at a file later writes its inode again, with nothing else changed.
    "echo once > /etc/once; chown 7:8 /etc/once; cat /etc/once; sync; sleep 3",
    "poweroff -f",
]


@pytest.fixture(scope="module")
def recording(debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    script = folder / "steps"
    script.write_text("".join(f"{step}\n" for step in STEPS))
    out = folder / "edits.tt"
    words = ["record", str(debian_image), "-o", str(out), "--input", str(script), "--no-pace"]
    assert tt_main([*words, "--epoch", "1700000000", "--seed", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def history(recording: Path) -> Iterator[History]:
    with History.open(recording) as history:
        yield history


def changes_of(history: History, burst: Burst) -> list[Change]:
    index = DiskIndex(history.at(burst.before))
    moved = index.move(history.at(burst.after), history.changed_blocks(burst.before, burst.after))
    return [change for change in pair_renames(moved) if not change.only_times]


@pytest.fixture(scope="module")
def authors(history: History) -> dict[str, Author]:
    """Return the author of every change of the recording, by path."""
    writers = Writers(history)
    return {
        change.path: writers.of_change(change, burst.after)
        for burst in history.bursts()
        for change in changes_of(history, burst)
    }


@pytest.mark.parametrize(
    ("path", "name", "what"),
    [
        ("/etc/hosts", "sed", "its contents"),
        ("/etc/fstab", "edit.sh", "its contents"),
        ("/etc/shells", "rm", "its name"),
        ("/etc/group", "chmod", "its inode"),
        ("/etc/profile.old", "mv", "its name"),
        ("/etc/motd", "vi", "its contents"),
        ("/etc/newlink", "ln", "its inode"),
        ("/etc/copy", "cp", "its contents"),
        ("/etc/once", "sh", "its contents"),
        ("/root/edit.sh", "sh", "its contents"),
    ],
)
def test_the_process_that_did_it_is_named(
    authors: dict[str, Author], path: str, name: str, what: str
) -> None:
    author = authors[path]
    assert author.stored
    assert author.task.name == name
    assert author.what == what
    assert not author.task.kernel and author.task.uid == 0
    assert author.task.parents[-1] == (1, "init")
    assert author.symbol


def test_the_command_line_and_the_ancestors_are_those_of_the_guest(authors: dict[str, Author]) -> None:
    sed, script = authors["/etc/hosts"].task, authors["/etc/fstab"].task
    assert sed.command == ("sed", "-i", "s/debian/DEBIAN/", "/etc/hosts")
    assert script.command == ("/bin/sh", "/root/edit.sh")
    assert sed.parents[0] == (script.pid, "edit.sh")
    assert "sed -i s/debian/DEBIAN/ /etc/hosts" in authors["/etc/hosts"].describe()


def test_the_store_comes_before_the_write_that_carried_it(
    authors: dict[str, Author], history: History
) -> None:
    for author in authors.values():
        assert author.tick <= history.write(author.write).tick
    assert {author.submitter.kernel for author in authors.values()} >= {True}, "most go by a kernel thread"


def test_a_search_says_why(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    words = ["bisect", str(recording), "--good", "b1", "--files", "! grep -q script etc/fstab", "--no-cache"]
    assert main([*words, "--minimize", "--report", str(report), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (why,) = facts["why"]
    assert why["files"] == ["/etc/fstab"]
    assert why["minimal"]["verified"] is True
    assert [author["task"]["name"] for author in why["authors"]] == ["edit.sh"]
    html = report.read_text()
    assert "<b>edit.sh</b>" in html and "+added by a script" in html and "<script" not in html
