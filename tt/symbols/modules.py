"""The symbols and unwind tables of a Linux guest's loaded modules, by the kernel's own list of them.

Where the fields of `struct module` are differs from build to build; the kernel's BTF
says it.  64-bit kernels that have BTF only.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

from tt.symbols.btf import struct_offsets
from tt.symbols.symbol import Symbol
from tt.symbols.table import MODULE_PRIORITY, OrcPlace, SymbolSet, SymbolTable

Read = Callable[[int, int], bytes]

_MOST_MODULES = 1024
_MOST_SYMBOLS = 1 << 16
_MOST_NEW_SYMBOLS = 500_000
_MOST_STRINGS = 8 << 20
_MOST_BTF = 64 << 20
_NAME_SIZE = 56  # MODULE_NAME_LEN
_SYM = struct.Struct("<IBBHQQ")
_KERNEL64 = 0xFFFF_8000_0000_0000
_SPACE = 0xFFFF_FFFF_8000_0000  # modules are within 2 GB of the kernel's text, as that has to reach them
_LIVE = 0  # enum module_state
_PAGE = 4096
_STRUCTS = ("module", "mod_kallsyms", "mod_arch_specific")

Layout = Mapping[str, Mapping[str, int]]

_layouts: WeakKeyDictionary[SymbolSet, Layout] = WeakKeyDictionary()


def update(table: SymbolTable, kernel: SymbolSet, read: Read) -> int:
    """Add the modules that are loaded now and not in `table` yet; return how many.

    `kernel` are the kernel's own symbols.  A module that takes another's place replaces
    it.  Raises nothing: where the list leads nowhere it ends.
    """
    heads = [addr for addr in SymbolTable([kernel]).find_all("modules") if addr >= _KERNEL64]
    if len(heads) != 1:
        return 0
    try:
        layout = _layout(kernel, read)
        modules = _listed(heads[0], layout, read)
    except (IndexError, KeyError):
        return 0
    known = {source.label for source in table.sources}
    added = symbols = 0
    for addr in modules:
        if symbols > _MOST_NEW_SYMBOLS:
            break
        try:
            label = f"module {_text(read, addr + layout['module']['name'], _NAME_SIZE)} at {addr:#x}"
            loading = _word(read, addr + layout["module"]["state"]) & 0xFFFF_FFFF != _LIVE
            # While its init function runs a module has more symbols, in memory that others get later.
            label += ", loading" if loading else ""
            if label not in known:
                source = _module(label, addr, layout, read, loading)
                _replace(table, source)
                added += 1
                symbols += len(source.names)
        except (IndexError, KeyError, ValueError):
            continue  # half loaded: its tables are not in place
    return added


def _layout(kernel: SymbolSet, read: Read) -> Layout:
    """Return where fields are; raises `KeyError` where the kernel does not say, `IndexError` as `read`."""
    layout = _layouts.get(kernel)
    if layout is None:
        begin, end = kernel.by_name["__start_BTF"], kernel.by_name["__stop_BTF"]
        if not 0 < end - begin <= _MOST_BTF:
            raise KeyError("BTF")
        layout = _layouts[kernel] = struct_offsets(_exactly(read, begin, end - begin), _STRUCTS)
    return layout


def _listed(head: int, layout: Layout, read: Read) -> list[int]:
    """Return the address of each `struct module`."""
    modules: list[int] = []
    at, to_module = _word(read, head), layout["module"]["list"]
    while at != head and at >= _KERNEL64 and len(modules) < _MOST_MODULES:
        if at - to_module in modules:
            break
        modules.append(at - to_module)
        at = _word(read, at)
    return modules


def _module(label: str, addr: int, layout: Layout, read: Read, loading: bool) -> SymbolSet:
    """Return one module's symbols, as `add_kallsyms` in kernel/module/kallsyms.c left them."""
    fields = layout["mod_kallsyms"]
    kallsyms = _word(read, addr + layout["module"]["kallsyms"])
    count = _word(read, kallsyms + fields["num_symtab"]) & 0xFFFF_FFFF
    if not 0 < count <= _MOST_SYMBOLS:
        raise ValueError(f"{count} symbols")
    table = _exactly(read, _word(read, kallsyms + fields["symtab"]), count * _SYM.size)
    strings_at = _word(read, kallsyms + fields["strtab"])
    letters = b"t" * count  # before 5.2 the letters are not kept apart
    if "typetab" in fields:
        letters = _exactly(read, _word(read, kallsyms + fields["typetab"]), count)
    rows = list(_SYM.iter_unpack(table))
    strings = _strings(read, strings_at, max(row[0] for row in rows))
    symbols = []
    for (name_at, _info, _other, section, value, _size), letter in zip(rows, letters, strict=True):
        name = strings[name_at : strings.find(b"\0", name_at)].decode("utf-8", "replace")
        if name and section and not (loading and value < _SPACE):
            symbols.append(Symbol(value, 0, name, chr(letter)))
    return replace(SymbolSet.sort(label, MODULE_PRIORITY, symbols), orc=_orc(addr, layout, read))


def _orc(addr: int, layout: Layout, read: Read) -> OrcPlace | None:
    fields = layout.get("mod_arch_specific", {})
    arch = layout["module"].get("arch")
    if arch is None or not {"num_orcs", "orc_unwind_ip", "orc_unwind"} <= fields.keys():
        return None
    count = _word(read, addr + arch + fields["num_orcs"]) & 0xFFFF_FFFF
    ips, entries = (_word(read, addr + arch + fields[name]) for name in ("orc_unwind_ip", "orc_unwind"))
    return OrcPlace(ips, entries, count) if count else None


def _replace(table: SymbolTable, source: SymbolSet) -> None:
    """Add a module's symbols, and remove those of modules that were where it is."""
    here = _range(source)
    for old in [old for old in table.sources if old.priority == MODULE_PRIORITY]:
        there = _range(old)
        if there[0] <= here[1] and here[0] <= there[1]:
            table.drop(old.label)
    table.add(source)


def _range(source: SymbolSet) -> tuple[int, int]:
    """Return the lowest and the highest address in the modules' space; (1, 0) without any."""
    first = bisect_left(source.addresses, _SPACE)
    return (source.addresses[first], source.addresses[-1]) if first < len(source.addresses) else (1, 0)


def _strings(read: Read, addr: int, last: int) -> bytes:
    """Return the strings up to the end of the one at `last`."""
    if last > _MOST_STRINGS:
        raise ValueError(f"{last} bytes of strings")
    data = bytearray(_exactly(read, addr, last + 1))
    while b"\0" not in data[last:]:
        data += _exactly(read, addr + len(data), 16)
        if len(data) > last + _PAGE:
            raise ValueError("a name without end")
    return bytes(data)


def _text(read: Read, addr: int, size: int) -> str:
    return _exactly(read, addr, size).split(b"\0")[0].decode("utf-8", "replace")


def _word(read: Read, addr: int) -> int:
    return int.from_bytes(_exactly(read, addr, 8), "little")


def _exactly(read: Read, addr: int, size: int) -> bytes:
    if not 0 <= addr <= (1 << 64) - size:
        raise IndexError(f"{addr:#x} is no address")
    data = read(addr, size)
    if len(data) != size:
        raise IndexError(f"{addr:#x}: not all there")
    return data
