"""The language of conditions: C's precedence and conversions, plain errors, nothing but reading."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tt.errors import UsageError
from tt.travel.expressions import (
    REGISTER_NAMES,
    ExpressionError,
    NoValue,
    compile_condition,
    compile_expression,
    evaluate,
    evaluate_any,
)

RAM = bytearray(0x3000)
RAM[0x1000:0x1010] = bytes.fromhex("ff fe fd fc 80 00 00 00  00 10 00 00 00 00 00 00")
RAM[0x1020:0x1030] = b"init: ready\n\0xyz"
BASE = 0xFFFF_8000_0000_0000  # where the virtual memory lies
SYMBOLS = {"counter": BASE + 0x1000, "name": BASE + 0x1020, "do_it.isra.0": BASE, "tick": 7, "rbx": BASE + 8}


def words(text: str) -> list[str]:
    return text.split(" ")


class Symbols:
    def find(self, name: str) -> int | None:
        return SYMBOLS.get(name)


def _read(base: int, addr: int, size: int) -> bytes:
    if not base <= addr <= addr + size <= base + len(RAM):
        raise IndexError(addr)
    return bytes(RAM[addr - base : addr - base + size])


class Guest:
    """As much of a timeline as expressions look at."""

    def __init__(self, tick: int = 1000, bits: int = 64, kind: str = "pc") -> None:
        self.tick = tick
        segment = {"cs": (0xF000, 0xF0000, 0xFFFF, 0), "ss": (0, 0x100, 0xFFFF, 0)}
        engine = SimpleNamespace(bits=bits, segment=segment.get, read=lambda addr, size: _read(0, addr, size))
        self.machine = SimpleNamespace(kind=kind, engine=engine, halted=True, now_ns=4000)
        runs = [(100, 0, b"one\n"), (500, 1, b"two: \xff\n"), (1000, 0, b"panic: 17\n")]
        self.trace = SimpleNamespace(console=lambda: iter(runs), end_tick=5000)

    def seek(self, tick: int) -> None:
        raise AssertionError("an expression only looks")

    def registers(self) -> dict[str, int]:
        names = [*words("rax rbx rcx rdx rsi rdi rbp rsp rip"), *(f"r{n}" for n in range(8, 16))]
        values = dict.fromkeys(names, 0x1122_3344_5566_7788)
        others = words("rflags cs ss ds es fs gs cr0 cr2 cr3 cr4 efer fs_base gs_base")
        return values | dict.fromkeys(others, 3) | {"rip": 0x40, "rsp": 0x30, "rax": (1 << 64) - 1, "rcx": 0}

    def read(self, addr: int, size: int) -> bytes:
        return _read(BASE, addr, size)


def value(text: str, **how: Any) -> int | bytes:
    return compile_expression(text, Symbols()).value(Guest(**how))  # type: ignore[arg-type]


# ---- against Python


@given(st.lists(st.tuples(st.sampled_from(words("+ - * << & ^ |")), st.integers(0, 99)), max_size=12))
def test_precedence_is_pythons_where_c_agrees_with_it(rest: list[tuple[str, int]]) -> None:
    text = "3" + "".join(f" {operator} {number}" for operator, number in rest)
    try:
        expected = eval(text)
    except (ValueError, OverflowError, MemoryError):
        assume(False)
    assume(abs(expected) < 1 << 3000)
    assert (value(text) - expected) % (1 << 64) == 0  # type: ignore[operator]


LEVELS = ["||", "&&", "|", "^", "&", "== !=", "< <= > >=", "<< >>", "+ -", "* / %"]
LEVEL = {operator: level for level, operators in enumerate(LEVELS) for operator in operators.split()}
Tree = int | tuple[str, Any, Any]
trees = st.recursive(
    st.integers(0, 1 << 40),
    lambda inner: st.tuples(st.sampled_from(sorted(LEVEL)), inner, inner),
    max_leaves=12,
)


def write(tree: Tree, least: int = 0) -> str:
    """Write a tree with no more parentheses than C wants."""
    if isinstance(tree, int):
        return hex(tree) if tree % 2 else str(tree)
    operator, left, right = tree
    level = LEVEL[operator]
    text = f"{write(left, level)} {operator} {write(right, level + 1)}"
    return f"({text})" if level < least else text


def compute(tree: Tree) -> int:
    """Compute a tree in C's long."""
    if isinstance(tree, int):
        return tree
    operator, left, right = tree
    a = compute(left)
    if operator == "&&":
        return int(bool(a and compute(right)))
    if operator == "||":
        return int(bool(a or compute(right)))
    b = compute(right)
    if operator in ("/", "%"):
        if b == 0:
            raise ZeroDivisionError
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        result = quotient if operator == "/" else a - b * quotient
    elif operator == "<<":
        result = a << b if 0 <= b < 64 else 0
    elif operator == ">>":
        result = a >> (b if 0 <= b < 64 else 64)
    else:
        result = int(eval(f"a {operator} b"))
    return (result + (1 << 63)) % (1 << 64) - (1 << 63)


