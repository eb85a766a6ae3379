"""The intermediate loss' unit of work: the maps of all students after one block of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oekd_fast.losses.checks import check_block

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of adapters, for the compiled kernels


@dataclass(frozen=True)
class FeatureBlock:
    """Maps of n students after one block, the map that they are compared with, and their adapters.

    maps: n tensors [B, C_j, H, W].
    teacher: [B, C_0, H, W].
    weights: n tensors [C_0, C_j] or [C_0, C_j, 1, 1], the 1x1 convolutions that adapt the maps.
    biases: n tensors [C_0].
    """

    maps: Sequence[Tensor]
    teacher: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """All maps, then all weights, then all biases; the teacher's map receives no gradient."""
        return *self.maps, *self.weights, *self.biases

    def detached(self) -> FeatureBlock:
        """Return the same block outside the autograd graph."""
        maps, weights, biases = ([x.detach() for x in part] for part in (self.maps, self.weights, self.biases))
        return FeatureBlock(maps, self.teacher.detach(), weights, biases)


@dataclass(frozen=True)
class FeatureGradients:
    """Gradients of one `FeatureBlock`, one a student, each with the shape and dtype of its tensor."""

    maps: tuple[Tensor, ...] = ()
    weights: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """In the order of `FeatureBlock.differentiable`."""
        return *self.maps, *self.weights, *self.biases


def feature_blocks(
    student_maps: Sequence, teacher_map: Tensor | Sequence[Tensor], weights: Sequence, biases: Sequence
) -> list[FeatureBlock]:
    """Return the blocks that the arguments of :func:`oekd_fast.feature_kd_loss` describe.

    Raises:
        ValueError: lengths or shapes do not fit together; the message names the block and the student.
    """
    if isinstance(teacher_map, Tensor):
        blocks = [FeatureBlock(student_maps, teacher_map, weights, biases)]
    else:
        given = {"student_maps": student_maps, "weights": weights, "biases": biases}
        for name, value in given.items():
            if len(value) != len(teacher_map):
                raise ValueError(f"{name}: expected one entry a block ({len(teacher_map)}), got {len(value)}")
        if not teacher_map:
            raise ValueError("teacher_map: expected at least one block, got none")
        blocks = [FeatureBlock(*parts) for parts in zip(student_maps, teacher_map, weights, biases, strict=True)]
    check_blocks(blocks)
    return blocks


def check_blocks(blocks: Sequence[FeatureBlock]) -> None:
    """Raise ValueError, naming block and student, unless the shapes of each block fit together."""
    for index, block in enumerate(blocks):
        check_block(index, block.maps, block.teacher, block.weights, block.biases)


def other_kind(index: int, block: FeatureBlock, device: torch.device) -> str | None:
    """Return which tensor of block `index` the compiled kernels do not take beside the teacher's map, or None.

    `device` is that of the first block. Maps have one dtype, and adapters one of `COMPILED_DTYPES`.
    """
    teacher = block.teacher
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
