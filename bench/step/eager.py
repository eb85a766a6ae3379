"""The training step in careful PyTorch, eager or under torch.compile.

Images stay on the device as uint8 and are augmented there as a batch. It uses channels_last, autocast and the fused
optimizer, and a step reads nothing back from the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import feature_loss
from .problem import CE_WEIGHT, FEATURE_WEIGHT, KD_WEIGHT, TEMPERATURE, StepProblem, channel_values


class EagerStep:
    """The step in plain PyTorch.

    Args:
        channels_last: Memory format of weights and images; False is NCHW.
        compiled: Compile networks and loss as one function, on CUDA with CUDA graphs (mode "reduce-overhead"), since
            the step is bound by launches.
    """

    def __init__(self, problem: StepProblem, *, channels_last: bool = True, compiled: bool = False) -> None:
        device = problem.device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.family = problem.plain_family().to(device, memory_format=self._format).train()
        self._problem, self._batch = problem, 0
        self.optimizer = problem.optimizer(self.family, fused=True)
        split, order = problem.split(), problem.order()
        self._images, self._labels, self._order = (t.to(device) for t in (split.images, split.labels, order))
        self._mean, self._std = channel_values(device, torch.float32)
        self._generator = torch.Generator(device).manual_seed(3)
        self._sums = torch.zeros(2 + 3 * problem.num_students, dtype=torch.float64, device=device)
        self._steps = 0
        mode = "reduce-overhead" if compiled and device.startswith("cuda") else None
        self._forward = torch.compile(self._losses, dynamic=False, mode=mode) if compiled else self._losses

    def step(self) -> None:
        size = self._problem.batch_size
        chosen = self._order[self._batch * size :][:size]
        self._batch = (self._batch + 1) % self._problem.batches
        images, labels = self._images.index_select(0, chosen), self._labels.index_select(0, chosen)
        if self._problem.augment:
            images = crop_and_mirror(images, self._problem.augmentation.pad, self._generator)
        self.optimizer.zero_grad(set_to_none=True)
        total, figures = self._forward(images, labels)
        total.backward()
        self.optimizer.step()
        self._sums += figures
        self._steps += 1

    def take_loss(self) -> float:
        mean = self._sums[0].item() / self._steps
        self._sums.zero_()
        self._steps = 0
        return mean

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the figures to sum: loss, S cross-entropies, S divergences, S + 1 correct counts."""
        images = ((images.float() / 255 - self._mean) / self._std).contiguous(memory_format=self._format)
        dtype = self._problem.autocast_dtype
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits, features = self.family(images)
            ensemble = torch.stack(logits).float().mean(dim=0).detach()
            teacher = F.softmax(ensemble / TEMPERATURE, dim=1)
            ce = torch.stack([F.cross_entropy(z, labels) for z in logits])
            kd = torch.stack(
                [
                    F.kl_div(F.log_softmax(z.float() / TEMPERATURE, dim=1), teacher, reduction="batchmean")
                    for z in logits
                ]
            )
            feature = feature_loss(self.family, features)
        total = CE_WEIGHT * ce.sum() + KD_WEIGHT * TEMPERATURE**2 * kd.sum() + FEATURE_WEIGHT * feature
        correct = torch.stack([(z.argmax(dim=1) == labels).sum() for z in (*logits, ensemble)])
        return total, torch.cat([total.detach()[None], ce.detach(), kd.detach(), correct.float()])


def crop_and_mirror(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Crop random windows of a batch [B, C, H, W] padded with zeros, and mirror each with probability 1/2."""
    shape = (len(images),)
    top, left = (torch.randint(2 * pad + 1, shape, generator=generator, device=images.device) for _ in range(2))
    mirror = torch.randint(2, shape, generator=generator, device=images.device).bool()
    return windows(images, pad, top, left, mirror)


def windows(images: Tensor, pad: int, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    """Crop the window of each image at its offset: `top`, `left` and `mirror` are [B]."""
    height, width = images.shape[2:]
    down, right = (torch.arange(side, device=images.device) for side in (height, width))
    right = torch.where(mirror[:, None], width - 1 - right, right)
    rows, columns = top[:, None] + down, left[:, None] + right
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
