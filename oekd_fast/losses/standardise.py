"""Standardised logits: logits with mean 0 and standard deviation 1 in each row.

Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01993,
algorithm 1. The authors' release divides by the sample standard deviation plus 1e-7; for C classes, its z' / T is that
of the temperature T sqrt(C / (C - 1)) here.
"""

from __future__ import annotations

from torch import Tensor

LEAST_SD = 1e-7  # a row counts as constant up to this standard deviation


def standardised(z: Tensor) -> Tensor:
    """Return (z - mean z) / sd z of each row of logits [R, C].

    The mean and the standard deviation, that of a population, are those of the logits that are not -inf; these stay
    -inf, without a gradient. If the deviation is at most 1e-7, the logits become 0 and have no gradient.
    """
    given = z != -float("inf")
    number = given.sum(dim=1, keepdim=True).clamp(min=1)
    # Logits less a value near their mean: small differences of large logits keep their accuracy. Equal logits are equal
    # to this value, whatever the rounding of the mean.
    fixed = z.detach()
    mean = fixed.where(given, 0.0).sum(dim=1, keepdim=True) / number
    least, most = fixed.where(given, float("inf")).amin(dim=1, keepdim=True), fixed.amax(dim=1, keepdim=True)
    near = mean.clamp(least, most)
    shifted = (z - near).where(given, 0.0)
    centred = (shifted - shifted.sum(dim=1, keepdim=True) / number).where(given, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / number
    varies = variance > LEAST_SD**2
    sd = variance.where(varies, 1.0).sqrt()  # the gradient of a root at 0 would be infinite
    return (centred / sd).where(varies, 0.0).where(given, -float("inf"))
