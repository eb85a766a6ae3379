"""The intermediate loss of one student at one block with all its gradients, in plain PyTorch, without autograd.

    d = A f + b - f0,   loss = mean d^2,   dL/df = 2/n A^T d,   dL/dA = 2/n sum_rows d f^T,   dL/db = 2/n sum_rows d

A row is one position of the map. On a CPU rows are taken a few at a time, so that d, which is as large as the pseudo
teacher's map, is made and used in the cache and never stands in memory. Elsewhere launches would cost more than that.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 2**18  # of d at a time: 1 MB in float32


def value_and_grad(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (float32, float64 for float64 maps) and the gradients of map, weight and bias, each in its own dtype.

    Args:
        student, teacher: [B, C_j, H, W] and [B, C_0, H, W].
        weight: [C_0, C_j] or [C_0, C_j, 1, 1].
        bias: [C_0].
        grad_scale: one element that multiplies the gradients; None is 1.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        matrix, offset = weight.flatten(1).to(dtype), bias.to(dtype)
        x, target = _rows(student), _rows(teacher)
        count = target.numel()
        factor = matrix.new_full((), 2.0 / max(1, count))  # of no rows the sums are 0, though their mean is NaN
        if grad_scale is not None:
            factor = factor * grad_scale.reshape(()).to(dtype)
        scaled = matrix * factor

        squares = matrix.new_zeros((), dtype=torch.float64)
        of_map = torch.empty_like(x)
        of_weight, of_bias = torch.zeros_like(matrix), torch.zeros_like(offset)
        rows = max(1, _ELEMENTS // max(1, len(offset)) if student.device.type == "cpu" else len(x))
        for part, goal, out in zip(x.split(rows), target.split(rows), of_map.split(rows), strict=True):
            part = part.to(dtype)
            gap = torch.addmm(offset, part, matrix.t()).sub_(goal)
            flat = gap.view(-1)
            squares += flat.dot(flat)
            out.copy_(gap @ scaled)
            of_weight.addmm_(gap.t(), part)
            of_bias += gap.sum(0)
        loss = (squares / count).to(dtype)
        batch, channels, height, width = student.shape
        form = torch.channels_last if student.stride(1) == 1 else torch.contiguous_format
        of_map = of_map.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous(memory_format=form)
        of_weight = (of_weight * factor).view(weight.shape).to(weight.dtype)
        return loss, of_map, of_weight, (of_bias * factor).to(bias.dtype)


def _rows(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B * H * W, C]: a view where the map is channels_last."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
