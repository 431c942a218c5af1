"""The look of the HTML report: one style sheet, for light and dark."""

# Text has a contrast of at least 4.5, light and dark; states differ in shape, not only in colour.
LIGHT = {
    "ink": "#1b2027", "soft": "#5a6472", "line": "#d8dee6", "paper": "#ffffff", "card": "#f5f7fa",
    "bar": "#b9c3d0", "band": "#e8eef6", "good": "#14784a", "bad": "#c02947", "skip": "#8f6000",
    "add": "#e2f5ea", "gone": "#fcebee", "addmark": "#a9e2c1", "gonemark": "#f5bcc6", "link": "#2459a8",
}  # fmt: skip
DARK = {
    "ink": "#e1e7ee", "soft": "#9aa6b4", "line": "#333b46", "paper": "#12161b", "card": "#1a2027",
    "bar": "#4c5766", "band": "#1d2733", "good": "#4fc98f", "bad": "#ff8091", "skip": "#e3ae45",
    "add": "#11301f", "gone": "#3a171d", "addmark": "#1f6340", "gonemark": "#7a2a38", "link": "#8ab4f8",
}  # fmt: skip

_RULES = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 72px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 10px; }
h3 { font-size: 15px; margin: 22px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; overflow-wrap: anywhere; }
ul { margin: 6px 0; padding-left: 22px; }
.soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); } .skip { color: var(--skip); }
code, pre, .mono { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: var(--card); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 0; margin: 8px 0; overflow-x: auto; }
pre > span { display: block; padding: 0 14px; min-height: 1.5em; width: max-content; min-width: 100%; }
pre.plain { padding: 10px 14px; max-height: 420px; }
pre .add { background: var(--add); } pre .gone { background: var(--gone); }
pre .add mark { background: var(--addmark); color: inherit; border-radius: 2px; }
pre .gone mark { background: var(--gonemark); color: inherit; border-radius: 2px; }
pre .hunk { color: var(--link); } pre .head { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 18px 0 4px; }
.facts div { min-width: 90px; }
.facts b { display: block; font-size: 21px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 13px; }
.answer { border-left: 4px solid var(--bad); background: var(--card); border-radius: 0 8px 8px 0;
  padding: 12px 18px; margin: 18px 0; }
.answer.fixed { border-color: var(--good); }
.chain { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; margin: 8px 0; }
.chain span { border: 1px solid var(--line); border-radius: 14px; padding: 2px 11px; font-size: 14px; }
.chain span.who { border-color: var(--ink); font-weight: 600; }
.chain i { color: var(--soft); font-style: normal; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
td, th { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.said { width: 45%; overflow-wrap: anywhere; }
figure { margin: 14px 0; }
figcaption { color: var(--soft); font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
svg.key { display: inline; width: 14px; vertical-align: -2px; }
details { margin: 6px 0; }
summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; }
@media print { .answer { break-inside: avoid; } pre.plain { max-height: none; } }
"""

# The rules for the picture, apart from the others so that it can be used alone.
PICTURE = """
.name { fill: var(--soft); font: 12px system-ui, sans-serif; }
.label { fill: var(--ink); font: 12px system-ui, sans-serif; paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px; stroke-linejoin: round; }
.count { fill: var(--soft); font: 11px system-ui, sans-serif; text-anchor: end; }
.bar { fill: var(--bar); }
.axis { stroke: var(--line); stroke-width: 1; fill: none; }
.open { fill: var(--band); }
.zoom { fill: var(--band); opacity: 0.75; }
.guide { stroke: var(--line); stroke-width: 1; stroke-dasharray: 2 4; }
.path { fill: none; stroke: var(--bar); stroke-width: 1.25; }
.dot-good { fill: var(--good); stroke: var(--good); } .dot-bad { fill: var(--bad); stroke: var(--bad); }
.dot-skip { fill: var(--skip); stroke: var(--skip); } .known { fill: var(--paper); }
.dot { stroke-width: 2; }
.turn-bad { fill: var(--bad); opacity: 0.16; } .turn-good { fill: var(--good); opacity: 0.16; }
.edge-bad { stroke: var(--bad); stroke-width: 2; } .edge-good { stroke: var(--good); stroke-width: 2; }
"""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}: {colour}; " for name, colour in colours.items())


def sheet() -> str:
    """Return the whole style sheet."""
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)}}} }}\n"
        f"@media print {{ :root {{ {_variables(LIGHT)}}} }}\n{_RULES}{PICTURE}"
    )
