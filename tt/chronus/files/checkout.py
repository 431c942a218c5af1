"""A folder with the files of one instant; to go to another instant, only what changed is written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from tt.chronus.files.difference import DiskIndex
from tt.chronus.files.extract import Extracted, below, extract, put, remove
from tt.chronus.files.nearby import blocks_between
from tt.chronus.files.tree import Node, Tree
from tt.chronus.store.view import DiskView
from tt.vmm.boot.filetree import NotFound


class Checkout:
    """The files below `paths` of one disk, in a temporary folder: `root`.

    `move` goes to another view of the disk.  Call `close`, or use it with `with`.
    """

    def __init__(self, paths: Sequence[str] = ("/",)) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="chronus-files-"))
        self.paths = tuple(paths)
        self.root = self._folder / "root"
        self.manifest = self._folder / "manifest.jsonl"
        self.nodes: dict[str, Node] = {}
        self._digests: dict[str, bytes] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._view: DiskView | None = None
        self._index: DiskIndex | None = None

    def move(self, view: DiskView) -> None:
        """Make the folder hold the files of `view`; raises as `extract` does."""
        here = self._view
        written = blocks_between(here, view) if here is not None else None
        if written is not None and self._index is not None and self._untouched():
            self._view = None
            self._step(self._index, view, written)
            self._view = view
            return
        self._view = None
        shutil.rmtree(self.root, ignore_errors=True)
        tree = Tree(view)
        self.nodes = extract(tree, self.paths, self.root, missing_ok=True).nodes
        self._digests = {path: self._digest(node) for path, node in self.nodes.items()}
        self._index = DiskIndex(view) if blocks_between(view, view) is not None else None
        self._view = view
        self._note()

    def fingerprint(self) -> bytes:
        """Return a digest of the files, 16 bytes."""
        digest = blake2b(digest_size=16)
        for path in sorted(self._digests):
            digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + self._digests[path])
        return digest.digest()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self, index: DiskIndex, view: DiskView, written: set[int]) -> None:
        changes = index.move(view, written)
        tree = Tree(view)
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        found = Extracted()
        try:
            for change in sorted(changes, key=lambda change: change.path):
                path = change.path
                if not below(path, self.paths) or ":" in path.split("/")[0]:
                    continue
                try:
                    node = tree.node(path)
                except NotFound:
                    remove(path, root)
                    for gone in [p for p in self.nodes if below(p, (path,))]:
                        self.nodes.pop(gone)
                        self._digests.pop(gone, None)
                    continue
                old = self.nodes.get(path)
                if node.stat.kind != "directory" or old is None or old.stat.kind != "directory":
                    remove(path, root)
                    put(tree, node, path, root, found)
                self.nodes[path] = node
                self._digests[path] = self._digest(node)
        finally:
            os.close(root)
        self._note()

    def _digest(self, node: Node) -> bytes:
        """Return what of a file goes into the digest: not its times, which often change alone."""
        s = node.stat
        digest = blake2b(repr((s.kind, s.mode, s.uid, s.gid, s.rdev, node.link)).encode(), digest_size=16)
        if s.kind == "file":
            path = (
                self.root / node.path.partition(":")[2].lstrip("/")
                if ":" in node.path
                else self.root / node.path[1:]
            )
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as f:
                    while piece := f.read(1 << 20):
                        digest.update(piece)
        return digest.digest()

    def _note(self) -> None:
        """Write the manifest, and remember the files' state, so that changes made by a probe are noticed."""
        with self.manifest.open("w") as f:
            for path in sorted(self.nodes):
                node = self.nodes[path]
                s = node.stat
                fact = {"path": path, "kind": s.kind, "mode": f"{s.mode & 0o7777:04o}", "uid": s.uid}
                fact |= {"gid": s.gid, "size": s.size, "mtime": s.mtime, "link": node.link}
                f.write(json.dumps(fact) + "\n")
        self._seen = self._look()

    def _untouched(self) -> bool:
        return self._seen == self._look()

    def _look(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for folder, _names, files in os.walk(self.root):
            for path in (folder, *(f"{folder}/{name}" for name in files)):
                s = os.lstat(path)
                found[path] = (s.st_ino, s.st_size, 0 if path == folder else s.st_mtime_ns)
        return found
