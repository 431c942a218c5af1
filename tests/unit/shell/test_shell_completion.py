"""What Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt.shell import Session
from tt.shell.completion import complete


@pytest.mark.parametrize(
    ("text", "begin", "some"),
    [
        ("", 0, ["goto", "break", "reverse-continue"]),
        ("reverse-c", 0, ["reverse-continue"]),
        ("goto 5; rev", 8, ["reverse-step"]),
        ("  bre", 2, ["break"]),
        ("b cr", 2, ["crc32"]),
        ("break main if cr", 14, ["crc32"]),
        ("p $r", 2, ["$rax", "$rip"]),
        ("p $", 2, ["$rax", "$cr3"]),
        ("p *(u64*)(mai", 10, ["main"]),
        ("p $rax+$rb", 7, ["$rbx", "$rbp"]),
        ("x/4xg cr", 6, ["crc32"]),
        ("set $ra", 4, ["$rax"]),
        ("regs ri", 5, ["rip"]),
        ("help las", 5, ["last-write"]),
        ("help ", 5, ["goto", "positions"]),
        ("goto e", 5, ["end"]),
        ("goto @h", 5, ["@half"]),
        ("restart h", 8, ["half"]),
        ("catch ", 6, ["interrupt", "syscall"]),
        ("catch syscall opena", 14, ["openat"]),
        ("catch exception P", 16, ["PF"]),
        ("events di", 7, ["disk-write", "disk-flush"]),
        ("events irq di", 11, ["disk-write"]),
        ("info br", 5, ["breakpoints"]),
        ("delete ", 7, ["1"]),
        ("devices cl", 8, ["clock"]),
        ("disk c", 5, ["cat"]),
        ("switch de", 7, ["demo.tt"]),
    ],
)
def test_what_may_come(session: Session, text: str, begin: int, some: list[str]) -> None:
    session.run("bookmark half")
    session.run("break crc32")
    at, found = complete(session, text)
    assert at == begin
    assert set(some) <= set(found)
    assert all(word.startswith(text[begin:]) for word in found)


@pytest.mark.parametrize("text", ["when ", "fly ", "p ", "p 1 + ", "p 0x", "x/ ", "goto zzz", "disas 5 "])
def test_nothing_may_come(session: Session, text: str) -> None:
    assert complete(session, text)[1] == []


def test_files_of_the_host(session: Session, tmp_path: Path) -> None:
    (tmp_path / "System.map-6.1").touch()
    (tmp_path / "folder").mkdir()
    assert complete(session, f"symbols {tmp_path}/Sys") == (8, [f"{tmp_path}/System.map-6.1"])
    assert complete(session, f"symbols {tmp_path}/fo") == (8, [f"{tmp_path}/folder/"])
    assert complete(session, "symbols /no/such/folder/x")[1] == []