@given(trees)
def test_every_operator_with_as_few_parentheses_as_c_needs(tree: Tree) -> None:
    text = write(tree)
    assume(len(text) <= 1000)
    try:
        expected = compute(tree)
    except ZeroDivisionError:
        with pytest.raises(NoValue, match="divides by zero"):
            value(text)
    else:
        assert value(text) == expected


# ---- garbage

PIECES = [
    *words("( ) [ ] + - * / % << >> & | ^ ~ ! && || == != < > ? : , . = @ # \\ ' \" $ $rax $zz rax counter"),
    *words("u8[ u32[ p64[ str[ s16[ (u32*) (int) (unsigned long) (void*) (unsigned void) *( console tick"),
    *words('0 1 0x 0xff 0b2 09 1_0 1__0 1e5 18446744073709551616 \'a\' \'\\n\' "x" "[" "(a+)+$"'),
    *words("é 中 \x00 \n \ud800"),
]


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)))
def test_garbage_is_a_usage_error_or_nothing(text: str) -> None:
    try:
        condition = compile_condition(text, Symbols())
    except UsageError as e:
        assert "\n" not in str(e) and re.search(r"column \d+ of", str(e))
        return
    assert condition(Guest()) in (True, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 400 + "1",
        "(" * 90 + "1" + ")" * 90,
        "-" * 900 + "1",
        "!" * 999 + "1",
        "*" * 500 + "1",
        "1" + "+1" * 499,
        "1" + "?1:1" * 249,
        "1?" * 300,
        "u8[" * 300,
        "(int)" * 190 + "1",
        "1" * 999,
        "x" * 5000,
        '"' + "a" * 990,
    ],
)
def test_nothing_is_too_deep_for_python(text: str) -> None:
    with pytest.raises(UsageError):
        value(text)


def test_much_is_still_allowed() -> None:
    assert value("(" * 40 + "7" + ")" * 40) == 7
    assert value("1" + "+1" * 90) == 91
    assert value("||".join(["0"] * 80)) == 0
    assert value("!" * 40 + "1") == 1


# ---- numbers and types


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 + 1_000 + 0x1F + 0b101 + 0o17", 12 + 1000 + 31 + 5 + 15),
        ("'a' + '\\n' + '\\x41' + '\\0'", 97 + 10 + 0x41),
        ("10UL + 5l", 15),
        ("1 ? 2 : 0 ? 3 : 4", 2),
        ("0 ? 2 : 0 ? 3 : 4", 4),
        ("2 - 3 - 4", -5),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("7 / -2", -3),
        ("-1 < 1", 1),
        ("-1 < 1u", 0),  # C's trap, and ours
        ("-1 == 0xffffffffffffffff", 1),
        ("-1 >> 63", -1),
        ("0xffffffffffffffff >> 63", 1),
        ("1 << 63 < 0", 1),
        ("1 << 64", 0),
        ("1 << -1", 0),
        ("0x7fffffffffffffff + 1", -(1 << 63)),
        ("~0", -1),
        ("~0u", (1 << 64) - 1),
        ("!5 + !0", 1),
        ("(u8)0x1ff", 255),
        ("(int)0xffffffff", -1),
        ("(unsigned int)-1", 0xFFFF_FFFF),
        ("(unsigned)-1 == 0xffffffff", 1),
        ("(unsigned long)5 - 6", (1 << 64) - 1),
        ("(long long)-1", -1),
        ("(short int)0x8000", -0x8000),
        ("(uint16_t)-1", 0xFFFF),
        ("0 && 1 / 0", 0),
        ("1 || 1 / 0", 1),
        ("1 ? 5 : 1 / 0", 5),
        ("1 ? -1 : 0u", (1 << 64) - 1),
        ("1 & 3 == 3", 1),  # C: 1 & (3 == 3)
        ("2 & 3 == 3", 0),
    ],
)
def test_numbers(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$rax", (1 << 64) - 1),
        ("$rax == -1", 1),
        ("$rax < 0", 0),
        ("(s64)$rax < 0", 1),
        ("$EDX", 0x5566_7788),
        ("$dx", 0x7788),
        ("$dl", 0x88),
        ("$dh", 0x77),
        ("$r8d + $r9w - $r10b", 0x5566_7788 + 0x7788 - 0x88),
        ("$sil == $dil", 1),
        ("rdx", 0x1122_3344_5566_7788),
        ("rbx", BASE + 8),  # a symbol hides a register ...
        ("$rbx", 0x1122_3344_5566_7788),
        ("tick", 1000),  # ... but no word
        ("&tick", 7),
        ("$tick", 1000),
        ("ns", 4000),
        ("halted", 1),
        ("bits", 64),
        ("cpl", 3),
        ("$pc", 0x40),
        ("$sp", 0x30),
        ("$fp == $rbp", 1),
        ("$cr3 + $gs_base + $eflags", 9),
    ],
)
def test_registers_and_words(text: str, expected: int) -> None:
    assert value(text) == expected


