"""Floating-point operations of the forward pass of students."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oekd_fast.family.ensemble import StudentEnsemble


class FamilyFlops(NamedTuple):
    """Floating-point operations of the forward pass for one image.

    Args:
        base: those of the base.
        branches: those of each branch, in the order of `members`.
    """

    base: int
    branches: tuple[int, ...]


def student_flops(ensemble: StudentEnsemble, image_size: int | tuple[int, int]) -> list[int]:
    """Count the floating-point operations of each student, base and branch, for one image.

    Convolutions and matrix products are counted, with two operations per multiply-add. The networks are built again on
    the meta device, so that nothing is computed.

    Args:
        ensemble: a family, on any device.
        image_size: height and width in pixels, or one number for both.

    Returns:
        One number per member, in the order of `members`.

    Raises:
        ValueError: `image_size` is not one or two numbers >= 1.
    """
    base, branches = family_flops(ensemble, image_size)
    return [base + branch for branch in branches]


@torch.no_grad()
def family_flops(ensemble: StudentEnsemble, image_size: int | tuple[int, int]) -> FamilyFlops:
    """Count as `student_flops` does, with the base apart from the branches."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"image_size: expected one or two numbers >= 1, got {image_size!r}")
    architecture, n = ensemble.architecture, ensemble.num_students
    with torch.device("meta"):
        shared, base = _count(
            architecture.build_base(ensemble.in_channels), torch.empty(1, ensemble.in_channels, *size)
        )
        branches = [architecture.build_branch(j, n, ensemble.num_classes) for j in ensemble.members]
    return FamilyFlops(base, tuple(_count(branch, shared)[1] for branch in branches))


def _count(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Return the output of `module` for `x`, and its number of operations."""
    with FlopCounterMode(display=False) as counter:
        result = module.eval()(x)
    return result, counter.get_total_flops()
