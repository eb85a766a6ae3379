"""Selection of the images of a batch that are trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from oekd_fast.common.part import Part
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.training.backward import run_base


@torch.no_grad()
def hardest_rows(ensemble: StudentEnsemble, images: Tensor, target: Tensor, count: int) -> Tensor:
    """Return the rows of the `count` images with the largest cross-entropy of the last student, int64 [count].

    The student predicts in evaluation mode, so that no running statistics change; the base and this student are left in
    that mode. The rows are in ascending order. Nothing waits for the device.

    Source: Jiang et al. 2019, "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762. There,
    the network that is trained selects, at random with a probability that rises with the rank of the loss. Here the
    smallest student does, whose forward pass takes few operations, and the largest losses are taken.

    Args:
        images: float [B, C_in, H, W], normalised.
        target: class indices, int64 [B], or probabilities, floating [B, C].
        count: number of images to keep, from 1 to B.
    """
    branch = ensemble.branches[-1].eval()
    logits, _ = branch(run_base(ensemble.base.eval(), images))
    log_probabilities = logits.float().log_softmax(dim=1)
    if target.is_floating_point():
        losses = -(target * log_probabilities).sum(dim=1)
    else:  # labels out of range are reported by the loss
        valid = target.clamp(0, logits.shape[1] - 1)
        losses = -log_probabilities.gather(1, valid[:, None])[:, 0]
    return losses.topk(count).indices.sort().values


def kept_part(rows: int, kept: float, world: World) -> Part:
    """Return the part of this rank among the images that are kept: the share `kept` of the rows of each rank.

    Args:
        rows: images of a batch over all ranks.
    """
    counts = [round(Part.whole(rows).piece(rank, world.size).count * kept) for rank in range(world.size)]
    return Part(sum(counts[: world.rank]), counts[world.rank], sum(counts))
