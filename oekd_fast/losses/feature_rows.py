"""The intermediate loss of one student after one block with its gradients, in plain PyTorch, without autograd.

    d = A f + b - f0,   loss = mean d^2,   dL/df = 2/n A^T d,   dL/dA = 2/n sum_rows d f^T,   dL/db = 2/n sum_rows d

f is the student's map, f0 the pseudo teacher's map, n the number of its elements; a row is one position of a map. On a
CPU a few rows are processed at a time, so that d, which is as large as f0, stays in the cache. On other devices the
launches would cost more than that saves, and all rows are processed at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oekd_fast.common import devices

_ELEMENTS = 2**18  # of d at a time: 1 MB in float32


def value_and_grad(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss and the gradients of map, weight and bias.

    Args:
        student: [B, C_j, H, W].
        teacher: [B, C_0, H, W].
        weight: [C_0, C_j] or [C_0, C_j, 1, 1].
        bias: [C_0].
        grad_scale: one element that multiplies the gradients; None means 1.

    Returns:
        The loss is float32 (float64 for float64 maps); each gradient has the shape and dtype of its tensor.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        matrix, offset = weight.flatten(1).to(dtype), bias.to(dtype)
        x, target = _rows(student), _rows(teacher)
        count = target.numel()
        # Without rows the gradients are sums of nothing, 0, although the mean is NaN.
        factor = matrix.new_full((), 2.0 / max(1, count))
        if grad_scale is not None:
            factor = factor * grad_scale.reshape(()).to(dtype)
        scaled = matrix * factor

        # On all devices but the CPU the sum has one part.
        squares = matrix.new_zeros((), dtype=torch.float64 if devices.has_float64(student.device) else dtype)
        map_grad = torch.empty_like(x)
        weight_grad, bias_grad = torch.zeros_like(matrix), torch.zeros_like(offset)
        rows = max(1, _ELEMENTS // max(1, len(offset)) if student.device.type == "cpu" else len(x))
        for part, goal, out in zip(x.split(rows), target.split(rows), map_grad.split(rows), strict=True):
            part = part.to(dtype)
            gap = torch.addmm(offset, part, matrix.t()).sub_(goal)
            flat = gap.view(-1)
            squares += flat.dot(flat)
            out.copy_(gap @ scaled)
            weight_grad.addmm_(gap.t(), part)
            bias_grad += gap.sum(0)
        loss = (squares / count).to(dtype)
        batch, channels, height, width = student.shape
        form = torch.channels_last if student.stride(1) == 1 else torch.contiguous_format
        map_grad = map_grad.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous(memory_format=form)
        weight_grad = (weight_grad * factor).view(weight.shape).to(weight.dtype)
        return loss, map_grad, weight_grad, (bias_grad * factor).to(bias.dtype)


def _rows(x: Tensor) -> Tensor:
    """Reshape [B, C, H, W] to [B * H * W, C]; a view if the map is channels_last."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
