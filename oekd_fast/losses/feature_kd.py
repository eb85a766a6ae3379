"""The public intermediate loss: choice of the backend for each block, and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from oekd_fast.losses import feature_native, feature_rows, feature_triton, reference, transforms
from oekd_fast.losses.checks import check_tensor
from oekd_fast.losses.feature_block import FeatureBlock, FeatureGradients, feature_blocks

# Each has `unavailable`, `unsupported`, `value` and `value_and_grad`.
_COMPILED = {"native": feature_native, "triton": feature_triton}
BACKENDS = ("auto", "reference", *_COMPILED)


def feature_kd_loss(
    student_maps: Sequence,
    teacher_map: Tensor | Sequence[Tensor],
    weights: Sequence,
    biases: Sequence,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compute the intermediate loss: the MSE of each student's adapted map to the pseudo teacher's map, summed.

    Source: Walawalkar, Shen, Savvides 2020, arXiv 2011.07449, section 3.2.

    Args:
        student_maps: n maps [B, C_j, H, W] of one block, or a sequence of those, one a block.
        teacher_map: [B, C_0, H, W], or one map a block. It receives no gradient.
        weights: n adapters [C_0, C_j] or [C_0, C_j, 1, 1], or a sequence of those, one a block.
        biases: n tensors [C_0], or a sequence of those, one a block.
        backend: "auto" uses the compiled kernels of the device for each block that they support, and the reference for
            the others. "reference", "native" (CPU) and "triton" (CUDA) use that backend alone. The kernels support maps
            of one dtype, float32, bfloat16 or, in Triton, float16, contiguous or channels_last (others are copied), and
            adapters of any of these dtypes; those in Triton at most 512 channels. They can be differentiated once.

    Returns:
        A scalar, float32 (float64 for float64 maps): the mean over the elements of each map, summed over students and
        blocks. It is 0 without students and NaN for empty maps, as ``torch.nn.functional.mse_loss``.

    Raises:
        ValueError: lengths or shapes do not fit together, or an explicit backend does not support a block; the message
            names the block and the student.
        RuntimeError: an explicit backend is unavailable.
    """
    return blocks_loss(feature_blocks(student_maps, teacher_map, weights, biases), backend=backend)


def feature_kd_value_and_grad(
    student_maps: Sequence,
    teacher_map: Tensor | Sequence[Tensor],
    weights: Sequence,
    biases: Sequence,
    *,
    grad_scale: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, tuple, tuple, tuple]:
    """Compute the intermediate loss and its gradients outside autograd, on CUDA in one launch a block.

    Args:
        student_maps, teacher_map, weights, biases, backend: same as for :func:`feature_kd_loss`.
        grad_scale: one-element tensor that multiplies the gradients but not the loss, such as a loss scale.

    Returns:
        The loss, and the gradients of maps, weights and biases, each with the shape and dtype of its tensor: n tensors
        for one block, or a tuple of n tensors a block.
    """
    blocks = feature_blocks(student_maps, teacher_map, weights, biases)
    loss, gradients = blocks_value_and_grad(blocks, grad_scale=grad_scale, backend=backend)
    if isinstance(teacher_map, Tensor):
        return loss, gradients[0].maps, gradients[0].weights, gradients[0].biases
    maps, weights, biases = (tuple(getattr(g, part) for g in gradients) for part in ("maps", "weights", "biases"))
    return loss, maps, weights, biases


def blocks_loss(blocks: Sequence[FeatureBlock], *, backend: str = "auto") -> Tensor:
    """Return the differentiable loss of checked blocks; see :func:`feature_kd_loss`."""
    kernels, compiled, others = _divide(backend, blocks)
    if kernels is None:
        return _reference(blocks)
    loss = _compiled(kernels, [blocks[i] for i in compiled])
    return loss + _reference([blocks[i] for i in others]) if others else loss


def blocks_value_and_grad(
    blocks: Sequence[FeatureBlock], *, grad_scale: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, list[FeatureGradients]]:
    """Return the loss of checked blocks and the gradients of each; see :func:`feature_kd_value_and_grad`."""
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, blocks[0].teacher.device, like="the teacher's map")
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale: expected a tensor of one element, got shape {list(grad_scale.shape)}")
        grad_scale = grad_scale.detach()
    kernels, compiled, others = _divide(backend, blocks)
    if _transformed(blocks):
        return _transformed_value_and_grad(blocks, grad_scale)
    losses, gradients = [], [FeatureGradients()] * len(blocks)
    run_compiled = None if kernels is None else kernels.value_and_grad
    for chosen, run in ((compiled, run_compiled), (others, _reference_value_and_grad)):
        if chosen:
            loss, of_chosen = run([blocks[i] for i in chosen], grad_scale)
            losses.append(loss)
            for i, of_block in zip(chosen, of_chosen, strict=True):
                gradients[i] = of_block
    if not losses:  # there are no students
        return _reference(blocks), gradients
    return (losses[0] if len(losses) == 1 else losses[0] + losses[1]), gradients


# -- the compiled kernels


