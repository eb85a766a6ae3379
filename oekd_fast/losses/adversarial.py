"""The loss between pooled maps with critics that tell a teacher's from a student's (MEAL).

Source: Shen, He, Xue, "MEAL: Multi-Model Ensemble via Adversarial Learning", AAAI 2019, arXiv 1812.02425, with details
of the authors' release, https://github.com/AaronHeee/MEAL. As similarity of the vectors the release has the
cross-entropy - sum softmax(t) log softmax(s), whose gradient is that of the Kullback-Leibler divergence. Its vectors
have an element for each pooled position, the mean over channels; those of this module have one for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.losses.comparison import ComparedStudent, widened


def adversarial_loss(students: Sequence[ComparedStudent], teacher: Sequence[Tensor], critic_weight: float) -> Tensor:
    """Compare pooled maps, and let a critic for each student and block tell them apart.

    With t the teacher's map and s the student's adapted one, both averaged over height and width, and with D(x) the
    probability that the critic gives to x being the teacher's,

        L = sum_students sum_blocks [ mean_images KL(softmax(t) || softmax(s)) + critic_weight * L_D ]
        L_D = - mean_images log D(t) - mean_images log(1 - D(s))

    The critics' gradients minimise L_D. The students and adapters receive the opposite of its gradient, which maximises
    it, as with the option ``--grl`` of the release: one backward pass serves both players.

    Args:
        students: their `helpers` are the critics, pooled map [B, C_b] -> score [B, 1], the logit of D.
        teacher: the teacher's maps [B, C_b, H_b, W_b], one a block.

    Returns:
        A scalar, float32 (float64 for float64 maps).
    """
    targets = [widened(x.detach()).mean(dim=(2, 3)) for x in teacher]
    losses = []
    for student in students:
        blocks = zip(student.maps, student.adapters, student.helpers, targets, strict=True)
        for x, adapter, critic, t in blocks:
            # A 1x1 convolution and an average over positions can change places.
            s = widened(x).mean(dim=(2, 3))
            s = F.linear(s, adapter.weight.flatten(1).to(s.dtype), adapter.bias.to(s.dtype))
            similarity = F.kl_div(s.log_softmax(dim=1), t.log_softmax(dim=1), reduction="batchmean", log_target=True)
            of_teacher, of_student = critic(torch.cat((t, reverse_gradient(s)))).chunk(2)
            told_apart = F.softplus(-of_teacher).mean() + F.softplus(of_student).mean()
            losses += [similarity, critic_weight * told_apart]
    return torch.stack(losses).sum()


def reverse_gradient(x: Tensor) -> Tensor:
    """Return `x`, with the sign of its gradient changed in the backward pass.

    Source: Ganin and Lempitsky 2015, arXiv 1409.7495.
    """
    return _Reversed.apply(x)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad
