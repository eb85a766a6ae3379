"""The training step of the published release, written from its behaviour, not from its code.

Tensors are fp32 and NCHW. Images are in host memory; the training process crops, mirrors and converts them one by one.
Students run one after the other, and each loss is computed separately, the KL divergence by softmax and logarithm.
Every loss is read by .item() in every step (3 S + 1 of them). The optimizer updates one parameter at a time. Two
defects of the release are left out: here adapters train from the first step, and the logarithm never gets zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import CE_WEIGHT, FEATURE_WEIGHT, KD_WEIGHT, TEMPERATURE, StepProblem, channel_values


class PublishedStep:
    """The published training step.

    Args:
        dtype: float32 is the published form; float64 is the reference for all variants.
    """

    def __init__(self, problem: StepProblem, dtype: torch.dtype = torch.float32) -> None:
        self.family = problem.plain_family().to(problem.device, dtype).train()
        self._problem, self._dtype = problem, dtype
        self.optimizer = problem.optimizer(self.family, foreach=False, fused=False)
        self.batch = 0  # index of the next batch
        self._split, self._order = problem.split(), problem.order()
        self._mean, self._std = channel_values("cpu", dtype)
        self._generator = torch.Generator().manual_seed(3)
        self._correct = torch.zeros(problem.num_students + 1, dtype=torch.int64, device=problem.device)
        self._losses: list[dict[str, float]] = []

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._problem.batches

    def step(self) -> None:
        images, labels = self._next_batch()
        output = self.family(images)
        ensemble = sum(output.logits) / len(output.logits)

        losses: dict[str, Tensor] = {}
        for j, logits in enumerate(output.logits):
            losses[f"ce {j}"] = F.cross_entropy(logits, labels)
        for j, logits in enumerate(output.logits):
            losses[f"kd {j}"] = divergence(ensemble.detach(), logits)
        for j in range(1, len(output.logits)):
            losses[f"feature {j}"] = self._feature_loss(output.features[0], output.features[j], j)
        weights = {"ce": CE_WEIGHT, "kd": KD_WEIGHT, "feature": FEATURE_WEIGHT}
        total = sum(weights[name.split()[0]] * loss for name, loss in losses.items())

        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

        losses["total"], losses["ensemble ce"] = total, F.cross_entropy(ensemble.detach(), labels)
        self._losses.append({name: loss.item() for name, loss in losses.items()})
        for j, logits in enumerate((*output.logits, ensemble)):
            self._correct[j] += (logits.argmax(dim=1) == labels).sum()

    def take_loss(self) -> float:
        mean = sum(losses["total"] for losses in self._losses) / len(self._losses)
        self._losses.clear()
        return mean

    def _feature_loss(self, teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], j: int) -> Tensor:
        pairs = zip(self.family.adapters, student, teacher, strict=True)
        return sum(F.mse_loss(block[j - 1](mapped), target.detach()) for block, mapped, target in pairs)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        size = self._problem.batch_size
        chosen = self._order[self.batch * size :][:size].tolist()
        self.batch = (self.batch + 1) % self._problem.batches
        images = torch.stack([self._image(index) for index in chosen])
        labels = torch.stack([self._split.labels[index] for index in chosen])
        return images.to(self._problem.device), labels.to(self._problem.device)

    def _image(self, index: int) -> Tensor:
        image, pad = self._split.images[index], self._problem.augmentation.pad
        if self._problem.augment:
            top, left = torch.randint(2 * pad + 1, (2,), generator=self._generator).tolist()
            mirror = torch.rand((), generator=self._generator).item() < 0.5
            image = crop_and_mirror(image, pad, top, left, mirror)
        return (image.to(self._dtype) / 255 - self._mean) / self._std


def crop_and_mirror(image: Tensor, pad: int, top: int, left: int, mirror: bool) -> Tensor:
    """Crop a window of one padded image [C, H, W], and mirror it."""
    height, width = image.shape[1:]
    window = F.pad(image, (pad, pad, pad, pad))[:, top : top + height, left : left + width]
    return window.flip(2) if mirror else window


def divergence(ensemble: Tensor, logits: Tensor) -> Tensor:
    """Return T^2 KL(softmax(ensemble / T) || softmax(logits / T)), the mean over rows; both arguments are [B, C]."""
    teacher, student = (torch.softmax(z / TEMPERATURE, dim=1) for z in (ensemble, logits))
    least = torch.finfo(logits.dtype).tiny
    terms = teacher * (torch.log(teacher.clamp(min=least)) - torch.log(student.clamp(min=least)))
    return TEMPERATURE**2 * terms.sum(dim=1).mean()
