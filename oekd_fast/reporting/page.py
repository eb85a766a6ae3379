"""Building blocks of a self-contained HTML page, which embeds its pictures and has no scripts or external links."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from oekd_fast.common.text import html_text

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.note { background: var(--soft); border-left: 3px solid #d90; padding: .4rem .8rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
.wide img { display: block; width: 100%; min-width: 40rem; height: auto; background: white; border-radius: 6px; }
.wide img.natural { width: auto; max-width: 100%; min-width: min(100%, 30rem); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Return the HTML document with the given sections, which are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html_text(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    """Return a heading; `text` is escaped."""
    return f"<h{level}>{html_text(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Return a paragraph; `text` is escaped."""
    return f"<p>{html_text(text)}</p>"


def note(text: str) -> str:
    """Return a highlighted note; `text` is escaped."""
    return f'<p class="note">{html_text(text)}</p>'


def picture(png: bytes, description: str, *, natural: bool = False) -> str:
    """Return an embedded picture as wide as the page, or in its own width with `natural`; narrow screens scroll."""
    data = base64.b64encode(png).decode()
    kind = ' class="natural"' if natural else ""
    return f'<div class="wide"><img{kind} alt="{html_text(description)}" src="data:image/png;base64,{data}"></div>'


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; cells are converted by `str` and escaped."""
    head = "".join(f"<th>{html_text(text)}</th>" for text in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def details(title: str, content: str) -> str:
    """Return HTML that is collapsed below its title."""
    return f"<details><summary>{html_text(title)}</summary>\n{content}</details>"
