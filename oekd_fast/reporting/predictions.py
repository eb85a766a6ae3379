"""Predictions of saved students, their ensemble and their baselines for the test images."""

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

    Args:
        names: names of the networks.
        labels: true classes, int64 [N].
        predicted: predicted classes, int64 [M, N].
        confidence: softmax probabilities of the predicted classes, float32 [M, N] in [0, 1].
        loss: cross-entropy in nats, float32 [M, N].
    """

    names: tuple[str, ...]
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    loss: Tensor

    def accuracy(self) -> list[float]:
        """Return the accuracy of each network in percent."""
        return (100 * (self.predicted == self.labels).double().mean(dim=1)).tolist()


def student_names(count: int) -> tuple[str, ...]:
    """Return the names "student 1", "student 2", ..."""
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
    """Run the students, their ensemble and the baselines on `split`, in fp32.

    Args:
        students: students of the family, on `device` and in evaluation mode.
        baselines: students trained alone, on `device` and in evaluation mode; may be empty.
        split: N images.
        augmentation: augmentation of the training images, which determines the centre crop of evaluation.
        device: device of the networks.
        gate: gate of the ensemble, on `device` and in evaluation mode; by default the ensemble is the mean of the
            students' logits.

    Returns:
        Predictions of "student 1", ..., "ensemble", and "student 1 alone", ... for the baselines, in this order.
    """
    predicted, confidence, losses = [], [], []
    for rows in torch.arange(len(split)).split(BATCH):
        images = centre(split.gather(rows), augmentation).to(device)
        family = torch.stack([student(student.preprocess(images)) for student in students])
        alone = [student(student.preprocess(images)) for student in baselines]
        if gate is None:
            ensemble = family.mean(dim=0)
        else:  # the base of all students is the same
            weights = gate(students[0].base(students[0].preprocess(images)))
            ensemble = torch.einsum("bs,sbc->bc", weights, family)
        logits = torch.stack([*family, ensemble, *alone])
        best = logits.softmax(dim=-1).max(dim=-1)
        predicted.append(best.indices.cpu())
        confidence.append(best.values.cpu())
        true = split.labels[rows].to(device).expand(len(logits), -1)
        losses.append(-logits.log_softmax(dim=-1).gather(2, true[..., None])[..., 0].cpu())
    names = student_names(len(students))
    return Predictions(
        names=(*names, "ensemble", *(f"{name} alone" for name in names[: len(baselines)])),
        labels=split.labels.cpu(),
        predicted=torch.cat(predicted, dim=1),
        confidence=torch.cat(confidence, dim=1),
        loss=torch.cat(losses, dim=1),
    )
