"""`tt fork`, `tt timelines` and `tt diff`, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_rig import Inside


@pytest.fixture
def boot(demo_trace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_trace, tmp_path / "boot.tt"))


def test_fork_show_and_compare(inside: Inside, boot: Path) -> None:
    said = inside.out(
        "fork", boot, "--at", "1_000_000", "--reg", "r9=0x77", "--pwrite", "0x400000=c0ffee", "--ticks", 500
    )
    assert "boot-1.tt: left" in said and "ended at tick 1,000,500: as asked" in said
    child = boot.with_name("boot-1.tt")
    assert "good" in inside.out("verify", child)
    assert [line.split()[0] for line in inside.out("timelines", child).splitlines()] == ["o", "`-*"]
    assert json.loads(inside.out("timelines", boot, "--json"))["children"][0]["fork_tick"] == 1_000_000
    differ = inside.out("diff", boot, child, code=1)
    assert "the states first differ at tick 1,000,001" in differ
    assert "edit-register r9 = 0x77" in differ
    facts = json.loads(inside.out("diff", boot, child, "--json", code=1))
    assert {each["part"] for each in facts["differences"]} == {"register", "memory"}
    assert "edit-memory" in inside.out("events", child, "--kind", "edit-memory")


def test_moments(inside: Inside, boot: Path) -> None:
    assert "same" in inside.out("diff", f"{boot}@1000", f"{boot}@1000")
    assert json.loads(inside.out("diff", f"{boot}@1000", f"{boot}@+1", "--json", code=1))["ticks"] == [
        1000,
        1001,
    ]
    odd = boot.rename(boot.with_name("b@5.tt"))
    assert "same" in inside.out("diff", f"{odd}@10", odd)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--reg", "rax"], 2, "says too little"),
        (["--reg", "zax=1"], 2, "no register"),
        (["--reg", "rax=x"], 2, "is not a number"),
        (["--write", "0x1000=abc"], 2, "is no bytes"),
        (["--disk", "0:0=/nowhere"], 3, "nowhere"),
        (["--disk", "7:0=/etc/hostname"], 2, "no disk 7"),
        (["--at", "99999999999"], 2, "past the end"),
        (["--at", "end", "--reg", "rax=1"], 2, "fork earlier"),
        (["--ticks", "-5"], 2, "1 or more"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_and_leaves_nothing(
    inside: Inside, boot: Path, words: list[str], code: int, says: str
) -> None:
    done = inside("fork", boot, *(words if "--at" in words else ["--at", "1000", *words]), code=code)
    said = done.stderr.decode()
    assert said.startswith("tt: ") and said.count("\n") == 1 and says in said
    assert not boot.with_name("boot-1.tt").exists()