def test_every_register_has_a_value() -> None:
    for name in REGISTER_NAMES:
        assert isinstance(value(f"${name}"), int)


def test_linear_addresses_in_16_bit_code() -> None:
    assert (value("$pc", bits=16), value("$rip", bits=16), value("$sp", bits=16)) == (0xF0040, 0x40, 0x130)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("counter", BASE + 0x1000),
        ("&counter + 1", BASE + 0x1001),
        ("do_it.isra.0", BASE),
        ("*counter", 0x80_FCFD_FEFF),
        ("u64[counter]", 0x80_FCFD_FEFF),
        ("u8[counter]", 0xFF),
        ("s8[counter]", -1),
        ("s16[counter]", -0x101),
        ("u32[counter]", 0xFCFD_FEFF),
        ("s32[counter] == (int)0xfcfdfeff", 1),
        ("i32[counter] == *(int*)counter", 1),
        ("*(int*)counter", -0x3020101),
        ("*(unsigned int*)counter", 0xFCFD_FEFF),
        ("*(char*)counter", -1),
        ("*(u8*)(counter + 4)", 0x80),
        ("((u16*)counter)[2]", 0x80),
        ("*((u16*)counter + 2)", 0x80),
        ("*(2 + (u16*)counter)", 0x80),
        ("(u16*)counter + 2", BASE + 0x1004),
        ("((u16*)counter + 2) - (u16*)counter", 2),
        ("(char*)(counter + 8) - (char*)counter", 8),
        ("p64[0x1008]", 0x1000),
        ("p16[u64[counter + 8]]", 0xFEFF),
        ("*(u8**)(counter + 8)", 0x1000),
        ("u8[counter] & 0xf0", 0xF0),
        ("-u8[counter]", -255),
        ("u8[counter] - u16[counter] < 0", 1),  # narrow numbers keep their value
        ("str[name]", b"init: ready\n"),
        ('str[name] == "init: ready\\n"', 1),
        ('str[name] != "init"', 1),
        ('str[name] ~ "^init: \\w+$"', 1),
        ('str[name + 6] ~ "init"', 0),
        ('str[name] == str[name] && "a" != "b"', 1),
        ("0 ? str[name] : console", b"one\ntwo: \xff\n"),
        ('console ~ "one\\ntwo"', 1),
        ('!(console ~ "panic")', 1),
    ],
)
def test_memory_and_text(text: str, expected: int | bytes) -> None:
    assert value(text) == expected


def test_text_ends_where_memory_does() -> None:
    RAM[-4:] = b"tail"
    assert value(f"str[{BASE + len(RAM) - 4}]") == b"tail"
    with pytest.raises(NoValue):
        value("str[0]")


def test_the_console_grows() -> None:
    panicked = compile_condition(r'console ~ "panic: \d+"')
    seen = {tick: panicked(Guest(tick)) for tick in (0, 999, 1000, 1001, 5000)}  # type: ignore[arg-type]
    assert seen == {0: False, 999: False, 1000: False, 1001: True, 5000: True}
    # A Denali guest prints with the instruction that ends in its event's tick.
    other = compile_condition(r'console ~ "panic: \d+"')
    assert other(Guest(1000, kind="denali")) and not other(Guest(999, kind="denali"))  # type: ignore[arg-type]


# ---- what has no value, and what is wrong


