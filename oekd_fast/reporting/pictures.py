"""Pictures of the page: SVG in the page, and PNG files beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oekd_fast.figures.plotting import house_style, png
from oekd_fast.figures.svg import svg
from oekd_fast.reporting import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pictures:
    """Draws the pictures of a group of runs.

    Args:
        keep: function called with the name and content of each file beside the page.
        tell: function called with a line for the user if a picture is missing.
    """

    keep: Callable[[str, bytes], None]
    tell: Callable[[str], None]

    def __call__(self, name: str, draw: Callable[[], Figure], description: str) -> str:
        """Return the picture of the figure that `draw` returns as HTML, or a note if it cannot be drawn.

        Args:
            name: name of the file beside the page, without its ending.
            draw: function that draws the figure.
            description: what the picture shows, for screen readers.
        """
        try:
            content, file = drawn(draw, description)
        except Exception as error:  # matplotlib documents no set of exceptions
            problem = f"The picture {name}.png could not be drawn ({str(error) or type(error).__name__})."
            self.tell(problem)
            return page.note(problem)
        self.keep(f"{name}.png", file)
        return page.scrolling(content)


def drawn(draw: Callable[[], Figure], description: str) -> tuple[str, bytes]:
    """Return the figure that `draw` returns as HTML and as the content of a PNG file."""
    with house_style():
        figure = draw()
    return svg(figure, description), png(lambda: figure)
