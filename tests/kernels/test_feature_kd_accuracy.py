"""Accuracy of the Triton kernels of the intermediate loss: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast import feature_kd_value_and_grad
from oekd_fast.kernels.feature_kd import launch as kernels
from oekd_fast.kernels.feature_kd.plan import RESIDENT_CHANNELS, plan_feature_kd
from oekd_fast.losses.feature_triton import MAX_CHANNELS

from ..support import oracle
from ..support.feature_kd_cases import (
    DEVICE,
    DTYPES,
    SHAPES,
    VIEWS,
    Block,
    as_numpy,
    at_once,
    check,
    differentiable,
)

HALVES = DTYPES[1:]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["n", "c", "ncc", "cn"])
def test_layouts_and_dtypes(layouts, dtype):
    check(Block(12, (9, 7, 5, 3), (6, 4), 3, dtype=dtype, layouts=layouts))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    check(Block(**SHAPES[name]))


@pytest.mark.parametrize("layouts", ["n", "c"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_channels(dtype, layouts):
    # Two tiles of positions, of the pseudo teacher's channels, and of the student's while the difference is made.
    block = Block(140 if dtype == torch.float32 else 129, (70,), (6, 3), 4, dtype=dtype, layouts=layouts)
    block.check(*differentiable(block))


def test_many_channels_of_two_students():
    block = Block(129, (17, 130), (3, 3), 1, dtype=torch.float16)
    block.check(*at_once(block))


def test_the_largest_supported_number_of_channels():
    block = Block(MAX_CHANNELS, (40,), (2, 2), 1, dtype=torch.float16)
    block.check(*at_once(block))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("teacher", [20, 129])
def test_adapters_in_fp32_of_maps_in_16_bits(dtype, teacher):
    block = Block(teacher, (17,), dtype=dtype, adapters=torch.float32)
    block.check(*differentiable(block))


def test_adapters_in_16_bits_of_maps_in_fp32():
    check(Block(20, (17, 5), adapters=torch.bfloat16))


@pytest.mark.parametrize("teacher, dtype", [(12, dtype) for dtype in DTYPES] + [(129, torch.float16)], ids=str)
def test_upstream_gradient(teacher, dtype):
    block = Block(teacher, (9,), dtype=dtype)
    block.check(*differentiable(block, upstream=-1024.0), upstream=-1024.0)


@pytest.mark.parametrize(
    "dtype, scale", [(torch.float32, 1e12), (torch.bfloat16, 1e12), (torch.float16, 300.0)], ids=str
)
def test_large_values(dtype, scale):
    check(Block(12, (9, 3), dtype=dtype, scale=scale))


def test_small_gradients_do_not_underflow_in_half_precision():
    # dA = 2 D / (rows C0) is below 6e-8, the smallest positive number of fp16.
    block = Block(16, (4,), (64, 32), 2, dtype=torch.float16, adapters=torch.float32, scale=1e-3)
    loss, _, (weight_grad,), (bias_grad,) = feature_kd_value_and_grad(*block.arguments, backend="triton")
    _, true_weight, true_bias = block.truth().grads
    assert oracle.error(as_numpy(weight_grad), true_weight) < 2e-3
    assert oracle.error(as_numpy(bias_grad), true_bias) < 2e-3


@pytest.mark.parametrize("name", VIEWS)
def test_maps_that_are_not_contiguous(name):
    block = Block(12, (9, 3), (4, 6))
    block.maps, block.teacher = [VIEWS[name](x) for x in block.maps], VIEWS[name](block.teacher)
    check(block)


def test_adapters_that_are_not_contiguous_or_convolutions():
    block = Block(12, (9, 5))
    block.weights = [block.weights[0].t().contiguous().t(), block.weights[1][:, :, None, None]]
    block.biases = [torch.stack([b, b], 1)[:, 0] for b in block.biases]
    check(block)


@pytest.mark.parametrize("layouts", ["n", "c"])
def test_gradients_of_maps_keep_their_layout(layouts):
    block = Block(12, (9, 5), layouts=layouts)
    for grad in feature_kd_value_and_grad(*block.arguments, backend="triton")[1]:
        assert grad.is_contiguous(memory_format=torch.channels_last if layouts == "c" else torch.contiguous_format)


@pytest.mark.parametrize("teacher", [12, 129])
def test_two_calls_return_equal_bits(teacher):
    block = Block(teacher, (9,), (6, 6), 4, dtype=torch.float16)
    (loss, grads), (again, grads_again) = (at_once(block) for _ in range(2))
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("teacher", [12, 129])
def test_a_launch_can_run_again(teacher):
    # A captured graph runs its launches again, so the counters must be zero after each run.
    block = Block(teacher, (9,), (6, 6), 2, dtype=torch.float16)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, backend="triton")
    buffers = tuple([torch.empty_like(grad) for grad in part] for part in grads)
    launch = kernels.feature_kd_launch(*block.arguments, loss=torch.empty_like(loss), out=buffers)
    for _ in range(2):
        launch.run(DEVICE)
        assert not launch.arguments["done"].any()
        assert torch.equal(launch.arguments["loss"], loss)
        for part, again in zip(grads, buffers, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(part, again, strict=True))
            for buffer in again:
                buffer.fill_(float("nan"))


@pytest.mark.parametrize("itemsize", [2, 4])
def test_regimes(itemsize):
    def regime(channels, **options):
        return plan_feature_kd(channels, (25, 12), 1000, itemsize, gradients=True, **options).regime

    most = RESIDENT_CHANNELS[itemsize]
    assert regime(most) == "resident" and regime(most + 1) == "tiled"
    small = {"shared_bytes": 99 * 1024}
    assert regime(most // 2, **small) == "resident" and regime(most // 2 + 1, **small) == "tiled"
    assert plan_feature_kd(16, (most + 1,), 1000, itemsize, gradients=True).regime == "tiled"
    assert plan_feature_kd(most, (25, 12), 1000, itemsize, gradients=False).regime == "value"


def test_every_program_has_positions():
    for rows in (1, 63, 64, 65, 100_000):
        for teacher in (16, 64, 512):
            for gradients in (False, True):
                plan = plan_feature_kd(teacher, (12, 3), rows, 2, gradients)
                assert 1 <= plan.chunks <= -(-rows // plan.block)
