"""The public intermediate loss: argument checks, choice of the backend, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from oekd_fast.losses import feature_rows, reference
from oekd_fast.losses.checks import check_block, check_tensor

BACKENDS = ("auto", "reference", "triton")
COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Beyond, the multiplications that the kernels repeat cost more than the trips to memory that they save.
MAX_CHANNELS = 512
_HAS_TRITON = find_spec("triton") is not None  # loaded at its first launch: it takes a second

_BLOCK = "Tensor[] maps, Tensor teacher, Tensor[] weights, Tensor[] biases"
_library = torch.library.Library("oekd_fast", "FRAGMENT")
# The loss is added to `previous`, so that the blocks of a network need no launch of their own to be summed.
_library.define(f"feature_kd_value({_BLOCK}, *, Tensor? previous=None) -> Tensor")
_library.define(
    f"feature_kd_value_and_grad({_BLOCK}, *, Tensor? grad_scale=None, Tensor? previous=None)"
    " -> (Tensor, Tensor[], Tensor[], Tensor[])"
)


class _Block(NamedTuple):
    maps: Sequence[Tensor]
    teacher: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]


def feature_kd_loss(
    student_maps: Sequence,
    teacher_map: Tensor | Sequence[Tensor],
    weights: Sequence,
    biases: Sequence,
    *,
    backend: str = "auto",
) -> Tensor:
    """Intermediate loss: MSE of each student's adapted map to the pseudo teacher's, summed (paper, section 3.2).

    Args:
        student_maps: of one block, n maps [B, C_j, H, W]; or of all blocks, a sequence of those.
        teacher_map: [B, C_0, H, W], never given a gradient; or one a block.
        weights: adapters, n of [C_0, C_j] or [C_0, C_j, 1, 1]; or a sequence of those, one a block.
        biases: n of [C_0]; or a sequence of those, one a block.
        backend: "auto" takes the compiled kernels for each block that they cover where they are there, else the
            reference; "reference" and "triton" (CUDA) insist. The kernels take maps of one dtype, float32, bfloat16 or
            float16, contiguous or channels_last (others are copied), adapters of any of these dtypes, at most 512
            channels.

    Returns:
        Scalar, float32 (float64 for float64 maps): the mean over elements of each map, summed over students and
        blocks. No student: 0. Empty maps: NaN, as ``torch.nn.functional.mse_loss``.

    Raises:
        ValueError: lengths or shapes that do not fit, naming block and student; what the backend does not cover.
        RuntimeError: the backend asked for is not there.
    """
    blocks = _blocks(student_maps, teacher_map, weights, biases)
    compiled, others = _divide(backend, blocks)
    if not compiled:
        return _reference(blocks)
    loss = _compiled([blocks[i] for i in compiled])
    return loss + _reference([blocks[i] for i in others]) if others else loss


def _compiled(blocks: Sequence[_Block]) -> Tensor:
    tensors = [tensor for block in blocks for tensor in (*block.maps, *block.weights, *block.biases)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        counts = tuple(len(block.maps) for block in blocks)
        return _FeatureKD.apply(counts, *(block.teacher for block in blocks), *tensors)
    return _value(blocks)


def feature_kd_value_and_grad(
    student_maps: Sequence,
    teacher_map: Tensor | Sequence[Tensor],
    weights: Sequence,
    biases: Sequence,
    *,
    grad_scale: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, tuple, tuple, tuple]:
    """Loss and its gradients at once, one launch a block, outside autograd; arguments as :func:`feature_kd_loss`.

    Args:
        grad_scale: one-element tensor that multiplies the gradients (not the loss): a loss scale.

    Returns:
        The loss, and the gradients of maps, weights and biases, each in the shape and dtype of its own: n of one block,
        or a tuple of n for each block.
    """
    blocks = _blocks(student_maps, teacher_map, weights, biases)
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, blocks[0].teacher.device, like="the teacher's map")
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale: expected a tensor of one element, got shape {list(grad_scale.shape)}")
    compiled, others = _divide(backend, blocks)
    losses, grads = [], [((), (), ())] * len(blocks)
    for part, run in ((compiled, _value_and_grad), (others, _reference_value_and_grad)):
        if part:
            loss, of_blocks = run([blocks[i] for i in part], None if grad_scale is None else grad_scale.detach())
            losses.append(loss)
            for i, of_block in zip(part, of_blocks, strict=True):
                grads[i] = of_block
    loss, *more = losses or [_reference(blocks)]
    for other in more:
        loss = loss + other
    if isinstance(teacher_map, Tensor):
        return loss, *grads[0]
    return loss, *zip(*grads, strict=True)


class _FeatureKD(torch.autograd.Function):
    """Loss first, saving only its inputs; gradients when the upstream one is known, in one launch a block."""

    @staticmethod
    def forward(ctx, counts, *tensors):
        ctx.counts = counts
        ctx.save_for_backward(*tensors)
        return _value(_unflatten(counts, tensors))

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "feature_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                "backend='reference' is differentiable twice"
            )
        _, grads = _value_and_grad(_unflatten(ctx.counts, ctx.saved_tensors), upstream)
        return None, *(None for _ in ctx.counts), *(grad for block in grads for part in block for grad in part)


def _unflatten(counts: tuple[int, ...], tensors: Sequence[Tensor]) -> list[_Block]:
    """Blocks of `counts` students from their teachers' maps, then maps, weights and biases of one after the other."""
    blocks, at = [], len(counts)
    for teacher, n in zip(tensors, counts, strict=False):
        maps, weights, biases = (tensors[at + part * n : at + (part + 1) * n] for part in range(3))
        blocks.append(_Block(maps, teacher, weights, biases))
        at += 3 * n
    return blocks


