"""What the steps of an epoch train on: images of full or smaller size, whole batches or their hardest images."""

from __future__ import annotations

from dataclasses import dataclass

from oekd_fast.config.schedule import ScheduleConfig


@dataclass(frozen=True)
class EpochWork:
    """Share of whole batches of images of full size that the steps of an epoch train on.

    Args:
        side: side of the training images, as a share of their full side.
        kept: images of each batch that are trained on, as a share of the batch.
    """

    side: float = 1.0
    kept: float = 1.0

    def cost(self, selection: float) -> float:
        """Return the operations of a step in relation to those on a whole batch of images of full size.

        Args:
            selection: operations that the selection of images takes, in the same relation.
        """
        return self.side**2 * (self.kept + (selection if self.kept < 1 else 0.0))


def epoch_work(config: ScheduleConfig, epoch: int, epochs: int) -> EpochWork:
    """Return what epoch number `epoch`, counted from 0, of a training of `epochs` epochs trains on."""
    done = epoch / epochs
    side = 1.0
    if config.start_size is not None:
        begin, end = config.growth
        if done < end:
            grown = max(done - begin, 0.0) / (end - begin)
            side = config.start_size + (1.0 - config.start_size) * grown
    begin, end = config.hardest_between
    selects = config.keep_hardest is not None and begin <= done < end
    return EpochWork(side, config.keep_hardest if selects else 1.0)


def epoch_costs(config: ScheduleConfig, epochs: int, selection: float) -> tuple[float, ...]:
    """Return `EpochWork.cost` of each epoch of a training of `epochs` epochs."""
    return tuple(epoch_work(config, epoch, epochs).cost(selection) for epoch in range(epochs))
