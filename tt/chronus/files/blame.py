"""Every write at which a file changed, found without looking at the writes that cannot have changed it.

Looking a path up reads some blocks, and the result depends on those alone.  A write that touches none of them
cannot change it, and is skipped without reading its contents.  On ext the journal is among those blocks;
after a write to it, the path is only looked up again if the newest transactions touch what was read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from tt.chronus.files.changes import Change, Side
from tt.chronus.files.difference import ext_side, in_blocks, tree_side
from tt.chronus.files.ext_volume import ExtVolume, candidates
from tt.chronus.files.same_file import ext_ways, in_order, tree_ways
from tt.chronus.files.tree import Tree
from tt.chronus.store.history import History, Instant
from tt.chronus.store.view import DiskView, TrackedView
from tt.chronus.store.write import Write
from tt.errors import BadInput
from tt.vmm.boot.ext import Inode
from tt.vmm.boot.filesystems import READABLE, open_filesystem
from tt.vmm.boot.filetree import FileSystem, NotFound
from tt.vmm.boot.images import Volume
from tt.vmm.disk import BLOCK
from tt.vmm.streams import Window

_KEPT = 8192  # blocks of 4 KB


@dataclass(frozen=True)
class BlameEntry:
    """A write that changed a file: the file at instant `after` differs from that at `before`."""

    before: int
    after: int
    write: Write
    change: Change


def blame(
    history: History, path: str, first: int | None = None, last: int | None = None, *, times: bool = False
) -> Iterator[BlameEntry]:
    """Yield the writes that changed what is at `path`, between two instants, oldest first.

    A link at the end of `path` is not followed; a directory changes as names in it come and go.  With
    `times`, changes of nothing but times count.  A file that cannot be read counts as missing.  Raises
    `BadInput` where no file system can be read at the first instant nor at the last.
    """
    begin = history.first if first is None else first
    view = history.at(begin)
    tree = Tree(view)
    try:
        name, inside = tree.place(path)
    except BadInput:  # no file system yet
        tree = Tree(history.at(history.count if last is None else last))
        name, inside = tree.place(path)
    layout = _Layout(view, name)
    look = _Look(view, layout, inside, inside if name == tree.root else f"{name}:{inside}")
    kept = _Kept(history)
    written: list[range] = []
    before = begin
    for write in history.writes(begin + 1, last):
        kept.step(write)
        before = before if written else write.number - 1
        written.append(write.blocks)
        if history.images and history.inside_image(write.number):
            continue  # all writes of an imported image are one change
        touching = [blocks for blocks in written if look.depends_on(blocks)]
        written.clear()
        if not touching:
            continue
        following = look.again(_KeptView(kept, write.number), {block for each in touching for block in each})
        change = _change(look, following)
        if change is not None and (times or not change.only_times):
            yield BlameEntry(before, write.number, write, change)
        look = following


class _Kept:
    """The blocks that were read lately, with their contents after the newest write given to `step`."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.number = 0
        self.blocks: dict[int, bytes] = {}

    def step(self, write: Write) -> None:
        self.number = write.number
        if len(self.blocks) > _KEPT:
            self.blocks.clear()
        for block in write.blocks if len(write.blocks) < len(self.blocks) else list(self.blocks):
            if block in write.blocks:
                self.blocks.pop(block, None)


class _KeptView(Instant):
    """An instant that is read through the kept blocks, as long as these belong to it."""

    def __init__(self, kept: _Kept, number: int) -> None:
        super().__init__(kept.history, number)
        self._kept = kept

    def blocks(self, first: int, count: int) -> list[bytes]:
        if self._kept.number != self.number:
            return super().blocks(first, count)
        found = []
        blocks = self._kept.blocks
        for block in range(first, first + count):
            data = blocks.get(block)
            if data is None:
                data = blocks[block] = self.history.block(block, self.number)
            found.append(data)
        return found


