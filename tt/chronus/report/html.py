"""A search's result as one HTML page that needs nothing else: no scripts, no fonts, no network.

Everything from the guest, the command line and the history is text, never markup, and the page's security
policy allows only its own style sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tt.chronus.files.changes import Change
from tt.chronus.report import picture
from tt.chronus.report.markup import lines, tag, text
from tt.chronus.report.style import sheet
from tt.chronus.search.bisect import Bisection, Probed, Turn
from tt.chronus.store.history import History
from tt.chronus.why.finding import Finding, patch
from tt.chronus.why.writer import Author
from tt.errors import UsageError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SIGNS = {False: ("good", "●"), True: ("bad", "■"), None: ("skip", "▲")}
_MOST_CHANGES = 40
_MOST_ROWS = 1000
_MOST_CANDIDATES = 60
_TAIL = 6000  # characters of a console
_SAID = 400


def write_report(path: Path, history: History, found: Bisection, findings: Sequence[Finding]) -> None:
    """Write the page to `path`; raises `UsageError` where that cannot be."""
    try:
        path.write_text("\n".join(page(history, found, findings)), encoding="utf-8", errors="replace")
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}") from None


def page(history: History, found: Bisection, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the page in pieces; `findings` has one for each turn, in order, or is empty."""
    headline = _headline(history, found, findings)
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield tag("title", text(f"{headline} ({history.trace.path.name})"))
    yield f"<style>{sheet()}</style></head><body><main>"
    yield tag("h1", text(headline))
    yield f'<p class="soft">{text(history.name)}, probed with <code>{text(found.probe)}</code></p>'
    yield from _facts(history, found)
    for at, turn in enumerate(found.turns):
        yield from _answer(history, turn, findings[at] if at < len(findings) else None)
    yield "<h2>The search</h2><figure>"
    yield from picture.draw(history, found)
    more = picture.left_out(found)
    rest = f"&ensp; {more:,} probes more are not drawn" if more else ""
    yield f"<figcaption>{picture.legend()}{rest}</figcaption></figure>"
    for finding in findings:
        yield from _finding(history, found, finding)
    yield from _table(history, found)
    yield "<footer>Written by chronus. Instant w17 is the disk after its first 17 writes.</footer>"
    yield "</main></body></html>"


def _headline(history: History, found: Bisection, findings: Sequence[Finding]) -> str:
    if not found.turns:
        return "No turn was found"
    turn = found.turns[0]
    verb = "broke" if turn.becomes_bad else "was fixed"
    paths = findings[0].paths if findings else []
    what = f": {', '.join(paths[:3])}{' and more' if len(paths) > 3 else ''}" if paths else ""
    more = f" (the first of {len(found.turns)} turns)" if len(found.turns) > 1 else ""
    return f"It {verb} at {history.label(turn.after)}{what}{more}"


def _facts(history: History, found: Bisection) -> Iterator[str]:
    low, high = sorted((found.good, found.bad))
    facts = [
        (f"{high - low:,}", "writes searched"),
        (f"{len(history.bursts(low, high)):,}", "bursts"),
        (f"{found.ran:,}", "probes run"),
        (f"{found.shared:,}", "answers shared"),
        (f"{found.seconds:,.1f} s", "in all"),
    ]
    yield '<div class="facts">'
    for number, name in facts:
        yield f"<div><b>{number}</b><span>{name}</span></div>"
    yield "</div>"


def _answer(history: History, turn: Turn, finding: Finding | None) -> Iterator[str]:
    verb = "breaks" if turn.becomes_bad else "is fixed"
    yield f'<div class="answer{"" if turn.becomes_bad else " fixed"}">'
    burst = finding.burst if finding is not None else None
    image = history.image_at(turn.after)
    if image is not None and image.before == turn.before:
        yield f"<p>It {verb} with the image <b>{text(image.name)}</b>, "
        yield f"{text(history.describe(turn.after))}.</p>"
    elif (
        burst is not None
        and len(turn.candidates) > 1
        and (burst.before, burst.after) == (turn.before, turn.after)
    ):
        yield f"<p>It {verb} in the burst of {burst.count:,} writes that ends with "
        yield f"<b>{text(history.describe(turn.after))}</b>.</p>"
    elif len(turn.candidates) <= 1:
        yield f"<p>It {verb} with <b>{text(history.describe(turn.after))}</b>.</p>"
    else:
        shown = ", ".join(history.label(number) for number in turn.candidates[:_MOST_CANDIDATES])
        more = ", ..." if len(turn.candidates) > _MOST_CANDIDATES else ""
        yield f"<p>It {verb} after <b>{text(history.describe(turn.before))}</b>, and not later than "
        yield f"<b>{text(history.describe(turn.after))}</b>: {len(turn.candidates):,} writes, which could "
        yield f'not be told apart.</p><p class="soft">{text(shown)}{more}</p>'
    if turn.confidence < 1:
        yield f"<p>Known with {turn.confidence:.2%} confidence: this probe is sometimes wrong.</p>"
    if finding is not None:
        yield from _minimal(finding)
        if finding.authors:
            yield from _author(finding.authors[0])
    yield "</div>"


