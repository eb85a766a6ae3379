"""Maps [B, C, H, W] as views of a network's intermediate results, whatever the dimension of their channels."""

from __future__ import annotations

from torch import Tensor


def as_map(x: Tensor, axis: int) -> Tensor:
    """Return `x` as a map [B, C, H, W], a view.

    Args:
        x: tensor of 2, 3 or 4 dimensions, the first of which is the batch, such as features [B, C], tokens [B, T, C],
            or maps [B, C, H, W] and [B, H, W, C].
        axis: dimension of the channels.
    """
    if axis != 1:
        x = x.movedim(axis, 1)
    while x.ndim < 4:
        x = x.unsqueeze(-1)
    return x


def from_map(x: Tensor, axis: int, ndim: int) -> Tensor:
    """Return the tensor of `ndim` dimensions of which `as_map` made the map `x`, a view."""
    for _ in range(4 - ndim):
        x = x.squeeze(-1)
    return x if axis == 1 else x.movedim(1, axis)


def map_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape (B, C, H, W) of `as_map` of a tensor of `shape`."""
    rest = [size for dim, size in enumerate(shape) if dim not in (0, axis)]
    return (shape[0], shape[axis], *rest, *[1] * (4 - len(shape)))
