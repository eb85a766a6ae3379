"""Differences between the outputs of an exported network and of the network itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest logit
# Networks of many layers differ by more from what they would compute without rounding. For these, the tolerance is
# this many times that difference, up to the largest tolerance.
_ROUNDINGS = 4.0
_LARGEST_TOLERANCE = 1e-3


@contextmanager
def plain_numerics() -> Iterator[None]:
    """Compute in full float32 on the CPU, without autocast, gradients, inference mode or compiled modules."""
    matmul, conv = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            matmul.fp32_precision = conv.fp32_precision = "ieee"
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision = before


def outputs_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the outputs of `network` for `images`, in order."""
    found = network(images)
    return list(found.values()) if isinstance(found, Mapping) else [found]


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of two lists of logits [B, C], in units of the largest logit of each.

    It is infinite if shapes differ or a value is NaN.
    """
    if [z.shape for z in found] != [z.shape for z in expected]:
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = ((one.double() - other.double()).abs().max() / scale.double()).item()
        if not difference <= worst:  # True for NaN too
            worst = difference if difference == difference else float("inf")
    return worst


def tolerance_of(network: nn.Module, images: Tensor) -> float:
    """Return the difference up to which another program may round differently than `network`.

    Args:
        network: a network in float32 on the CPU, in evaluation mode.
        images: images that it takes.
    """
    expected = outputs_of(network, images)
    exact = copy.deepcopy(network).double()
    try:
        rounding = largest_difference(
            expected, outputs_of(exact, images.double() if images.is_floating_point() else images)
        )
    except RuntimeError:  # the network converts to float32 itself, and cannot compute in float64
        return TOLERANCE
    return min(max(TOLERANCE, _ROUNDINGS * rounding), _LARGEST_TOLERANCE)
