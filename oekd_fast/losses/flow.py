"""The loss between flow matrices (FSP: flow of the solution procedure).

Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017, sections 3.2 (eq. 1, the matrix) and 3.3 (eq. 2, the loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.losses.comparison import ComparedStudent, adapted_maps, widened


def flow_loss(students: Sequence[ComparedStudent], teacher: Sequence[Tensor]) -> Tensor:
    """Compare the flow matrices of each student's adapted maps with those of the teacher's maps.

        L = sum_students mean_images sum_b ||G(f_b, f_b+1) - G(A f_b, A f_b+1)||^2

    b and b + 1 are neighbouring blocks, and the norm is the sum of squares of all elements. The paper takes both maps
    of a pair from one section of the network, in which maps have one size, and weights all pairs equally. Adapters give
    both matrices one size; the paper has students of the teacher's width.

    Args:
        teacher: the teacher's maps [B, C_b, H_b, W_b], at least two.

    Returns:
        A scalar, float32 (float64 for float64 maps).
    """
    targets = flow_matrices([widened(target) for target in teacher])
    losses = []
    for student in students:
        own = flow_matrices(adapted_maps(student))
        losses += [(g - goal).square().sum(dim=(1, 2)).mean() for g, goal in zip(own, targets, strict=True)]
    return torch.stack(losses).sum()


def flow_matrices(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return G [B, M, N] of each pair of neighbouring maps x [B, M, H, W] and y [B, N, H', W'].

    G[i, k] is the mean of x_i y_k over all positions. The map with more positions is max-pooled to the size of the
    other one.
    """
    matrices = []
    for x, y in pairwise(maps):
        size = tuple(map(min, x.shape[2:], y.shape[2:]))
        x, y = (_pooled(each, size).flatten(2) for each in (x, y))
        matrices.append(x @ y.transpose(1, 2) / x.shape[2])
    return matrices


def _pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return `x` max-pooled to the height and width `size`, by windows of one size where these fit.

    The gradient of the adaptive pooling is not deterministic on CUDA.
    """
    if tuple(x.shape[2:]) == size:
        return x
    window = tuple(-(-own // wanted) for own, wanted in zip(x.shape[2:], size, strict=True))
    if all(-(-own // side) == wanted for own, side, wanted in zip(x.shape[2:], window, size, strict=True)):
        return F.max_pool2d(x, window, ceil_mode=True)
    return F.adaptive_max_pool2d(x, size)
