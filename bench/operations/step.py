"""The operations of one step of the engine, on the code path that it takes on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal
from unittest import mock

import torch
from torch import Tensor

from oekd_fast.layers import direct_conv
from oekd_fast.losses import comparison
from oekd_fast.losses.feature_block import gradient_buffers
from oekd_fast.training import backward, prepare
from oekd_fast.training.weight_casts import cast_weights_together

from ..step.ours import OurStep
from ..step.problem import StepProblem
from .count import DeviceOperations

# The operations do not depend on the sizes of images and batches.
TINY = StepProblem(device="cpu", batch_size=2, image_size=8, classes=10, batches=2)


def count_step(
    model: str, num_students: int = 5, precision: str = "bf16", device: Literal["cpu", "cuda"] = "cpu"
) -> DeviceOperations:
    """Count the operations of one eager step, from fetching the batch to the metrics.

    On the CPU, the step takes the configuration that CUDA gets: channels_last, padded channels, autocast with weights
    that are cast together, the fused optimizer, and BatchNorm and the losses as ops. What that count does not contain:
    the kernels behind an operation of cuDNN or cuBLAS; the differences of autocast between CPU and CUDA, which concern
    no operator of the networks of this package; and the copies that PyTorch makes inside an operator. On CUDA the same
    step runs as it is; that has not been tried on a GPU.

    Args:
        model: name of an architecture.
        num_students: students of the family.
        precision: "fp32" or "bf16".
        device: where the step runs.
    """
    problem = replace(TINY, model=model, num_students=num_students, precision=precision, device=device)
    imitated = device == "cpu"
    with _cuda_path() if imitated else nullcontext():
        ours = OurStep(problem, executor="sequential")
        if imitated:
            cast_weights_together(ours.family)
        for _ in range(2):  # the first step creates state
            with DeviceOperations(STAND_INS if imitated else {}) as counted:
                ours.step()
    return counted


@contextmanager
def _cuda_path() -> Iterator[None]:
    """Have steps on the CPU make the choices that `oekd_fast` makes by the device of its tensors as on CUDA."""
    on_streams = mock.patch.object(backward, "backward_in_threads", backward._backward_on_streams)
    by_triton = partial(comparison.blocks_value_and_grad, backend="triton")
    in_triton = mock.patch.object(comparison, "blocks_value_and_grad", by_triton)
    strided = mock.patch.object(direct_conv, "_takes_stride", lambda conv, x: True)
    with on_streams, in_triton, strided, mock.patch.object(prepare, "pads_channels", lambda config, ensemble: True):
        yield


def _feature_gradients(maps: list[Tensor], teacher: Tensor, weights: list[Tensor], biases: list[Tensor], **options):
    loss = teacher.new_zeros((), dtype=weights[0].dtype)
    return loss, *([grad.zero_() for grad in part] for part in gradient_buffers(maps, weights, biases))


def _convolution_gradients(dy: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, *options):
    grads = torch.zeros_like(x), torch.zeros_like(weight), weight.new_zeros(bias_sizes or [0])
    return [grad if wanted else None for grad, wanted in zip(grads, options[-1], strict=True)]


# Zeros in place of what the CPU computes in Triton's slow interpreter only, and of oneDNN's gradients of strided
# convolutions, which may crash.
STAND_INS = {
    "oekd_fast::feature_kd_value_and_grad": _feature_gradients,
    "aten::convolution_backward": _convolution_gradients,
}
