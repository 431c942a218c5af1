"""The language of console scripts: what it means, and what is said of what it does not know."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.chronus.probes.script import (
    MAX_SCRIPT,
    PROMPT,
    Choice,
    End,
    Login,
    Pause,
    Run,
    Send,
    Wait,
    Watch,
    parse_script,
)
from tt.chronus.search.verdicts import Outcome
from tt.errors import BadInput


def steps(text: str) -> tuple[object, ...]:
    return parse_script(text, "a.console").steps


def regex(source: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(source, re.MULTILINE | flags)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("expect /login:/", Wait(1, (Choice(1, regex("login:"), None),), 60.0)),
        ("expect /a/ within 5s", Wait(1, (Choice(1, regex("a"), None),), 5.0)),
        ("expect /a/ within 1.5m or bad", Wait(1, (Choice(1, regex("a"), None),), 90.0, Outcome.BAD)),
        ("expect 'a b'i or skip", Wait(1, (Choice(1, regex("a b", re.I), None),), 60.0, Outcome.SKIP)),
        (r"expect /\/etc\/fs/", Wait(1, (Choice(1, regex("/etc/fs"), None),), 60.0)),
        ('expect "/etc/fs"', Wait(1, (Choice(1, regex("/etc/fs"), None),), 60.0)),
        (r"expect /a\\/ ", Wait(1, (Choice(1, regex(r"a\\"), None),), 60.0)),
        ("type  cat 'a  b' ", Send(1, b"cat 'a  b'\r")),
        ("type", Send(1, b"\r")),
        (r'send "\x03\cC\e[A\r\n\"\\é"', Send(1, b'\x03\x03\x1b[A\r\n"\\\xc3\xa9')),
        ("login root", Login(1, "root", None, PROMPT, 60.0)),
        ("login eve 'a b'", Login(1, "eve", "a b", PROMPT, 60.0)),
        ("run test -s /etc/fstab # x", Run(1, "test -s /etc/fstab # x", PROMPT, 60.0)),
        ("pause 300ms", Pause(1, 0.3)),
        ("bad whenever /panic/", Watch(1, Choice(1, regex("panic"), Outcome.BAD))),
        ("good", End(1, Outcome.GOOD, "")),
        ("skip it is too old", End(1, Outcome.SKIP, "it is too old")),
    ],
)
def test_one_step(text: str, step: object) -> None:
    assert steps(text) == (step,)


def test_neighbouring_choices_are_one_wait() -> None:
    text = "good if /up/\nbad if /down/\n# or\n\nnext if /else/\nskip after 5s\ntype x\ngood if /y/"
    first, _, second = steps(text)
    assert first == Wait(
        1,
        (
            Choice(1, regex("up"), Outcome.GOOD),
            Choice(2, regex("down"), Outcome.BAD),
            Choice(5, regex("else"), None),
        ),
        5.0,
        Outcome.SKIP,
    )
    assert second == Wait(8, (Choice(8, regex("y"), Outcome.GOOD),), 60.0, Outcome.HANG)


def test_timeout_and_prompt_hold_from_where_they_stand() -> None:
    first, second, login = steps("expect /a/\ntimeout 2m\nexpect /b/\nprompt /eve@.*> /\nlogin eve")
    assert isinstance(first, Wait) and isinstance(second, Wait) and isinstance(login, Login)
    assert (first.within_s, second.within_s, login.within_s) == (60.0, 120.0, 120.0)
    assert login.prompt == regex("eve@.*> ")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "a.console has no step in it: write one, such as expect /login:/"),
        ("timeout 5s", "a.console has no step in it: write one, such as expect /login:/"),
        ("# only\n\n", "a.console has no step in it: write one, such as expect /login:/"),
        ("\nexepct /a/", "a.console:2: no such step: 'exepct': is 'expect' meant?"),
        (
            "frobnicate",
            "a.console:1: no such step: 'frobnicate': a line begins with timeout, expect, type, send, "
            "login, run, prompt, pause, good, bad, skip or next",
        ),
        (
            "expect login",
            "a.console:1: a regex stands between slashes or quotes: expect /REGEX/ [within 5s] [or bad]",
        ),
        ("good if up", "a.console:1: a regex stands between slashes or quotes: good if /REGEX/"),
        ("expect /a", "a.console:1: the regex is not closed: put a / at its end"),
        (r"expect /a\/", "a.console:1: the regex is not closed: put a / at its end"),
        ("expect /a(/", "a.console:1: /a(/ is no regex: missing ), unterminated subpattern at position 1"),
        ("expect /a*/", "a.console:1: /a*/ matches empty text, so it would match at once"),
        ("expect /a/x", "a.console:1: 'x' behind the regex: only i (any case) may stand there"),
        ("expect /a/ or worse", "a.console:1: 'worse' is no verdict: write good, bad or skip behind 'or'"),
        (
            "expect /a/ in 5s",
            "a.console:1: unexpected 'in 5s' at the end: expect /REGEX/ [within 5s] [or bad]",
        ),
        (
            "pause 5",
            "a.console:1: '5' is no time: write a number with ms, s or m behind it: pause 2s",
        ),
        ("pause 0s", "a.console:1: 0s is out of range: a time is above 0 and at most a day"),
        ("timeout 2000m", "a.console:1: 2000m is out of range: a time is above 0 and at most a day"),
        ("send yes", r'a.console:1: the text to send stands in quotes: send "yes\r" (or use: type yes)'),
        ('send "yes', 'a.console:1: the text is not closed: put a " at its end'),
        ('send ""', "a.console:1: there is nothing to send between the quotes"),
        (
            r'send "\q"',
            'a.console:1: unknown escape \\q": there are \\r \\n \\t \\e \\a \\b \\0 \\\\ \\" '
            "\\' \\xHH (two digits) and \\cC (Ctrl-C)",
        ),
        ("login", "a.console:1: write login USER [PASSWORD], the password in quotes if it has spaces"),
        ("login a 'b", "a.console:1: a quote is not closed: login USER [PASSWORD]"),
        ("run", "a.console:1: there is no command to run: run test -s /etc/fstab"),
        ("good\ntype x", "a.console:2: is never reached: line 1 ends the script before it"),
        (
            "good if /a/\nbad if /b/\ntype x",
            "a.console:3: is never reached: line 1 ends the script before it",
        ),
        ("good\ngood if /a/", "a.console:2: is never reached: line 1 ends the script before it"),
        (
            "bad after 5s",
            "a.console:1: 'after' needs something to wait for: put a line such as good if /REGEX/ above",
        ),
        (
            "next if /a/\nbad after 5s\ngood after 6s",
            "a.console:3: the time of this wait is given twice: leave one 'after' line",
        ),
        (
            "next after 5s",
            "a.console:1: use pause to let time pass, or good, bad or skip before 'after'",
        ),
        ("a" * (MAX_SCRIPT + 1), "a.console is over 1 MB: is it a console script?"),
    ],
)
def test_errors(text: str, error: str) -> None:
    with pytest.raises(BadInput) as e:
        parse_script(text, "a.console")
    assert str(e.value) == error


_PIECES = st.sampled_from(
    [
        "expect",
        "good",
        "bad",
        "if",
        "after",
        "whenever",
        "/a/",
        "'",
        '"',
        "\\",
        "5s",
        "\n",
        " ",
        "send",
        "login",
    ]
)


@settings(max_examples=50)
@given(st.lists(st.one_of(_PIECES, st.text(string.printable, max_size=5)), max_size=30))
def test_any_text_is_a_script_or_an_error_of_one_line(pieces: list[str]) -> None:
    try:
        script = parse_script("".join(pieces), "a.console")
    except BadInput as e:
        assert str(e).startswith("a.console")
    else:
        assert script.steps
