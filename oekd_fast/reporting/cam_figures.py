"""Figure of Grad-CAM maps over images, like Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from oekd_fast.common.text import shortened
from oekd_fast.figures.plotting import PANEL, new_panels
from oekd_fast.reporting.image_figures import draw_image, hover_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTH = 96  # pixels; maps of smaller images are enlarged, so that they are not drawn in squares


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
    """Draw one panel per image: the image with its true class, and the map and the prediction of each network.

    Args:
        images: uint8 [B, C, H, W].
        labels: true classes, int64 [B].
        classes: name of each class.
        networks: panels of each network.
    """
    figure, panels = new_panels(len(images), size=(PANEL[0], 0.55 + PANEL[0] / (1 + len(networks))))
    for i, (panel, image, label) in enumerate(zip(panels, images, labels.tolist(), strict=True)):
        first, *others = panel.subplots(1, 1 + len(networks), squeeze=False)[0]
        draw_image(first, image)
        first.set_title(f"true: {shortened(classes[label], 13)}", fontsize="small")
        first.set_xlabel("image", fontsize="small")
        for axes, network in zip(others, networks, strict=True):
            draw_image(axes, image)
            _draw_map(axes, image, label, classes, network, i)
    return figure


def _draw_map(axes: Axes, image: Tensor, label: int, classes: Sequence[str], network: CamPanels, i: int) -> None:
    height, width = image.shape[-2:]
    cam = network.maps[i]
    factor = max(1, _SMOOTH // max(cam.shape))
    if factor > 1:
        cam = F.interpolate(cam[None, None].float(), scale_factor=factor, mode="bilinear", align_corners=False)[0, 0]
    axes.imshow(
        cam.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="none",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )  # fmt: skip
    predicted, confidence = int(network.predicted[i]), 100 * network.confidence[i].item()
    mark, weight = ("✓", "normal") if predicted == label else ("✗", "bold")
    axes.set_title(
        f"{mark} {shortened(classes[predicted], 11)} ({confidence:.0f} %)", fontsize="small", fontweight=weight
    )
    axes.set_xlabel(network.name.partition(",")[0], fontsize="small")
    hover_image(
        axes,
        image,
        f"{network.name}\ntrue: {shortened(classes[label], 60)}\n"
        f"predicted: {shortened(classes[predicted], 60)}, probability {confidence:.1f} %",
    )
