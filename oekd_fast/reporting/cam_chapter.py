"""The chapter on Grad-CAM: which parts of an image speak for a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oekd_fast.reporting import page
from oekd_fast.reporting.cam_figures import CamPanels, cam_figure
from oekd_fast.reporting.evaluation import Evaluation
from oekd_fast.reporting.evidence import grad_cam_panels, one_of_each_class
from oekd_fast.reporting.pictures import Pictures


@dataclass(frozen=True)
class Cams:
    """Grad-CAM maps of some networks of one run for B test images.

    Args:
        images: uint8 [B, C, H, W].
        labels: true classes, int64 [B].
        classes: name of each class.
        panels: maps of each network; empty if the students return no feature maps.
        explained: class that the maps explain, each network's prediction or the true class.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[str]
    panels: Sequence[CamPanels]
    explained: Literal["predicted", "true"]


def compute_cams(
    evaluation: Evaluation, count: int, explained: Literal["predicted", "true"], device: torch.device
) -> Cams | None:
    """Compute the maps of the largest student, the smallest one, and the smallest one alone, of the first run.

    Args:
        evaluation: networks and data set.
        count: number of images; they are from as many classes as possible.
        explained: class that the maps explain.
        device: device of the networks.

    Returns:
        The maps; None without images.

    Raises:
        RuntimeError: the memory of the device is too small.
    """
    dataset, networks = evaluation.dataset, evaluation.networks[0]
    rows = one_of_each_class(dataset.test.labels.cpu(), count)
    if len(rows) == 0:
        return None
    labels = dataset.test.labels[rows].cpu()
    if not networks.students[0].metadata.widths:
        return Cams(dataset.test.gather(rows).cpu(), labels, dataset.classes, (), explained)
    last = len(networks.students)
    shown = {"student 1, pseudo teacher": networks.students[0]}
    if last > 1:
        shown[f"student {last}"] = networks.students[-1]
    if networks.baselines:
        shown[f"student {last} alone"] = networks.baselines[-1]
    images, panels = grad_cam_panels(shown, dataset, rows, explained, device)
    return Cams(images, labels, dataset.classes, panels, explained)


def cam_chapter(cams: Cams, of_seed: str, picture: Pictures) -> Iterator[str]:
    """Yield the chapter as HTML.

    Args:
        cams: what is shown.
        of_seed: which of several runs is shown, such as " of seed 3"; empty for one run.
        picture: draws pictures.
    """
    if not cams.panels:
        yield page.note("Grad-CAM needs feature maps, which the students of this family do not return.")
        return
    what = "the class predicted by each network" if cams.explained == "predicted" else "the true class"
    yield page.paragraph(
        f"Grad-CAM (Selvaraju et al., ICCV 2017) of the last block{of_seed} for {what}. Bright regions are "
        "evidence for the class. The images are the first of their class in the test split, from classes spread "
        "evenly over all; they were not chosen by hand. The predicted class and its probability are above each."
    )
    yield picture(
        "grad_cam",
        lambda: cam_figure(cams.images, cams.labels, cams.classes, cams.panels),
        "Grad-CAM of pseudo teacher, smallest student and baseline",
    )
