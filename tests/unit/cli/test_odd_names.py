"""Files whose names mean something to SQLite, to URIs or to SQL: verbs read and write the file itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tt.cli.chronus.main import main as chronus
from tt.cli.main import main as tt

NAMES = [
    *("file:run.tt", "a.tt?mode=memory&cache=shared", os.fsdecode(b"50%41#\xe9.tt")),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (":memory:", "file::memory:", "o'clock; \"--.tt")
    ),
]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def here() -> list[str]:
    return sorted(str(path) for path in Path().iterdir())


def test_a_recording_called_so(
    name: str, denali_demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> str:
        code = tt(argv)
        out, err = capfd.readouterr()
        assert code == 0, (argv, out, err)
        return out

    run("record", str(denali_demo), "-o", name, "--max-ticks", "300000", "--epoch", "1700000000")
    assert here() == [name]  # and nothing else was made
    run("verify", name)
    assert "300,000" in run("info", name)
    assert run("events", name)
    assert "3687" in run("sql", name, "SELECT max(tick) FROM events")
    assert run("index", name, "--every", "100000")
    assert "200,000" in run("replay", name, "--batch", "seek 200000; bookmark here; where")
    assert run("console", name) is not None
    assert "here" in run("replay", name, "--batch", "bookmarks")
    run("fork", name, "--at", "100000", "-o", f"{name}-2", "--ticks", "1000")
    assert run("timelines", name)
    assert tt(["diff", name, f"{name}-2"]) in (0, 1)
    capfd.readouterr()
    assert here() == sorted([name, f"{name}-2"])


def test_a_history_called_so(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> str:
        code = chronus(argv)
        out, err = capfd.readouterr()
        assert code == 0, (argv, out, err)
        return out

    image = tmp_path / "i.img"
    image.write_bytes(b"one".ljust(1 << 20, b"\0"))
    second = tmp_path / "j.img"
    second.write_bytes(b"two".ljust(1 << 20, b"\0"))
    run("import", "-o", name, str(image), str(second))
    assert here() == sorted([name, "i.img", "j.img"])
    assert "w1" in run("log", name)
    run("export", name, "-o", f"{name}.img", "--at", "end")
    assert Path(f"{name}.img").read_bytes() == second.read_bytes()
    run("squash", name, "--before", "w1")
    assert run("log", name)
    assert here() == sorted([name, f"{name}.img", "i.img", "j.img"])
