"""The augmented batches that the steps of an epoch train on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from oekd_fast.common.part import Part
from oekd_fast.common.seeds import derived_seed
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import AlternatingFlips, Batches, Mixing, mix
from oekd_fast.data.batches.base import NO_BATCH_LEFT
from oekd_fast.distributed.world import World
from oekd_fast.training.data_parallel import begin_part, order_of_part
from oekd_fast.training.next_batch import GeneratorOfSteps, NextBatch
from oekd_fast.training.preprocessing import Preprocessing
from oekd_fast.training.stateful import batch_tensors


class BatchSource:
    """Takes batches from a split, augments and mixes them; see `Engine.begin_epoch` and `Engine.step`.

    Args:
        config: seed and mixing.
        preprocessing: augments images.
        alternate_flips: whether flips alternate from epoch to epoch.
        num_classes: C, for targets of mixed images.
        device: device of the batches.
        world: ranks that share the images of a batch.
        ahead: prepare the batch of the next step while a step runs; see `NextBatch`.

    Attributes:
        generators: the generators that batches draw from, by name, as steps have left them.
        drawn_from: the same generators with the draws for a batch that is prepared ahead.
        part: rows of this rank in each batch of the epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        preprocessing: Preprocessing,
        *,
        alternate_flips: bool,
        num_classes: int,
        device: torch.device,
        world: World,
        ahead: bool,
    ) -> None:
        self._preprocessing, self._num_classes, self._world = preprocessing, num_classes, world
        self.drawn_from = {"augmentation": torch.Generator(device).manual_seed(config.seed)}
        self._mixing = None
        if config.mixup is not None or config.cutmix is not None:
            self._mixing = Mixing(config.mixup, config.cutmix)
            self.drawn_from["mixing"] = torch.Generator(device).manual_seed(derived_seed(config.seed, "mixing"))
        self._flips = AlternatingFlips(derived_seed(config.seed, "flips"), device) if alternate_flips else None
        self._ahead = NextBatch(self._prepare, self.drawn_from, device) if ahead else None
        self.generators: dict[str, torch.Generator | GeneratorOfSteps] = (
            dict(self.drawn_from) if self._ahead is None else self._ahead.generators
        )
        self._batches: Batches | None = None
        self._left = 0
        self.part = Part.whole(0)

    def begin_epoch(self, batches: Batches, order: Tensor, batch_size: int, first: int, epoch: int) -> None:
        """Begin an epoch; see `Engine.begin_epoch`."""
        if self._ahead is not None:
            self._ahead.discard()
        self.part = part = begin_part(batches, order, batch_size, first, self._world)
        if self._flips is not None:
            self._flips.begin(order_of_part(order, batch_size, part), part.count, first, epoch, len(batches))
        self._batches, self._left = batches, len(order) // batch_size - first

    def ready(self) -> None:
        """Do the host's work for the next step, never captured.

        Raises:
            RuntimeError: no epoch has begun, or it has no batch left.
        """
        if self._batches is None:
            raise RuntimeError("step: expected begin_epoch to be called first")
        if self._ahead is None:
            self._batches.ready()
            return
        if self._left == 0:
            raise RuntimeError(NO_BATCH_LEFT)
        if not self._ahead.prepared:
            self._batches.ready()
            self._ahead.prepare_first()
        self._left -= 1
        if self._left > 0:  # the last step prepares a batch that is discarded
            self._batches.ready()
        self._ahead.keep_random_states()

    @contextmanager
    def next_batch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the pixels and the target of the next batch, for work on the device within the context."""
        if self._ahead is None:
            yield self._prepare()
            return
        batch = self._ahead.take()
        with self._ahead.prepared_beside():
            yield batch

    def augmented(
        self, images: Tensor, labels: Tensor, part: Part, mirror: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return augmented and mixed pixels of `part` of a batch, uint8, and their target.

        Args:
            images, labels: uint8 [B, C, H, W] and int64 [B].
            mirror: whether to flip each image, bool [B]; None flips at random if the augmentation has flips.
        """
        pixels = self._preprocessing.augmented(images, self.drawn_from["augmentation"], part, mirror)
        if self._mixing is None:
            return pixels, labels
        return mix(pixels, labels, self._num_classes, self._mixing, self.drawn_from["mixing"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that taking a batch changes, by name."""
        flips = {} if self._flips is None else {f"flips.{name}": t for name, t in self._flips.tensors().items()}
        ahead = {} if self._ahead is None else {f"next.{name}": t for name, t in self._ahead.tensors().items()}
        return batch_tensors(self._batches) | flips | ahead

    @property
    def signature(self) -> Hashable:
        """Key of what a captured step depends on; see `Batches.signature`."""
        parts = (self._batches, self._flips, self._ahead)
        return tuple(None if part is None else part.signature for part in parts)

    def _prepare(self) -> tuple[Tensor, Tensor]:
        mirror = None if self._flips is None else self._flips.take()
        return self.augmented(*self._batches.take(), self.part, mirror)