def _minimal(finding: Finding) -> Iterator[str]:
    if finding.minimal is None:
        return
    first, *rest = finding.minimal.lines()
    yield f"<p>{text(first[:1].upper() + first[1:])}</p>"
    named = [line for line in rest if line.startswith("  ")]
    if named:
        yield "<ul>" + "".join(f"<li><code>{text(line.strip())}</code></li>" for line in named) + "</ul>"
    for line in rest:
        if not line.startswith("  "):
            state = "good" if finding.minimal.verified else "skip"
            yield f'<p class="{state}">{text(line[:1].upper() + line[1:])}.</p>'


def _author(author: Author) -> Iterator[str]:
    """Show a process with its ancestors, the oldest first."""
    task = author.task
    chain = [f"<span>{text(name)} {pid}</span>" for pid, name in reversed(task.parents)]
    chain.append(f'<span class="who">{text(task.name)} {task.pid}</span>')
    how = "Written by" if author.stored else "Sent to the disk by"
    yield f'<div class="chain"><i>{how}</i> {" <i>→</i> ".join(chain)}</div>'
    yield _origin(author)


def _origin(author: Author) -> str:
    """Return when and how a change was made, and on which way it reached the disk."""
    task, sent = author.task, author.submitter
    facts = [f"tick {author.tick:,}"]
    if task.command:
        facts.append(f"<code>{text(' '.join(task.command))}</code>")
    if task.uid is not None:
        facts.append(f"user {task.uid}")
    if author.symbol:
        facts.append(f"in <code>{text(author.symbol)}</code>")
    way = f"{text(author.what)} went to the disk by {text(sent.name)} ({sent.pid}), as w{author.write}"
    return f'<p class="soft">{", ".join(facts)}; {way}</p>'


def _finding(history: History, found: Bisection, finding: Finding) -> Iterator[str]:
    turn = finding.turn
    where = history.label(turn.after)
    yield f"<h2>What changed at {text(where)}</h2>"
    if finding.burst is not None:
        burst = finding.burst
        yield f'<p class="soft">in the burst {history.label(burst.first)} to {history.label(burst.last)}: '
        yield f"{burst.count:,} writes, {burst.size:,} bytes</p>"
    if not finding.changes and finding.burst_changes:
        yield '<p class="soft">The write itself changes no file that can be seen yet; its burst does:</p>'
    shown = finding.shown
    for change in shown[:_MOST_CHANGES]:
        yield from _change(finding, change)
    if len(shown) > _MOST_CHANGES:
        names = "".join(
            f"<li>{change.letter} {text(change.path)}</li>" for change in shown[_MOST_CHANGES:5000]
        )
        more = f"<summary>{len(shown) - _MOST_CHANGES:,} files more</summary>"
        yield f"<details>{more}<ul>{names}</ul></details>"
    if not shown and finding.regions:
        touched = ", ".join(
            sorted({f"{each.volume} {each.kind} {each.path}".strip() for each in finding.regions[:40]})
        )
        yield f"<p>No file changed. Blocks of: {text(touched)}</p>"
    for author in finding.authors if not shown else ():
        yield from _author(author)
    for note in finding.notes:
        yield f'<p class="soft">{text(note)}</p>'
    yield from _console(history, found, turn)