class Spans:
    """Numbers of blocks, as ranges, so that those of a large file take little memory."""

    def __init__(self, blocks: Iterable[int], ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted([*((block, block + 1) for block in blocks), *ranges]):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._starts.append(start)
                self._ends.append(end)

    def meet(self, blocks: range) -> bool:
        """Whether any of the neighbouring `blocks` is among them."""
        at = bisect_right(self._starts, blocks.stop - 1) - 1
        return at >= 0 and self._ends[at] > blocks.start


class _Layout:
    """A volume's place on the disk, and the 4 KB blocks that define it; `volume` is None if missing."""

    def __init__(self, view: DiskView, name: str) -> None:
        tracked = TrackedView(view)
        volumes = tracked.image().volumes
        self.name = name
        self.volume = next((volume for volume in volumes if volume.name == name), None)
        # Partition tables lie outside of all volumes; the blocks read inside a volume are noted by `_Look`.
        self.watch = Spans(
            block
            for block in tracked.reads
            if not any(
                each.offset <= block * BLOCK and (block + 1) * BLOCK <= each.offset + each.size
                for each in volumes
            )
            or block == 0
        )


class _Look:
    """What was found at a path at one instant, and the blocks on which that depends."""

    def __init__(
        self,
        view: DiskView,
        layout: _Layout,
        path: str,
        shown: str,
        previous: _Look | None = None,
        written: set[int] | None = None,
    ) -> None:
        self._layout, self._path, self._shown = layout, path, shown
        self.error = ""
        self.ext: ExtVolume | None = None
        self.inode: Inode | None = None
        self.files: FileSystem[Any] | None = None
        self.side: Side | None = None
        self.maybe: set[int] | None = None
        self._logical = self._below = Spans(())
        tracked = TrackedView(view)
        self._opened = Spans(())
        try:
            if layout.volume is not None:
                self._open(tracked, layout.volume, previous, written)
        except NotFound:
            pass
        except BadInput as e:
            self.error = str(e)
        if self.ext is None or self.error:
            self._opened = Spans(tracked.reads)

    def depends_on(self, blocks: range) -> bool:
        """Whether a write to `blocks` may change it."""
        return self._opened.meet(blocks) or self._below.meet(blocks) or self._layout.watch.meet(blocks)

    def again(self, view: DiskView, written: set[int]) -> _Look:
        """Look again, after the first write that may change the result; it touched the blocks `written`."""
        layout = self._layout
        unsure = bool(self.error) or layout.volume is None or layout.volume.type not in READABLE
        if unsure or any(layout.watch.meet(range(block, block + 1)) for block in written):
            layout = _Layout(view, layout.name)
        same = layout.volume == self._layout.volume
        return _Look(view, layout, self._path, self._shown, self if same else None, written)

    # ---- inside

    def _open(
        self, tracked: TrackedView, volume: Volume, previous: _Look | None, written: set[int] | None
    ) -> None:
        stream = cast(BinaryIO, Window(tracked.stream(), volume.offset, volume.size))
        where = f"{tracked.where} ({volume.name})"
        if volume.type != "ext":
            self.files = open_filesystem(stream, where)
            self.side = tree_side(self._shown, self._path, self.files)
            if self.side.node.stat.kind == "file":
                self.files.read(self._path)
            return
        ext = ExtVolume(stream, where)
        opened = set(tracked.reads)
        if previous is not None and previous.ext is not None and not previous.error and written is not None:
            before = previous.ext
            if before.shape() == ext.shape():
                self.maybe = candidates(before, ext, in_blocks(volume, written, ext.block_size))
                if not any(previous._logical.meet(range(n, n + 1)) for n in self.maybe):
                    self.inode, self.side = previous.inode, previous.side
                    self._logical, self._below = previous._logical, previous._below
                    self._opened, self.ext = Spans(opened), ext
                    self.maybe = set()
                    return
        self._find(ext, volume, tracked)
        self._opened, self.ext = Spans(opened), ext

    def _find(self, ext: ExtVolume, volume: Volume, tracked: TrackedView) -> None:
        """Look the path up, and note all that the answer depends on."""
        ext.reads = set()
        ext.budget = 8 * ext.block_count + (1 << 20)
        runs: list[tuple[int, int]] = []
        try:
            self.inode = ext.find(self._path)
            if self.inode is not None:
                self.side = ext_side("", self._shown, ext, self.inode.number)
                ext.attributes(self.inode)
                if self.inode.kind == "directory":
                    ext.directory(self.inode)
                runs = [(start, start + count) for start, count in ext.held(self.inode).runs]
        except (ValueError, IndexError) as e:
            self.error = f"{self._shown} is damaged: {e}"
        finally:
            logical, ext.reads, ext.budget = ext.reads, None, None
        self._logical = Spans(logical, runs)
        copies = [
            (copy.block, copy.block + 1)
            for block, copy in ext.newer.items()
            if self._logical.meet(range(block, block + 1))
        ]
        self._below = Spans(
            tracked.reads,
            (
                (
                    (volume.offset + start * ext.block_size) // BLOCK,
                    -(-(volume.offset + end * ext.block_size) // BLOCK),
                )
                for start, end in [*runs, *copies]
            ),
        )


def _change(old: _Look, new: _Look) -> Change | None:
    """Say what happened to a file between two looks at it."""
    path = old._shown
    if old.side is None or new.side is None:
        if old.side is new.side:
            return None
        return Change(path, "removed" if old.side else "added", (), "", old.side, new.side)
    ways: tuple[str, ...]
    if old.ext is not None and new.ext is not None and old.inode is not None and new.inode is not None:
        if new.maybe is not None and not new.maybe:
            return None
        ways = ext_ways(old.ext, old.inode, new.ext, new.inode, new.maybe)
        if old.inode.kind == new.inode.kind == "directory":
            one, two = _names(old.ext, old.inode), _names(new.ext, new.inode)
            ways = in_order({*ways, "contents"} if one != two else ways)
    elif old.files is not None and new.files is not None:
        ways = tree_ways(old.files, new.files, old._path)
    else:
        ways = ("contents",)  # the file system itself is another one
    return Change(path, "changed", ways, "", old.side, new.side) if ways else None


def _names(volume: ExtVolume, inode: Inode) -> frozenset[str]:
    try:
        return frozenset(volume.directory(inode))
    except (ValueError, IndexError):
        return frozenset()
