"""What saved students, their ensemble and their baselines predict for the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oekd_fast.data import AnyAugmentation, AnySplit, centre
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import LoadedStudent

BATCH = 256


@dataclass(frozen=True)
class Predictions:
    """Top-1 predictions of M networks for N images.

    names: of the networks.
    labels: int64 [N].
    predicted: int64 [M, N], classes.
    confidence: float32 [M, N], the softmax probability of the predicted class, in [0, 1].
    """

    names: tuple[str, ...]
    labels: Tensor
    predicted: Tensor
    confidence: Tensor

    def accuracy(self) -> list[float]:
        """Of each network, in percent."""
        return (100 * (self.predicted == self.labels).double().mean(dim=1)).tolist()


def student_names(count: int) -> tuple[str, ...]:
    return tuple(f"student {j + 1}" for j in range(count))


@torch.no_grad()
def predict(
    students: Sequence[LoadedStudent],
    baselines: Sequence[LoadedStudent],
    split: AnySplit,
    augmentation: AnyAugmentation,
    device: torch.device,
    gate: Gate | None = None,
) -> Predictions:
    """Run the students, their ensemble and the baselines over `split`, in fp32.

    Args:
        students: the family, on `device` and in evaluation mode.
        baselines: each student trained alone, likewise; may be empty.
        split: of N images.
        augmentation: of the training images, which says what evaluation sees of them.
        gate: weighs the students' logits for each image, on `device` and in evaluation mode; None: their mean.

    Returns:
        Of the students, "ensemble", and "<student> alone" for each baseline, in this order.
    """
    predicted, confidence = [], []
    for rows in torch.arange(len(split)).split(BATCH):
        images = centre(split.gather(rows), augmentation).to(device)
        family = torch.stack([student(student.preprocess(images)) for student in students])
        alone = [student(student.preprocess(images)) for student in baselines]
        if gate is None:
            ensemble = family.mean(dim=0)
        else:  # all students have the same base
            weights = gate(students[0].base(students[0].preprocess(images)))
            ensemble = torch.einsum("bs,sbc->bc", weights, family)
        best = torch.stack([*family, ensemble, *alone]).softmax(dim=-1).max(dim=-1)
        predicted.append(best.indices.cpu())
        confidence.append(best.values.cpu())
    names = student_names(len(students))
    return Predictions(
        names=(*names, "ensemble", *(f"{name} alone" for name in names[: len(baselines)])),
        labels=split.labels.cpu(),
        predicted=torch.cat(predicted, dim=1),
        confidence=torch.cat(confidence, dim=1),
    )
