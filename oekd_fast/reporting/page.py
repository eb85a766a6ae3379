"""Building blocks of a self-contained HTML page, which has no scripts and loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from oekd_fast.common.text import html_text


class Html(str):
    """Text that is HTML already; other cells of tables are escaped."""

    __slots__ = ()


def heading(level: int, text: str) -> str:
    """Return a heading; `text` is escaped."""
    return f"<h{level}>{html_text(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; `text` is escaped. `kind` is a class of the style sheet."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{_escaped(text)}</p>"


def note(text: str) -> str:
    """Return a highlighted note; `text` is escaped."""
    return paragraph(text, "note")


def scrolling(content: str) -> str:
    """Return a box that scrolls where its content is wider than the page. The keyboard reaches it, too."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def notes(texts: Sequence[str]) -> str:
    """Return highlighted notes as a list; each text is escaped."""
    return '<ul class="note">' + "".join(f"<li>{html_text(text)}</li>" for text in texts) + "</ul>"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, of_texts: bool = False) -> str:
    """Return a table; cells are converted by `str` and escaped, except for `Html`.

    Columns of numbers, other than the first one, are aligned to the right; with `of_texts`, cells are aligned to the
    left and have several lines where they are long.
    """
    kind = ' class="text"' if of_texts else ""
    head = "".join(f"<th>{html_text(text)}</th>" for text in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return scrolling(f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")


def tiles(values: Iterable[tuple[str, Any, str]]) -> str:
    """Return key figures side by side: the name, the value and a remark of each."""
    items = "\n".join(
        f"<div><dt>{html_text(name)}</dt><dd>{html_text(value)}</dd><dd>{html_text(remark)}</dd></div>"
        for name, value, remark in values
    )
    return f'<dl class="tiles">\n{items}\n</dl>'


def code(text: str) -> str:
    """Return lines of code that a click selects as a whole; each line is escaped."""
    return "<pre><code>" + "\n".join(map(html_text, text.split("\n"))) + "</code></pre>"


def swatch(color: str, text: str, *, hollow: bool = False) -> Html:
    """Return a dot in a colour of CSS, followed by `text`, which is escaped."""
    inside = "" if hollow else f";background:{color}"
    return Html(f'<span class="swatch" style="border-color:{color}{inside}"></span>{html_text(text)}')


def link(address: str, text: str) -> Html:
    """Return a link; both arguments are escaped."""
    return Html(f'<a href="{html_text(address)}">{html_text(text)}</a>')


def details(title: str, content: str, *, is_open: bool = False) -> str:
    """Return HTML that is collapsed below its title unless `is_open`."""
    return f"<details{_open(is_open)}><summary>{html_text(title)}</summary>\n{content}</details>"


def chapter(key: str, level: int, title: str, content: str, *, is_open: bool = False) -> str:
    """Return a part of the page that folds below its heading.

    The target `key` of links is inside, so that following a link opens the part.
    """
    return (
        f'<details class="chapter"{_open(is_open)}><summary>{heading(level, title)}</summary>\n'
        f'<div class="content" id="{html_text(key)}">\n{content}\n</div></details>'
    )


def _open(is_open: bool) -> str:
    return " open" if is_open else ""


def _escaped(value: Any) -> str:
    return value if isinstance(value, Html) else html_text(value)
