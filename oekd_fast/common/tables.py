"""Tables on a console, in characters that every terminal can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import Box
from rich.table import Table

# Eight rows of a box, the third of which is the line below the headings. Rich replaces boxes with other characters by
# one with vertical lines where the output is in ASCII.
_LINE_BELOW_HEADINGS = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def simple_table() -> Table:
    """Return a table without a frame, whose columns are separated by two spaces."""
    return Table(box=_LINE_BELOW_HEADINGS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def table_of_columns(columns: Mapping[str, Sequence[str]], optional: Sequence[str], width: int) -> Table | None:
    """Return a table with the columns that fit into `width` characters, so that no number and no heading is cut.

    Args:
        columns: cells of each column by its heading.
        optional: headings of the columns that are left out first, in this order.
        width: width of the output.

    Returns:
        The table, or None if the columns that are not optional do not fit.
    """
    shown = dict(columns)
    for heading in optional:
        if heading in shown and _width(shown) > width:
            del shown[heading]
    if _width(shown) > width:
        return None
    table = simple_table()
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Width of a table in characters; two spaces separate columns."""
    return sum(max(map(len, (heading, *cells))) + 2 for heading, cells in columns.items()) - 2
