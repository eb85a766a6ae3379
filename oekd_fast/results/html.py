"""A result in a notebook: the table of students and accuracy against size, in HTML without other files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from oekd_fast.common.text import html_text
from oekd_fast.figures.plotting import new_figure, png
from oekd_fast.figures.sizes import draw_sizes
from oekd_fast.runs.summary import UNKNOWN, notes_of, student_columns, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result_html(summary: Mapping[str, Any]) -> str:
    """Return the results of a run as HTML. Texts have the colour of the page, and the picture is white.

    Args:
        summary: content of summary.json.
    """
    columns = {heading: cells for heading, cells in student_columns(summary).items() if set(cells) != {UNKNOWN}}
    head = _row("th", columns)
    rows = "".join(_row("td", cells) for cells in zip(*columns.values(), strict=True))
    notes = "<br>".join(map(html_text, notes_of(summary)))
    picture = base64.b64encode(png(lambda: _picture(summary))).decode()
    return (
        f"<div><strong>{html_text(title_of(summary))}</strong>"
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
        f"<p>{notes}</p>"
        f'<img alt="Test accuracy against parameters" style="max-width: 100%" src="data:image/png;base64,{picture}">'
        "</div>"
    )


def _row(tag: str, cells: Iterable[str]) -> str:
    opening = f'<{tag} style="text-align: right; padding: 0 .6em">'
    return f"<tr>{''.join(f'{opening}{html_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _picture(summary: Mapping[str, Any]) -> Figure:
    figure = new_figure(6, 4)
    axes = figure.subplots()
    draw_sizes(axes, [summary])
    axes.legend(loc="best", fontsize="small")
    return figure
