"""Conversations on a guest's console: what becomes of a script, whatever the guest says."""

from __future__ import annotations

import pytest
from guest_rig import Story, ToldGuest, shell
from hypothesis import given, settings
from hypothesis import strategies as st

from tt.chronus.probes.console import Conversation, Transcript
from tt.chronus.probes.script import parse_script
from tt.chronus.search.verdicts import Outcome, ProbeError, ProbeVerdict


def talk(story: Story, script: str, timeout_s: float = 1000.0) -> tuple[ProbeVerdict, ToldGuest]:
    guest = ToldGuest(story)
    return Conversation(guest, parse_script(script, "a.console"), timeout_s).hold(), guest


def says(*parts: bytes | float, end: str | None = None) -> Story:
    yield from parts
    return end


def getty(password: bytes | None) -> Story:
    """Ask for a name, and for a password where there is one; then be a shell."""
    yield b"\x1b[2J[  OK  ] Started getty.\r\nDebian 12 host ttyS0\r\n\r\nhost login: "
    name = yield None
    yield name.replace(b"\r", b"\r\n")
    if password is not None:
        yield b"Password: "
        given = yield None
        yield b"\r\n"
        yield 1.0
        if given != password + b"\r":
            yield b"Login incorrect\r\nhost login: "
            return None
    yield b"Last login: Mon\r\n"
    return (yield from shell({"false": 1, "broken": 127, "skip": 125}))


def test_what_appears_first_decides() -> None:
    script = "good if /up/\nbad if /down/"
    assert talk(says(b"down and up"), script)[0].outcome is Outcome.BAD
    assert talk(says(b"u", b"p, down"), script)[0].outcome is Outcome.GOOD
    verdict, _ = talk(says(b"x\r\n\x1b[31mdo", b"wn\x1b[0m"), script)
    assert (verdict.outcome, verdict.output) == (Outcome.BAD, "a.console:2: bad: 'down' appeared")
    assert verdict.reads == {1, 2}
    assert verdict.console == "x\ndown"


def test_expect_looks_behind_what_was_matched() -> None:
    script = "expect /a./\nexpect /a./ within 5s or bad\ngood"
    assert talk(says(b"ab", b"ac"), script)[0].outcome is Outcome.GOOD
    verdict, guest = talk(says(b"ab"), script)
    assert (verdict.outcome, verdict.output) == (Outcome.BAD, "a.console:2: /a./ did not appear in 5 s")
    assert guest.seconds == pytest.approx(5.0)


def test_too_late_is_a_hang_unless_the_script_says_otherwise() -> None:
    late = (b"boot", 70.0, b"login:")
    assert talk(says(*late), "expect /login:/")[0].outcome is Outcome.HANG
    assert talk(says(*late), "timeout 2m\nexpect /login:/")[0].outcome is Outcome.GOOD
    assert talk(says(*late), "good if /login:/\nbad after 10s")[0].outcome is Outcome.BAD
    verdict, guest = talk(says(*late), "timeout 2m\nexpect /login:/", timeout_s=30)
    assert (verdict.outcome, verdict.output) == (
        Outcome.HANG,
        "a.console:2: the 30 s for all of it are over",
    )
    assert guest.seconds == pytest.approx(30.0)


def test_the_end_of_the_guest_is_a_crash() -> None:
    verdict, _ = talk(says(b"Booting\r\n", end="reset"), "expect /login:/")
    assert (verdict.outcome, verdict.signature) == (Outcome.CRASH, "reset")
    panic = b"[    1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
    verdict, guest = talk(says(b"x\r\n", panic, 500.0), "expect /login:/")
    assert (verdict.outcome, verdict.console[-10:]) == (Outcome.CRASH, "0x00000100\n"[-10:])
    assert verdict.signature.startswith("Kernel panic - not syncing: Attempted to kill init!")
    assert guest.seconds < 60
    # A script that waits for a panic gets it, and may go on.
    assert talk(says(panic), "bad if /panic/")[0].outcome is Outcome.BAD
    assert talk(says(panic, b"more"), "expect /panic/\nexpect /more/")[0].outcome is Outcome.GOOD


def test_what_is_looked_out_for_ends_any_wait() -> None:
    script = "bad whenever /oh no/i\nexpect /a/\nexpect /b/"
    assert talk(says(b"a", b"b"), script)[0].outcome is Outcome.GOOD
    verdict, _ = talk(says(b"a", b"Oh No\n", b"b"), script)
    assert (verdict.outcome, verdict.output) == (Outcome.BAD, "a.console:1: bad: 'Oh No' appeared")


