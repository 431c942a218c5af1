"""Boot Loader Specification entries: names, counters, order, defaults (UAPI.1, UAPI.10, systemd-boot)."""

from __future__ import annotations

from functools import cmp_to_key

import pytest

from tt.vmm.boot.bls import (
    BlsEntry,
    boot_order,
    compare_versions,
    grub_order,
    is_entry_name,
    loader_default,
    parse_bls,
)


def entry(file: str, **keys: str) -> BlsEntry:
    lines = [f"{name.replace('_', '-')} {value}" for name, value in ({"linux": "/k"} | keys).items()]
    found = parse_bls(file, "\n".join(lines))
    assert found is not None
    return found


def order(*entries: BlsEntry, default: str = "") -> list[str]:
    return [e.file for e in boot_order(entries, default)]


def test_parsing() -> None:
    assert parse_bls("x.conf", "title x") is None
    assert parse_bls("x.conf", "linux /k\narchitecture aa64") is None
    text = "# c\ntitle T\nlinux k/1\narchitecture X64\ninitrd /a /b $tuned_initrd\ninitrd \\EFI\\c\n"
    found = parse_bls(
        "x+3-1.conf", f"{text}options a\noptions b\nversion 6.1\nsort-key s\nmachine-id m", "vda1"
    )
    assert found is not None
    target = found.target
    assert (target.title, target.kernel, target.cmdline, target.id) == ("T", "/k/1", "a b", "x")
    assert target.initrds == ["/a", "/b", "/EFI/c"]
    assert (found.version, found.sort_key, found.machine_id, found.volume) == ("6.1", "s", "m", "vda1")
    assert (found.id, found.tries_left, found.tries_done, found.bad) == ("x", 3, 1, False)


@pytest.mark.parametrize(
    ("file", "name", "left", "done"),
    [
        ("a.conf", "a", None, 0),
        ("a+3.conf", "a", 3, 0),
        ("a+4-0.conf", "a", 4, 0),
        ("a+b+0-3.conf", "a+b", 0, 3),
        ("a+3x.conf", "a+3x", None, 0),  # a counter stands at the end
        ("a+3-1-2.conf", "a+3-1-2", None, 0),
        ("6.1+deb12-amd64.conf", "6.1+deb12-amd64", None, 0),
        ("a+.conf", "a+", None, 0),
        ("a+00012-07.CONF", "a", 12, 7),
    ],
)
def test_boot_counters(file: str, name: str, left: int | None, done: int) -> None:
    found = entry(file)
    assert (found.id, found.tries_left, found.tries_done, found.bad) == (name, left, done, left == 0)
    assert found.target.title == name


def test_names_of_entries() -> None:
    assert is_entry_name("a.conf") and is_entry_name("A.CONF")
    assert not any(map(is_entry_name, (".a.conf", "auto-windows.conf", "a.conf.bak", "conf")))


def test_order_by_name_without_sort_keys() -> None:
    names = ["l-6.1.0-9.conf", "l-6.1.0-13.conf", "l-6.10.conf", "m-1.conf"]
    assert order(*map(entry, names)) == ["m-1.conf", "l-6.10.conf", "l-6.1.0-13.conf", "l-6.1.0-9.conf"]


def test_order_by_sort_key() -> None:
    assert order(
        entry("a", sort_key="fedora", machine_id="2", version="9"),
        entry("b", sort_key="fedora", machine_id="1", version="6.1"),
        entry("c", sort_key="fedora", machine_id="1", version="6.10"),
        entry("d", sort_key="debian", version="1"),
        entry("z"),  # without one: behind
    ) == ["d", "c", "b", "a", "z"]


def test_bad_entries_are_last() -> None:
    entries = [entry("new+0-3.conf"), entry("mid+2-1.conf"), entry("old.conf")]
    assert order(*entries) == ["old.conf", "mid+2-1.conf", "new+0-3.conf"]
    assert order(entry("a+0-3.conf", sort_key="a"), entry("b.conf")) == ["b.conf", "a+0-3.conf"]
    assert order(entry("x+1-2.conf"), entry("x+3-0.conf")) == ["x+3-0.conf", "x+1-2.conf"]


def test_defaults() -> None:
    entries = [entry("new+3.conf"), entry("Old-1.conf"), entry("old-2+1-2.conf")]
    for default, first in {
        "": "Old-1.conf" if compare_versions("old-1", "new") > 0 else "new+3.conf",
        "old-1.conf": "Old-1.conf",
        "OLD-1": "Old-1.conf",
        "old-2.conf": "old-2+1-2.conf",
        "old-*": "old-2+1-2.conf",
        "new+3.conf": "new+3.conf",
        "nothing-like-it": "old-2+1-2.conf",
    }.items():
        if default:
            assert order(*entries, default=default)[0] == first, default
    assert loader_default("timeout 3\n#default a\ndefault b\n default  c*.conf \n") == "c*.conf"
    assert loader_default("default @saved") == loader_default("") == ""


def test_order_of_grub() -> None:
    entries = [entry("b", version="1"), entry("a", version="2"), entry("c", version="1", sort_key="a")]
    assert [e.file for e in grub_order(entries)] == ["a", "c", "b"]


def test_version_order() -> None:
    """The list in systemd's own comment (strverscmp.c), the oldest first, and the specification's rules."""
    oldest_first = [
        "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1",
        "123.1-1", "123a-1", "124-1",
    ]  # fmt: skip
    newest_first = sorted(oldest_first, key=cmp_to_key(compare_versions), reverse=True)
    assert newest_first == oldest_first[::-1]
    for older, newer in (("11", "11a"), ("11α", "11.x"), ("1.3.3", "1_2_3"), ("0.1", "0.10"), ("a", "b")):
        assert compare_versions(older, newer) < 0 < compare_versions(newer, older), (older, newer)
    for same in (("00123", "123"), ("1_", "1"), ("", "")):
        assert compare_versions(*same) == 0, same
