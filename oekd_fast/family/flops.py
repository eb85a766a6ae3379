"""Floating-point operations of the forward pass of students."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms, use_winograd_convs


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

    Convolutions and matrix products are counted, with two operations per multiply-add. Copies of the networks run on
    the meta device, so that nothing is computed; only networks that cannot run there compute one image.

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
    dtype = next((p.dtype for p in ensemble.base.parameters()), None)
    images = torch.empty(1, ensemble.in_channels, *size, dtype=dtype, device="meta")
    shared, base = _count(ensemble.base, images)
    return FamilyFlops(base, tuple(_count(branch, shared)[1] for branch in ensemble.branches))


def _count(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Return the output of a copy of `module` for `x`, a tensor on meta, and its number of operations."""
    try:
        return _run(meta_copy(module), x)
    except RuntimeError:  # a network of a user holds tensors that are neither parameters nor buffers
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        result, flops = _run(copy.deepcopy(module), torch.zeros(x.shape, dtype=x.dtype, device=device))
        return result.to("meta") if isinstance(result, Tensor) else result, flops


def _run(copied: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    copied.eval()
    # The forms of PyTorch, which the counter knows.
    use_fused_norms(copied, False)
    use_direct_convs(copied, False)
    use_winograd_convs(copied, False)
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        result = copied(x)
    return result, counter.get_total_flops()
