"""The public intermediate loss: choice of the backend for each block, op definitions, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.losses import feature_rows, reference, transforms
from oekd_fast.losses.checks import check_tensor
from oekd_fast.losses.feature_block import FeatureBlock, FeatureGradients, feature_blocks

BACKENDS = ("auto", "reference", "triton")
COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# With more channels, the multiplications that the kernels repeat cost more than the memory traffic that they save.
MAX_CHANNELS = 512
_HAS_TRITON = find_spec("triton") is not None  # imported at its first launch, because that takes a second

_BLOCK = "Tensor[] maps, Tensor teacher, Tensor[] weights, Tensor[] biases"
_library = torch.library.Library("oekd_fast", "FRAGMENT")
# The loss is added to `previous`, so that the sum over the blocks of a network needs no launch of its own.
_library.define(f"feature_kd_value({_BLOCK}, *, Tensor? previous=None) -> Tensor")
_library.define(
    f"feature_kd_value_and_grad({_BLOCK}, *, Tensor? grad_scale=None, Tensor? previous=None)"
    " -> (Tensor, Tensor[], Tensor[], Tensor[])"
)


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
        backend: "auto" uses the compiled kernels for each block that they support, and the reference for the others.
            "reference" and "triton" (CUDA) use that backend alone. The kernels support maps of one dtype, float32,
            bfloat16 or float16, contiguous or channels_last (others are copied), adapters of any of these dtypes, and
            at most 512 channels.

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
    """Compute the intermediate loss and its gradients in one launch a block, outside autograd.

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
    compiled, others = _divide(backend, blocks)
    if not compiled:
        return _reference(blocks)
    loss = _compiled([blocks[i] for i in compiled])
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
    compiled, others = _divide(backend, blocks)
    if _transformed(blocks):
        return _transformed_value_and_grad(blocks, grad_scale)
    losses, gradients = [], [FeatureGradients()] * len(blocks)
    for chosen, run in ((compiled, _value_and_grad), (others, _reference_value_and_grad)):
        if chosen:
            loss, of_chosen = run([blocks[i] for i in chosen], grad_scale)
            losses.append(loss)
            for i, of_block in zip(chosen, of_chosen, strict=True):
                gradients[i] = of_block
    if not losses:  # there are no students
        return _reference(blocks), gradients
    return (losses[0] if len(losses) == 1 else losses[0] + losses[1]), gradients


