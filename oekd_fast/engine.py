"""One training step of a family of students, and its evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from oekd_fast.config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, normalise, pad_crop_flip
from oekd_fast.ensemble import StudentEnsemble
from oekd_fast.losses import FeatureKDLoss
from oekd_fast.metrics import EpochMetrics, RunningMetrics
from oekd_fast.ops import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.optim import RateSchedule, build_optimizer
from oekd_fast.options import KDOptions

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EVALUATION_BATCH = 512


class Engine:
    """A family, its optimizer and schedule, and the step that trains it.

    Nothing in the step waits for the device, but for fp16 with SGD: torch's scaler looks there whether to skip it.
    A family of one student is a baseline: no ensemble, no adapters, plain cross-entropy.

    Args:
        config: of the run.
        ensemble: already on `device`.
        loss: of the logits.
        normalisation: mean and standard deviation a channel, for pixels in [0, 1].
        augmentation: of the training images.
        steps_per_epoch: for the schedule.
    """

    def __init__(
        self,
        config: TrainConfig,
        ensemble: StudentEnsemble,
        loss: KDOptions,
        *,
        device: torch.device,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        augmentation: Augmentation,
        steps_per_epoch: int,
    ) -> None:
        self.ensemble = ensemble
        self.device = device
        self.optimizer = build_optimizer(config, ensemble)
        self.schedule = RateSchedule(config, self.optimizer, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.metrics = RunningMetrics(len(ensemble.members), device)
        self.augmentation_generator = torch.Generator(device).manual_seed(config.seed)
        self._loss_options = asdict(loss)
        self._feature_weight = config.feature_weight if len(ensemble.adapters) else 0.0
        self._feature_loss = FeatureKDLoss()
        self._dtype = _AUTOCAST_DTYPES[config.precision]
        self._mean, self._std = (torch.tensor(values, device=device) for values in normalisation)
        self._augmentation = augmentation
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step on a batch; its metrics are added to `metrics`.

        Args:
            images: uint8 [B, C, H, W] on the device.
            labels: int64 [B] on the device.
        """
        self.ensemble.train()
        self.optimizer.zero_grad(set_to_none=True)
        images = pad_crop_flip(images, self._augmentation, self.augmentation_generator)
        with self._autocast():
            output = self.ensemble(self._normalise(images))
            feature = self._feature_loss(output.features, self.ensemble.adapters) if self._feature_weight else None

        scale = self.scaler.scale(torch.ones((), device=self.device)) if self.scaler.is_enabled() else None
        statistics, grads = ensemble_kd_value_and_grad(output.logits, labels, grad_scale=scale, **self._loss_options)
        loss = statistics.loss
        roots: list[Tensor] = list(output.logits)
        root_grads: list[Tensor | None] = list(grads)
        if feature is not None:
            weighted = self._feature_weight * feature
            loss = loss + weighted.detach()
            roots.append(weighted)
            root_grads.append(scale)
        torch.autograd.backward(roots, root_grads)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.metrics.update(statistics, len(labels), None if feature is None else feature.detach(), loss)

    @torch.no_grad()
    def evaluate(self, batches: DeviceBatches) -> EpochMetrics:
        """Every student and the ensemble over a whole split, in evaluation mode."""
        self.ensemble.eval()
        metrics = RunningMetrics(len(self.ensemble.members), self.device)
        for images, labels in batches.sequential(EVALUATION_BATCH):
            with self._autocast():
                output = self.ensemble(self._normalise(images))
            statistics = ensemble_kd_loss(output.logits, labels, **self._loss_options)
            metrics.update(statistics, len(labels), None, statistics.loss)
        return metrics.read()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.ensemble.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics.sums.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ensemble.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.metrics.sums.copy_(state["metrics"])

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self._mean, self._std, memory_format=self._format)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)
