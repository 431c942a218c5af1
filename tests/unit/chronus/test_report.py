"""Reports: whole and well-formed whatever the guest wrote, and with the answer in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from file_rig import FILES, edited, make_ext, need, put

from tt.chronus.report.html import page, write_report
from tt.chronus.report.markup import lines, text
from tt.chronus.report.picture import draw
from tt.chronus.report.style import DARK, LIGHT, sheet
from tt.chronus.report.terminal import render
from tt.chronus.search.bisect import Bisection, Probed, Turn
from tt.chronus.search.verdicts import Outcome, ProbeVerdict
from tt.chronus.store.history import History
from tt.chronus.store.importing import import_images, pictures
from tt.chronus.why.finding import Finding, explain
from tt.chronus.why.minimize import Minimal
from tt.chronus.why.tasks import Task
from tt.chronus.why.writer import Author
from tt.errors import UsageError

EVIL = "</style><script>alert(1)</script>\x1b[2J\u202e\"'&<!--"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Strict(HTMLParser):
    """Checks that elements are closed in order, and notes what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert not parser.open, parser.open
    return parser


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("report")
    need("debugfs")
    image = make_ext(folder / "i0", FILES, "-O", "^has_journal", size="2M")
    evil = EVIL.replace("/", "").replace('"', "")
    steps = [
        ("rm /etc/hosts", put(folder, b"one\nTWO\nthree\n", "/etc/hosts")),
        (put(folder, EVIL.encode() + b"\n", f'"/etc/{evil}"'),),
        ("sif /etc/fstab mode 0100600",),
    ]
    images = [image]
    for step in steps:
        images.append(edited(images[-1], *step))
    named = [path.rename(folder / f"s{n}.img") for n, path in enumerate(images)]
    import_images(folder / "x.tt", pictures(named))
    with History.open(folder / "x.tt") as history:
        yield history


def a_search(history: History, count: int = 6) -> Bisection:
    """Return a search that ended inside of the third burst, with all sorts of verdicts."""
    found = Bisection(history.trace.path, f"--files '{EVIL}'", 1, history.count)
    burst = history.bursts()[2]
    outcomes = [Outcome.GOOD, Outcome.BAD, Outcome.SKIP, Outcome.CRASH, Outcome.HANG]
    for number in range(count):
        outcome = outcomes[number % 5]
        verdict = ProbeVerdict(
            outcome, EVIL, 1, output=f"{EVIL}\nlast line {EVIL}", console=f"boot\r\n{EVIL}\x07"
        )
        bad = {Outcome.GOOD: False, Outcome.BAD: True}.get(outcome)
        instant = 1 + number * 7 % history.count if number > 1 else (1, history.count)[number]
        found.probed.append(Probed(instant, replace(verdict, cached=number % 3 == 2), bad))
    found.turns = [Turn(burst.before, burst.after, True, tuple(range(burst.first, burst.last + 1)))]
    return found


def findings_of(history: History, found: Bisection) -> list[Finding]:
    finding = explain(history, found.turns[0], None, found)
    task = Task(7, EVIL, 1000, False, ("/bin/sh", EVIL), ((3, EVIL), (1, "init")))
    finding.authors = [
        Author(change.path, "its contents", task, 5, 6, f"{EVIL}+0x3", 9, task) for change in finding.shown
    ]
    finding.minimal = Minimal((EVIL, "b"), 9, True, "", (), 1.5)
    finding.notes = [EVIL]
    return [finding]


def test_the_page_is_whole_and_nothing_of_the_guest_is_markup(history: History, tmp_path: Path) -> None:
    found = a_search(history)
    out = tmp_path / "r.html"
    write_report(out, history, found, findings_of(history, found))
    html = out.read_text()
    seen = parsed(html)
    assert "script" not in seen.seen
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("href", "src")]
    assert "alert(1)" in seen.text, "it is shown, as text"
    assert "\x1b" not in html and "\u202e" not in html and "\\u202e" in html
    assert html.count("<!doctype html>") == 1 and html.count("<style>") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html), "nothing comes from elsewhere"
    assert "verified: undoing only these" in seen.text.lower()


