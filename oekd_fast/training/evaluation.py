"""Evaluation of a family over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oekd_fast.data import Batches, padded_order
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.ensemble_kd import ensemble_kd_loss
from oekd_fast.parallel.executor import Executor
from oekd_fast.training.backward import forward_side_by_side
from oekd_fast.training.graph_capture import CapturedCalls
from oekd_fast.training.metrics import EpochMetrics, RunningMetrics
from oekd_fast.training.numerics import Numerics
from oekd_fast.training.preprocessing import Preprocessing
from oekd_fast.training.stateful import batch_tensors, part_tensors

BATCH_SIZE = 512  # at most


class Evaluator:
    """Evaluates one family in evaluation mode, students side by side.

    Attributes:
        ensemble: the family whose results count, which may be a moving average of the trained one.

    Args:
        loss: options of the loss on the logits. The evaluated target is the ensemble, without `mixing`, and the
            cross-entropy has no class weights.
        calls: replays the evaluation of a batch if it can be captured.
        world: ranks that share the images of `evaluate` among them.
    """

    def __init__(
        self,
        ensemble: StudentEnsemble,
        loss: KDOptions,
        preprocessing: Preprocessing,
        numerics: Numerics,
        executor: Executor,
        calls: CapturedCalls,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.ensemble = ensemble
        self._world = world
        self._loss_options = vars(replace(loss, mixing=None, mixing_space="logits", weight=None))
        self._preprocessing, self._numerics = preprocessing, numerics
        self._executor, self._calls = executor, calls
        self._metrics = RunningMetrics(len(ensemble.members), device, world)

    @torch.no_grad()
    def evaluate(self, batches: Batches, flips: bool = False) -> EpochMetrics:
        """Return losses and accuracies of every student and of the ensemble over all images of `batches`.

        Each rank evaluates its part of the images, and all ranks return the same. Collective.

        Args:
            flips: evaluate the mean of the logits of each image and of its mirror image, and of the gate's weights.
        """
        self.ensemble.eval()
        first, count, _ = self._world.part(len(batches))
        rounds = -(-count // BATCH_SIZE)
        self._metrics.reset()
        if rounds:
            size = -(-count // rounds)  # balances the batch sizes, to minimise the padding of the last one
            batches.begin(padded_order(count, size, first), size)

        def next_batch() -> None:
            self._count(*batches.take(), flips)

        def changed() -> dict[str, Tensor]:
            return self.tensors() | batch_tensors(batches)

        for _ in range(rounds):
            batches.ready()
            self._calls.run(("evaluate", id(batches), flips), batches.signature, next_batch, changed)
        return self._metrics.read()

    @torch.no_grad()
    def probabilities(self, batches: Batches, flips: bool = False) -> Tensor:
        """Return each student's predictions for all images of `batches`, float32 [S, N, C] on the CPU.

        Args:
            flips: see `evaluate`.
        """
        self.ensemble.eval()
        size = min(len(batches), BATCH_SIZE)
        batches.begin(padded_order(len(batches), size), size)
        parts = []
        for _ in range(-(-len(batches) // size)):
            batches.ready()
            images, _ = batches.take()
            with self._numerics.algorithms():
                logits, _ = self._logits(images, flips)
            parts.append(torch.stack([z.float().softmax(dim=1).cpu() for z in logits]))
        return torch.cat(parts, dim=1)[:, : len(batches)]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that the evaluation of a batch changes, except the position in the batches."""
        return part_tensors({"evaluation": self._metrics})

    def _count(self, images: Tensor, labels: Tensor, flips: bool) -> None:
        with self._numerics.algorithms():
            logits, gate = self._logits(images, flips)
            statistics = ensemble_kd_loss(logits, labels, ensemble_weights=gate, **self._loss_options)
            rows = (labels != self._loss_options["ignore_index"]).sum()
            self._metrics.update(statistics, rows, None, statistics.loss)

    def _logits(self, images: Tensor, flips: bool) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return the logits [B, C] of each student and the gate's weights [B, S] for images in uint8."""
        pixels = self._preprocessing.centred(images)
        logits, gate = self._forward(pixels)
        if not flips:
            return logits, gate
        of_mirrored, gate_of_mirrored = self._forward(pixels.flip(3))
        mean = [(z.float() + y.float()) / 2 for z, y in zip(logits, of_mirrored, strict=True)]
        return mean, None if gate is None else (gate + gate_of_mirrored) / 2

    def _forward(self, pixels: Tensor) -> tuple[Sequence[Tensor], Tensor | None]:
        images = self._preprocessing.normalised(pixels)
        with self._numerics.autocast():
            output, gate = forward_side_by_side(self.ensemble, images, self._executor)
        return output.logits, gate
