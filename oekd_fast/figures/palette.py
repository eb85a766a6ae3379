"""Colours, markers and line styles of students, ensemble and runs, the same in every figure.

Each colour has a contrast of at least 3 to 1 with white and with #111111, so that figures are drawn once for light and
dark pages. Black stands for the colour of the page's text: it is black in pictures, and `oekd_fast.figures.svg` makes
it ``currentColor``.
"""

from __future__ import annotations

import re

# The first four are those of Okabe and Ito ("Color Universal Design", 2008). With the others, any two differ by a
# distance of at least 16 in CIELAB under simulated protanopia, deuteranopia and tritanopia (Machado et al., 2009).
STUDENT_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8F4DF5", "#8A5A2B")
STUDENT_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p", "d", "8")
ENSEMBLE = TEXT = "black"
ERROR = "#D55E00"  # wrong predictions
SHADE = "#0072B2"  # shares in a matrix
NEUTRAL = "#808080"  # lines that connect students
IN_FAMILY, ALONE, OF_ENSEMBLE = "solid", "dashed", "dotted"  # line styles


def student_color(j: int) -> str:
    """Return the colour of student `j`, counted from 0; colours repeat after six students."""
    return STUDENT_COLORS[j % len(STUDENT_COLORS)]


def student_marker(j: int) -> str:
    """Return the marker of student `j`, counted from 0; with the colour it repeats after 78 students."""
    return STUDENT_MARKERS[j % len(STUDENT_MARKERS)]


def network_style(name: str) -> tuple[str, str]:
    """Return the colour and the line style of a network by its name: "student 2", "student 2 alone" or "ensemble"."""
    number = re.match(r"student (\d+)", name)
    if number is None:
        return ENSEMBLE, OF_ENSEMBLE
    return student_color(int(number[1]) - 1), ALONE if name.endswith(" alone") else IN_FAMILY
