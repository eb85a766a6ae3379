"""Losses between the feature maps of students and those of their teacher, and how a training step gets gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from oekd_fast.losses.feature_block import FeatureBlock, check_blocks
from oekd_fast.losses.feature_kd import blocks_loss, blocks_value_and_grad


@dataclass(frozen=True)
class ComparedStudent:
    """A student whose feature maps are compared with those of its teacher.

    maps: its map [B, C_b, H_b, W_b] after each block.
    adapters: 1x1 convolutions to the channels of the teacher's maps, one a block.
    helpers: further modules of training, see `StudentEnsemble`: its critics, one a block, or none that the loss uses.
    """

    maps: Sequence[Tensor]
    adapters: Sequence[nn.Conv2d]
    helpers: Sequence[nn.Module] = ()


class Comparison(Protocol):
    """A loss between the maps of students and those of their teacher, one [B, C, H, W] a block.

    It is a mean over images and a sum over students, so that losses and gradients of parts of a batch, weighted by
    their shares of the images, add up to those of the batch. The teacher's maps receive no gradient.
    """

    def loss(self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor]) -> Tensor:
        """Return the differentiable loss, a scalar, float32 (float64 for float64 maps)."""
        ...

    def value_and_grad(
        self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor], grad_scale: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the detached loss and the gradients of each student's maps, one a block.

        Gradients of the students' modules are added to `.grad`.

        Args:
            grad_scale: one-element tensor that multiplies all gradients, but not the loss.
        """
        ...


class MapComparison:
    """The mean squared error between adapted maps and the teacher's; see :func:`oekd_fast.feature_kd_loss`."""

    def loss(self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor]) -> Tensor:
        return blocks_loss(_blocks(students, teacher))

    def value_and_grad(
        self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor], grad_scale: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        loss, gradients = blocks_value_and_grad(_blocks(students, teacher), grad_scale=grad_scale)
        map_grads: list[list[Tensor]] = [[] for _ in students]
        for b, of_block in enumerate(gradients):
            of_students = zip(students, map_grads, of_block.maps, of_block.weights, of_block.biases, strict=True)
            for student, of_maps, grad, weight_grad, bias_grad in of_students:
                of_maps.append(grad)
                adapter = student.adapters[b]
                for parameter, own in ((adapter.weight, weight_grad), (adapter.bias, bias_grad)):
                    parameter.grad = own if parameter.grad is None else parameter.grad + own
        return loss, map_grads


class AutogradComparison:
    """A loss in plain PyTorch, whose gradients autograd computes.

    Args:
        function: returns the differentiable loss of students for the teacher's maps, as `Comparison.loss` does. It
            runs without autocast.
    """

    def __init__(self, function: Callable[[Sequence[ComparedStudent], Sequence[Tensor]], Tensor]) -> None:
        self._function = function

    def loss(self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor]) -> Tensor:
        with torch.autocast(teacher[0].device.type, enabled=False):
            return self._function(students, [target.detach() for target in teacher])

    def value_and_grad(
        self, students: Sequence[ComparedStudent], teacher: Sequence[Tensor], grad_scale: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        leaves = [[x.detach().requires_grad_() for x in student.maps] for student in students]
        loss = self.loss([replace(s, maps=maps) for s, maps in zip(students, leaves, strict=True)], teacher)
        loss.backward(grad_scale.reshape(()).to(loss.dtype))
        return loss.detach(), [[x.grad for x in maps] for maps in leaves]


def adapted_maps(student: ComparedStudent) -> list[Tensor]:
    """Return the maps of `student` with the channels of the teacher's, one a block, float32 (float64 for float64)."""
    adapted = []
    for x, adapter in zip(student.maps, student.adapters, strict=True):
        x = widened(x)
        adapted.append(nn.functional.conv2d(x, adapter.weight.to(x.dtype), adapter.bias.to(x.dtype)))
    return adapted


def widened(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if that is its dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(students: Sequence[ComparedStudent], teacher: Sequence[Tensor]) -> list[FeatureBlock]:
    blocks = []
    for b, target in enumerate(teacher):
        adapters = [student.adapters[b] for student in students]
        maps = [student.maps[b] for student in students]
        blocks.append(FeatureBlock(maps, target, [a.weight for a in adapters], [a.bias for a in adapters]))
    check_blocks(blocks)
    return blocks