def _value(blocks: Sequence[_Block]) -> Tensor:
    loss = None
    for block in blocks:
        loss = torch.ops.oekd_fast.feature_kd_value(
            block.maps, block.teacher.detach(), block.weights, block.biases, previous=loss
        )
    return loss


def _value_and_grad(blocks: Sequence[_Block], grad_scale: Tensor | None) -> tuple[Tensor, list[tuple]]:
    loss, grads = None, []
    for block in blocks:
        maps, weights, biases = ([t.detach() for t in part] for part in (block.maps, block.weights, block.biases))
        loss, *of_block = torch.ops.oekd_fast.feature_kd_value_and_grad(
            maps, block.teacher.detach(), weights, biases, grad_scale=grad_scale, previous=loss
        )
        grads.append(tuple(map(tuple, of_block)))
    return loss, grads


def _run_value(maps, teacher, weights, biases, *, previous=None):
    from oekd_fast.kernels.feature_kd.launch import feature_kd_value

    return feature_kd_value(maps, teacher, weights, biases, previous=previous)


def _run_value_and_grad(maps, teacher, weights, biases, *, grad_scale=None, previous=None):
    from oekd_fast.kernels.feature_kd.launch import feature_kd_value

    out = gradient_buffers(maps, weights, biases)
    loss = feature_kd_value(maps, teacher, weights, biases, out=out, grad_scale=grad_scale, previous=previous)
    return loss, *out


