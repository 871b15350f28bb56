"""The explanation of a bundle as one HTML page: nothing is loaded from elsewhere, every text is escaped."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

from podgraft_builder.explain import Explanation, Row
from podgraft_cli.rungs import NONE, Rungs

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1f2328 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem; border-bottom: 1px solid #d8dee4 }
td.number, th.number { text-align: right }
.code { table-layout: fixed; font: 12px/1.45 ui-monospace, monospace }
.code td { border: 0; padding: 0 .75rem; white-space: pre-wrap; overflow-wrap: anywhere }
.gone { background: #ffebe9 } .came { background: #dafbe1 }
.refused { color: #b42318 } .overruled, .warning { color: #8a5a00 }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } th, td { border-color: #30363d }
  .gone { background: #4b1818 } .came { background: #12381f }
  .refused { color: #ff938a } .overruled, .warning { color: #e3b341 }
}
"""
_HEAD = ("object", "function", "because of", "differs in", "old", "new", "site", "threads leave", "hazards")


def write_page(path: Path, title: str, explanation: Explanation, rungs: Rungs = NONE) -> None:
    """Write the page. Raises OSError as opening the file does."""
    path.write_text("\n".join(_page(title, explanation, rungs)) + "\n", encoding="utf-8")


def _page(title: str, explanation: Explanation, rungs: Rungs) -> Iterator[str]:
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>podgraft: {escape(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1>"
    refusal = explanation.refusal
    if refusal is not None:
        yield f'<p class="refused">refused: {escape(refusal.reason)}: {escape(refusal.detail)}<br>'
        yield f"{escape(refusal.hint)}</p>"
    yield "<table><thead><tr>" + "".join(_cell("th", name, name in {"old", "new"}) for name in _HEAD)
    yield "</tr></thead><tbody>"
    for number, row in enumerate(explanation.rows):
        yield _summary(number, row, rungs.of(row.function))
    yield "</tbody></table>"
    if explanation.hazards:
        yield "<h2>What speaks against it</h2><ul>"
        for hazard in explanation.hazards:
            yield f'<li class="{hazard.state}">{hazard.state}: {hazard.reason}: {escape(hazard.detail)}'
            yield f"({escape(hazard.hint)})</li>"
        yield "</ul>"
    if rungs.problems:
        yield "<h2>What apply will refuse</h2><ul>"
        yield from (f"<li>{problem.reason}: {escape(problem.detail)}</li>" for problem in rungs.problems)
        yield "</ul>"
    if explanation.grounds:
        yield "<h2>Why it may be applied</h2><ul>"
        yield from (f"<li>{escape(text)}</li>" for text in explanation.grounds)
        yield "</ul>"
    for number, row in enumerate(explanation.rows):
        yield f'<h2 id="f{number}">{escape(row.function)}</h2>'
        yield '<table class="code"><thead><tr><th>old</th><th>new</th></tr></thead><tbody>'
        yield from _side_by_side(row.old_code, row.new_code)
        yield "</tbody></table>"
    yield "</body></html>"


def _summary(number: int, row: Row, rung: str) -> str:
    hazards = ", ".join(dict.fromkeys(hazard.reason for hazard in row.hazards)) or "-"
    link = f'<td><a href="#f{number}">{escape(row.function)}</a></td>'
    before = _cell("td", row.object)
    middle = _cell("td", row.cause or "-") + _cell("td", row.why)
    sizes = _cell("td", str(row.old_size), number=True) + _cell("td", str(row.new_size), number=True)
    return f"<tr>{before}{link}{middle}{sizes}{_cell('td', rung)}{_cell('td', row.outlook)}{_cell('td', hazards)}</tr>"


def _cell(tag: str, text: str, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _side_by_side(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Yield table rows; equal instructions stand beside each other."""
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for step in range(max(b - a, d - c)):
            left = old[a + step] if a + step < b else None
            right = new[c + step] if c + step < d else None
            marks = ("", "") if kind == "equal" else ("gone", "came")
            yield f"<tr>{_code(left, marks[0])}{_code(right, marks[1])}</tr>"


def _code(text: str | None, mark: str) -> str:
    kind = f' class="{mark}"' if mark and text is not None else ""
    return f"<td{kind}>{escape(text or '')}</td>"
