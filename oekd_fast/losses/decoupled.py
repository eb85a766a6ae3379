"""The two distributions of decoupled distillation: the label's class against the others, and the others alone.

Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decoupled(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the label's class and of all others, [R, 2], and of each other class, [R, C].

    The logarithm of the others' probability is a difference of log-sums of exponentials over the others and over all
    classes, not that of 1 - p, so that it is accurate where p is nearly 1.

    Args:
        scores: logits over the temperature, [R, C].
        labels: class indices, int64 [R]. The second result is -inf there, or, if no other class has a finite score,
            log(1 / C) in the whole row.
    """
    column = labels[:, None]
    of_label = scores.gather(1, column)
    is_label = torch.zeros_like(scores, dtype=torch.bool).scatter(1, column, True)
    others = scores.masked_fill(is_label, -float("inf"))
    has_others = (others != -float("inf")).any(dim=1, keepdim=True)
    others = others.where(has_others, 0.0)  # a softmax of -inf alone would be NaN
    all_others = others.logsumexp(dim=1, keepdim=True).where(has_others, -float("inf"))
    return torch.cat((of_label, all_others), dim=1).log_softmax(dim=1), others.log_softmax(dim=1)
