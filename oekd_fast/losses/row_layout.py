"""The rows of logits with more than two dimensions: images of labels, sequences, any position of the class dimension.

A row is one position that has a label: all dimensions but the one of the classes. The kernels take logits as views
[R, C], or [O, C, I] with the rows r = o I + i if one stride cannot reach all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLayout:
    """How tensors of one shape become views [R, C] or [O, C, I], and how results get their shape back.

    Attributes:
        shape: shape of a student's logits as they were given.
        class_dim: index of the class dimension in `shape`, >= 0.
        split: None for [R, C]; otherwise the number of row dimensions, from the left, that O stands for. The others
            are those of I.
    """

    shape: torch.Size
    class_dim: int
    split: int | None

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of one label a row."""
        return (*self.shape[: self.class_dim], *self.shape[self.class_dim + 1 :])

    @property
    def _flat_rows(self) -> tuple[int, ...]:
        rows = self.rows_shape
        if self.split is None:
            return (math.prod(rows),)
        return math.prod(rows[: self.split]), math.prod(rows[self.split :])

    @property
    def _order(self) -> list[int]:
        """The dimensions of `shape` in the order of the flat form."""
        order = [dim for dim in range(len(self.shape)) if dim != self.class_dim]
        order.insert(len(order) if self.split is None else self.split, self.class_dim)
        return order

    def flatten(self, tensor: Tensor, leading: int = 0) -> Tensor:
        """Return logits, or a tensor of their shape, as [R, C] or [O, C, I], behind `leading` other dimensions.

        The result is a view if :meth:`fits` is true.
        """
        kept = tensor.shape[:leading]
        rows, classes = self._flat_rows, self.shape[self.class_dim]
        ordered = tensor.permute(*range(leading), *(leading + dim for dim in self._order))
        return ordered.reshape(*kept, rows[0], classes, *rows[1:])

    def restore(self, tensor: Tensor) -> Tensor:
        """Return a tensor as :meth:`flatten` makes them in the original shape, as a view."""
        order = self._order
        whole = tensor.reshape([self.shape[dim] for dim in order])
        return whole.permute([order.index(dim) for dim in range(len(order))])

    def flatten_rows(self, tensor: Tensor) -> Tensor:
        """Return one value a row as [R] or [O, I]."""
        return tensor.reshape(self._flat_rows)

    def restore_rows(self, tensor: Tensor) -> Tensor:
        """Return values [..., R] as [..., rows_shape]."""
        return tensor.reshape(*tensor.shape[:-1], *self.rows_shape)

    def fits(self, tensor: Tensor, leading: int = 0) -> bool:
        """Whether :meth:`flatten` needs no copy of `tensor`."""
        dims = [leading + dim for dim in self._order if dim != self.class_dim]
        parts = [dims] if self.split is None else [dims[: self.split], dims[self.split :]]
        sizes, strides = tensor.shape, tensor.stride()
        return all(_merge([(sizes[dim], strides[dim]) for dim in part]) for part in parts)


def row_layout(shape: torch.Size, class_dim: int, tensors: Sequence[Tensor]) -> RowLayout | None:
    """Choose a layout that needs no copy of `tensors`, which have the shape of logits; None for plain logits [B, C].

    If there is none, some tensors are copied: those whose rows need more than two strides.
    """
    if len(shape) == 2 and class_dim == 1:
        return None
    row_dims = len(shape) - 1
    # The position of the class dimension first: it suits contiguous tensors.
    splits = [class_dim] if 0 < class_dim < row_dims else []
    splits += [k for k in range(1, row_dims) if k not in splits]
    layouts = [RowLayout(shape, class_dim, split) for split in (None, *splits)]
    for layout in layouts:
        if all(layout.fits(tensor) for tensor in tensors):
            return layout
    return layouts[1] if len(layouts) > 1 else layouts[0]


def _merge(dims: Sequence[tuple[int, int]]) -> bool:
    """Whether dimensions of these sizes and strides can be viewed as one."""
    expected = None
    for size, stride in reversed(dims):
        if size == 1:
            continue
        if expected is not None and stride != expected:
            return False
        expected = stride * size
    return True
