"""Standardised logits in float64, for exact_calls.py, and the sizes of the terms that rounding changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SD = 1e-7


@dataclass(frozen=True)
class Standardised:
    """Logits over their standard deviation, of the logits of a row that are not -inf.

    Attributes:
        z: (z - mean z) / sd z, 0 in constant rows; -inf stays.
        sizes: by how much rounding changes z, in units of eps: by its distance from the largest logit, by the rounding
            of the logits, and by that of sd.
        scale: 1 / sd, [..., 1]; 0 in constant rows.
        number: of logits that are not -inf, [..., 1].
    """

    z: Tensor
    sizes: Tensor
    scale: Tensor
    number: Tensor

    @classmethod
    def of(cls, z: Tensor, sizes: Tensor | float = 0.0) -> Standardised:
        """Standardise logits [..., C] which rounding has changed by eps times `sizes`."""
        given = z != -math.inf
        number = given.sum(dim=-1, keepdim=True).clamp(min=1)
        finite = z.where(given, 0.0)
        centred = (finite - finite.sum(dim=-1, keepdim=True) / number).where(given, 0.0)
        sd = (centred.square().sum(dim=-1, keepdim=True) / number).sqrt()
        scale = torch.where(sd > LEAST_SD, 1.0 / sd, 0.0)
        standard = centred * scale
        away = (centred - centred.where(given, -math.inf).amax(dim=-1, keepdim=True)).abs() + sizes
        of_each = (away * scale).where(given, 0.0)
        of_sd = (standard.abs() * of_each).sum(dim=-1, keepdim=True) / number
        return cls(standard.where(given, -math.inf), of_each + standard.abs() * of_sd, scale, number)

    def through(self, grad: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the logits from those of the standardised ones, and their terms."""
        given = self.z != -math.inf
        z, sizes = self.z.where(given, 0.0), (self.sizes + self.z.abs()).where(given, 0.0)
        mean = (grad * z).sum(dim=-1, keepdim=True) / self.number
        of_mean = (terms * sizes).sum(dim=-1, keepdim=True) / self.number
        value, size = self.scale * (grad - z * mean), self.scale * (terms + sizes * of_mean)
        return value.where(given, 0.0), size.where(given, 0.0)
