"""Which channel each element of a tensor belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The channels of the elements of a tensor.

    Args:
        factors: labels of channels, each int64 with as many dimensions as the tensor and, in each, its size or 1. An
            element is removed if one of its labels is. An activation [B, C, H, W] has one factor [1, C, 1, 1], the
            weight of a linear layer has two, [out, 1] and [1, in], and the images that a network receives have none.
        filled: the tensor was made by its size alone, such as zeros, so that it fits any number of channels.
    """

    factors: tuple[Tensor, ...] = ()
    filled: bool = False


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation reads: its layout, and its shape before the operation."""

    layout: Layout
    shape: Shape

    def aligned(self, ndim: int) -> Operand:
        """Return the operand with dimensions of size 1 in front, `ndim` in all, as in broadcasting."""
        ones = (1,) * (ndim - len(self.shape))
        factors = tuple(f.reshape(ones + f.shape) for f in self.layout.factors)
        return Operand(Layout(factors, self.layout.filled), ones + self.shape)


def dims_of(factor: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which the labels differ."""
    return tuple(d for d, size in enumerate(factor.shape) if size > 1)


def collapsed(labels: Tensor) -> Tensor:
    """Return `labels` with size 1 in each dimension along which they are constant."""
    for d in range(labels.ndim):
        if labels.shape[d] > 1 and bool((labels == labels.narrow(d, 0, 1)).all()):
            labels = labels.narrow(d, 0, 1)
    return labels


def rows_of(factor: Tensor) -> Tensor:
    """Return the labels [rows, channels], where a row runs along the last dimension along which the labels differ."""
    last = max(dims_of(factor), default=factor.ndim - 1)
    return factor.movedim(last, -1).reshape(-1, factor.shape[last])


def restricted(factor: Tensor, kept: Tensor) -> Tensor | None:
    """Return the labels that are left where only channels with `kept[label]` remain.

    Returns:
        The labels, with as many dimensions; None if what is left is no tensor, because rows keep different numbers.
    """
    mask = kept[factor]
    dims = dims_of(factor)
    if len(dims) <= 1:
        return factor[mask].reshape(_replaced(factor.shape, dict.fromkeys(dims, -1))) if dims else factor
    for d in reversed(dims):
        counts = mask.sum(d)
        if bool((counts == counts.max()).all()):
            moved, chosen = factor.movedim(d, -1), mask.movedim(d, -1)
            return moved[chosen].reshape(*moved.shape[:-1], -1).movedim(-1, d)
    return None


def _replaced(shape: Sequence[int], sizes: dict[int, int]) -> Shape:
    return tuple(sizes.get(d, size) for d, size in enumerate(shape))
