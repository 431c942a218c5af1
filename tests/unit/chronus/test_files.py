"""Files of the past: trees, taking them out safely, folders that move in time, and the verbs over them."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest
from file_rig import FILES, edited, make_ext, need, put

from tt.chronus.files.checkout import Checkout
from tt.chronus.files.extract import extract, inside_link
from tt.chronus.files.tree import Tree
from tt.chronus.probes.files import FilesProbe
from tt.chronus.search.verdicts import Outcome, ProbeError
from tt.chronus.store.history import History
from tt.chronus.store.importing import import_images, pictures
from tt.chronus.store.view import ImageView
from tt.cli.chronus.main import main
from tt.errors import BadInput, UsageError
from tt.vmm.boot.filetree import NotFound


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("mke2fs")
    folder = tmp_path_factory.mktemp("files")
    path = make_ext(folder / "base.img", FILES, size="8M")
    return edited(
        path,
        "symlink /etc/absolute /etc/fstab",
        "symlink /etc/escape ../../../../../../../../etc/passwd",
        "symlink /etc/dangling /nowhere/at/all",
        "sif /usr/bin/tool mode 0104755",
        "sif /etc/hosts uid 1000",
        "cd /etc",
        "mknod device c 1 3",
    )


@pytest.fixture(scope="module")
def history(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history of four images: the first, two edits of it, and the first again."""
    folder = tmp_path_factory.mktemp("history")
    one = edited(
        image, "rm /etc/hosts", put(folder, b"one\nTWO\nthree\n", "/etc/hosts"), "rm /usr/share/doc/a"
    )
    two = edited(one, "mkdir /srv", put(folder, b"new\n", "/srv/new"), "sif /etc/fstab mode 0100600")
    out = folder / "disk.tt"
    import_images(out, [*pictures([image]), *pictures([one]), *pictures([two]), *pictures([image])])
    return out


def test_a_tree_says_what_debugfs_was_told(image: Path) -> None:
    tree = Tree(ImageView(image))
    assert tree.root == "vda"
    assert tree.read("/etc/hosts") == b"one\ntwo\nthree\n"
    assert (tree.lstat("/etc/hosts").uid, stat.S_IMODE(tree.lstat("/usr/bin/tool").mode)) == (1000, 0o4755)
    assert tree.lstat("/etc/device").rdev == 1 << 8 | 3
    assert tree.readlink("/etc/absolute") == "/etc/fstab"
    assert tree.read("vda:/etc/absolute") == FILES["etc/fstab"]
    paths = [node.path for node in tree.walk("/etc")]
    assert paths[0] == "/etc"
    assert set(paths) >= {"/etc/fstab", "/etc/link", "/etc/escape"}
    with pytest.raises(NotFound):
        tree.lstat("/nothing")
    with pytest.raises(NotFound, match="no volume vdb1: it has vda"):
        tree.lstat("vdb1:/x")
    with pytest.raises(UsageError, match="no path of a disk"):
        tree.lstat("etc/fstab")


def test_a_disk_without_files_names_the_other_ways(tmp_path: Path) -> None:
    (tmp_path / "noise.img").write_bytes(random.Random(1).randbytes(1 << 20))
    with pytest.raises(BadInput, match="chronus cat --raw.*chronus export"):
        Tree(ImageView(tmp_path / "noise.img")).lstat("/etc")


def test_nothing_escapes(image: Path, tmp_path: Path) -> None:
    found = extract(Tree(ImageView(image)), ["/"], tmp_path / "out")
    root = (tmp_path / "out").resolve()
    for path in root.rglob("*"):
        assert path.resolve().is_relative_to(root), path
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert not mode & (stat.S_ISUID | stat.S_ISGID)
    assert (root / "etc/absolute").read_bytes() == FILES["etc/fstab"]
    assert (root / "etc/link").readlink().name == "hosts"
    assert any("/etc/device" in line for line in found.left_out)
    assert (root / "usr/bin/tool").read_bytes() == FILES["usr/bin/tool"]


@pytest.mark.parametrize(
    ("where", "target", "kept"),
    [
        ("/etc/a", "b", "b"),
        ("/etc/a", "/etc/b", "b"),
        ("/etc/a", "/usr/b", "../usr/b"),
        ("/a", "../../../b", "b"),
        ("/x/y/a", "../../../../../../etc/passwd", "../../etc/passwd"),
        ("/a", "/", "."),
        ("/a", "", "."),
    ],
)
def test_links_stay_inside(where: str, target: str, kept: str) -> None:
    assert inside_link(where, target) == kept


