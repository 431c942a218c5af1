"""From the text of an expression to something that computes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

from tt.travel.expressions.registers import BARE_WORDS, register
from tt.travel.expressions.tokens import ExpressionError, Token, UnknownName, number, tokens, unescape
from tt.travel.expressions.values import (
    INTEGERS,
    MASK,
    S64,
    SIGNS,
    SPELLINGS,
    TEXT,
    U64,
    NoValue,
    Type,
    View,
    common,
    type_of,
)

_DEEPEST = 100  # nested operations: far below Python's own limit
_BINDING = {
    operator: level
    for level, operators in enumerate(
        ("|| ", "&&", "|", "^", "&", "== != ~", "< <= > >=", "<< >>", "+ -", "* / %"), 1
    )
    for operator in operators.split()
}
# What may stand before [address]: the type, and whether the address is physical.
_MEMORY = {
    **{name: (kind, False) for name, kind in INTEGERS.items()},
    **{f"i{8 * size}": (INTEGERS[f"s{8 * size}"], False) for size in (1, 2, 4, 8)},
    **{f"p{8 * size}": (INTEGERS[f"u{8 * size}"], True) for size in (1, 2, 4, 8)},
}
_COMPARES: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_COMPUTES: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "/": lambda a, b: _divide(a, b),
    "%": lambda a, b: a - b * _divide(a, b),
}


class MemoryRange(NamedTuple):
    """Memory that an expression reads: `size` bytes at a virtual or a physical address."""

    addr: int
    size: int
    physical: bool


class Names(Protocol):
    """What knows the symbols: a `tt.symbols.SymbolTable`, or anything like it."""

    def find(self, name: str) -> int | None:
        """Return the address of a symbol, or None."""
        ...


@dataclass(frozen=True)
class Node:
    """A parsed operation: `run` computes its value, in the range of `kind` (bytes where that is TEXT).

    A `fixed` one has the same value in every state: `run` reads nothing of the state.
    """

    run: Callable[[View], Any]
    kind: Type
    depth: int = 1
    fixed: bool = False
    constant: int | None = None
    symbol: str = ""  # a bare name: an address, which is easily mistaken for its contents
    is_console: bool = False


class Parser:
    """Precedence climbing over the tokens of one expression; types are known while parsing."""

    def __init__(self, text: str, symbols: Names | None) -> None:
        self.text = text
        self.symbols = symbols
        self.names_console = False
        self.places: list[MemoryRange] = []
        self.looks_elsewhere = False  # it reads more than `places`
        self._tokens = tokens(text)
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        """Return the whole expression; raises `ExpressionError`."""
        if self._next.kind == "end":
            raise self._error("an expression is wanted")
        node = self._ternary()
        if self._next.kind != "end":
            raise self._error(f"{self._next.text!r} is not expected here")
        return node

    # -- tokens

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _is(self, *operators: str) -> bool:
        return self._next.kind == "op" and self._next.text in operators

    def _expect(self, operator: str) -> None:
        if not self._is(operator):
            found = f"not {self._next.text!r}" if self._next.text else "and the expression ends"
            raise self._error(f"{operator!r} is wanted, {found}")
        self._take()

    def _error(self, message: str, token: Token | None = None) -> ExpressionError:
        return ExpressionError(message, self.text, (token or self._next).column)

    def _node(self, run: Callable[[View], Any], kind: Type, *parts: Node) -> Node:
        depth = 1 + max(part.depth for part in parts)
        if depth > _DEEPEST:
            raise self._error("that is nested too deeply")
        return Node(run, kind, depth, all(part.fixed for part in parts))

    def _state(self, found: tuple[Callable[[View], int], Type]) -> Node:
        self.looks_elsewhere = True
        return Node(*found)

    def _number(self, node: Node, token: Token) -> Node:
        if node.kind is TEXT:
            raise self._error("a number is wanted here, this is a text", token)
        return node

    # -- operators

    def _ternary(self) -> Node:
        start = self._next
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error("that is nested too deeply")
        node = test = self._binary(1)
        if self._is("?"):
            self._take()
            check_truth(test, self.text, start.column)
            yes = self._ternary()
            self._expect(":")
            at = self._next
            no = self._ternary()
            if (yes.kind is TEXT) != (no.kind is TEXT):
                raise self._error("both answers must be numbers, or both texts", at)
            kind = yes.kind if yes.kind == no.kind else common(yes.kind, no.kind)
            node = self._node(_choose(test.run, yes.run, no.run, kind), kind, test, yes, no)
        self._depth -= 1
        return node

    def _binary(self, least: int) -> Node:
        at = self._next
        left = self._unary()
        while self._next.kind == "op" and (level := _BINDING.get(self._next.text, 0)) >= least:
            operator = self._take()
            if operator.text == "~":
                left = self._match(left, at)
                continue
            right_at = self._next
            right = self._binary(level + 1)
            if operator.text in ("&&", "||"):
                left = self._logical(operator, left, at, right, right_at)
            elif operator.text in _COMPARES:
                left = self._compare(operator, left, right)
            else:
                left = self._compute(
                    operator.text, self._number(left, at), self._number(right, right_at), operator
                )
        return left

    def _logical(self, operator: Token, left: Node, at: Token, right: Node, right_at: Token) -> Node:
        check_truth(left, self.text, at.column)
        check_truth(right, self.text, right_at.column)
        a, b = left.run, right.run
        if operator.text == "&&":
            return self._node(lambda view: int(bool(a(view)) and bool(b(view))), S64, left, right)
        return self._node(lambda view: int(bool(a(view)) or bool(b(view))), S64, left, right)

    def _compare(self, operator: Token, left: Node, right: Node) -> Node:
        if (left.kind is TEXT) != (right.kind is TEXT):
            raise self._error("a text compares with a text only", operator)
        compare, a, b = _COMPARES[operator.text], left.run, right.run
        if left.kind is TEXT:
            if operator.text not in ("==", "!="):
                raise self._error("texts compare with ==, != and ~", operator)
            return self._node(lambda view: int(compare(a(view), b(view))), S64, left, right)
        for one, other in ((left, right), (right, left)):
            if one.symbol and other.constant is not None:
                raise self._error(_contents(one.symbol), operator)
            if other.constant is not None and other.constant < 0 and _is_narrow(one.kind):
                size = 8 * one.kind.size
                raise self._error(
                    f"{size} unsigned bits are never negative: read s{size}, or cast to (s{size})", operator
                )
        kind = common(left.kind, right.kind)
        return self._node(
            lambda view: int(compare(kind.normal(a(view)), kind.normal(b(view)))), S64, left, right
        )

    def _compute(self, operator: str, left: Node, right: Node, at: Token) -> Node:
        a, b = left.run, right.run
        if operator in ("<<", ">>"):
            kind = common(left.kind, left.kind)
            shift = _shift_left if operator == "<<" else _shift_right
            return self._node(
                lambda view: kind.normal(shift(kind.normal(a(view)), b(view) & MASK)), kind, left, right
            )
        kind = common(left.kind, right.kind)
        if operator in ("+", "-"):
            if left.kind.target and right.kind.target:
                if operator == "+" or left.kind != right.kind:
                    raise self._error("two pointers have only a difference, of the same type", at)
                size = left.kind.target.size or 1
                return self._node(lambda view: _divide(S64.normal(a(view) - b(view)), size), S64, left, right)
            if left.kind.target:
                kind, b = left.kind, _times(b, left.kind.target.size or 1)
            elif right.kind.target and operator == "+":
                kind, a = right.kind, _times(a, right.kind.target.size or 1)
            elif right.kind.target:
                raise self._error("a pointer cannot be subtracted from a number", at)
        compute = _COMPUTES[operator]
        return self._node(
            lambda view: kind.normal(compute(kind.normal(a(view)), kind.normal(b(view)))), kind, left, right
        )

    def _match(self, left: Node, at: Token) -> Node:
        token = self._take()
        if left.kind is not TEXT:
            raise self._error("`~` matches a text: console or str[...]", at)
        if token.kind != "text":
            raise self._error('`~` wants a regular expression in quotes, as in console ~ "panic"', token)
        try:
            search = re.compile(token.text[1:-1].replace('\\"', '"').encode()).search
        except (re.error, OverflowError, RecursionError, UnicodeError) as e:
            raise self._error(f"that regular expression is wrong ({e})", token) from None
        if left.is_console:

            def matches(view: View) -> int:
                data, size = view.console()
                return int(search(data, 0, size) is not None)

            return self._node(matches, S64, left)
        run = left.run
        return self._node(lambda view: int(search(run(view)) is not None), S64, left)

    def _unary(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error("that is nested too deeply")
        node = self._prefixed()
        self._depth -= 1
        return node

    def _prefixed(self) -> Node:
        if self._is("&"):
            self._take()
            token = self._take()
            if token.kind != "name":
                raise self._error("`&` wants the name of a symbol", token)
            return replace(self._symbol(token), symbol="")
        if self._is("(") and (kind := self._cast()) is not None:
            at = self._next
            return self._convert(kind, self._unary(), at)
        if not self._is("-", "+", "!", "~", "*"):
            return self._postfix(self._primary())
        operator = self._take()
        at = self._next
        operand = self._unary()
        run = operand.run
        if operator.text == "!":
            check_truth(operand, self.text, at.column)
            return self._node(lambda view: int(not run(view)), S64, operand)
        self._number(operand, at)
        if operator.text == "*":
            return self._load(operand, operand.kind.target or U64, False, operator)
        kind = common(operand.kind, operand.kind)
        if operator.text == "-":
            negative = self._node(lambda view: kind.normal(-run(view)), kind, operand)
            constant = None if operand.constant is None else kind.normal(-operand.constant)
            return replace(negative, constant=constant)
        if operator.text == "~":
            return self._node(lambda view: kind.normal(~run(view)), kind, operand)
        return self._node(_normal(run, kind), kind, operand)

    def _postfix(self, node: Node) -> Node:
        while self._is("["):
            at = self._take()
            if not node.kind.target:
                raise self._error("only a pointer can be indexed: write u64[address], or cast it", at)
            index = self._number(self._ternary(), at)
            self._expect("]")
            node = self._load(self._compute("+", node, index, at), node.kind.target, False, at)
        return node

    def _load(self, address: Node, kind: Type, physical: bool, at: Token) -> Node:
        if kind.size == 0:
            raise self._error("nothing can be read through a void*: cast it, as in *(u32*)a", at)
        run = address.run
        addr = _fixed(address)
        if addr is None:
            self.looks_elsewhere = True
        else:
            self.places.append(MemoryRange(addr & MASK, kind.size, physical))
        loaded = self._node(lambda view: view.load(run(view), kind, physical), kind, address)
        return replace(loaded, fixed=False)

    # -- casts

    def _cast(self) -> Type | None:
        """Take `(type)`, if that is what comes."""
        begin = self._at
        self._take()
        kind = self._type()
        if kind is None or not self._is(")"):
            if kind is not None and kind.target:
                self._expect(")")
            self._at = begin
            return None
        self._take()
        return kind

    def _type(self) -> Type | None:
        """Take the name of a type, if one comes."""
        words = []
        while self._next.kind == "name" and (self._next.text in SPELLINGS or self._next.text in SIGNS):
            words.append(self._take().text)
        if self._is("[") or not words:
            return None
        kind = type_of(words)
        if kind is None:
            raise self._error(
                f"there is no type {' '.join(words)!r}: there are u8 to u64, s8 to s64, C's int"
            )
        while self._is("*"):
            self._take()
            kind = kind.pointer()
        return kind

    def _convert(self, kind: Type, operand: Node, at: Token) -> Node:
        self._number(operand, at)
        if kind.size == 0:
            raise self._error("nothing can be cast to void", at)
        return self._node(_normal(operand.run, kind), kind, operand)

    # -- operands

    def _primary(self) -> Node:
        token = self._take()
        if token.kind in ("number", "char"):
            value, unsigned = number(token, self.text)
            return Node(lambda view: value, U64 if unsigned else S64, fixed=True, constant=value)
        if token.kind == "text":
            data = unescape(token.text[1:-1])
            return Node(lambda view: data, TEXT, fixed=True)
        if token.kind == "register":
            found = register(token.text[1:].lower())
            if found is None:
                raise self._error(f"there is no register {token.text!r}", token)
            return self._state(found)
        if token.kind == "name":
            return self._named(token)
        if token.text == "(":
            node = self._ternary()
            self._expect(")")
            return node
        if token.kind == "end":
            raise self._error("something is missing at the end", token)
        raise self._error(f"a number, a register, a symbol or memory is wanted, not {token.text!r}", token)

    def _named(self, token: Token) -> Node:
        name = token.text
        if self._is("[") and (name in _MEMORY or name == "str"):
            return self._memory(name)
        if name == "console":
            self.names_console = self.looks_elsewhere = True
            return Node(lambda view: _cut(*view.console()), TEXT, is_console=True)
        if name in BARE_WORDS and (found := register(name)) is not None:
            return self._state(found)
        return self._symbol(token, registers=True)

    def _memory(self, name: str) -> Node:
        at = self._take()
        address = self._number(self._ternary(), at)
        self._expect("]")
        run = address.run
        if name == "str":
            self.looks_elsewhere = True
            return replace(self._node(lambda view: view.text_at(run(view)), TEXT, address), fixed=False)
        return self._load(address, *_MEMORY[name], at)

    def _symbol(self, token: Token, registers: bool = False) -> Node:
        name = token.text
        addr = None if self.symbols is None else self.symbols.find(name)
        if addr is not None:
            value = addr & MASK
            return Node(lambda view: value, U64, fixed=True, symbol=name)
        found = register(name.lower()) if registers else None
        if found is None:
            known = " (no symbols are known)" if self.symbols is None else ""
            what = "symbol or register" if registers else "symbol"
            message = f"there is no {what} {name!r}{known}"
            raise UnknownName(message, self.text, token.column)
        return self._state(found)


# ---- how


def check_truth(node: Node, text: str, column: int) -> None:
    """Refuse what cannot be a condition, and what is one only by mistake."""
    if node.kind is TEXT:
        raise ExpressionError('a text is not a condition: compare it, as in console ~ "panic"', text, column)
    if node.symbol:
        raise ExpressionError(_contents(node.symbol), text, column)


def _contents(symbol: str) -> str:
    return f"{symbol} is an address: *{symbol} or u32[{symbol}] is what lies there, &{symbol} the address"


def _fixed(node: Node) -> int | None:
    """Return the number that a node is in every state, or None."""
    try:
        return int(node.run(cast(View, None))) if node.fixed else None
    except NoValue:
        return None


def _is_narrow(kind: Type) -> bool:
    return not kind.signed and kind.size in (1, 2, 4)


def _normal(run: Callable[[View], int], kind: Type) -> Callable[[View], int]:
    return lambda view: kind.normal(run(view))


def _choose(
    test: Callable[[View], int], yes: Callable[[View], Any], no: Callable[[View], Any], kind: Type
) -> Callable[[View], Any]:
    if kind is TEXT:
        return lambda view: (yes if test(view) else no)(view)
    return lambda view: kind.normal((yes if test(view) else no)(view))


def _times(run: Callable[[View], int], scale: int) -> Callable[[View], int]:
    return lambda view: run(view) * scale


def _cut(data: bytes, size: int) -> bytes:
    return data[:size]


def _divide(a: int, b: int) -> int:
    """Divide towards zero, as C does."""
    if b == 0:
        raise NoValue("that divides by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _shift_left(value: int, count: int) -> int:
    return value << count if count < 64 else 0


def _shift_right(value: int, count: int) -> int:
    return value >> min(count, 64)
