"""Figures of images with their true and predicted classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from oekd_fast.common.text import shortened
from oekd_fast.figures.hover import hover_boxes
from oekd_fast.figures.plotting import PANEL, new_panels
from oekd_fast.reporting.worst_images import WorstImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES_PER_ROW = 4
_NAME_LENGTH = 12  # characters of a class name that fit above an image


def worst_figure(classes: Sequence[str], networks: Sequence[WorstImages]) -> Figure:
    """Draw the worst images of each network in a panel, with their true (above) and predicted (below) classes.

    Args:
        classes: name of each class.
        networks: the images of each network; those without wrong predictions have an empty panel that says so.
    """
    rows = max(1, *(math.ceil(len(network.rows) / IMAGES_PER_ROW) for network in networks))
    figure, panels = new_panels(len(networks), size=(PANEL[0], 1.68 * rows + 0.5))
    for panel, network in zip(panels, networks, strict=True):
        panel.suptitle(network.name, fontsize="medium")
        grid = panel.subplots(rows, IMAGES_PER_ROW, squeeze=False).flatten()
        for axes in grid:
            axes.set_axis_off()
        if len(network.rows) == 0:
            grid[0].text(0, 0.5, "no wrong predictions", fontsize="small")
        for i, axes in enumerate(grid[: len(network.rows)]):
            _draw_mistake(axes, classes, network, i)
    return figure


def draw_image(axes: Axes, image: Tensor) -> None:
    """Draw the pixels of an image, uint8 [C, H, W], in their own size for SVG.

    Images of one or three channels are shown as they are; of other images the first channel is shown.
    """
    pixels = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def hover_image(axes: Axes, image: Tensor, text: str) -> None:
    """Show `text` over an image, [..., H, W]."""
    height, width = image.shape[-2:]
    hover_boxes(axes, [(-0.5, -0.5, width - 0.5, height - 0.5)], [text])


def _draw_mistake(axes: Axes, classes: Sequence[str], network: WorstImages, i: int) -> None:
    true, predicted = (classes[int(labels[i])] for labels in (network.labels, network.predicted))
    confidence = 100 * network.confidence[i].item()
    axes.set_axis_on()
    draw_image(axes, network.images[i])
    axes.set_title(f"true: {shortened(true, _NAME_LENGTH)}", fontsize="small", pad=3)
    text = f"✗ {shortened(predicted, _NAME_LENGTH - 3)} ({confidence:.0f} %)"
    axes.set_xlabel(text, fontsize="small", labelpad=3)
    loss = network.loss[i].item()
    lines = (
        f"test image {int(network.rows[i]) + 1:,}, loss {loss:.3g}",
        f"true: {shortened(true, 60)}, probability {100 * math.exp(-loss):.2g} %",
        f"predicted: {shortened(predicted, 60)}, probability {confidence:.1f} %",
    )
    hover_image(axes, network.images[i], "\n".join(lines))
