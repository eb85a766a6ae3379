"""The training step that all variants carry out: initial weights, images, hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from oekd_fast.data import Augmentation, Split
from oekd_fast.family.ensemble import StudentEnsemble, build_ensemble

from .network import PlainFamily

MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)  # of CIFAR-100, a value a channel, pixels in [0, 1]
TEMPERATURE, CE_WEIGHT, FEATURE_WEIGHT, KD_WEIGHT = 2.0, 0.7, 0.15, 0.15
MOMENTUM, WEIGHT_DECAY, ADAPTER_RATE = 0.9, 1e-4, 0.5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Step(Protocol):
    """A variant: the family that it trains, and its optimizer."""

    family: StudentEnsemble | PlainFamily
    optimizer: torch.optim.Optimizer

    def step(self) -> None:
        """Train on the next batch, without waiting for the device unless the variant itself does."""
        ...

    def take_loss(self) -> float:
        """Return the mean loss of the steps since the last call."""
        ...


@dataclass(frozen=True)
class StepProblem:
    """A training step: SGD with Nesterov momentum at a constant rate, over the same batches in the same order.

    Attributes:
        image_size: Height and width, in pixels.
        precision: Of all variants other than the published form, which is fp32.
        augment: Pad by 4, crop and mirror; each variant draws its own offsets.
        batches: Batches of an epoch.
    """

    model: str = "resnet20"
    num_students: int = 5
    classes: int = 100
    batch_size: int = 128
    image_size: int = 32
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    learning_rate: float = 0.1
    augment: bool = True
    batches: int = 64

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(pad=4, flip=True) if self.augment else Augmentation(pad=0, flip=False)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return None if self.precision == "fp32" else DTYPES[self.precision]

    def family(self, members: tuple[int, ...] | None = None) -> StudentEnsemble:
        """Build our family on the CPU; every call gives the same weights."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return build_ensemble(self.model, self.num_students, self.classes, members=members)

    def plain_family(self) -> PlainFamily:
        """Build the same family of plain PyTorch modules."""
        return PlainFamily(self.family())

    def split(self) -> Split:
        """Make images which can be learnt: a pattern a class, plus noise of the same size."""
        generator = torch.Generator().manual_seed(1)
        shape, count = (3, self.image_size, self.image_size), self.batches * self.batch_size
        labels = torch.randint(self.classes, (count,), generator=generator)
        patterns = torch.randint(128, (self.classes, *shape), generator=generator, dtype=torch.uint8)
        noise = torch.randint(128, (count, *shape), generator=generator, dtype=torch.uint8)
        return Split(patterns[labels] + noise, labels)

    def order(self) -> Tensor:
        """Return the order of the images in an epoch, int64 [batches * batch_size] on the CPU."""
        return torch.randperm(self.batches * self.batch_size, generator=torch.Generator().manual_seed(2))

    def optimizer(self, family: PlainFamily, **form: bool) -> torch.optim.SGD:
        """Build the optimizer; adapters have half the rate. `form` is passed to torch: fused, foreach."""
        groups = [
            {"params": list(family.network_parameters()), "lr": self.learning_rate},
            {"params": list(family.adapter_parameters()), "lr": ADAPTER_RATE * self.learning_rate},
        ]
        return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, **form)


def channel_values(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return MEAN and STD as tensors [3, 1, 1]."""
    mean, std = (torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return mean, std