@pytest.mark.parametrize("password", [None, b"secret", b"with space"])
def test_login_and_run(password: bytes | None) -> None:
    words = f" '{password.decode()}'" if password else ""
    verdict, guest = talk(getty(password), f"login root{words}\nrun true\nrun echo 'it''s'\nrun false")
    assert (verdict.outcome, verdict.exit_code) == (Outcome.BAD, 1)
    assert verdict.output == "said of 1\na.console:4: 'false' exits with 1"
    typed = guest.typed.split(b"\r")
    assert typed[0] == b"root"
    assert b"sh -c true; echo chronus'-'1-$?-" in typed
    assert talk(getty(password), f"login root{words}\nrun skip")[0].outcome is Outcome.SKIP
    assert talk(getty(password), f"login root{words}\nrun true")[0].outcome is Outcome.GOOD


def test_login_that_is_refused_is_bad() -> None:
    verdict, _ = talk(getty(b"secret"), "login root guess")
    assert (verdict.outcome, verdict.output) == (Outcome.BAD, "a.console:1: bad: 'Login incorrect' appeared")


def test_login_does_nothing_at_a_prompt() -> None:
    verdict, guest = talk(shell({}), "login root\nrun true")
    assert verdict.outcome is Outcome.GOOD
    assert b"root" not in guest.typed


def test_enter_brings_back_a_prompt_that_was_printed_over() -> None:
    def story() -> Story:
        yield b"login: "
        yield b"\r\n[   10.1] random: crng init done\r\n"
        typed = yield None
        assert typed == b"\r"
        yield from shell({})

    assert talk(story(), "login root\nrun true")[0].outcome is Outcome.GOOD


def test_enter_answers_no_questions() -> None:
    verdict, guest = talk(says(b"Remove everything? [Y/n] "), "type apt remove x\nrun true")
    assert (verdict.outcome, guest.typed) == (Outcome.HANG, b"apt remove x\r")


def test_errors_of_a_script_are_no_verdicts() -> None:
    with pytest.raises(
        ProbeError, match=r"^a.console:1: a password is asked for: write login root PASSWORD$"
    ):
        talk(getty(b"x"), "login root")
    with pytest.raises(ProbeError, match=r"^'broken' cannot be run in the guest \(exit code 127\)"):
        talk(getty(None), "login root\nrun broken")
    with pytest.raises(ProbeError, match="was interrupted in the guest"):
        talk(shell({"x": 130}), "run x")
    with pytest.raises(ProbeError, match="too many to type"):
        talk(shell({}), "run " + "x" * 5000)


def test_a_command_that_does_not_end_is_a_hang() -> None:
    def story() -> Story:
        yield b"# "
        yield (yield None)

    verdict, _ = talk(story(), "timeout 5s\nrun sleep 100")
    assert (verdict.outcome, verdict.output) == (
        Outcome.HANG,
        "a.console:2: 'sleep 100' did not end in 5 s",
    )
    verdict, _ = talk(says(b"no prompt\r\n"), "timeout 5s\nrun true")
    assert verdict.output == "a.console:2: there is no prompt to run 'true' at: log in first (login USER)"


def test_pause_hears_and_goes_on() -> None:
    verdict, guest = talk(says(b"a", 1.0, b"b"), "pause 3s\nexpect /b/ within 1ms\nskip why not")
    assert (verdict.outcome, verdict.output) == (Outcome.SKIP, "a.console:3: why not")
    assert guest.seconds == pytest.approx(3.0)


_CONSOLE = b"a\x1b[31;1mb\x1b[0m\r\nc\xc3\xa9\x1b]0;title\x07d\x1b(Be\x1bMf\0\a\x1b[6ng\x1b]1;x\x1b\\h\xff"


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(_CONSOLE)), max_size=8))
def test_text_is_the_same_however_it_comes(cuts: list[int]) -> None:
    heard = Transcript()
    places = [0, *sorted(cuts), len(_CONSOLE)]
    for begin, end in zip(places, places[1:], strict=False):
        heard.feed(_CONSOLE[begin:end])
    assert heard.text == "ab\nc\u00e9defgh\ufffd"


def test_a_transcript_does_not_grow_for_ever() -> None:
    heard = Transcript()
    heard.mark = 5
    for _ in range(40):
        heard.feed(b"\x1b]0;" + b"x" * 50_000)
    assert len(heard.text) <= 256 << 10
    assert heard.mark == 0
    assert heard.total > len(heard.text)
