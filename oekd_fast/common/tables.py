"""Tables on a console, in characters that every terminal can show."""

from __future__ import annotations

from rich.box import Box
from rich.table import Table

# Eight rows of a box, the third of which is the line below the headings. Rich replaces boxes with other characters by
# one with vertical lines where the output is in ASCII.
_LINE_BELOW_HEADINGS = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def simple_table() -> Table:
    """Return a table without a frame, whose columns are separated by two spaces."""
    return Table(box=_LINE_BELOW_HEADINGS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