def _change(finding: Finding, change: Change) -> Iterator[str]:
    guilty = finding.minimal is not None and change.path in finding.minimal.paths
    mark = ' <span class="bad">■ guilty</span>' if guilty else ""
    yield f"<h3>{change.letter} {text(change.path)}{mark}</h3>"
    told = change.describe()
    if told:
        yield f'<p class="soft">{text(told)}</p>'
    author = finding.author_of(change.path)
    if author is not None:
        yield f"<p>Written by <b>{text(author.task.name)}</b> ({author.task.pid})</p>{_origin(author)}"
    yield "<pre>" + "".join(_diff(patch(change))) + "</pre>"


def _diff(written: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a diff in colour; of a line that became another, what differs is marked."""
    at, inside = 0, False
    while at < len(written):
        line = written[at]
        if line.startswith("@@"):
            inside = True
        pair = inside and _is_pair(written, at)
        if pair:
            old, new = line[1:], written[at + 1][1:]
            head, tail = _common(old, new)
            yield _marked("gone", "-", old, head, tail)
            yield _marked("add", "+", new, head, tail)
            at += 2
            continue
        kind = "head"
        if inside:
            kind = {"+": "add", "-": "gone", "@": "hunk", "\\": "head"}.get(line[:1], "")
        yield tag("span", lines(line), class_=kind) if kind else tag("span", lines(line))
        at += 1


def _is_pair(written: Sequence[str], at: int) -> bool:
    """Whether one line was replaced by one other, with no other change next to it."""
    around = [written[i][:1] if 0 <= i < len(written) else "" for i in range(at - 1, at + 3)]
    return around[1] == "-" and around[2] == "+" and around[0] != "-" and around[3] != "+"


def _common(old: str, new: str) -> tuple[int, int]:
    """Return how many characters two lines share at their beginnings and at their ends."""
    most = min(len(old), len(new))
    head = next((i for i in range(most) if old[i] != new[i]), most)
    tail = next((i for i in range(most - head) if old[-1 - i] != new[-1 - i]), most - head)
    return head, tail


def _marked(kind: str, sign: str, line: str, head: int, tail: int) -> str:
    end = len(line) - tail
    middle = f"<mark>{lines(line[head:end])}</mark>" if head < end else ""
    return tag("span", f"{sign}{lines(line[:head])}{middle}{lines(line[end:])}", class_=kind)


def _console(history: History, found: Bisection, turn: Turn) -> Iterator[str]:
    """Show what the probe and the guest printed on both sides of a turn, if anything."""
    for instant, name in ((turn.before, "before"), (turn.after, "after")):
        one = next((one for one in found.probed if one.instant == instant), None)
        if one is None or not (one.verdict.console.strip() or one.verdict.output.strip()):
            continue
        told = one.verdict.console.strip() or one.verdict.output.strip()
        what = "console" if one.verdict.console.strip() else "output"
        is_open = " open" if name == "after" else ""
        yield f"<details{is_open}><summary>The {what} {name}: {text(history.label(instant))}, "
        yield f'{_state(one)}</summary><pre class="plain">{lines(told[-_TAIL:])}</pre></details>'


def _table(history: History, found: Bisection) -> Iterator[str]:
    yield '<h2>Probes</h2><div class="scroll"><table>'
    yield "<tr><th></th><th>instant</th><th>verdict</th><th>took</th><th>what was said</th></tr>"
    for number, one in enumerate(found.probed[:_MOST_ROWS], 1):
        verdict = one.verdict
        took = "known" if verdict.cached else f"{verdict.seconds:.1f} s"
        yield f'<tr><td class="soft">{number}</td><td>{text(history.describe(one.instant))}</td>'
        yield f'<td>{_state(one)}</td><td>{took}</td><td class="said mono">{_said(verdict.output)}'
        if verdict.console.strip():
            tail = lines(verdict.console[-_TAIL:])
            yield f'<details><summary>console</summary><pre class="plain">{tail}</pre></details>'
        yield "</td></tr>"
    yield "</table></div>"
    if len(found.probed) > _MOST_ROWS:
        yield f'<p class="soft">and {len(found.probed) - _MOST_ROWS:,} more</p>'


def _state(one: Probed) -> str:
    name, sign = _SIGNS[one.bad]
    signature = f": {one.verdict.signature}" if one.verdict.signature else ""
    return f'<span class="{name}">{sign} {text(one.verdict.outcome.value + signature)}</span>'


def _said(output: str) -> str:
    said = [line for line in output.splitlines() if line.strip()]
    return text(said[-1].strip()[:_SAID]) if said else ""
