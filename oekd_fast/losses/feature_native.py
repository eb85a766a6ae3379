"""The intermediate loss on the CPU: one op for each student and block (csrc/cpu/feature_kd)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oekd_fast import native
from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.losses import transforms
from oekd_fast.losses.feature_block import FeatureBlock, FeatureGradients, gradient_buffers, other_kind

MAP_DTYPES = (torch.float32, torch.bfloat16)

# map [B, C, H, W] and teacher [B, C_0, H, W] have one dtype, float32 or bfloat16; weight is [C_0, C] or [C_0, C, 1, 1]
# and bias [C_0]. The loss is float32. Each gradient has the shape and dtype of its tensor, that of the map is
# channels_last if channels are the map's innermost axis; all have shape [0] without `gradients`. isa names an
# instruction set of `native.isa_names()`; "auto" is the widest.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define(
    "feature_kd_student(Tensor map, Tensor teacher, Tensor weight, Tensor bias, *, Tensor? grad_scale=None, "
    'bool gradients=True, str isa="auto") -> (Tensor loss, Tensor map_grad, Tensor weight_grad, Tensor bias_grad)'
)


@on_one_device
def _fake(map, teacher, weight, bias, *, grad_scale=None, gradients=True, isa="auto"):
    loss = teacher.new_empty((), dtype=torch.float32)
    if not gradients:
        return loss, *(x.new_empty(0) for x in (map, weight, bias))
    return loss, *(grad for (grad,) in gradient_buffers([map], [weight], [bias]))


torch.library.register_fake("oekd_fast::feature_kd_student", _fake, lib=_library)
_op = raising_value_error(torch.ops.oekd_fast.feature_kd_student)


def unavailable() -> str | None:
    """Return why no call can run in this installation; None if calls can run."""
    return native.why_missing()


def unsupported(index: int, block: FeatureBlock, device: torch.device) -> str | None:
    """Return why the op does not support block `index`, or None; `device` is that of the first block."""
    if device.type != "cpu":
        return f"expected maps on the CPU, got {device}"
    teacher, tensors = block.teacher, block.differentiable
    if transforms.is_exporting() and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return f"block {index}: expected tensors that require no gradient in torch.export, got requires_grad=True"
    if teacher.dtype not in MAP_DTYPES:
        return f"block {index}: expected float32 or bfloat16 maps, got {teacher.dtype}"
    if teacher.dim() != 4 or not all(x.shape[1] for x in (teacher, *block.maps)):
        return f"block {index}: expected maps [B, C, H, W] with C >= 1, got {list(teacher.shape)}"
    if any(map(transforms.is_distributed, (teacher, *tensors))):
        return f"block {index}: expected tensors of one process, got a DTensor"
    return other_kind(index, block, device)


def value(blocks: Sequence[FeatureBlock]) -> Tensor:
    """Return the loss of blocks, each with students."""
    return torch.stack([loss for block in blocks for loss, *_ in _students(block, None, gradients=False)]).sum()


def value_and_grad(blocks: Sequence[FeatureBlock], grad_scale: Tensor | None) -> tuple[Tensor, list[FeatureGradients]]:
    """Return the loss of blocks, each with students, and the gradients of each."""
    losses, gradients = [], []
    for block in blocks:
        of_block, *grads = zip(*_students(block, grad_scale, gradients=True), strict=True)
        losses += of_block
        gradients.append(FeatureGradients(*grads))
    return torch.stack(losses).sum(), gradients


def _students(block: FeatureBlock, grad_scale: Tensor | None, *, gradients: bool) -> list[tuple[Tensor, ...]]:
    op, teacher = torch.ops.oekd_fast.feature_kd_student if torch.compiler.is_compiling() else _op, block.teacher
    return [
        op(x.detach(), teacher.detach(), weight.detach(), bias.detach(), grad_scale=grad_scale, gradients=gradients)
        for x, weight, bias in zip(block.maps, block.weights, block.biases, strict=True)
    ]
