"""`chronus bisect` as a user runs it, with commands that look at files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from file_rig import FILES, edited, make_ext, put

from tt.chronus.store.importing import import_images, pictures
from tt.cli.chronus.main import main

OPTIONS = ["--no-why", "--good", "b1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make six states of a small file system: /etc/hosts breaks in the third, and is mended in the fifth."""
    folder = tmp_path_factory.mktemp("history")
    found = [make_ext(folder / "i0", FILES, "-O", "^has_journal", size="2M")]
    for number, (path, data) in enumerate(
        [
            ("/a", b"unrelated\n"),
            ("/etc/hosts", b"one\nbroken\n"),
            ("/b", b"unrelated\n"),
            ("/etc/hosts", b"one\ntwo\n"),
            ("/c", b"unrelated\n"),
        ]
    ):
        steps = ["rm /etc/hosts"] if path == "/etc/hosts" else []
        (folder / f"{number}").mkdir()
        found.append(edited(found[-1], *steps, put(folder / f"{number}", data, path)))
    return [path.rename(folder / f"s{n}.img") for n, path in enumerate(found)]


@pytest.fixture(scope="module")
def imported(images: list[Path]) -> Path:
    out = images[0].with_name("web.tt")
    import_images(out, pictures(images))
    return out


@pytest.fixture
def trace(imported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(imported, tmp_path))


def run(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> tuple[str, str]:
    assert main([str(word) for word in words]) == code
    return capsys.readouterr()


def test_the_write_is_found_and_told_as_git_does(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--files", "! grep -q broken etc/hosts"]
    said, told = run(capsys, "bisect", trace, *OPTIONS, "--bad", "b4", *command)
    assert "it breaks with the image @s2, w" in said
    assert "Bisecting: " in told and "left to test after this (roughly " in told
    assert " is good  [" in told and " is bad  [" in told
    first = json.loads(run(capsys, "bisect", trace, *OPTIONS, "--bad", "b4", *command, "--json")[0])
    assert first["found"] and first["ran"] == 0, "it was all known"
    (turn,) = first["turns"]
    assert turn["becomes_bad"] and turn["candidate_count"] == turn["after"] - turn["before"]
    fix = run(capsys, "bisect", trace, "--no-why", "--good", "end", "--bad", "b4", *command, "--json")[0]
    assert json.loads(fix)["turns"][0]["becomes_bad"] is False
    every = run(capsys, "bisect", trace, *OPTIONS, "--all", *command, "--json")[0]
    assert [turn["becomes_bad"] for turn in json.loads(every)["turns"]] == [True, False]
    coarse = run(capsys, "bisect", trace, *OPTIONS, "--bad", "b4", "--bursts", *command, "--json")[0]
    assert json.loads(coarse)["turns"][0]["before"] < turn["after"] <= json.loads(coarse)["turns"][0]["after"]


def test_log_and_replay(trace: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*OPTIONS, "--bad", "b4", "--files", "! grep -q broken etc/hosts"]
    run(capsys, "bisect", "log", trace, code=3)
    run(capsys, "bisect", trace, *command, "-q")
    said, _ = run(capsys, "bisect", "log", trace)
    assert said.startswith("# --files '! grep -q broken etc/hosts'\n")
    assert {line.split()[0] for line in said.splitlines()[1:]} >= {"good", "bad"}
    log = trace.with_name("log.jsonl")
    log.write_text(run(capsys, "bisect", "log", trace, "--json")[0])
    verdicts = trace.with_name("web.tt.verdicts")
    kept = verdicts.read_text()
    verdicts.unlink()
    assert "took over" in run(capsys, "bisect", "replay", log, trace)[0]
    assert "took over 0 verdicts" in run(capsys, "bisect", "replay", log, trace)[0], "they are there"
    assert sorted(verdicts.read_text().splitlines()) == sorted(kept.splitlines())
    assert json.loads(run(capsys, "bisect", trace, *command, "--json")[0])["ran"] == 0
    copy, other = trace.with_name("copy.tt"), trace.with_name("other.tt")
    import_images(copy, pictures(images))
    said, _ = run(capsys, "bisect", "replay", log, copy, "--json")
    assert json.loads(said)["strange"] == 0, "the same disk, recorded again"
    assert json.loads(run(capsys, "bisect", copy, *command, "--json")[0])["ran"] == 0
    import_images(other, pictures(images[3:]))
    _, told = run(capsys, "bisect", "replay", log, other, code=1)
    assert "has other writes at those instants" in told


def test_a_script_that_was_changed_is_run_again(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = trace.with_name("check.sh")
    script.write_text("! grep -q broken etc/hosts\n")
    command = ["bisect", trace, *OPTIONS, "--bad", "b4", "--files", f"sh {script}", "--json"]
    assert json.loads(run(capsys, *command)[0])["ran"] > 0
    assert json.loads(run(capsys, *command)[0])["ran"] == 0
    script.write_text("! grep -q nothing etc/hosts\n")
    said, _ = run(capsys, *command, code=1)
    assert json.loads(said)["message"].startswith("the bad end, w")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "give --good POS"),
        (["--good", "b1"], 2, "give one probe"),
        (["--good", "b1", "--files", "true", "--run", "true"], 2, "give one probe"),
        (["--good", "b1", "--files", "true", "--early"], 2, "--early goes with --guest"),
        (["--good", "b1", "--files", "true", "--port", "80"], 2, "--port: --files boots nothing"),
        (["--good", "b1", "--files", "true", "--flaky", "0.5"], 2, "--flaky: give a probability below 0.5"),
        (["--good", "b1", "--files", "true", "--flaky", "0.1", "--repeat", "3"], 2, "leave --repeat out"),
        (["--good", "b1", "--files", "true", "--jobs", "-1"], 2, "--jobs: 0"),
        (["--good", "b1", "--files", "true", "--timeout", "nan"], 2, "--timeout nan"),
        (["--good", "end", "--files", "true"], 2, "the same instant"),
        (["--good", "w99999", "--files", "true"], 2, "there is no instant w99999"),
        (["--good", "b1", "--files", "true"], 1, "the bad end, w"),
        (["--good", "b1", "--bad", "b3", "--files", "grep -q broken etc/hosts"], 1, "the wrong way round"),
        (["--good", "b1", "--files", "no-such-command"], 2, "give its path"),
        (["--good", "b1", "--files", "exit 200"], 2, "exits with 200"),
        (["--good", "b1", "--files", "true", "--report", "/nowhere/x.html"], 2, "no such folder"),
        (["--good", "b1", "--guest", "true", "--runner", "vax"], 2, "there is no runner 'vax'"),
        (["--good", "b1", "--console", "/nowhere/script"], 3, "cannot read the script /nowhere/script"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    trace: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    _, errors = run(capsys, "bisect", trace, *words, code=code)
    assert told in errors.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [["log"], ["replay", "x"], ["replay"], ["a", "b"], ["log", "a", "b"], ["redo", "a"]]
)
def test_words_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, errors = run(capsys, "bisect", *words, code=2)
    assert "give one TRACE, or log TRACE, or replay LOG TRACE" in errors