def gradient_buffers(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Allocate dense gradients; a map's is channels_last where channels are the map's innermost axis."""
    formats = [torch.channels_last if x.stride(1) == 1 else torch.contiguous_format for x in maps]
    return (
        [torch.empty_like(x, memory_format=form) for x, form in zip(maps, formats, strict=True)],
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights],
        [torch.empty_like(bias, memory_format=torch.contiguous_format) for bias in biases],
    )


# -- the compiled kernels


class _FeatureKD(torch.autograd.Function):
    """Computes the loss first and saves its inputs alone; backward computes the gradients in one launch a block."""

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
        blocks = _unflatten(ctx.counts, ctx.saved_tensors)
        if transforms.is_batched(upstream):  # is_grads_batched=True hides a batch of numbers in `upstream`
            _, gradients = _value_and_grad([_in_float32(block) for block in blocks], None)
            scaled = [grad * upstream for block in gradients for grad in block.flat]
            like = (tensor for block in blocks for tensor in block.differentiable)
            grads = [grad.to(tensor.dtype) for grad, tensor in zip(scaled, like, strict=True)]
        else:
            _, gradients = _value_and_grad(blocks, upstream)
            grads = [grad for block in gradients for grad in block.flat]
        return None, *(None for _ in ctx.counts), *grads


def _compiled(blocks: Sequence[FeatureBlock]) -> Tensor:
    tensors = [tensor for block in blocks for tensor in block.differentiable]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        counts = tuple(len(block.maps) for block in blocks)
        return _FeatureKD.apply(counts, *(block.teacher for block in blocks), *tensors)
    return _value(blocks)


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


def _value(blocks: Sequence[FeatureBlock]) -> Tensor:
    loss = None
    for block in blocks:
        loss = torch.ops.oekd_fast.feature_kd_value(
            block.maps, block.teacher.detach(), block.weights, block.biases, previous=loss
        )
    return loss


def _value_and_grad(blocks: Sequence[FeatureBlock], grad_scale: Tensor | None) -> tuple[Tensor, list[FeatureGradients]]:
    loss, gradients = None, []
    for block in (block.detached() for block in blocks):
        loss, maps, weights, biases = torch.ops.oekd_fast.feature_kd_value_and_grad(
            block.maps, block.teacher, block.weights, block.biases, grad_scale=grad_scale, previous=loss
        )
        gradients.append(FeatureGradients(tuple(maps), tuple(weights), tuple(biases)))
    return loss, gradients


def _run_value(maps, teacher, weights, biases, *, previous=None):
    from oekd_fast.kernels.feature_kd.launch import feature_kd_value

    return feature_kd_value(maps, teacher, weights, biases, previous=previous)


def _run_value_and_grad(maps, teacher, weights, biases, *, grad_scale=None, previous=None):
    from oekd_fast.kernels.feature_kd.launch import feature_kd_value

    out = gradient_buffers(maps, weights, biases)
    loss = feature_kd_value(maps, teacher, weights, biases, out=out, grad_scale=grad_scale, previous=previous)
    return loss, *out


@on_one_device
def _fake_value(maps, teacher, weights, biases, *, previous=None):
    return teacher.new_empty((), dtype=torch.float32)


@on_one_device
def _fake_value_and_grad(maps, teacher, weights, biases, *, grad_scale=None, previous=None):
    return teacher.new_empty((), dtype=torch.float32), *gradient_buffers(maps, weights, biases)


torch.library.register_fake("oekd_fast::feature_kd_value", _fake_value, lib=_library)
torch.library.register_fake("oekd_fast::feature_kd_value_and_grad", _fake_value_and_grad, lib=_library)
for _device in ("CUDA", "CPU"):  # on the CPU the kernels run in Triton's interpreter alone, see `_divide`
    _library.impl("feature_kd_value", _run_value, _device)
    _library.impl("feature_kd_value_and_grad", _run_value_and_grad, _device)


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


def _divide(backend: str, blocks: Sequence[FeatureBlock]) -> tuple[list[int], list[int]]:
    """Return the indices of the blocks that the kernels compute, and of those that the reference computes.

    Blocks without students are in neither list.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    given = [i for i, block in enumerate(blocks) if block.maps]
    if backend == "reference" or not given:
        return [], given
    device = blocks[given[0]].teacher.device
    if backend == "auto":
        if device.type != "cuda" or not _HAS_TRITON or _transformed(blocks):
            return [], given
        compiled = [i for i in given if _unsupported(i, blocks[i], device) is None]
        return compiled, [i for i in given if i not in compiled]
    if not _HAS_TRITON:
        raise RuntimeError("backend 'triton' is unavailable: No module named 'triton'; install triton >= 3.6 (Linux)")
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        raise ValueError(
            f"backend 'triton': expected maps on CUDA, got {device}; TRITON_INTERPRET=1, set before the kernels are "
            "first imported, runs them on the CPU"
        )
    if _transformed(blocks):
        raise ValueError(
            "backend 'triton': expected a call outside the transforms of torch.func and without dual tensors, "
            "got one inside; backend='reference' supports this"
        )
    for i in given:
        if why := _unsupported(i, blocks[i], device):
            raise ValueError(f"backend 'triton': {why}; backend='reference' supports this")
    return given, []


def _interpreted() -> bool:
    from oekd_fast.kernels.feature_kd.launch import INTERPRETED

    return INTERPRETED


def _unsupported(index: int, block: FeatureBlock, device: torch.device) -> str | None:
    """Return why the kernels do not support block `index`, or None; `device` is that of the first block."""
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
    # The kernels count positions, and offsets within an image, in 32 bits.
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