def gradient_buffers(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Not filled; dense. A map's gradient is channels_last where the map's channels are its innermost axis."""
    formats = [torch.channels_last if x.stride(1) == 1 else torch.contiguous_format for x in maps]
    return (
        [torch.empty_like(x, memory_format=form) for x, form in zip(maps, formats, strict=True)],
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights],
        [torch.empty_like(bias, memory_format=torch.contiguous_format) for bias in biases],
    )


def _fake_value(maps, teacher, weights, biases, *, previous=None):
    return teacher.new_empty((), dtype=torch.float32)


def _fake_value_and_grad(maps, teacher, weights, biases, *, grad_scale=None, previous=None):
    return teacher.new_empty((), dtype=torch.float32), *gradient_buffers(maps, weights, biases)


torch.library.register_fake("oekd_fast::feature_kd_value", _fake_value, lib=_library)
torch.library.register_fake("oekd_fast::feature_kd_value_and_grad", _fake_value_and_grad, lib=_library)
for _device in ("CUDA", "CPU"):  # CPU: in Triton's interpreter, else refused before
    _library.impl("feature_kd_value", _run_value, _device)
    _library.impl("feature_kd_value_and_grad", _run_value_and_grad, _device)


def _blocks(student_maps, teacher_map, weights, biases) -> list[_Block]:
    if isinstance(teacher_map, Tensor):
        blocks = [_Block(student_maps, teacher_map, weights, biases)]
    else:
        given = {"student_maps": student_maps, "weights": weights, "biases": biases}
        for name, value in given.items():
            if len(value) != len(teacher_map):
                raise ValueError(f"{name}: expected one entry a block ({len(teacher_map)}), got {len(value)}")
        blocks = [_Block(*parts) for parts in zip(student_maps, teacher_map, weights, biases, strict=True)]
        if not blocks:
            raise ValueError("teacher_map: expected at least one block, got none")
    for index, block in enumerate(blocks):
        check_block(index, *block)
    return blocks


def _reference(blocks: Sequence[_Block]) -> Tensor:
    losses = torch.stack([reference.feature_kd(*block) for block in blocks])
    return losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))


def _reference_value_and_grad(blocks: Sequence[_Block], grad_scale: Tensor | None) -> tuple[Tensor, list[tuple]]:
    losses, grads = [], []
    for maps, teacher, weights, biases in blocks:
        of_students = [
            feature_rows.value_and_grad(*student, grad_scale)
            for student in zip(maps, [teacher] * len(maps), weights, biases, strict=True)
        ]
        losses += [loss for loss, *_ in of_students]
        grads.append(tuple(zip(*(of_student[1:] for of_student in of_students), strict=True)))
    return torch.stack(losses).sum(), grads


def _divide(backend: str, blocks: Sequence[_Block]) -> tuple[list[int], list[int]]:
    """Which blocks the kernels take, and which the reference; those without students none."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    given = [i for i, block in enumerate(blocks) if block.maps]
    if backend == "reference" or not given:
        return [], given
    device = blocks[given[0]].teacher.device
    if backend == "auto":
        there = device.type == "cuda" and _HAS_TRITON
        compiled = [i for i in given if there and not _uncovered(i, blocks[i], device)]
        return compiled, [i for i in given if i not in compiled]
    if not _HAS_TRITON:
        raise RuntimeError("backend 'triton' is not there: No module named 'triton'; install triton >= 3.6 (Linux)")
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        raise ValueError(
            f"backend 'triton': expected maps on CUDA, got {device}; TRITON_INTERPRET=1, set before the kernels are "
            "first imported, runs them on the CPU"
        )
    for i in given:
        if why := _uncovered(i, blocks[i], device):
            raise ValueError(f"backend 'triton': {why}; backend='reference' does this")
    return given, []


def _interpreted() -> bool:
    from oekd_fast.kernels.feature_kd.launch import INTERPRETED

    return INTERPRETED


def _uncovered(index: int, block: _Block, device: torch.device) -> str | None:
    """What the kernels do not do of this block, if anything; `device` is that of the first."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        if gpu.major < 8:
            return f"expected a GPU of compute capability 8.0 or higher, got {gpu.major}.{gpu.minor}"
    teacher = block.teacher
    if teacher.dtype not in COMPILED_DTYPES:
        return f"block {index}: expected float32, bfloat16 or float16 maps, got {teacher.dtype}"
    if teacher.dim() != 4:
        return f"block {index}: expected maps [B, C, H, W], got {list(teacher.shape)}"
    for x in (teacher, *block.maps):
        if not 1 <= x.shape[1] <= MAX_CHANNELS:
            return f"block {index}: expected 1 to {MAX_CHANNELS} channels, got {x.shape[1]}"
    # Positions are counted, and placed within an image, in 32 bits.
    batch, pixels = teacher.shape[0], teacher.shape[2:].numel()
    if batch * pixels >= 2**30 or pixels >= 2**30 // MAX_CHANNELS:
        limits = f"{2**30} positions and {2**30 // MAX_CHANNELS} an image"
        return f"block {index}: expected fewer than {limits}, got {batch} x {pixels}"
    for name, part in (("student map", block.maps), ("weight", block.weights), ("bias", block.biases)):
        for j, tensor in enumerate(part):
            where = f"block {index}, {name} {j}"
            if tensor.device != device:
                return f"{where}: expected device {device} as the teacher's map, got {tensor.device}"
            if name == "student map" and tensor.dtype != teacher.dtype:
                return f"{where}: expected dtype {teacher.dtype} as the teacher's map, got {tensor.dtype}"
            if tensor.dtype not in COMPILED_DTYPES:
                return f"{where}: expected float32, bfloat16 or float16, got {tensor.dtype}"
    if teacher.device != device:
        return f"block {index}: expected device {device} as block 0, got {teacher.device}"
    return None
