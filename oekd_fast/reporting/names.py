"""Names of networks in tables, with a dot in the colour that they have in the figures."""

from __future__ import annotations

from oekd_fast.figures.palette import ALONE, TEXT, network_style
from oekd_fast.reporting import page

ENSEMBLE = "ensemble"


def colored_name(name: str) -> page.Html:
    """Return the name of a network, such as "student 2" or "ensemble", after its dot; that of "... alone" is hollow."""
    color, line = network_style(name)
    return page.swatch("currentColor" if color == TEXT else color, name, hollow=line == ALONE)
