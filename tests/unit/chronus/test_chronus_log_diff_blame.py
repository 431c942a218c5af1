"""`chronus log`, `diff` and `blame` as a user runs them, over a history of images."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from file_rig import FILES, edited, make_ext, put

from tt.chronus.files.blame import blame
from tt.chronus.files.difference import DiskIndex
from tt.chronus.store.history import History
from tt.chronus.store.importing import import_images, pictures
from tt.chronus.store.live import create
from tt.cli.chronus.main import main
from tt.log.disk_rows import ChangeKind
from tt.log.disk_writer import DiskWriter


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history of six states of a small file system."""
    folder = tmp_path_factory.mktemp("history")
    image = make_ext(folder / "i0", FILES, "-O", "^has_journal", size="2M")
    steps = [
        ("rm /etc/hosts", put(folder, b"one\n2\nthree\n", "/etc/hosts")),
        ("symlink /etc/now hosts", put(folder, b"evil\x1b[2J\n", "/etc/\x1b[31mred")),
        ("set_inode_field /etc/hosts mode 0100600", "rm /usr/bin/tool"),
        ("ln /etc/fstab /etc/tab", "unlink /etc/fstab"),
        (put(folder, bytes(3000), "/usr/bin/tool"),),
    ]
    images = [image]
    for step in steps:
        images.append(edited(images[-1], *step))
    named = [path.rename(folder / f"s{n}.img") for n, path in enumerate(images)]
    out = folder / "web.tt"
    import_images(out, pictures(named))
    return out


@pytest.fixture(scope="module")
def written(trace: Path) -> Path:
    """Return a history with the same writes, made one after the other on a live disk."""
    path = trace.with_name("written.tt")
    with History.open(trace) as history:
        create(path, None, history.size)
        with DiskWriter(path) as writer:
            for write in history.writes():
                data = history.at(write.number).read(write.lba, write.sectors)
                data = data if write.kind is ChangeKind.DATA else b""
                writer.add(0, write.kind, write.lba, write.sectors, data, write.host_ns or 0)
            writer.seal("copied")
    return path


def out(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().out


def test_log(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "log", trace)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("b")] == ["b1", "b2", "b3", "b4", "b5", "b6"]
    assert "      M /etc/hosts" in lines and "      R /etc/fstab -> /etc/tab" in lines
    assert "      M /etc/hosts  (mode)" in lines and "      D /usr/bin/tool" in lines
    assert "\x1b" not in text and "      A /etc/\\x1b[31mred" in lines
    coloured = out(capsys, "log", trace, "--color", "always")
    assert "\x1b[32mA\x1b[0m /etc/\\x1b[31mred" in coloured
    newest = out(capsys, "log", trace, "-n", "2", "--no-files").splitlines()
    assert [line.split()[0] for line in newest] == ["b5", "b6"]
    touching = out(capsys, "log", trace, "--path", "/usr", "--reverse").splitlines()
    assert [line.split()[0] for line in touching if line.startswith("b")][:2] == ["b6", "b4"]
    assert out(capsys, "log", trace, "--path", "/usr", "-n", "1").startswith("b6")
    assert out(capsys, "log", trace, "--path", "/etc/h*s", "-n", "1").startswith("b4")
    assert out(capsys, "log", trace, "--since", "b2", "--until", "b3", "--no-files").count("\n") == 1


