"""A search's result as one HTML page that needs nothing else: no scripts, no fonts, no network.

Everything from the guest and the command line is escaped; the page is good in light and in dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from tt.chronus.bisect import Bisection, Probed
from tt.chronus.history import History
from tt.chronus.why import Finding, patch
from tt.errors import UsageError

_WIDTH, _LEFT, _RIGHT = 960, 40, 40
_ROW = 22
_MOST_BURSTS = 400
_STATES = {False: ("good", "●"), True: ("bad", "■"), None: ("skip", "▲")}

_STYLE = """
:root { --ink:#1c2128; --soft:#5b6470; --line:#d5dae1; --paper:#fff; --card:#f6f8fa;
  --good:#1a7f4b; --bad:#c4314b; --skip:#a06a00; --add:#e3f6ea; --del:#fdeaec; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#dfe5ec; --soft:#98a3b0; --line:#343b45; --paper:#14181d; --card:#1c2229;
    --good:#4cc38a; --bad:#ff7b8b; --skip:#e0a83c; --add:#12301f; --del:#3a161c; }
}
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,sans-serif; }
main { max-width:1040px; margin:0 auto; padding:32px 24px 64px; }
h1 { font-size:26px; margin:0 0 4px; line-height:1.25; }
h2 { font-size:18px; margin:36px 0 10px; }
p { margin:6px 0; }
.soft { color:var(--soft); } .good { color:var(--good); } .bad { color:var(--bad); } .skip { color:var(--skip); }
code, pre, td.mono { font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace; }
pre { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px 14px;
  overflow-x:auto; margin:8px 0; }
pre span { display:block; min-height:1.5em; }
pre .a { background:var(--add); } pre .d { background:var(--del); } pre .h { color:var(--soft); }
pre .b { font-weight:600; }
table { border-collapse:collapse; width:100%; font-size:14px; }
th { text-align:left; color:var(--soft); font-weight:600; }
td, th { padding:5px 10px 5px 0; border-bottom:1px solid var(--line); vertical-align:top; }
svg { width:100%; height:auto; display:block; margin:12px 0; }
svg text { fill:var(--soft); font:12px system-ui; }
.answer { border-left:4px solid var(--bad); padding:4px 0 4px 16px; margin:18px 0; }
.answer.fixed { border-color:var(--good); }
details { margin:6px 0; }
summary { cursor:pointer; color:var(--soft); }
"""


def write_report(path: Path, history: History, found: Bisection, findings: Sequence[Finding]) -> None:
    """Write the page to `path`; raises `UsageError` where that cannot be."""
    try:
        path.write_text("\n".join(page(history, found, findings)), encoding="utf-8", errors="replace")
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}") from None


def page(history: History, found: Bisection, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the page in pieces."""
    title = f"chronus bisect: {history.trace.path.name}"
    yield "<!doctype html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main>"
    yield f"<h1>{escape(_headline(history, found, findings))}</h1>"
    yield f'<p class="soft">{escape(history.name)}, <code>{escape(found.probe)}</code>: {found.ran} probes run, '
    yield f"{found.shared} shared, {found.seconds:.1f} s</p>"
    yield from picture(history, found)
    for turn in found.turns:
        kind = "breaks" if turn.becomes_bad else "is fixed"
        yield f'<div class="answer{"" if turn.becomes_bad else " fixed"}">'
        if len(turn.candidates) <= 1:
            yield f"<p>It {kind} with <b>{escape(history.describe(turn.after))}</b>.</p>"
        else:
            yield f"<p>It {kind} with one of the {len(turn.candidates):,} writes after "
            yield f"<b>{_at(history, turn.before)}</b>, up to <b>{_at(history, turn.after)}</b>, "
            yield "which were not told apart.</p>"
        if turn.confidence < 1:
            yield f'<p class="soft">Confidence {turn.confidence:.2%}, for probes that are sometimes wrong.</p>'
        yield "</div>"
    for finding in findings:
        yield from _finding(history, finding)
    yield from _table(history, found)
    yield "</main></body></html>"


