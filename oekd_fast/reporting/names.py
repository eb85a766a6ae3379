"""Names of networks in tables, with a dot in the colour that they have in the figures."""

from __future__ import annotations

from oekd_fast.figures.palette import student_color
from oekd_fast.reporting import page


def network_name(j: int | None) -> page.Html:
    """Return the name of student `j`, counted from 0, or of the ensemble for None."""
    return page.swatch("currentColor", "ensemble") if j is None else page.swatch(student_color(j), f"student {j + 1}")
