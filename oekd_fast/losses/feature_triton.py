"""The intermediate loss on CUDA: one launch of the Triton kernels (kernels/feature_kd) for each block."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.losses.feature_block import (
    COMPILED_DTYPES,
    FeatureBlock,
    FeatureGradients,
    gradient_buffers,
    other_kind,
)

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


def value(blocks: Sequence[FeatureBlock]) -> Tensor:
    """Return the loss of blocks, each with students."""
    loss = None
    for block in blocks:
        loss = torch.ops.oekd_fast.feature_kd_value(
            block.maps, block.teacher.detach(), block.weights, block.biases, previous=loss
        )
    return loss


def value_and_grad(blocks: Sequence[FeatureBlock], grad_scale: Tensor | None) -> tuple[Tensor, list[FeatureGradients]]:
    """Return the loss of blocks, each with students, and the gradients of each."""
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
for _device in ("CUDA", "CPU"):  # on the CPU the kernels run in Triton's interpreter alone, see `unsupported`
    _library.impl("feature_kd_value", _run_value, _device)
    _library.impl("feature_kd_value_and_grad", _run_value_and_grad, _device)


def unavailable() -> str | None:
    """Return why no call can run in this installation; None if calls can run."""
    return None if _HAS_TRITON else "No module named 'triton'; install triton >= 3.6 (Linux)"


def _interpreted() -> bool:
    from oekd_fast.kernels.feature_kd.launch import INTERPRETED

    return INTERPRETED


def unsupported(index: int, block: FeatureBlock, device: torch.device) -> str | None:
    """Return why the kernels do not support block `index`, or None; `device` is that of the first block."""
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return (
            f"expected maps on CUDA, got {device}; TRITON_INTERPRET=1, set before the kernels are first imported, runs "
            "them on the CPU"
        )
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
    return other_kind(index, block, device)