def test_what_differs_in_a_line_is_marked(history: History) -> None:
    found = a_search(history)
    first = history.bursts()[1]
    found.turns = [Turn(first.before, first.after, True, (first.after,))]
    html = "\n".join(page(history, found, [explain(history, found.turns[0], None, found)]))
    assert '<span class="gone">-<mark>two</mark></span><span class="add">+<mark>TWO</mark></span>' in html
    assert "It broke at" in html and "/etc/hosts" in html


@pytest.mark.parametrize("count", [2, 6, 60, 300])
def test_the_picture_is_well_formed_and_inside_its_frame(history: History, count: int) -> None:
    found = a_search(history, count)
    svg = ElementTree.fromstring("".join(draw(history, found)))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for each in svg.iter():
        for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            if name in each.attrib:
                assert 0 <= float(each.attrib[name]) <= most, ElementTree.tostring(each)
    assert height < 6000
    classes = " ".join(each.attrib.get("class", "") for each in svg.iter())
    for name in set(classes.split()):
        assert f".{name} " in sheet(), f"{name} has no style"


def test_a_search_that_found_nothing_and_one_in_parallel_have_pages(history: History) -> None:
    found = replace(a_search(history), turns=[])
    assert "No turn was found" in parsed("\n".join(page(history, found, []))).text
    turn = Turn(1, 3, False, (2, 3), 0.97)
    two = replace(found, turns=[turn, replace(turn, before=5, after=6, candidates=(6,), becomes_bad=True)])
    told = parsed("\n".join(page(history, two, []))).text
    assert "the first of 2 turns" in told and "97.00% confidence" in told


def test_colours_can_be_read_in_light_and_in_dark() -> None:
    """WCAG 2.1, contrast (minimum): 4.5 to 1 for text on every background that it is put on."""
    for colours in (LIGHT, DARK):
        for ink in ("ink", "soft", "good", "bad", "skip", "link"):
            for paper in ("paper", "card"):
                assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
        for paper in ("add", "gone", "addmark", "gonemark"):
            assert contrast(colours["ink"], colours[paper]) >= 4.5, paper
    assert LIGHT.keys() == DARK.keys()
    assert set(re.findall(r"var\(--(\w+)\)", sheet())) <= LIGHT.keys()


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_terminal_gets_nothing_that_moves_its_cursor(history: History) -> None:
    found = a_search(history)
    told = "\n".join(render(history, found, findings_of(history, found)))
    assert not [c for c in told if not c.isprintable() and c != "\n"]
    assert "breaks with the image @" in told and "of the 9 changes together make the difference" in told
    assert max(map(len, told.splitlines())) < 2000
    coloured = "\n".join(render(history, found, findings_of(history, found), colours=True))
    assert set(re.findall(r"\x1b\[[0-9;]*.", coloured)) <= {f"\x1b[{n}m" for n in (0, 1, 2, 31, 32, 33, 36)}


def test_what_skips_left_open_is_listed(history: History) -> None:
    found = a_search(history)
    found.turns = [Turn(2, 5, True, (3, 4, 5), 0.991)]
    told = "\n".join(render(history, found, []))
    assert "it breaks somewhere from w2 to w5 (with 99.1% confidence): 3 writes, not told apart" in told
    assert "candidates: w3, w4, w5" in told
    assert "3 writes, which could" in parsed("\n".join(page(history, found, []))).text


def test_text() -> None:
    assert text("a<b>\x1b[1m\n") == "a&lt;b&gt;\\x1b[1m\\n"
    assert lines("\x1b[1mbold\x1b[0m\r\nnext\ttab\x1b]0;title\x07\x00") == "bold\nnext    tab\\x00"


def test_a_place_that_cannot_be_written_is_said(history: History, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_report(tmp_path / "none" / "r.html", history, a_search(history), [])