def test_no_memory_is_an_error_to_print_and_no_to_a_condition() -> None:
    guest: Any = Guest()
    for text in ("u8[0]", "*0", "p8[1 << 40]", "u64[-1]", "u64[-4]", "str[5]", "1 / (tick - 1000)"):
        with pytest.raises(NoValue):
            evaluate_any(text, guest)
        assert compile_condition(f"({text}) == 0" if "str" not in text else f'{text} == ""')(guest) is False
    assert compile_condition("!u8[0]")(guest) is False
    assert compile_condition("tick == 1000 || u8[0]")(guest) is True
    with pytest.raises(NoValue, match=r"no memory is mapped at physical 0x10000000000"):
        evaluate("p8[1 << 40]", guest)


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("", 1, "an expression is wanted"),
        ("1 +", 4, "missing at the end"),
        ("1 2", 3, "not expected"),
        ("$rax = 1", 6, "`==` compares"),
        ("1,000", 2, "without commas"),
        ("(1 + 2", 7, "')' is wanted"),
        ("u32[4", 6, "']' is wanted"),
        ("nosuch + 1", 1, "there is no symbol or register 'nosuch'"),
        ("1 + $foo", 5, "there is no register '$foo'"),
        ("&rax", 2, "there is no symbol 'rax'"),
        ("010", 1, "octal is written 0o17"),
        ("0x", 1, "is not a number"),
        ("1 << 0x1_0000_0000_0000_0000", 6, "more than 64 bits"),
        ("'ab'", 1, "one byte"),
        ('"abc', 1, "not closed"),
        ("console", 1, "a text is not a condition"),
        ('1 && "x"', 6, "a text is not a condition"),
        ("console == 3", 9, "compares with a text only"),
        ('console < "a"', 9, "texts compare with"),
        ('rax ~ "a"', 1, "`~` matches a text"),
        ("console ~ 5", 11, "regular expression in quotes"),
        ('console ~ "("', 11, "is wrong"),
        ("console + 1", 1, "a number is wanted here"),
        ("counter > 5", 9, "*counter or u32[counter]"),
        ("counter", 1, "counter is an address"),
        ("!counter", 2, "counter is an address"),
        ("counter && 1", 1, "counter is an address"),
        ("u32[counter] == -1", 14, "never negative"),
        ("$eax < 0 || -1 == $al", 16, "(s8)"),
        ("counter[1]", 8, "only a pointer can be indexed"),
        ("*(void*)counter", 1, "void*"),
        ("(void)1", 7, "void"),
        ("(unsigned void)1", 15, "no type 'unsigned void'"),
        ("(u8*)1 + (u8*)2", 8, "two pointers"),
        ("1 - (u8*)2", 3, "a pointer cannot be subtracted"),
    ],
)
def test_errors_say_where(text: str, column: int, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_condition(text, Symbols())
    assert said in str(caught.value)
    assert caught.value.column == column, str(caught.value)


def test_an_address_compares_with_a_register() -> None:
    guest: Any = Guest()
    assert not compile_condition("$pc == counter || &counter == 5", Symbols())(guest)
    assert evaluate("counter", guest, Symbols()) == BASE + 0x1000


def test_a_text_is_no_number() -> None:
    with pytest.raises(UsageError, match="this is a text"):
        evaluate("console", Guest())  # type: ignore[arg-type]
    expression = compile_expression("console")
    assert expression.is_text and expression.names_console
    assert not compile_expression("tick").names_console


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("u32[counter] == 5", [(BASE + 0x1000, 4, False)]),
        ("*counter + p16[0x10 + 2 * 3]", [(BASE + 0x1000, 8, False), (0x16, 2, True)]),
        ("*(int*)(&counter - 8) > 3 ? s8[-1] : 0", [(BASE + 0xFF8, 4, False), ((1 << 64) - 1, 1, False)]),
        ("((u16*)counter)[1 + 1]", [(BASE + 0x1004, 2, False)]),
        ("(u8)u64[counter] & 1 || !u8[1]", [(BASE + 0x1000, 8, False), (1, 1, False)]),
        ("5 == 5", []),
        ("u32[counter] == $rax", None),
        ("u32[counter] == tick", None),
        ("u32[$rsp] == 5", None),
        ("u32[u64[counter]] == 5", None),
        ("u32[counter / 0]", None),
        ('str[counter] == "x"', None),
        ('u32[counter] && console ~ "x"', None),
        ("u32[counter] && rax", None),
    ],
)
def test_the_memory_that_an_expression_depends_on(
    text: str, places: list[tuple[int, int, bool]] | None
) -> None:
    found = compile_expression(text, Symbols()).places
    assert (None if found is None else [tuple(place) for place in found]) == places
