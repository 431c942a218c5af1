"""Names of addresses and backtraces: ELF files, System.map, a Linux guest's kallsyms, ORC, DWARF."""

from tt.symbols.guest import for_timeline, of_machine
from tt.symbols.symbol import Symbol
from tt.symbols.table import SymbolSet, SymbolTable
from tt.symbols.unwind import Frame, Stack, unwind, walk

__all__ = [
    "Frame",
    "SymbolSet",
    "Stack",
    "Symbol",
    "SymbolTable",
    "for_timeline",
    "of_machine",
    "unwind",
    "walk",
]