def test_log_of_writes_and_json(trace: Path, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bursts = [json.loads(line) for line in out(capsys, "log", trace, "--json").splitlines()]
    writes = [json.loads(line) for line in out(capsys, "log", written, "--json", "--writes").splitlines()]
    assert [burst["image"] for burst in bursts] == [f"s{n}" for n in range(6)]
    assert sum(burst["writes"] for burst in bursts) == len(writes)
    assert [write["write"] for write in writes] == list(range(1, len(writes) + 1))
    assert {f["path"]: f["kind"] for f in bursts[3]["files"]} == {
        "/etc/hosts": "changed", "/usr/bin/tool": "removed",
    }  # fmt: skip
    hosts = next(f for f in bursts[3]["files"] if f["path"] == "/etc/hosts")
    assert hosts["what"] == ["mode"] and (hosts["old"]["mode"], hosts["new"]["mode"]) == ("100644", "100600")
    assert {region["kind"] for region in bursts[3]["regions"]} >= {"inode table", "block bitmap"}
    assert "[" in out(capsys, "log", written, "--writes", "-n", "3")


def test_diff(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "diff", trace, "b1", "end", "--name-status").splitlines() == [
        "A /etc/\\x1b[31mred",
        "M /etc/hosts  (contents, mode)",
        "A /etc/now",
        "R /etc/fstab -> /etc/tab",
        "M /usr/bin/tool",
    ]
    text = out(capsys, "diff", trace, "b2")
    assert "--- a/etc/hosts\n+++ b/etc/hosts\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n" in text
    assert out(capsys, "diff", trace, "b2", "/usr", "--exit-code") == ""
    assert "Binary files a/usr/bin/tool and /dev/null differ" in out(capsys, "diff", trace, "b4", "/usr")
    assert out(capsys, "diff", trace, "b4", "/etc/hosts") == (
        "diff --git a/etc/hosts b/etc/hosts\nold mode 100644\nnew mode 100600\n"
    )
    evil = out(capsys, "diff", trace, "b3")
    assert "\x1b" not in evil and "+evil\\x1b[2J" in evil
    assert "rename from /etc/fstab\nrename to /etc/tab\n" in out(capsys, "diff", trace, "b5")
    assert out(capsys, "diff", trace, "b5", "--name-only", "--no-renames") == "/etc/fstab\n/etc/tab\n"
    stat = out(capsys, "diff", trace, "b1", "b4", "--stat")
    assert " /etc/hosts " in stat and "3 lines added" not in stat.splitlines()[0]
    facts = [json.loads(line) for line in out(capsys, "diff", trace, "b2", "--json").splitlines()]
    assert facts[0]["path"] == "/etc/hosts" and "-two" in facts[0]["patch"]
    assert out(capsys, "diff", trace, "b1", "b2", "--exit-code", "--name-only", code=1) == "/etc/hosts\n"
    assert out(capsys, "diff", trace, "b1", "b2", "--blocks")


def test_a_patch_of_chronus_is_a_patch(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = out(capsys, "diff", trace, "b2")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_bytes(b"one\ntwo\nthree\n")
    try:
        subprocess.run(["patch", "-p1"], cwd=tmp_path, input=text.encode(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("patch is not installed")
    assert (tmp_path / "etc/hosts").read_bytes() == b"one\n2\nthree\n"


def test_blame(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = out(capsys, "blame", trace, "/etc/hosts", "--since", "b1").splitlines()
    assert any("mode 0644 to 0600" in line for line in lines)
    facts = [json.loads(li) for li in out(capsys, "blame", trace, "/etc/hosts", "--json", "-p").splitlines()]
    with History.open(trace) as history:
        images = {(span.before, span.last) for span in history.images}
    assert {(fact["before"], fact["after"]) for fact in facts} < images
    assert facts[-1]["what"] == ["mode"]
    assert "nothing is at /nix" in out(capsys, "blame", trace, "/nix", code=1)
    assert "did not change" in out(capsys, "blame", trace, "/usr/share/doc/a", "--since", "b1")
    limited = out(capsys, "blame", trace, "/etc/hosts", "--since", "b1", "--limit", "1")
    assert limited.count("\n") == 1


@pytest.mark.parametrize("which", ["trace", "written"])
def test_blame_is_what_each_instant_says(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    with History.open(request.getfixturevalue("trace")) as images:
        start = images.resolve("b1")
    with History.open(path) as history:
        index = DiskIndex(history.at(start))
        every: dict[str, list[tuple[int, str]]] = {}
        blocks: set[int] = set()
        for write in history.writes(start + 1):
            blocks |= set(write.blocks)
            if history.inside_image(write.number):
                continue
            for change in index.move(history.at(write.number), blocks):
                if not change.only_times:
                    every.setdefault(change.path, []).append((write.number, change.kind))
        for path in ("/etc/hosts", "/usr/bin/tool", "/etc/tab", "/etc/now"):
            found = [(entry.after, entry.change.kind) for entry in blame(history, path, start)]
            assert found == every[path], path


@pytest.mark.parametrize(
    "words",
    [
        ["log", "--limit", "-1"],
        ["log", "--no-files", "--path", "/etc"],
        ["log", "--since", "end", "--until", "start"],
        ["diff", "/etc"],
        ["diff", "b1", "b2", "b3"],
        ["diff", "b1", "-U", "-1"],
        ["blame", "etc/hosts"],
        ["blame", "/etc", "--since", "end", "--until", "start"],
    ],
)
def test_wrong_use(trace: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words[0], str(trace), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("chronus: ") and error.count("\n") == 1


@pytest.mark.parametrize("verb", ["log", "diff", "blame"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, verb, "--help")
    assert f"examples:\n  chronus {verb} disk.tt" in text
