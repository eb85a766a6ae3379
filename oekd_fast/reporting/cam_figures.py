"""Figure of Grad-CAM maps over images, like Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from oekd_fast.common.text import shortened
from oekd_fast.figures.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CamPanels:
    """Panels of one network for B images.

    Args:
        name: name of the network.
        maps: Grad-CAM maps, floating-point [B, H, W] in [0, 1].
        predicted: predicted classes, int64 [B].
        confidence: probabilities of the predicted classes, floating-point [B] in [0, 1].
    """

    name: str
    maps: Tensor
    predicted: Tensor
    confidence: Tensor


def cam_figure(images: Tensor, labels: Tensor, classes: Sequence[str], networks: Sequence[CamPanels]) -> Figure:
    """Draw one row per image, with its true class, and one column per network, with its prediction.

    Args:
        images: uint8 [B, C, H, W].
        labels: true classes, int64 [B].
        classes: name of each class.
        networks: panels of each network.
    """
    rows, columns = len(images), 1 + len(networks)
    figure = new_figure(2.45 * columns + 0.9, 2.6 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        # Images of one or three channels are shown as they are; of other images the first channel is shown.
        pixels = (image.permute(1, 2, 0) if len(image) == 3 else image[0]).numpy()
        for axes in panels[i]:
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
        panels[i, 0].set_title(f"true: {shortened(classes[label], 18)}", fontsize="small")
        for axes, network in zip(panels[i, 1:], networks, strict=True):
            height, width = pixels.shape[:2]
            shown = axes.imshow(
                network.maps[i].numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="bilinear",
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )  # fmt: skip
            predicted = int(network.predicted[i])
            mark, color = ("✓", "darkgreen") if predicted == label else ("✗", "darkred")
            title = f"{mark} {shortened(classes[predicted], 18)} ({100 * network.confidence[i]:.0f} %)"
            axes.set_title(title, fontsize="small", color=color)
    for axes, name in zip(panels[0], ("image", *(network.name for network in networks)), strict=True):
        axes.text(0.5, 1.16, name, transform=axes.transAxes, ha="center", va="bottom", fontweight="bold")
    if shown is not None:
        figure.colorbar(shown, ax=panels, label="relative evidence for the class", shrink=0.5, aspect=40)
    return figure