def test_what_is_too_large_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name fewer paths"):
        extract(Tree(ImageView(image)), ["/"], tmp_path / "out", limit=1000)


def test_it_does_not_write_through_a_link_that_was_there(image: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/etc").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="cannot write into"):
        extract(Tree(ImageView(image)), ["/etc"], tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []


def contents(root: Path) -> dict[str, object]:
    """Return all that a folder holds."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = str(path.readlink())
        else:
            found[name] = (
                stat.S_IMODE(mode) if stat.S_ISREG(mode) else 0,
                path.is_file() and path.read_bytes(),
            )
    return found


def test_a_folder_moves_in_time_as_if_made_anew(history: Path) -> None:
    with History.open(history) as disk, Checkout() as moving:
        instants = [burst.after for burst in disk.bursts()]
        assert len(instants) == 4
        order = [0, 1, 2, 3, 1, 3, 0, 2, 1]
        prints = {}
        for at in order:
            moving.move(disk.at(instants[at]))
            with Checkout() as fresh:
                fresh.move(disk.at(instants[at]))
                assert contents(moving.root) == contents(fresh.root)
                assert moving.fingerprint() == fresh.fingerprint()
            prints[at] = moving.fingerprint()
        assert prints[0] == prints[3] != prints[1] != prints[2]


def test_a_meddling_probe_is_noticed(history: Path) -> None:
    with History.open(history) as disk, Checkout(("/etc",)) as checkout:
        checkout.move(disk.at(disk.count))
        (checkout.root / "etc/fstab").write_text("meddled")
        checkout.move(disk.at(disk.count - 1))
        checkout.move(disk.at(disk.count))
        assert (checkout.root / "etc/fstab").read_bytes() == FILES["etc/fstab"]


def test_a_probe_over_files(history: Path) -> None:
    with History.open(history) as disk:
        first, second = (disk.at(burst.after) for burst in disk.bursts()[:2])
        probe = FilesProbe("grep -q two etc/hosts", ("/etc",))
        assert probe.run(first).outcome is Outcome.GOOD
        bad = probe.run(second)
        assert (bad.outcome, bad.exit_code) == (Outcome.BAD, 1)
        assert FilesProbe("exit 125").run(first).outcome is Outcome.SKIP
        assert FilesProbe("sleep 20", timeout_s=0.1).run(first).outcome is Outcome.HANG
        told = FilesProbe('grep -c /etc/hosts "$CHRONUS_FILES"; echo "$CHRONUS_INSTANT"').run(first)
        assert told.output.startswith("1\n") and first.where in told.output
        for command, what in (
            ("no-such-command", "no such command"),
            ("kill -9 $$", "signal 9"),
            ("exit 200", "200"),
        ):
            with pytest.raises(ProbeError, match=what):
                FilesProbe(command).run(first)


# The verbs


def test_ls_and_cat(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(history), "/etc", "--at", "b1"]) == 0
    out = capsys.readouterr().out
    assert "-> /etc/fstab" in out and " 1000 " in out
    assert main(["ls", str(history), "/", "-R", "--json"]) == 0
    assert any(f["path"] == "/usr/bin/tool" for f in json.loads(capsys.readouterr().out)["files"])
    assert main(["cat", str(history), "/nothing"]) == 3
    assert main(["cat", str(history)]) == 2


def test_cat_prints_bytes(history: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", str(history), "/etc/hosts", "--at", "b2"]) == 0
    assert capfdbinary.readouterr().out == b"one\nTWO\nthree\n"
    assert main(["cat", str(history), "--raw", "--offset", "1080", "--size", "2"]) == 0
    assert capfdbinary.readouterr().out == b"\x53\xef"


def test_cp_and_find(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", str(history), "/etc", str(tmp_path / "out"), "--at", "b1"]) == 0
    assert (tmp_path / "out/etc/hosts").read_bytes() == b"one\ntwo\nthree\n"
    assert "left out /etc/device" in capsys.readouterr().err
    assert main(["find", str(history), "--newer", "b2", "--at", "b3"]) == 0
    assert "/srv/new" in capsys.readouterr().out.split()
    assert main(["find", str(history), "/", "--name", "to*l", "--type", "f", "--size", "+1K"]) == 0
    assert capsys.readouterr().out == "/usr/bin/tool\n"
    assert main(["find", str(history), "/", "--name", "absent"]) == 1


def test_export_is_the_disk(
    history: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.img"
    assert main(["export", str(history), "--at", "b1", "-o", str(out)]) == 0
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks * 512 < out.stat().st_size
    assert main(["export", str(history), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