class _FeatureKD(torch.autograd.Function):
    """Computes the loss first and saves its inputs alone; backward computes the gradients."""

    @staticmethod
    def forward(ctx, kernels, counts, *tensors):
        ctx.kernels, ctx.counts = kernels, counts
        ctx.save_for_backward(*tensors)
        return kernels.value(_unflatten(counts, tensors))

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "feature_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                "backend='reference' is differentiable twice"
            )
        blocks = _unflatten(ctx.counts, ctx.saved_tensors)
        if transforms.is_batched(upstream):  # is_grads_batched=True hides a batch of numbers in `upstream`
            _, gradients = ctx.kernels.value_and_grad([_in_float32(block) for block in blocks], None)
            scaled = [grad * upstream for block in gradients for grad in block.flat]
            like = (tensor for block in blocks for tensor in block.differentiable)
            grads = [grad.to(tensor.dtype) for grad, tensor in zip(scaled, like, strict=True)]
        else:
            _, gradients = ctx.kernels.value_and_grad(blocks, upstream)
            grads = [grad for block in gradients for grad in block.flat]
        return None, None, *(None for _ in ctx.counts), *grads


def _compiled(kernels: ModuleType, blocks: Sequence[FeatureBlock]) -> Tensor:
    tensors = [tensor for block in blocks for tensor in block.differentiable]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        counts = tuple(len(block.maps) for block in blocks)
        return _FeatureKD.apply(kernels, counts, *(block.teacher for block in blocks), *tensors)
    return kernels.value(blocks)


def _unflatten(counts: tuple[int, ...], tensors: Sequence[Tensor]) -> list[FeatureBlock]:
    """Rebuild blocks of `counts` students from all teachers' maps followed by each block's differentiable tensors."""
    blocks, at = [], len(counts)
    for teacher, n in zip(tensors, counts, strict=False):
        maps, weights, biases = (tensors[at + part * n : at + (part + 1) * n] for part in range(3))
        blocks.append(FeatureBlock(maps, teacher, weights, biases))
        at += 3 * n
    return blocks


def _in_float32(block: FeatureBlock) -> FeatureBlock:
    maps, weights, biases = ([x.float() for x in part] for part in (block.maps, block.weights, block.biases))
    return FeatureBlock(maps, block.teacher.float(), weights, biases)


# -- the reference


def _reference(blocks: Sequence[FeatureBlock]) -> Tensor:
    losses = torch.stack([reference.feature_kd(b.maps, b.teacher, b.weights, b.biases) for b in blocks])
    return losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))


def _reference_value_and_grad(
    blocks: Sequence[FeatureBlock], grad_scale: Tensor | None
) -> tuple[Tensor, list[FeatureGradients]]:
    losses, gradients = [], []
    for block in blocks:
        of_students = [
            feature_rows.value_and_grad(student, block.teacher, weight, bias, grad_scale)
            for student, weight, bias in zip(block.maps, block.weights, block.biases, strict=True)
        ]
        of_block, maps, weights, biases = zip(*of_students, strict=True)
        losses += of_block
        gradients.append(FeatureGradients(maps, weights, biases))
    return torch.stack(losses).sum(), gradients


def _transformed_value_and_grad(
    blocks: Sequence[FeatureBlock], grad_scale: Tensor | None
) -> tuple[Tensor, list[FeatureGradients]]:
    """Loss and gradients by ``torch.func``, so that other transforms apply to them."""
    counts = tuple(len(block.maps) for block in blocks)
    teachers = [block.teacher for block in blocks]

    def loss(tensors):
        value = _reference(_unflatten(counts, (*teachers, *tensors)))
        return value if grad_scale is None else value * grad_scale.reshape(()), value

    tensors = tuple(tensor for block in blocks for tensor in block.differentiable)
    grads, (_, value) = torch.func.grad_and_value(loss, has_aux=True)(tensors)
    gradients = _unflatten(counts, (*teachers, *grads))
    return value, [FeatureGradients(tuple(g.maps), tuple(g.weights), tuple(g.biases)) for g in gradients]


# -- choice of the backend


def _transformed(blocks: Sequence[FeatureBlock]) -> bool:
    """Whether torch.func or forward-mode AD differentiates the blocks, which the kernels do not support."""
    return transforms.in_torch_func() or transforms.has_tangent(t for block in blocks for t in block.differentiable)


def _divide(backend: str, blocks: Sequence[FeatureBlock]) -> tuple[ModuleType | None, list[int], list[int]]:
    """Return kernels with the indices of the blocks that they compute, and those that the reference computes.

    Blocks without students are in neither list. The kernels are None if they compute no block.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    given = [i for i, block in enumerate(blocks) if block.maps]
    if backend == "reference" or not given:
        return None, [], given
    device = blocks[given[0]].teacher.device
    if backend == "auto":
        kernels = feature_native if device.type == "cpu" else feature_triton
        if kernels.unavailable() is not None or _transformed(blocks):
            return None, [], given
        compiled = [i for i in given if kernels.unsupported(i, blocks[i], device) is None]
        return kernels if compiled else None, compiled, [i for i in given if i not in compiled]
    kernels = _COMPILED[backend]
    if why := kernels.unavailable():
        raise RuntimeError(f"backend {backend!r} is unavailable: {why}")
    if _transformed(blocks):
        raise ValueError(
            f"backend {backend!r}: expected a call outside the transforms of torch.func and without dual tensors, "
            "got one inside; backend='reference' supports this"
        )
    for i in given:
        if why := kernels.unsupported(i, blocks[i], device):
            raise ValueError(f"backend {backend!r}: {why}; backend='reference' supports this")
    return kernels, given, []
