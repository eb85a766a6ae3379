"""The fused BatchNorm, residual and ReLU on a GPU: bits, graphs, streams, large maps, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oekd_fast.layers.fast_module import use_fused_norms

from .norm_relu_calls import EPS, NormReLU, ops, random, same_bits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SIZES = pytest.mark.parametrize(
    "shape", [(128, 16, 32, 32), (128, 9, 32, 32), (128, 64, 8, 8), (64, 2100, 7, 7)], ids=str
)


def maps(shape, dtype=torch.bfloat16, seed=0):
    """Return x, the residual and the gradient of the output."""
    return [random(*shape, seed=seed + i).to("cuda", dtype) for i in range(3)]


def module(channels, fused=True):
    norm = NormReLU(channels, eps=EPS).cuda()
    use_fused_norms(norm, fused)
    with torch.no_grad():
        norm.norm.weight.copy_(random(channels, seed=5))
        norm.norm.bias.copy_(random(channels, seed=6))
    return norm


def step(norm, x, residual, dy):
    """Return the output and all gradients."""
    leaves = [x.detach().requires_grad_(), residual.detach().requires_grad_()]
    y = norm(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *norm.parameters()], dy)]


@SIZES
def test_repeated_calls_on_two_streams_give_the_same_bits(shape):
    norm, given = module(shape[1]), maps(shape)
    expected, came = step(norm, *given), []
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                came.append(step(norm, *given))
    torch.cuda.synchronize()
    assert all(same_bits(results, expected) for results in came)


@SIZES
def test_a_captured_graph_replays_on_new_values(shape):
    norm, given = module(shape[1]), maps(shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(norm, *given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(norm, *given)
    for seed in (10, 20):
        fresh = maps(shape, seed=seed)
        for static, new in zip(given, fresh, strict=True):
            static.copy_(new)
        graph.replay()
        assert same_bits(out, step(norm, *fresh))


def test_no_call_synchronises_with_the_host():
    norm, given = module(16), maps((8, 16, 8, 8))
    step(norm, *given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(norm, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_maps_of_more_than_2_to_31_elements():
    batch, channels, side = 513, 64, 256
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free memory")
    x = torch.empty(batch, side, side, channels, dtype=torch.bfloat16, device="cuda").permute(0, 3, 1, 2)
    for image in x:
        image.normal_()
    numbers = torch.ones(channels, device="cuda")
    y, mean, variance, rstd = ops.norm_relu(x, numbers, numbers, None, EPS)
    assert mean.abs().max() < 1e-3 and (variance - 1).abs().max() < 1e-3
    for image in (0, batch - 1):
        truth = torch.relu((x[image].double() - mean.double()[:, None, None]) * rstd[:, None, None] + 1)
        torch.testing.assert_close(y[image].double(), truth, rtol=4e-3, atol=1e-6)
    del y
    dx, _, dbias, _ = ops.norm_relu_backward(x, x, None, numbers, numbers, mean, rstd, False)
    assert dx[-1].any() and dbias.isfinite().all()


def test_torch_compile_makes_one_graph():
    torch.compiler.reset()
    norm, (x, residual, _) = module(8), maps((8, 8, 8, 8))
    assert torch.equal(torch.compile(norm, fullgraph=True)(x, residual), norm(x, residual))
    torch.compiler.reset()


def test_autocast_uses_the_op():
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False).to("cuda", memory_format=torch.channels_last)
    norm, x = module(8), random(8, 8, 8, 8).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y = norm(conv(x))
    assert y.dtype == torch.bfloat16 and "NormReLU" in type(y.grad_fn).__name__
