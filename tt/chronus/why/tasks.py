"""The process that runs at a place of a recording, out of the guest's memory: Linux on x86-64 with BTF.

`current_task` is per-CPU data (arch/x86/include/asm/current.h; `pcpu_hot` from 6.2 on), and where the
fields of `struct task_struct` are the kernel's BTF says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tt.errors import BadInput
from tt.symbols import SymbolTable, for_timeline
from tt.symbols.btf import nested_offsets
from tt.symbols.guest import Standing

_KERNEL64 = 0xFFFF_8000_0000_0000
_MOST_BTF = 64 << 20
_MOST_ARGUMENTS = 4096  # bytes of a command line
_DEEPEST = 24  # ancestors
_COMM = 16  # TASK_COMM_LEN

Layout = Mapping[str, Mapping[str, int]]
_layouts: WeakKeyDictionary[object, Layout] = WeakKeyDictionary()


@dataclass(frozen=True)
class Task:
    """A process or thread of the guest: `pid` as the guest shows it, `name` its comm, `uid` its user.

    `command` is its command line, () where that was not in memory.  A kernel thread has neither.
    `parents` are its ancestors' (pid, name), the nearest first.
    """

    pid: int
    name: str
    uid: int | None = None
    kernel: bool = False
    command: tuple[str, ...] = ()
    parents: tuple[tuple[int, str], ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "pid": self.pid,
            "name": self.name,
            "uid": self.uid,
            "kernel": self.kernel,
            "command": list(self.command),
            "parents": [{"pid": pid, "name": name} for pid, name in self.parents],
        }


def current_task(timeline: Standing) -> Task:
    """Return the process that runs where `timeline` stands; the timeline does not move.

    Raises `BadInput` where the guest is no Linux that says where to look, or is in user mode with its
    kernel hidden.
    """
    table = for_timeline(timeline)
    word = _words(timeline.read)
    try:
        layout = _layout(timeline, table)
        task = layout["task_struct"]
        addr = word(_current(table, word))
        if addr < _KERNEL64:
            raise IndexError(addr)
        memory = word(addr + task["mm"])
        uid = None
        if "uid" in layout["cred"]:
            uid = word(word(addr + task["cred"]) + layout["cred"]["uid"]) & 0xFFFF_FFFF
        return Task(
            pid=_pid(word, addr + task["tgid"]),
            name=_name(timeline, addr, task),
            uid=uid,
            kernel=not memory,
            command=_command(timeline, word, memory, layout["mm_struct"]) if memory else (),
            parents=_parents(timeline, word, addr, task),
        )
    except (IndexError, KeyError) as e:
        raise BadInput(
            f"which process runs at tick {timeline.tick:,} is not known: that needs a 64-bit Linux "
            f"with BTF in memory ({type(e).__name__}: {e})"
        ) from None


def _current(table: SymbolTable, word: Callable[[int], int]) -> int:
    """Return where the pointer to the running task of CPU 0 is."""
    offsets = [addr for addr in table.find_all("__per_cpu_offset") if addr >= _KERNEL64]
    # Both are offsets into the per-CPU area, so they are small; `current_task` is the first of `pcpu_hot`.
    inside = [addr for name in ("pcpu_hot", "current_task") for addr in table.find_all(name)]
    if not offsets or not inside:
        raise KeyError("current_task")
    return (word(offsets[0]) + inside[0]) % (1 << 64)


def _layout(timeline: Standing, table: SymbolTable) -> Layout:
    known = _layouts.get(timeline.trace)
    if known is None:
        begin, end = table.find("__start_BTF"), table.find("__stop_BTF")
        if begin is None or end is None or not 0 < end - begin <= _MOST_BTF:
            raise KeyError("BTF")
        data = timeline.read(begin, end - begin)
        names = ("task_struct", "mm_struct", "cred")
        known = _layouts[timeline.trace] = {name: nested_offsets(data, name) for name in names}
    return known


def _words(read: Callable[[int, int], bytes]) -> Callable[[int], int]:
    def word(addr: int) -> int:
        if not 0 <= addr <= (1 << 64) - 8:
            raise IndexError(f"{addr:#x} is no address")
        return int.from_bytes(read(addr, 8), "little")

    return word


def _pid(word: Callable[[int], int], addr: int) -> int:
    return word(addr) & 0x7FFF_FFFF


def _name(timeline: Standing, task: int, layout: Mapping[str, int]) -> str:
    return timeline.read(task + layout["comm"], _COMM).split(b"\0")[0].decode("utf-8", "replace")


def _parents(
    timeline: Standing, word: Callable[[int], int], task: int, layout: Mapping[str, int]
) -> tuple[tuple[int, str], ...]:
    found: list[tuple[int, str]] = []
    seen = {task}
    try:
        while len(found) < _DEEPEST:
            task = word(task + layout["real_parent"])
            pid = _pid(word, task + layout["tgid"])
            if task in seen or task < _KERNEL64 or not pid:
                break
            seen.add(task)
            found.append((pid, _name(timeline, task, layout)))
    except (IndexError, KeyError):
        pass
    return tuple(found)


def _command(
    timeline: Standing, word: Callable[[int], int], memory: int, layout: Mapping[str, int]
) -> tuple[str, ...]:
    """Return the command line, out of the process's own memory: it may be paged out, or overwritten."""
    try:
        begin, end = word(memory + layout["arg_start"]), word(memory + layout["arg_end"])
        if not 0 < end - begin <= _MOST_ARGUMENTS:
            return ()
        data = timeline.read(begin, end - begin)
    except (IndexError, KeyError):
        return ()
    return tuple(part.decode("utf-8", "replace") for part in data.rstrip(b"\0").split(b"\0"))
