"""Fast commits as the comparison by blocks sees them: it agrees with a comparison file by file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "boot"))

from fast_commits import BLOCK, FastImage, add_range, inode_record, name_record, random_commits, seen

from tt.chronus.files.difference import DiskIndex, diff
from tt.chronus.store.view import ImageView
from tt.vmm.boot.fast_commit import Tag

FILES: dict[str, bytes | str] = {f"d/f{i}": f"file {i}\n".encode() * 20 for i in range(8)}


def by_files(old: Path, new: Path) -> set[tuple[str, str]]:
    """Return (path, how) of what differs, by reading all of both."""
    one, two = seen(old), seen(new)
    kinds = {path: "added" if path not in one else "removed" if path not in two else "changed"
             for path in one.keys() | two.keys() if one.get(path) != two.get(path)}  # fmt: skip
    return set(kinds.items())


def told(changes: list[object]) -> set[tuple[str, str]]:
    return {(c.path, c.kind) for c in changes if not getattr(c, "only_times", False)}  # type: ignore[attr-defined]


def without(image: FastImage, path: Path) -> Path:
    """Write the image as it was before its fast commits."""
    data = bytearray(image.path.read_bytes())
    start = image.journal_at + (image.log_end + 1) * BLOCK
    data[start : start + 64 * BLOCK] = bytes(64 * BLOCK)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("seed", range(3))
def test_the_index_moves_over_fast_commits(tmp_path: Path, seed: int) -> None:
    image = FastImage(tmp_path, FILES)
    random_commits(image, seed, [f"f{i}" for i in range(8)])
    old = without(image, tmp_path / "old")
    expected = by_files(old, image.path)
    assert expected
    index = DiskIndex(ImageView(old))
    assert told(index.move(ImageView(image.path))) == expected
    swap = {"added": "removed", "removed": "added", "changed": "changed"}
    assert told(index.move(ImageView(old))) == {(path, swap[kind]) for path, kind in expected}


def test_a_file_that_only_a_fast_commit_holds_is_compared(tmp_path: Path) -> None:
    image = FastImage(tmp_path, FILES)
    folder = image.number("/d")
    image.write(9000, b"new contents\n")
    image.commit(
        [
            inode_record(300, 0o100644, 13),
            add_range(300, 0, 9000, 1),
            name_record(Tag.CREAT, folder, 300, "new"),
        ]
    )
    old = without(image, tmp_path / "old")
    (change,) = [c for c in diff(ImageView(old), ImageView(image.path)) if c.path == "/d/new"]
    assert change.kind == "added"
    assert change.after is not None
    assert change.after.read(100) == b"new contents\n"
