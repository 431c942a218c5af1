"""Expressions on the guest's state, for `break ... if`, `print` and `tt bisect --expr`.

C's operators with C's precedence, computed in 64 bits (`tt.travel.expressions.values`):

    || && | ^ & == != ~ < <= > >= << >> + - * / % ! ?:  and casts, (int)x
    12 1_000 0x1f 0b101 0o17 'c'        numbers
    $rax $eax $al $pc $sp $fp           registers; without $ too, where no symbol has that name
    $cr3 $rflags $cs $gs_base
    jiffies  &jiffies  jiffies+8        the ADDRESS of a symbol
    *jiffies  u64[jiffies]              the 8 bytes there
    u8[a] u16[a] u32[a] u64[a]          memory at a virtual address; s8[a] ... are signed
    p8[a] p16[a] p32[a] p64[a]          memory at a physical address
    *(u32*)a  *(int*)a  ((u16*)a)[3]    as C has it
    str[a] == "text"  str[a] ~ "regex"  the bytes up to a NUL
    console ~ "regex"                   what the guest had printed until then
    tick ns halted bits cpl             instructions, guest nanoseconds, 1 while the CPU waits in HLT,
                                        16 32 or 64, and the privilege level 0 to 3

These words win over symbols of the same name; `&tick` is the symbol.  `$pc` and `$sp` are
linear addresses in code of 16 and 32 bits too.  Regular expressions are Python's, on bytes, and
their backslashes stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.travel.expressions.console_text import ConsoleText, ExactConsole, recorded_console
from tt.travel.expressions.parser import MemoryRange, Names, Parser, check_truth
from tt.travel.expressions.registers import REGISTER_NAMES
from tt.travel.expressions.tokens import ExpressionError, UnknownName
from tt.travel.expressions.values import TEXT, NoValue, View

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline


class Expression:
    """A compiled expression; it reads the guest's state and changes nothing.

    `text` is what was typed, `is_text` whether its value is bytes, `names_console`
    whether it looks at what was printed.  `places` is the memory it reads, if its value depends on
    nothing else; None where it does, or where the addresses themselves depend on the state.
    """

    def __init__(self, text: str, symbols: Names | None = None) -> None:
        parser = Parser(text, symbols)
        self.text = text
        self._node = parser.whole()
        self.is_text = self._node.kind is TEXT
        self.names_console = parser.names_console
        self.places = None if parser.looks_elsewhere else tuple(parser.places)
        self._console: ConsoleText | None = None
        self._exact: ExactConsole | None = None
        self._trace: object = None

    def value(self, timeline: Timeline, *, exact: bool = False) -> int | bytes:
        """Return the value where `timeline` stands; raises `NoValue` (a `UsageError`).

        By default a line counts as printed from its first byte on.  `exact` is right to the
        byte, and may move the timeline and bring it back for that (`ExactConsole`).
        """

        def printed(here: Timeline) -> tuple[bytes, int]:
            if not hasattr(here, "seek"):
                raise NoValue("what a live branch has printed is not known here: `close` it first")
            if self._console is None or self._exact is None or self._trace is not here.trace:
                self._console, self._trace = recorded_console(here), here.trace
                self._exact = ExactConsole(self._console)
            return self._exact(here) if exact else (self._console.data, self._console.whole(here.tick))

        value: int | bytes = self._node.run(View(timeline, printed))
        return value


class Condition(Expression):
    """An expression that is true or false; where it has no value (no memory is mapped) it is false."""

    def __init__(self, text: str, symbols: Names | None = None) -> None:
        super().__init__(text, symbols)
        check_truth(self._node, text, 1)

    def __call__(self, timeline: Timeline) -> bool:
        """Say whether it holds where `timeline` stands."""
        return self.holds(timeline)

    def holds(self, timeline: Timeline, *, exact: bool = False) -> bool:
        """Say whether it holds; for `exact` see `value`."""
        try:
            return bool(self.value(timeline, exact=exact))
        except NoValue:
            return False


def compile_expression(text: str, symbols: Names | None = None) -> Expression:
    """Return an expression; raises `ExpressionError` (a `UsageError`) that names the column."""
    return Expression(text, symbols)


def compile_condition(text: str, symbols: Names | None = None) -> Condition:
    """Return a condition; raises `ExpressionError` (a `UsageError`) that names the column."""
    return Condition(text, symbols)


def evaluate(text: str, timeline: Timeline, symbols: Names | None = None) -> int:
    """Return the number that `text` has where `timeline` stands, outside of searches; raises `UsageError`.

    It is negative where its type is signed; `% (1 << 64)` gives the bits.
    """
    expression = Expression(text, symbols)
    value = b"" if expression.is_text else expression.value(timeline, exact=True)
    if isinstance(value, bytes):
        raise ExpressionError("a number is wanted, this is a text", text, 1)
    return value


def evaluate_any(text: str, timeline: Timeline, symbols: Names | None = None) -> int | bytes:
    """Return the number or the text (`str[...]`, `console`) that an expression is; raises `UsageError`."""
    return Expression(text, symbols).value(timeline, exact=True)


__all__ = [
    "REGISTER_NAMES",
    "Condition",
    "Expression",
    "ExpressionError",
    "UnknownName",
    "Names",
    "NoValue",
    "MemoryRange",
    "UsageError",
    "compile_condition",
    "compile_expression",
    "evaluate",
    "evaluate_any",
]
