"""The tree of timelines: put together from what the traces themselves say, believed with care."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tt.errors import BadInput
from tt.log import Trace
from tt.log.schema import row_crc
from tt.travel import Timeline
from tt.travel.branches.family import family, render, trace_id


def fork(path: Path, tick: int, output: Path | None = None, name: str = "") -> Path:
    with Trace.open(path) as trace:
        timeline = Timeline(trace)
        timeline.seek(tick)
        with timeline.fork(output, name) as made:
            made.run(1000)
        return made.path


def forge(path: Path, key: str, value: object) -> None:
    db = sqlite3.connect(path)
    with db:
        text = json.dumps(value)
        db.execute("DELETE FROM meta WHERE key = ?", (key,))
        db.execute("INSERT INTO meta VALUES (?, ?, ?)", (key, text, row_crc("meta", key, text)))
    db.close()


@pytest.fixture
def root(demo_trace: Path, tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return Path(shutil.copy(demo_trace, tmp_path / "here" / "demo.tt"))


def test_a_tree(root: Path) -> None:
    one, two = fork(root, 5_000), fork(root, 3_000, name="early")
    three = fork(one, 5_500)
    assert [path.name for path in (one, two, three)] == ["demo-1.tt", "demo-2.tt", "demo-1-1.tt"]
    node = family(three)
    assert [n.name for n in node.ancestors] == ["demo-1-1", "demo-1", "demo"]
    assert (node.fork_tick, node.root.fork_tick) == (5_500, None)
    assert render(node) == [
        f"o demo  to {node.root.end_tick:,}  ({node.root.reason})",
        "|-o early  from 3,000  to 4,000  (the fork was closed)  demo-2.tt",
        "`-o demo-1  from 5,000  to 6,000  (the fork was closed)",
        "  `-* demo-1-1  from 5,500  to 6,500  (the fork was closed)",
    ]
    assert json.loads(json.dumps(node.root.plain()))["children"][1]["children"][0]["name"] == "demo-1-1"
    assert [n.name for n in family(root).walk()] == ["demo", "early", "demo-1", "demo-1-1"]


def test_a_moved_family_finds_itself(root: Path, tmp_path: Path) -> None:
    child = fork(root, 5_000)
    moved = root.parent.rename(tmp_path / "there")
    node = family(moved / child.name)
    assert node.root.path == moved / "demo.tt"
    (moved / "demo.tt").rename(moved / "renamed.tt")
    assert family(moved / child.name).root.path == moved / "renamed.tt"


def test_a_child_elsewhere_knows_its_parent(root: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    child = fork(root, 5_000, far / "c.tt")
    beside = fork(root, 6_000)
    names = {n.name for n in family(child).root.walk()}
    assert names == {"demo", "c", beside.stem}


def test_a_parent_that_is_gone(root: Path) -> None:
    one, two = fork(root, 5_000), fork(root, 3_000)
    root.unlink()
    node = family(one)
    assert node.root.path is None and len(node.root.children) == 2
    lines = render(node)
    assert lines[0] == "? demo (not here any more)"
    assert lines[-1] == "parent demo is not here any more: its branches are whole by themselves"
    assert two.stem in "\n".join(lines)


def test_damaged_neighbours_are_left_out(root: Path) -> None:
    child = fork(root, 5_000)
    (root.parent / "broken.tt").write_bytes(b"nonsense")
    (root.parent / "folder.tt").mkdir()
    root.write_bytes(root.read_bytes()[:5000])
    assert family(child).root.path is None
    with pytest.raises(BadInput):
        family(root)


@pytest.mark.parametrize(
    "entry",
    [
        7,
        [],
        {},
        {"id": 5, "fork_tick": 3},
        {"id": "x", "fork_tick": -3},
        {"id": "x", "fork_tick": "y"},
        {"id": "x", "fork_tick": 3, "path": "a\0b", "name": 8},
        {"id": "x", "fork_tick": 3, "path": "/dev/zero", "name": "\x1b[2J" * 10_000},
        {"id": "x", "fork_tick": 3, "path": "../../../../etc/passwd"},
    ],
    ids=range(9),
)
def test_forged_entries(root: Path, entry: object) -> None:
    forge(root, "parent", entry)
    lines = render(family(root))
    assert lines and not any("\x1b" in line or len(line) > 2000 for line in lines)


def test_nobody_is_his_own_grandfather(root: Path) -> None:
    child = fork(root, 5_000)
    with Trace.open(child) as trace:
        identity = trace_id(trace)
    forge(root, "parent", {"id": identity, "fork_tick": 3, "path": child.name, "name": "loop"})
    assert len(family(root).root.walk()) == 2
    forge(child, "parent", {"id": identity, "fork_tick": 3, "path": child.name, "name": "self"})
    assert family(child).root.walk()


def test_ids(root: Path, tmp_path: Path) -> None:
    child = fork(root, 5_000)
    copy = Path(shutil.copy(child, tmp_path / "here" / "copy.tt"))
    with Trace.open(root) as a, Trace.open(child) as b, Trace.open(copy) as c:
        assert trace_id(a) != trace_id(b) == trace_id(c)
    assert family(copy).path == copy
    assert family(child).path == child
    # A trace from before there were ids.
    db = sqlite3.connect(root)
    with db:
        db.execute("DELETE FROM meta WHERE key = 'id'")
    db.close()
    old = fork(root, 7_000)
    assert [n.name for n in family(old).ancestors] == [old.stem, "demo"]