def picture(history: History, found: Bisection) -> Iterator[str]:
    """Yield an SVG of the search: instants from left to right, probes from top to bottom in their order."""
    low, high = sorted((found.good, found.bad))
    height = 64 + _ROW * len(found.probed)

    def x(instant: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (instant - low) / max(high - low, 1)

    yield f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="the search over the history">'
    groups = history.bursts(low, high)
    step = max(1, len(groups) // _MOST_BURSTS)
    for burst in groups[::step]:
        left, right = x(burst.before), x(burst.after)
        yield (
            f'<rect x="{left:.1f}" y="24" width="{max(right - left - 1, 1):.1f}" height="14" rx="2" '
            f'fill="var(--line)"><title>{_at(history, burst.first)}: {burst.count} writes</title></rect>'
        )
    for turn in found.turns:
        colour = "var(--bad)" if turn.becomes_bad else "var(--good)"
        left, right = x(turn.before), x(turn.after)
        yield (
            f'<rect x="{left:.1f}" y="18" width="{max(right - left, 2):.1f}" height="{height - 30}" '
            f'fill="{colour}" opacity="0.18"/>'
        )
    yield f'<text x="{_LEFT}" y="14">{_at(history, low)}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="14" text-anchor="end">{_at(history, high)}</text>'
    points = " ".join(f"{x(one.instant):.1f},{56 + _ROW * row}" for row, one in enumerate(found.probed))
    yield f'<polyline points="{points}" fill="none" stroke="var(--line)" stroke-width="1.5"/>'
    for row, one in enumerate(found.probed):
        yield from _dot(history, one, row, x(one.instant))
    yield "</svg>"


def _dot(history: History, one: Probed, row: int, x: float) -> Iterator[str]:
    name, _sign = _STATES[one.bad]
    y = 56 + _ROW * row
    what = one.verdict.outcome.value + (
        " (shared)" if one.verdict.cached else f", {one.verdict.seconds:.1f} s"
    )
    fill = "none" if one.verdict.cached else f"var(--{name})"
    yield f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{fill}" stroke="var(--{name})" stroke-width="2">'
    yield f"<title>{_at(history, one.instant)}: {escape(what)}</title></circle>"
    side = -1 if x > _WIDTH / 2 else 1
    anchor = "end" if side < 0 else "start"
    label = f"{history.label(one.instant)} {one.verdict.outcome.value}"
    yield f'<text x="{x + 12 * side:.1f}" y="{y + 4}" text-anchor="{anchor}">{escape(label)}</text>'


def _headline(history: History, found: Bisection, findings: Sequence[Finding]) -> str:
    if not found.turns:
        return "No turn was found"
    turn = found.turns[0]
    verb = "broke" if turn.becomes_bad else "was fixed"
    paths = findings[0].paths[:3] if findings else []
    what = f": {', '.join(paths)}" if paths else ""
    more = f" (and {len(found.turns) - 1} turns more)" if len(found.turns) > 1 else ""
    return f"It {verb} at {history.label(turn.after)}{what}{more}"


def _finding(history: History, finding: Finding) -> Iterator[str]:
    yield f"<h2>What changed at {_at(history, finding.turn.after)}</h2>"
    if finding.burst is not None:
        first, last = history.label(finding.burst.first), history.label(finding.burst.last)
        yield f'<p class="soft">in the burst {first} to {last}, {finding.burst.count:,} writes</p>'
    if finding.minimal is not None:
        for line in finding.minimal.lines():
            yield f"<p>{escape(line)}</p>"
    if finding.author is not None:
        yield f"<p>Written by <b>{escape(finding.author.describe())}</b>.</p>"
    if not finding.changes and finding.burst_changes:
        yield '<p class="soft">The write itself changes no file that can be seen yet; its burst does:</p>'
    for change in finding.changes or finding.burst_changes:
        yield "<pre>" + "".join(_line(line) for line in patch(change)) + "</pre>"
    for note in finding.notes:
        yield f'<p class="soft">{escape(note)}</p>'


def _line(line: str) -> str:
    kind = (
        "b" if line.startswith(("diff ", "+++", "---")) else {"+": "a", "-": "d", "@": "h"}.get(line[:1], "")
    )
    return f'<span class="{kind}">{escape(line)}</span>'


def _table(history: History, found: Bisection) -> Iterator[str]:
    yield "<h2>Probes, in their order</h2><table><tr><th></th><th>instant</th><th>verdict</th><th>time</th>"
    yield "<th>what was said</th></tr>"
    for one in found.probed:
        name, sign = _STATES[one.bad]
        verdict = one.verdict
        what = verdict.outcome.value + (f": {verdict.signature}" if verdict.signature else "")
        seconds = "shared" if verdict.cached else f"{verdict.seconds:.1f} s"
        yield f'<tr><td class="{name}">{sign}</td><td>{_at(history, one.instant)}</td>'
        yield f'<td class="{name}">{escape(what)}</td><td>{seconds}</td><td class="mono">{_said(verdict.output)}'
        if verdict.console.strip():
            yield f"<details><summary>console</summary><pre>{escape(verdict.console[-2000:])}</pre></details>"
        yield "</td></tr>"
    yield "</table>"


def _said(output: str) -> str:
    lines = output.strip().splitlines()
    return escape(lines[-1][:300]) if lines else ""


def _at(history: History, instant: int) -> str:
    return escape(history.describe(instant))
